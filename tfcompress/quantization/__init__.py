"""Layers opened into operations with integer kernels, and where ranges are taken."""
