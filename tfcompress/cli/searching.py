"""The commands that search for settings: `tfcompress auto`, `choose-precision`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from tfcompress.cli.command import command
from tfcompress.cli.options import (
    SCALINGS,
    Fitting,
    ForTarget,
    IoDtype,
    KerasFile,
    Samples,
    choice,
    parse_turns,
    parsed,
    size,
    turns,
)
from tfcompress.cli.terminal import Progress
from tfcompress.pilot.engines import ENGINES
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
    from tfcompress.search.choose_precision import UNITS

    # Before the seconds of the rest.
    most = parsed(flash)
    check_budgets({"flash": most, "latency": latency, "quality": quality}, UNITS)
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


@command()
def auto(
    model: KerasFile,
    data: Annotated[
        Path,
        Option(
            help="A .npz file of the arrays x and y, or named as the model's inputs and outputs; "
            "or a folder with a folder of images for each class."
        ),
    ],
    budget: Annotated[
        str,
        Option(
            metavar="NAME=AMOUNT,...",
            help="flash (48k), ram (64k), latency (0.5x of the float file's), cycles (1.5M), macs "
            "(2M), quality (-0.5 points of the float file's, -1% of it, or 0.9 to reach); costs "
            "also as parts, 0.25x.",
        ),
    ],
    output: Annotated[
        Path,
        Option(
            "--output",
            "-o",
            help="The .tflite file to write; beside it .keras, .yaml and .html.",
            readable=False,
        ),
    ] = Path("best.tflite"),
    target: ForTarget = None,
    time: Annotated[
        str | None, Option(metavar="TIME", help="Of the whole search, such as 45m or 2h.")
    ] = None,
    trials: Annotated[
        int | None, Option(min=1, help="Or how many trials; the same each time with one seed.")
    ] = None,
    space: Annotated[
        Path | None,
        Option(help="A .yaml file of what may be tried, such as space.yaml of an earlier search."),
    ] = None,
    metric: Annotated[
        str | None,
        Option(help="A metric that the model was compiled with, or loss; by default the first."),
    ] = None,
    epochs: Annotated[
        str | None,
        turns(
            "Epochs of each turn of a training, as in 2+4+12: the best go on where they were. By "
            "default turns of some 150, 300 and 900 steps."
        ),
    ] = None,
    engine: Annotated[
        str,
        choice(ENGINES, "What chooses recipes."),
    ] = "tpe",
    workers: Annotated[
        int | None, Option(min=1, help="Trials at a time on this machine, by Ray.")
    ] = None,
    ray: Annotated[
        str | None, Option(metavar="ADDRESS", help="A Ray cluster whose machines try, or auto.")
    ] = None,
    cpus: Annotated[float, Option(min=0.0, help="CPUs that Ray keeps for one trial.")] = 1.0,
    gpus: Annotated[float, Option(min=0.0, help="GPUs that Ray keeps for one trial.")] = 0.0,
    storage: Annotated[
        str | None,
        Option(
            metavar="URL",
            help="Where Optuna keeps the trials, such as sqlite:///trials.db; by default a journal "
            "in the folder of the search.",
        ),
    ] = None,
    memory: Annotated[str | None, size("The most memory of a trial, such as 4G.")] = None,
    accelerator: Annotated[
        str | None,
        Option(help="An Ethos-U such as ethos-u55-128: flash, RAM and cycles are Vela's."),
    ] = None,
    io_dtype: IoDtype = None,
    scaling: Annotated[
        str | None,
        choice(SCALINGS, "Range of the pixels of images; by default what the model tells."),
    ] = None,
    keep_files: Annotated[
        bool, Option("--keep-files", help="Keep the files of all trials, not of the best alone.")
    ] = False,
    resume: Annotated[
        bool, Option("--resume", help="Go on with the search: no trial that ended is lost.")
    ] = False,
    overwrite: Annotated[
        bool, Option("--overwrite", help="Begin anew although there is a search.")
    ] = False,
    *,
    training: Fitting,
    progress: Progress,
) -> Any:
    """Find the best file for a device within budgets, by trying recipes.

    \b
    Examples:
      tfcompress auto model.keras --data train.npz --target microcontroller \\
          --budget flash=48k,ram=64k,quality=-0.5 --time 2h -o best.tflite
      tfcompress auto model.keras --data photos/ --target mobile_cpu \\
          --budget latency=0.5x,quality=-1 --time 1h
      tfcompress auto model.keras --data train.npz --budget flash=48k --time 1h --resume

    Files after training come first, then short trainings, the best of which go on for longer.
    Every budget is checked on the file itself, quality on a fifth of the data that is held out (or
    --validation-data). Beside the file come the model, the recipe with the command that makes the
    file again, and a page on all that was tried. The search is kept in the folder OUTPUT.auto; a
    search that was interrupted, or that is to go on, does so with --resume.
    """
    from tfcompress.pilot.budget import Budget
    from tfcompress.pilot.ledger import require_optuna

    # Before the seconds of the rest.
    require_optuna()
    budgets = Budget.parse(budget)
    progress("load TensorFlow", 0, None)
    from tfcompress.pilot.auto import auto as run

    return run(
        model,
        data,
        output,
        budget=budgets,
        target=target,
        time=time,
        trials=trials,
        space=space,
        metric=metric,
        epochs=None if epochs is None else parse_turns(epochs),
        engine=engine,
        workers=workers,
        ray=ray,
        cpus=cpus,
        gpus=gpus,
        storage=storage,
        resume=resume,
        overwrite=overwrite,
        keep_files=keep_files,
        memory=parsed(memory),
        accelerator=accelerator,
        io_dtype=io_dtype,
        scaling=scaling,
        progress=progress,
        **dataclasses.asdict(training),
    )
