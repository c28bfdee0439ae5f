"""Imports what makes itself known: layers that Keras loads by name, the ways of tf_keras models."""

from tfcompress import distillation, legacy, techniques
from tfcompress.graph import layers as flat_layers
from tfcompress.layers import compressed
from tfcompress.quantization import openers

__all__ = ["compressed", "distillation", "flat_layers", "legacy", "openers", "techniques"]
