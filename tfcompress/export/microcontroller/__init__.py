"""A model as C++ source for TFLite Micro: `tfcompress.microcontroller.c_array.c_array`."""
