"""The command line: where it begins and ends, and `tfcompress demo`.

The commands that train live in `commands`, those that make files and look into them in
`file_commands`, those on targets in `target_commands`, those of a package in its module `command`.

TensorFlow is imported only by the commands that need it, so that the others answer at once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from tfcompress.cli import benchmarking as bench_command
from tfcompress.cli import files, terminal, training
from tfcompress.cli import files as surgery_command
from tfcompress.cli import reports as report_command
from tfcompress.cli import shipping as acceptance_command
from tfcompress.cli import shipping as android_command
from tfcompress.cli import shipping as microcontroller_command
from tfcompress.cli.options import Json, Quiet
from tfcompress.cli.terminal import Progress, emit
from tfcompress.results import VERSION

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


app.command()(training.compress)
app.command()(training.distill)
app.command()(training.shrink)
app.command()(training.migrate)
app.command()(files.convert)
app.command()(files.inspect)
app.command()(files.verify)
app.command()(files.benchmark)
app.command()(surgery_command.profile)
app.command()(files.check)
app.command()(files.targets)
app.command()(acceptance_command.accept)
app.command()(android_command.android)
app.command("c-array")(microcontroller_command.c_array)
app.command()(bench_command.bench)
app.command()(report_command.report)


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
        from tfcompress.bench.demo import demo as run

        settings = {} if epochs is None else {"epochs": epochs}
        found = run(out, progress=progress, **settings)
    emit(found, json)
