"""The command line: `tfcompress convert`, `inspect`, `verify`, `benchmark`, `targets`, `demo`.

`tfcompress compress`, `distill` and `migrate` live in `commands.py`.

TensorFlow is imported only by the commands that need it, so that the others answer at once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from tfcompress import __version__, commands, terminal
from tfcompress.options import (
    Calibration,
    ImageSize,
    IoDtype,
    Json,
    Model,
    Output,
    Precision,
    Quiet,
    Samples,
    Scaling,
    parse_size,
)
from tfcompress.terminal import Progress, emit

# Plain help: quick to make, and the same in a terminal, a pipe and a narrow window.
app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: what follows the command's name; that of this process if None.

    Returns:
        The exit status: 0 for success, 1 for a verification that fails, 2 for bad input, 3 for an
        error that should not happen, 130 if interrupted.

    Example:
        >>> main(["targets"])  # doctest: +SKIP
    """
    os.environ["KERAS_BACKEND"] = "tensorflow"  # The only one that converts.
    return terminal.run(app, arguments)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show tracebacks and logs; also after a command's name."),
    ] = False,
) -> None:
    """Compress Keras 3 models and turn them into small, verified .tflite files.

    \b
    Examples:
      tfcompress demo
      tfcompress compress model.keras --recipe int8 --data train.npz --epochs 5 -o small.tflite
      tfcompress distill teacher.keras student.keras --data train.npz --epochs 5 -o small.tflite
      tfcompress convert model.keras -o model.tflite --precision float16
      tfcompress verify model.keras model.tflite --data x_test.npy
      tfcompress COMMAND --help
    """
    if version:
        print(f"tfcompress {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


app.command()(commands.compress)
app.command()(commands.distill)
app.command()(commands.migrate)


@app.command()
def convert(
    model: Model,
    output: Output,
    precision: Precision = "int8",
    io_dtype: IoDtype = "float32",
    calibration: Calibration = None,
    image_size: ImageSize = None,
    scaling: Scaling = "none",
    samples: Samples = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Fixed batch size of the file.")] = 1,
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
      tfcompress convert qat.keras -o model.tflite --io-dtype int8
      tfcompress convert model.keras -o model.tflite --calibration x_train.npy --samples 300
      tfcompress convert model.h5 -o model.tflite --calibration photos/ --image-size 224x224 \\
          --scaling=-1_1
      tfcompress convert saved_model/ -o model.tflite --precision float16 --json

    Without training for quantization, int8, int16x8 and int4 need --calibration. The file is
    written whole or not at all.
    """
    from tfcompress import files

    files.check_writable(output)
    if output.exists() and model.exists() and output.samefile(model):
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
            strict=strict,
            select_tf_ops=select_tf_ops,
            samples=samples,
            progress=progress,
        )
    emit(report, json)


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
def targets(
    name: Annotated[
        str | None, typer.Argument(help="A target's name or JSON file.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """List the devices and runtimes that files can be made for, or show one.

    \b
    Examples:
      tfcompress targets
      tfcompress targets edge_tpu
      tfcompress targets edge_tpu --json
    """
    from tfcompress.targets import list_targets, load_target

    if name is None:
        known = [load_target(each) for each in list_targets()]
        terminal.emit_table(
            [{key: t[key] for key in ("name", "precision", "description")} for t in known], json
        )
    else:
        terminal.emit_settings(load_target(name), json)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the files.")] = Path("tfcompress_demo"),
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of training.", show_default=False)
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a small CNN on handwritten digits, compress, convert and verify it.

    \b
    Examples:
      tfcompress demo
      tfcompress demo --out digits --epochs 3
    """
    with Progress(quiet) as progress:
        progress("load TensorFlow", 0, None)
        from tfcompress.demo import demo as run

        settings = {} if epochs is None else {"epochs": epochs}
        found = run(out, progress=progress, **settings)
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
