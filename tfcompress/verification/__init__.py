"""Whether a file computes what Keras computed."""
