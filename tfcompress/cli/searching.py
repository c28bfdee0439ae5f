"""The commands that search for settings: `tfcompress choose-precision`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from tfcompress.cli.command import command
from tfcompress.cli.options import IoDtype, KerasFile, Samples, choice, parsed, size
from tfcompress.cli.terminal import Progress
from tfcompress.tools.environments import cache_folder


def _written(given: Mapping[str, Any]) -> list[Path]:
    """What `choose_precision` writes; latencies are kept, and Vela may be installed."""
    paths = [given["output"], given["plot"], cache_folder() / "*"]
    return [path for path in paths if path is not None]


@command(writes=_written)
def choose_precision(
    model: KerasFile,
    output: Annotated[
        Path, Option("--output", "-o", help="The recipe to write, a .yaml file.", readable=False)
    ],
    calibration: Annotated[
        Path,
        Option(help="Typical inputs: a .npy or .npz file, or a folder of images."),
    ],
    flash: Annotated[
        str | None, size("The most of the .tflite file, such as 100000 or 96k.")
    ] = None,
    latency: Annotated[
        float | None,
        Option(help="The most time of one run, in parts of that of int8: 1 is never slower."),
    ] = None,
    quality: Annotated[
        float | None,
        Option(
            help="The most that the outputs lose: divergence of probabilities in nats, of others "
            "noise over what differs between samples; then the smallest file is sought."
        ),
    ] = None,
    precisions: Annotated[
        str, Option(help="What layers may get, with commas between.")
    ] = "int8,int4,int2",
    method: Annotated[
        str,
        choice(("outputs", "hessian"), "Compute what layers lose, or estimate it by curvature."),
    ] = "outputs",
    accelerator: Annotated[
        str | None,
        Option(help="An Ethos-U whose cycles tell --latency, such as ethos-u55-128."),
    ] = None,
    io_dtype: IoDtype = None,
    plot: Annotated[
        Path | None, Option(help="An image to write: loss over bytes, and what layers got.")
    ] = None,
    *,
    reading: Samples,
    progress: Progress,
) -> Any:
    """Choose the precision of each layer, so that the file keeps within budgets.

    \b
    Examples:
      tfcompress choose-precision model.keras --calibration x.npy --flash 100000 -o recipe.yaml
      tfcompress choose-precision model.keras --calibration x.npy --quality 0.001 --latency 1 \\
          -o recipe.yaml --plot choice.png

    Files are converted and measured until one keeps within all budgets. The recipe has the
    precision of each layer, to read and edit.
    """
    from tfcompress.files.writing import check_writable, is_same
    from tfcompress.search.assignment import check_budgets

    # Before the seconds of the rest.
    most = parsed(flash)
    check_budgets(most, latency, quality)
    if output.suffix not in (".yaml", ".yml"):
        raise ValueError(f"--output must be a .yaml file; received '{output}'. Name one.")
    for path in (output, plot):
        if path is not None:
            check_writable(path)
            if any(is_same(path, other) for other in (model, calibration)):
                raise ValueError(f"'{path}' is one of the files to read. Name another file.")
    loaded, data = reading.load(model, calibration, progress)
    from tfcompress.search.choose_precision import choose_precision as run

    found = run(
        loaded,
        data,
        flash=most,
        latency=latency,
        quality=quality,
        precisions=[name for part in precisions.split(",") if (name := part.strip())],
        method=method,
        accelerator=accelerator,
        samples=reading.samples or 200,
        progress=progress,
        io_dtype=io_dtype,
    )
    found.recipe.save(output)
    if plot is not None:
        found.plot(plot)
    return found
