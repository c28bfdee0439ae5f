"""A Keras model as .tflite, ONNX or OpenVINO."""
