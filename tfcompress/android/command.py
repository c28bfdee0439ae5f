"""`tfcompress android`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tfcompress.options import SCALINGS, Json, Quiet, one_of
from tfcompress.terminal import Progress, emit


def android(
    model: Annotated[Path, typer.Argument(help="A .tflite file.", show_default=False)],
    package: Annotated[
        str,
        typer.Option(
            help="Java package of the app's classes: com.example.digits.", show_default=False
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the project to make.", show_default=False)
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option(
            metavar="APP_DIR",
            help="Instead of --out: the module of an app, to which only the model and its "
            "classes are added. Its build file stays; what it needs is printed.",
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="A text file with one class a line; by default those of the file's metadata.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="Of the model, for classes, files and the app; by default that in the file's "
            "metadata, or the file's own.",
            show_default=False,
        ),
    ] = None,
    scaling: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(SCALINGS),
            callback=one_of("--scaling", SCALINGS),
            help="Range of the pixels that the model was trained with: none is 0 to 255. By "
            "default what the file's metadata says, else 0_1.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace files of the same names that are there already."),
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make an Android Studio project that runs a .tflite file.

    \b
    Examples:
      tfcompress android digits.tflite --labels labels.txt --package com.example.digits \\
          --out Digits
      tfcompress android model.tflite --package com.example.app --into MyApp/app
      tfcompress android photos.tflite --package com.example.photos --out Photos --scaling=-1_1

    The project holds the model, a Kotlin class with typed inputs and outputs, a screen that shows
    results, and a test for the device with outputs of LiteRT's reference kernels. It is written
    whole or not at all.
    """
    if (out is None) == (into is None):
        received = "neither" if out is None else "both"
        raise ValueError(
            f"expected either --out DIR, for a new project, or --into APP_DIR, for an app that "
            f"exists; received {received}. Give one of them."
        )
    with Progress(quiet) as progress:
        progress("run the model", 0, None)
        from tfcompress.android.project import android_project

        found = android_project(
            model,
            into or out or Path(),
            package=package,
            labels=labels,
            into=into is not None,
            name=name,
            scaling=scaling,
            force=force,
        )
    emit(found, json)
