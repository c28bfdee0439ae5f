"""What a file is converted with: said by the user, asked for by the target, or the usual."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from tfcompress.suggestions import expected_one_of
from tfcompress.targets import Target, load_target

IO_DTYPES = {
    "float32": ("float32",),
    "float16": ("float32",),
    "dynamic_int8": ("float32",),
    "int8": ("float32", "int8", "uint8"),
    "int16x8": ("float32", "int16"),
    "int4": ("float32", "int8", "uint8"),
}
PRECISIONS = tuple(IO_DTYPES)
FORMATS = ("tflite", "onnx", "openvino")
_ENDINGS = {".onnx": "onnx", ".xml": "openvino"}
GRANULARITIES = ("per_channel", "per_tensor")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to convert; see `convert`."""

    precision: str
    io_dtype: str
    batch_size: int
    dense: str
    target: Target | None = None


def settle(
    precision: str | None = None,
    io_dtype: str | None = None,
    batch_size: int | None = None,
    dense: str | None = None,
    target: str | os.PathLike[str] | Target | None = None,
) -> Settings:
    """Fill in what was not said from the target, or as usual, and check the whole.

    Args:
        precision, io_dtype, batch_size, dense: as of `convert`; None where nothing was said.
        target: a name, a path or a `Target`; None for none.

    Returns:
        The settings.

    Raises:
        ValueError: an argument is none that `convert` takes, or contradicts the target.

    Example:
        >>> settle(target="edge_tpu").io_dtype
        'int8'
    """
    if target is None:
        settings = Settings(
            "int8" if precision is None else precision,
            "float32" if io_dtype is None else io_dtype,
            1 if batch_size is None else batch_size,
            "per_channel" if dense is None else dense,
        )
        check_settings(settings)
        return settings
    found = target if isinstance(target, Target) else load_target(target)
    _agree(found, "precision", precision, found.precisions)
    _agree(found, "io_dtype", io_dtype, found.io_dtypes)
    if found.shapes.batch_required:
        _agree(found, "batch_size", batch_size, [found.shapes.batch])
    granularity = (found.weights.granularity.dense or "").replace("-", "_")
    if granularity:
        _agree(found, "dense", dense, [granularity])
    chosen = found.precision if precision is None else precision
    settings = Settings(
        chosen,
        _io_dtype(found, chosen) if io_dtype is None else io_dtype,
        found.shapes.batch or 1 if batch_size is None else batch_size,
        granularity or "per_channel" if dense is None else dense,
        found,
    )
    check_settings(settings)
    return settings


def _io_dtype(target: Target, precision: str) -> str:
    """The target's first type of inputs and outputs that this precision can have."""
    fitting = [dtype for dtype in target.io_dtypes if dtype in IO_DTYPES[precision]]
    if not fitting:
        raise ValueError(
            f"target '{target.name}' takes io_dtype {' or '.join(map(repr, target.io_dtypes))}; "
            f"precision '{precision}' has {' or '.join(map(repr, IO_DTYPES[precision]))}. Name "
            "another precision, or correct the target's file."
        )
    return fitting[0]


def _agree(target: Target, name: str, said: Any, asked: Any) -> None:
    if said is None or said in asked:
        return
    known = " or ".join(map(repr, asked))
    raise ValueError(
        f"target '{target.name}' takes {name} {known}; received {said!r}. Leave {name} out, or "
        "name another target."
    )


def check_settings(settings: Settings) -> None:
    """Raise unless `convert` takes these together."""
    precision, io_dtype, batch = settings.precision, settings.io_dtype, settings.batch_size
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision must be one of {', '.join(PRECISIONS)}; received {precision!r}."
        )
    if io_dtype not in IO_DTYPES[precision]:
        raise ValueError(
            f"io_dtype must be one of {', '.join(IO_DTYPES[precision])} with precision "
            f"'{precision}'; received {io_dtype!r}."
        )
    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        raise ValueError(f"batch_size must be an integer of 1 or more; received {batch!r}.")
    if settings.dense not in GRANULARITIES:
        raise ValueError(
            f"dense must be one of {', '.join(GRANULARITIES)}; received {settings.dense!r}."
        )


def settle_format(
    settings: Settings, format: str | None, path: str | os.PathLike[str], metadata: Any
) -> str:
    """Return the format to write, by the path's ending if None.

    Raises:
        ValueError: `convert` cannot write it with these settings, this metadata or to this path.
    """
    by_ending = _ENDINGS.get(Path(path).suffix.lower(), "tflite")
    if format is None:
        format = by_ending
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; {expected_one_of(str(format), FORMATS)}")
    if format == "tflite":
        if by_ending != "tflite":
            raise ValueError(
                f"a .tflite file was asked for; received the name '{path}' of another format. "
                "Rename it, or leave format out."
            )
        return format
    if settings.target is not None or metadata is not None:
        raise ValueError(
            f"target and metadata are for .tflite files; received them with format='{format}'. "
            "Leave them out."
        )
    from tfcompress.tflite.exchange import check_exchange

    check_exchange(format, path, settings.precision)
    return format
