"""A model as C++ source for TFLite Micro: `tfcompress.export.microcontroller.c_array`."""
