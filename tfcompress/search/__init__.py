"""Search: which layers to compress how much."""
