"""What compression costs, measured: run by `make bench`."""
