"""What makes a trained model lose less when it is quantized without training: pure functions."""
