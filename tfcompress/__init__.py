"""tfcompress: Keras 3 models made small and fast for phones, accelerators and microcontrollers."""

from tfcompress.callbacks import UpdateCompression
from tfcompress.compress import compress, finalize, quantize_aware
from tfcompress.graph import flatten
from tfcompress.recipe import Recipe, Rule
from tfcompress.techniques import Quantize

__version__ = "0.1.0"
