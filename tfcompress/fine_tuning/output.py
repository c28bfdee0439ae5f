"""The last stage: a model as the bytes of a file, and what the file is compared with."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras

from tfcompress.conversion.convert import convert
from tfcompress.conversion.settings import (
    natural_precision,
    quantize_techniques,
    settle,
    settle_trained,
)
from tfcompress.files import temporary, writing
from tfcompress.fine_tuning.options import Options
from tfcompress.targets.result import Check
from tfcompress.tflite.flatbuffer import zipped_size


def precision_of(small: keras.Model, options: Options) -> str | None:
    """What a .tflite file computes in: what its weights were trained for; None of a .keras file."""
    if Path(options.output).suffix == ".keras":
        return None
    precision = options.precision or natural_precision(small)
    if options.precision is None and precision == "int4":  # the target may take int8 alone
        precision = settle_trained(settle(target=options.target), small).precision
    settle(precision, options.io_dtype, target=options.target)
    trained = any(t.activation_bits is not None for t in quantize_techniques(small))
    if precision in ("int8", "int16x8") and not trained:
        raise ValueError(
            f"precision '{precision}' needs the ranges of activations, which a recipe with "
            "quantize trains; received none. Pass --recipe, such as int8, or another --precision."
        )
    return precision


def write(
    options: Options,
    original: keras.Model,
    final: keras.Model,
    compilation: Callable[[], dict[str, Any] | None],
    precision: str | Mapping[Any, str] | None,
    calibration: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes a model; returns the fields of `Written`, but for the time that it took.

    Args:
        calibration: arrays by the names of inputs, if precisions are those of layers.
    """
    suffix = Path(options.output).suffix
    old, _ = content_of(original, suffix, compilation())
    settings: dict[str, Any] = {}
    if precision is not None:
        settings = {"precision": precision, "io_dtype": options.io_dtype, "target": options.target}
        settings["compressed_weights"] = options.compressed_weights or None
        settings["ram"] = options.ram
    if calibration is not None:
        settings["calibration"] = calibration
    new, check = content_of(final, suffix, compilation(), **settings)
    output = os.fspath(options.output)
    if options.keep is None:
        writing.atomic_write(output, new)
    else:
        kept, _ = content_of(final, ".keras", compilation())
        files = {output: new, options.keep: kept}
        writing.write_all({os.path.realpath(path): data for path, data in files.items()})
    return {
        "model": os.fspath(options.model),
        "output": output,
        "precision": precision if precision is None or isinstance(precision, str) else "mixed",
        "before_bytes": len(old),
        "before_zipped": zipped_size(old),
        "bytes": len(new),
        "zipped": zipped_size(new),
        "check": None if check is None else dataclasses.replace(check, path=output),
    }


def content_of(
    model: keras.Model,
    suffix: str,
    compilation: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[bytes, Check | None]:
    """A model as the bytes of a file, and what its target says of them."""
    with temporary.folder() as folder:
        path = Path(folder, f"model{suffix}")
        if suffix == ".tflite":
            check = convert(model, path, **{"precision": "float32", **settings}).check
            return path.read_bytes(), check
        if compilation is not None:
            model.compile(**compilation)
        model.save(path)
        return path.read_bytes(), None
