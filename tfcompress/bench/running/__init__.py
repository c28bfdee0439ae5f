"""The benchmark as it runs: what is to do, each method in a process of its own, results."""
