"""The command `tfcompress accept`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tfcompress.options import Json, Quiet
from tfcompress.terminal import Progress, emit


def accept(
    file: Annotated[Path, typer.Argument(help="A .tflite file.", show_default=False)],
    with_: Annotated[
        str | None,
        typer.Option(
            "--with",
            metavar="TOOL,TOOL,...",
            help="Tools to ask, with commas between; by default all.",
            show_default=False,
        ),
    ] = None,
    accelerator: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="For vela: ethos-u55-{32,64,128,256}, ethos-u65-{256,512} or "
            "ethos-u85-{128,256,512,1024,2048}; by default ethos-u55-128.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Typical inputs, in real numbers: a .npy or .npz file; random if left out.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run real third-party tools on a .tflite file: compilers, interpreters, readers.

    \b
    Examples:
      tfcompress accept model.tflite
      tfcompress accept model.tflite --with vela,tflm --accelerator ethos-u65-256
      tfcompress accept model.tflite --with openvino,onnxruntime --data x_test.npy --json

    Tools: vela (Arm's compiler for Ethos-U), tflm (TFLite Micro), openvino, onnxruntime (through
    tf2onnx), arm64 (LiteRT on an emulated ARM64), litertjs (LiteRT.js in headless Chromium),
    mediapipe and tflite_support (readers of the file's metadata), kotlin (compiles the Android
    project made of the file against stubs of Android and LiteRT, and runs what quantizes) and apk
    (packs its resources and the model, without code). What comes from PyPI and npm is installed in
    the user's cache at first use; the rest are packages of Debian.

    Exit status: 0 if all that were asked passed or do not apply to the file, and at least one
    passed; 1 if one failed or could not be run.
    """
    from tfcompress.acceptance.accept import accept as run

    named = None if with_ is None else [name.strip() for name in with_.split(",") if name.strip()]
    options = {} if accelerator is None else {"accelerator": accelerator}
    arrays: Any = None
    if data is not None:
        from tfcompress.arrays import load_arrays

        arrays = load_arrays(data)
    with Progress(quiet) as progress:
        found = run(file, named, data=arrays, progress=progress, **options)
    emit(found, json)
    if not found.passed:
        raise typer.Exit(1)
