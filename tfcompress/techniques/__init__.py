"""Techniques: how a weight becomes the effective weight while a model trains."""

from tfcompress.techniques.quantize import Quantize
from tfcompress.techniques.technique import Technique

__all__ = ["Quantize", "Technique"]
