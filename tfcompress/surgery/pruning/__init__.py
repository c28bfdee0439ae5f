"""Channels, neurons and heads that are removed from all weights at once."""
