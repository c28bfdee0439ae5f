"""Imports every module whose layers Keras must know by name to load a saved model."""

from tfcompress import distillation, flat_layers, layers, primitives, techniques

__all__ = ["distillation", "flat_layers", "layers", "primitives", "techniques"]
