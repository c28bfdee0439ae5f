"""A model over a window made one over the next frames of a stream."""
