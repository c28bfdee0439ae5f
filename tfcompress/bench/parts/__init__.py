"""Measurements of parts, each a script: `make bench-parts`."""
