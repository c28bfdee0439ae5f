"""What ships around a file: an Android project, C++ for microcontrollers."""
