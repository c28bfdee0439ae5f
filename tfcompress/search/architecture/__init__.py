"""Search for an architecture: the space, what judges candidates, and the search itself."""
