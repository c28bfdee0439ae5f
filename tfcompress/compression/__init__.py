"""Models that train under techniques, and models made plain again."""
