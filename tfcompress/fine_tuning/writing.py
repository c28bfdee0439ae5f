"""The files that fine-tuning writes, and what a .tflite file computes in."""

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import Any

import keras

from tfcompress.fine_tuning.options import Options
from tfcompress.tflite.check import Check, check
from tfcompress.tflite.convert import convert
from tfcompress.tflite.settings import settle
from tfcompress.tflite.trained import quantize_techniques


def precision_of(small: keras.Model, options: Options) -> str | None:
    """What a .tflite file computes in: what its weights were trained for; None of a .keras file.

    Args:
        small: the model that is to be trained.
        options: with the precision, the type of inputs and outputs and the target that were asked
            for.

    Raises:
        ValueError: they do not go together, or the recipe trains no ranges for the precision.
    """
    if Path(options.output).suffix == ".keras":
        return None
    precision = options.precision or natural_precision(small)
    settle(precision, options.io_dtype, target=options.target)
    trained = any(t.activation_bits is not None for t in quantize_techniques(small))
    if precision in ("int8", "int16x8") and not trained:
        raise ValueError(
            f"precision '{precision}' needs the ranges of activations, which a recipe with "
            "quantize trains; received none. Pass --recipe, such as int8, or another --precision."
        )
    return precision


def conversion(options: Options, precision: str | None) -> dict[str, Any]:
    """What `content_of` makes a .tflite file with; nothing for a .keras file."""
    if precision is None:
        return {}
    return {"precision": precision, "io_dtype": options.io_dtype, "target": options.target}


def check_of(content: bytes, options: Options) -> Check | None:
    """What the target says of the output; None without a target."""
    if options.target is None:
        return None
    found = check(content, options.target)
    return dataclasses.replace(found, path=os.fspath(options.output))


def natural_precision(small: keras.Model) -> str:
    """The precision that a model was trained for.

    Args:
        small: a model from `compress`, or a plain one.
    """
    found = quantize_techniques(small)
    if not found or max(t.bits for t in found) > 8:
        return "float32"
    if min(t.bits for t in found) <= 4:
        return "int4"
    activations = [t.activation_bits for t in found]
    if 16 in activations:
        return "int16x8"
    return "int8" if 8 in activations else "dynamic_int8"


def content_of(
    model: keras.Model,
    suffix: str,
    compilation: dict[str, Any] | None = None,
    precision: str = "float32",
    io_dtype: str | None = None,
    target: Any = None,
) -> bytes:
    """A model as the bytes of a file.

    Args:
        model: it is compiled anew.
        suffix: `.keras` or `.tflite`.
        compilation: arguments of `compile` to save in a .keras file; None leaves it as it is.
        precision, io_dtype, target: of a .tflite file.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"model{suffix}")
        if suffix == ".tflite":
            convert(model, path, precision=precision, io_dtype=io_dtype, target=target)
        else:
            if compilation is not None:
                model.compile(**compilation)
            model.save(path)
        return path.read_bytes()
