"""Reports as one HTML file: of a benchmark, or of one model."""
