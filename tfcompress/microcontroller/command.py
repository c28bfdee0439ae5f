"""The command for microcontrollers: `tfcompress c-array`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tfcompress.options import Json, Quiet
from tfcompress.terminal import Progress, emit


def c_array(
    file: Annotated[Path, typer.Argument(help="A .tflite file.", show_default=False)],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The folder to write.", show_default=False)
    ],
    name: Annotated[
        str, typer.Option(help="What the files, the array and the constants are named after.")
    ] = "model",
    force: Annotated[
        bool, typer.Option("--force", help="Replace files of the same names in the folder.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a model as C++ source for TFLite Micro: array, operators, arena size, a small main.

    \b
    Examples:
      tfcompress c-array model.tflite -o firmware/model
      tfcompress c-array model.tflite -o firmware/model --name g_digits --force
      tfcompress c-array model.tflite -o firmware/model --json

    The size of the arena is measured by TFLite Micro itself, which is installed into an
    environment of its own at the first use; without it, the report says "not measured".
    """
    with Progress(quiet) as progress:
        progress("measure the arena", 0, None)
        from tfcompress.microcontroller.c_array import c_array as run

        found = run(file, output, name=name, force=force)
    emit(found, json)
