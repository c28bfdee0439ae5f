"""A Keras model as .tflite, ONNX or OpenVINO, and the proof that it computes the same."""
