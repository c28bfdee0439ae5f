"""The compression benchmark, `tfcompress bench`, and older measurements, `make bench-parts`."""
