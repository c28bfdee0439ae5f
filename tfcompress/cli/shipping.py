"""The commands that take a .tflite file out: `accept`, `android` and `c-array`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from tfcompress.cli.command import command, failed
from tfcompress.cli.options import SCALINGS, TFLiteFile, choice
from tfcompress.cli.terminal import Progress


@command()
def android(
    model: TFLiteFile,
    package: Annotated[
        str,
        Option(help="Java package of the app's classes: com.example.digits."),
    ],
    out: Annotated[Path | None, Option(help="Folder of the project to make.")] = None,
    into: Annotated[
        Path | None,
        Option(
            metavar="APP_DIR",
            help="Instead of --out: the module of an app, to which only the model and its "
            "classes are added. Its build file stays; what it needs is printed.",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        Option(help="A text file with one class a line; by default those of the file's metadata."),
    ] = None,
    name: Annotated[
        str | None,
        Option(
            help="Of the model, for classes, files and the app; by default that in the file's "
            "metadata, or the file's own."
        ),
    ] = None,
    scaling: Annotated[
        str | None,
        choice(
            SCALINGS,
            "Range of the pixels that the model was trained with: none is 0 to 255. By "
            "default what the file tells; needed where it tells nothing.",
        ),
    ] = None,
    force: Annotated[
        bool, Option("--force", help="Replace files of the same names that are there already.")
    ] = False,
    *,
    progress: Progress,
) -> Any:
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
    progress("run the model", 0, None)
    from tfcompress.export.android.project import android_project

    return android_project(
        model,
        into or out or Path(),
        package=package,
        labels=labels,
        into=into is not None,
        name=name,
        scaling=scaling,
        force=force,
    )


@command(fails=failed)
def accept(
    files: Annotated[list[Path], Argument(help="A .tflite file, or several to compare.")],
    with_: Annotated[
        str | None,
        Option(
            "--with",
            metavar="TOOL,TOOL,...",
            help="Tools to ask, with commas between; by default all.",
        ),
    ] = None,
    accelerator: Annotated[
        str | None,
        Option(
            metavar="NAME",
            help="For vela: ethos-u55-{32,64,128,256}, ethos-u65-{256,512} or "
            "ethos-u85-{128,256,512,1024,2048}; by default ethos-u55-128.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        Option(help="Typical inputs, in real numbers: a .npy or .npz file; random if left out."),
    ] = None,
    *,
    progress: Progress,
) -> Any:
    """Run real third-party tools on .tflite files: compilers, interpreters, readers.

    \b
    Examples:
      tfcompress accept model.tflite
      tfcompress accept model.tflite --with vela,tflm --accelerator ethos-u65-256
      tfcompress accept model.tflite --with openvino,onnxruntime --data x_test.npy --json
      tfcompress accept plain.tflite pruned.tflite clustered.tflite --with vela

    Several files come in one table, measured by the first: it tells whether zeros, few values or
    few bits pay there.

    Tools: vela (Arm's compiler for Ethos-U), tflm (TFLite Micro), openvino, onnxruntime (through
    tf2onnx), arm64 (LiteRT on an emulated ARM64), litertjs (LiteRT.js in headless Chromium),
    mediapipe and tflite_support (readers of the file's metadata), kotlin (compiles the Android
    project made of the file against stubs of Android and LiteRT, and runs what quantizes) and apk
    (packs its resources and the model, without code). What comes from PyPI and npm is installed in
    the user's cache at first use; the rest are packages of Debian.

    Exit status: 0 if all that were asked passed or do not apply to the file, and at least one
    passed; 1 if one failed or could not be run.
    """
    from tfcompress.tools.accept import accept as run
    from tfcompress.tools.accept import accept_all

    named = None if with_ is None else [name.strip() for name in with_.split(",") if name.strip()]
    options = {} if accelerator is None else {"accelerator": accelerator}
    arrays: Any = None
    if data is not None:
        from tfcompress.files.arrays import load_arrays

        arrays = load_arrays(data)
    if len(files) > 1:
        return accept_all(files, named, data=arrays, progress=progress, **options)
    return run(files[0], named, data=arrays, progress=progress, **options)


@command()
def c_array(
    file: TFLiteFile,
    output: Annotated[Path, Option("-o", "--output", help="The folder to write.")],
    name: Annotated[
        str, Option(help="What the files, the array and the constants are named after.")
    ] = "model",
    force: Annotated[
        bool, Option("--force", help="Replace files of the same names in the folder.")
    ] = False,
    *,
    progress: Progress,
) -> Any:
    """Write a model as C++ source for TFLite Micro: array, operators, arena size, a small main.

    \b
    Examples:
      tfcompress c-array model.tflite -o firmware/model
      tfcompress c-array model.tflite -o firmware/model --name g_digits --force
      tfcompress c-array model.tflite -o firmware/model --json

    The size of the arena is measured by TFLite Micro itself, which is installed into an
    environment of its own at the first use; without it, the report says "not measured".
    """
    progress("measure the arena", 0, None)
    from tfcompress.export.microcontroller.c_array import c_array as run

    return run(file, output, name=name, force=force)
