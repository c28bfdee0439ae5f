"""A Keras model as a flat graph of operations."""
