"""The compression benchmark, `tfcompress bench`."""
