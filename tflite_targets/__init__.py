"""Target files: what each device or runtime asks of a .tflite file, as data."""
