"""One module for each tool: `TITLE` and `run(file: Subject) -> Outcome`."""
