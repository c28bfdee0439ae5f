"""Whole-or-nothing files, models, arrays and samples from untrusted input."""
