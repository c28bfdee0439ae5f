"""The command line: where it begins and ends, its commands, and `tfcompress demo`.

TensorFlow is imported only by the commands that need it, so that the others answer at once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from tfcompress.cli import (
    benchmarking,
    devices,
    files,
    reports,
    searching,
    shipping,
    terminal,
    training,
)
from tfcompress.cli.command import command
from tfcompress.cli.terminal import Progress
from tfcompress.version import VERSION

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
        The exit status: 0 for success, 1 for a verification, check or acceptance that fails, 2 for
        bad input, 3 for an error that should not happen, 130 if interrupted.

    Example:
        >>> main(["targets"])  # doctest: +SKIP
    """
    os.environ["KERAS_BACKEND"] = "tensorflow"  # The only one that converts.
    return terminal.run(app, arguments)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, Option("--version", help="Print the version.")] = False,
    debug: Annotated[
        bool, Option("--debug", help="Show tracebacks and logs; also after a command's name.")
    ] = False,
) -> None:
    """Compress Keras 3 models and turn them into small, verified .tflite files.

    \b
    Examples:
      tfcompress demo
      tfcompress compress model.keras --recipe int8 --data train.npz --epochs 5 -o small.tflite
      tfcompress distill teacher.keras student.keras --data train.npz --epochs 5 -o small.tflite
      tfcompress shrink model.keras --macs 0.5 --data train.npz --epochs 5 -o small.keras
      tfcompress convert model.keras -o model.tflite --precision float16
      tfcompress verify model.keras model.tflite --data x_test.npy
      tfcompress check model.tflite --target edge_tpu
      tfcompress report model.keras model.tflite --data x_test.npy -o report.html
      tfcompress bench --short
      tfcompress COMMAND --help
    """
    if version:
        print(f"tfcompress {VERSION}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


@command()
def demo(
    out: Annotated[Path, Option(help="Folder for the files.")] = Path("tfcompress_demo"),
    epochs: Annotated[int | None, Option(min=1, help="Epochs of training.")] = None,
    *,
    progress: Progress,
) -> Any:
    """Train a small CNN on handwritten digits, compress, convert and verify it.

    \b
    Examples:
      tfcompress demo
      tfcompress demo --out digits --epochs 3
    """
    progress("load TensorFlow", 0, None)
    from tfcompress.bench.demo import demo as run

    settings = {} if epochs is None else {"epochs": epochs}
    return run(out, progress=progress, **settings)


# In the order in which --help lists them, under the names of their functions.
COMMANDS = (
    training.compress,
    training.distill,
    training.shrink,
    training.migrate,
    searching.auto,
    searching.choose_precision,
    files.convert,
    files.inspect,
    files.verify,
    files.benchmark,
    files.profile,
    devices.check,
    devices.targets,
    shipping.accept,
    shipping.android,
    shipping.c_array,
    benchmarking.bench,
    reports.report,
    demo,
)
for each in COMMANDS:
    app.command()(each)
