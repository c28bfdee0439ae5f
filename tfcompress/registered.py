"""Imports what makes itself known: layers that Keras loads by name, the ways of tf_keras models."""

from typing import Any

from tfcompress import distillation, techniques
from tfcompress.dispatch import register_legacy
from tfcompress.graph import layers as flat_layers
from tfcompress.layers import compressed
from tfcompress.quantization import openers

__all__ = ["compressed", "distillation", "flat_layers", "openers", "techniques"]


# TensorFlow Model Optimization and tf_keras take seconds: only for a model of theirs.
@register_legacy
def compress(model: Any, rules: Any) -> Any:
    """See `tfcompress.compress`."""
    from tfcompress.legacy import compression

    return compression.compress(model, rules)


@register_legacy
def finalize(model: Any) -> Any:
    """See `tfcompress.finalize`."""
    from tfcompress.legacy import compression

    return compression.finalize(model)


@register_legacy
def hand_over(callback: Any, model: Any) -> None:
    """See `tfcompress.UpdateCompression`."""
    from tfcompress.legacy import compression

    compression.hand_over(callback, model)


@register_legacy
def convert(job: Any, model: Any, calibration: Any, samples: int | None) -> Any:
    """See `tfcompress.convert`."""
    from tfcompress.legacy import conversion

    return conversion.run_legacy(job, model, calibration, samples)
