"""Surgery: a Keras model in, a smaller plain Keras model out."""
