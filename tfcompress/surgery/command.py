"""The command that counts: `tfcompress profile`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from tfcompress.options import Json, Quiet
from tfcompress.terminal import Progress, emit


def parse_shapes(texts: list[str]) -> dict[str, tuple[int, ...]] | tuple[int, ...] | None:
    """Parse "image=224x224x3", or "224x224x3" for the only input.

    Args:
        texts: as given, any number of them.

    Returns:
        {name of an input: its shape}, the shape of the only input, or None.

    Raises:
        ValueError: a text is something else, or one has no name although there are several.

    Example:
        >>> parse_shapes(["image=8x8x3", "words=20"])
        {'image': (8, 8, 3), 'words': (20,)}
    """
    found = {}
    for text in texts:
        name, _, shape = text.rpartition("=")
        if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) is None or (not name and len(texts) > 1):
            raise ValueError(
                f"--shape must be [NAME=]SIZExSIZE without the batch, with a name if there are "
                f"several; received {text!r}. Try image=224x224x3."
            )
        found[name] = tuple(map(int, shape.split("x")))
    return found.pop("", None) or found or None


def _check_shapes(texts: list[str] | None) -> list[str] | None:
    parse_shapes(texts or [])
    return texts


def profile(
    model: Annotated[Path, typer.Argument(help="A .keras or .h5 file.", show_default=False)],
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]HxWxC",
            callback=_check_shapes,
            help="Shape of an input of which axes are not known, without the batch.",
            show_default=False,
        ),
    ] = None,
    bytes_per_value: Annotated[
        int | None,
        typer.Option(
            metavar="1|2|4|8",
            help="Bytes of an activation, such as 1 for int8; by default what the model computes "
            "in takes.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show what a Keras model costs: parameters, MACs and activation memory of every layer.

    \b
    Examples:
      tfcompress profile model.keras
      tfcompress profile model.keras --bytes-per-value 1
      tfcompress profile detector.keras --shape image=320x320x3 --json
    """
    if bytes_per_value not in (None, 1, 2, 4, 8):
        raise ValueError(
            f"--bytes-per-value must be 1, 2, 4 or 8; received {bytes_per_value}. Take 1 for int8."
        )
    with Progress(quiet) as progress:
        progress("load the model", 0, None)
        from tfcompress import files
        from tfcompress.surgery.profiling import profile as run

        loaded = files.load_model(model)
        if isinstance(loaded, files.SavedModel):
            raise ValueError(
                f"'{model}' is a SavedModel, which holds no Keras layers to count. Name the .keras "
                "or .h5 file that it was exported from."
            )
        progress("profile", 0, None)
        found = run(loaded, shapes=parse_shapes(shape or []), bytes_per_value=bytes_per_value)
    emit(found, json)
