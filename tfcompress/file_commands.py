"""The commands that make .tflite files and look into them.

TensorFlow is imported only by those that need it, so that the others answer at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tfcompress.options import (
    FORMATS,
    Calibration,
    FileIoDtype,
    ForTarget,
    ImageSize,
    Json,
    Model,
    Output,
    Precision,
    Quiet,
    Samples,
    Scaling,
    one_of,
    parse_size,
)
from tfcompress.terminal import Progress, emit, exit_by_check


def convert(
    model: Model,
    output: Output,
    target: ForTarget = None,
    precision: Precision = None,
    io_dtype: FileIoDtype = None,
    calibration: Calibration = None,
    image_size: ImageSize = None,
    scaling: Scaling = "none",
    samples: Samples = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Fixed batch size of the file; by default the target's, or 1.",
            show_default=False,
        ),
    ] = None,
    dense: Annotated[
        str | None,
        typer.Option(
            metavar="per_channel|per_tensor",
            callback=one_of("--dense", ("per_channel", "per_tensor")),
            help="Scales of Dense weights that were not trained for quantization; by default the "
            "target's, or per_channel.",
            show_default=False,
        ),
    ] = None,
    metadata: Annotated[
        Path | None,
        typer.Option(
            help="A JSON file of names, descriptions, normalization and labels for the file.",
            show_default=False,
        ),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(FORMATS),
            callback=one_of("--format", FORMATS),
            help="tflite, or made from it: onnx, or openvino (.xml and .bin); by default what the "
            "output's name says.",
            show_default=False,
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail if any operation stays float.")
    ] = False,
    select_tf_ops: Annotated[
        bool,
        typer.Option("--select-tf-ops", help="Allow TensorFlow operations (Flex delegate)."),
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Convert a Keras model to a .tflite file.

    \b
    Examples:
      tfcompress convert qat.keras -o model.tflite --target edge_tpu
      tfcompress convert qat.keras -o model.tflite --io-dtype int8 --metadata metadata.json
      tfcompress convert model.keras -o model.tflite --calibration x_train.npy --samples 300
      tfcompress convert model.h5 -o model.tflite --calibration photos/ --image-size 224x224 \\
          --scaling=-1_1
      tfcompress convert saved_model/ -o model.tflite --precision float16 --json
      tfcompress convert qat.keras -o model.onnx

    Without training for quantization, int8, int16x8 and int4 need --calibration. The file is
    written whole or not at all.

    Exit status: 0 if the file was written, 1 if it was but does not run on the target, or not
    from some operator on.
    """
    from tfcompress import files
    from tfcompress.tflite.metadata import load_metadata
    from tfcompress.tflite.settings import settle, settle_format

    # Before the seconds of the rest.
    settings = settle(precision, io_dtype, batch_size, dense, target)
    format = settle_format(settings, format, output, metadata)
    described = None if metadata is None else load_metadata(metadata)
    files.check_writable(output)
    if files.is_same(output, model):
        raise ValueError(f"--output is the model itself, '{model}'. Name another file.")
    with Progress(quiet) as progress:
        loaded, data = _load(model, calibration, image_size, scaling, samples, progress)
        from tfcompress.tflite.convert import convert as run

        report = run(
            loaded,
            output,
            precision=precision,
            io_dtype=io_dtype,
            calibration=data,
            batch_size=batch_size,
            dense=dense,
            target=target,
            metadata=described,
            format=format,
            strict=strict,
            select_tf_ops=select_tf_ops,
            samples=samples,
            progress=progress,
        )
    emit(report, json)
    exit_by_check(report.check)


def inspect(
    file: Annotated[Path, typer.Argument(help="A .tflite file.", show_default=False)],
    json: Json = False,
    details: Annotated[
        bool, typer.Option("--details", help="List every operator and tensor, too.")
    ] = False,
) -> None:
    """Show what is in a .tflite file: sizes, types, operators, scales.

    \b
    Examples:
      tfcompress inspect model.tflite
      tfcompress inspect model.tflite --details
      tfcompress inspect model.tflite --json > model.json
    """
    from tfcompress.tflite.inspect import inspect as run

    emit(run(file), json, details=details)


def verify(
    model: Model,
    file: Annotated[Path, typer.Argument(help="The .tflite file made of it.", show_default=False)],
    data: Annotated[
        Path,
        typer.Option(
            help="Inputs: a .npy or .npz file, or a folder of images.", show_default=False
        ),
    ],
    layers: Annotated[
        bool, typer.Option("--layers", help="Compare layer by layer, to find a bad one.")
    ] = False,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="LSB",
            help="Largest difference in units of an output's last bit. By default 1; of a file "
            "that was quantized after training, its SQNR and its decisions are judged.",
            show_default=False,
        ),
    ] = None,
    image_size: ImageSize = None,
    scaling: Scaling = "none",
    samples: Samples = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare a .tflite file with the Keras model on the same data.

    \b
    Examples:
      tfcompress verify model.keras model.tflite --data x_test.npy
      tfcompress verify model.keras model.tflite --data photos/ --scaling 0_1 --samples 200
      tfcompress verify model.keras model.tflite --data x_test.npz --layers --tolerance 2

    Exit status: 0 if the file passes, 1 if it does not.
    """
    from tfcompress.tflite import flatbuffer

    with Progress(quiet) as progress:
        flatbuffer.read(file)  # Before the seconds that TensorFlow takes.
        loaded, arrays = _load(model, data, image_size, scaling, samples, progress)
        from tfcompress.tflite.verify import verify as run

        found = run(
            loaded,
            file,
            arrays,
            layers=layers,
            tolerance=tolerance,
            samples=samples,
            progress=progress,
        )
    emit(found, json)
    if not found.passed:
        raise typer.Exit(1)


def benchmark(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="The .tflite files; the others are compared with the first.", show_default=False
        ),
    ],
    runs: Annotated[int, typer.Option(min=1, help="Timed runs per file and round.")] = 50,
    rounds: Annotated[int, typer.Option(min=1, help="The files take turns in so many.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Inputs: a .npy or .npz file, or a folder of images; random if left out.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure latency, size and memory of .tflite files, side by side.

    \b
    Examples:
      tfcompress benchmark model.tflite
      tfcompress benchmark float.tflite int8.tflite --threads 4
      tfcompress benchmark float.tflite int8.tflite --runs 20 --rounds 9 --json
    """
    from tfcompress.arrays import load_inputs
    from tfcompress.tflite.benchmark import benchmark as run
    from tfcompress.tflite.inspect import inspect

    with Progress(quiet) as progress:
        arrays: Any = None
        if data is not None:
            shapes = [tensor.shape for tensor in inspect(files[0]).inputs]
            arrays = load_inputs(data, shapes, limit=1)
        found = run(
            files,
            runs=runs,
            rounds=rounds,
            threads=threads,
            data=arrays,
            progress=lambda done, total: progress("benchmark", done, total),
        )
    emit(found, json)


def _load(
    model: Path,
    data: Path | None,
    image_size: str | None,
    scaling: str,
    samples: int | None,
    progress: Progress,
) -> tuple[Any, Any]:
    """Load model and data; first what is quick to be found wrong."""
    from tfcompress import files
    from tfcompress.arrays import load_arrays, load_inputs

    images = data is not None and data.is_dir()
    arrays: Any = None if data is None or images else load_arrays(data)
    progress("load the model", 0, None)
    loaded = files.load_model(model)
    if data is not None and images:
        # A model that is not built, or no Keras model, cannot tell its inputs.
        shapes = [tuple(tensor.shape) for tensor in getattr(loaded, "inputs", None) or ()]
        arrays = load_inputs(
            data,
            shapes,
            size=parse_size(image_size),
            scaling=scaling,
            limit=samples or 500,
            progress=lambda done, total: progress("read images", done, total),
        )
    return loaded, arrays
