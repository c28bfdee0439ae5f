"""Lowering: from a Keras model to a .tflite file, and what can be said about that file."""
