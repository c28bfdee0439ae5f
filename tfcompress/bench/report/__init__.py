"""The page on a benchmark."""
