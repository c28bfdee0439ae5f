"""The command that makes models smaller by surgery: `tfcompress shrink`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tfcompress.options import (
    BatchSize,
    ConstantRate,
    FileIoDtype,
    ForTarget,
    FromLogits,
    Json,
    LearningRate,
    Loss,
    Method,
    Optimizer,
    Overwrite,
    Quiet,
    Resume,
    Scope,
    Score,
    Seed,
    TrainedOutput,
    TrainedPrecision,
    ValidationData,
    ValidationSplit,
)
from tfcompress.surgery.shrink_options import check_file, check_training, steps_of
from tfcompress.terminal import Progress, emit, exit_by_check


def shrink(
    model: Annotated[Path, typer.Argument(help="A .keras or .h5 file.", show_default=False)],
    output: TrainedOutput,
    method: Method = "channels",
    macs: Annotated[
        float | None,
        typer.Option(help="Share of the MACs that may remain, such as 0.5.", show_default=False),
    ] = None,
    params: Annotated[
        float | None,
        typer.Option(help="Share of the parameters that may remain.", show_default=False),
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(help="Or the fraction of the channels to remove.", show_default=False),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(help="Of the factors of every layer, or blocks.", show_default=False),
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            help="Or the share of the squared singular values that each layer keeps, such as 0.95.",
            show_default=False,
        ),
    ] = None,
    score: Score = None,
    scope: Scope = None,
    round_to: Annotated[
        int | None,
        typer.Option(
            help="The channels that stay in a layer are a multiple of it, by default of 8.",
            show_default=False,
        ),
    ] = None,
    max_sparsity: Annotated[
        float | None,
        typer.Option(
            help="No layer loses more than this fraction of its channels, by default 0.9.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A layer, or a pattern, whose channels stay; may be given several times.",
            show_default=False,
        ),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A layer, or a pattern, that other methods take, by default all that they suit; "
            "may be given several times.",
            show_default=False,
        ),
    ] = None,
    depth_multiplier: Annotated[
        int | None,
        typer.Option(
            help="Filters for each channel, of --method separable; by default 1.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="A .npz file of the arrays x and y, or named as the model's inputs and outputs: "
            "to train on, and for scores that look at data.",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=0, help="Epochs of training after the surgery.")] = 0,
    distill: Annotated[
        bool, typer.Option("--distill", help="Learn from the original, too, while training.")
    ] = False,
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="A .keras or .h5 file to learn from instead, with --distill.", show_default=False
        ),
    ] = None,
    batch_size: BatchSize = 32,
    loss: Loss = None,
    from_logits: FromLogits = False,
    optimizer: Optimizer = None,
    learning_rate: LearningRate = None,
    constant_rate: ConstantRate = False,
    validation_data: ValidationData = None,
    validation_split: ValidationSplit = 0.0,
    seed: Seed = 0,
    precision: TrainedPrecision = None,
    io_dtype: FileIoDtype = None,
    target: ForTarget = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a Keras model smaller by surgery: fewer channels, or layers taken apart.

    \b
    Examples:
      tfcompress shrink model.keras --macs 0.5 -o half.keras
      tfcompress shrink model.keras --macs 0.5 -o half.tflite --data train.npz --epochs 5 \\
          --distill
      tfcompress shrink model.keras --method svd --energy 0.95 --layers "dense*" -o small.keras

    Without --epochs nothing is trained, and quality falls: train the .keras file afterwards. With
    them the training goes as that of tfcompress compress, with checkpoints and --resume. To shrink,
    train and quantize at once, give tfcompress compress a recipe with a section shrink.
    """
    given = {
        "macs": macs,
        "params": params,
        "sparsity": sparsity,
        "rank": rank,
        "energy": energy,
        "score": score,
        "scope": scope,
        "round_to": round_to,
        "max_sparsity": max_sparsity,
        "keep": keep,
        "layers": layers,
        "depth_multiplier": depth_multiplier,
    }
    training: dict[str, Any] = {
        "distill": distill,
        "teacher": teacher,
        "loss": loss,
        "from_logits": from_logits,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "constant_rate": constant_rate,
        "validation_data": validation_data,
        "validation_split": validation_split,
        "resume": resume,
        "overwrite": overwrite,
    }
    steps = steps_of(method, given)
    check_training(method, given, {"data": data, "epochs": epochs, **training})
    check_file(output, precision, {"io_dtype": io_dtype, "target": target})
    with Progress(quiet) as progress:
        progress("load TensorFlow", 0, None)
        from tfcompress.fine_tuning import shrink as run
        from tfcompress.fine_tuning.checkpoint import told_when_interrupted

        with told_when_interrupted(output):
            found = run(
                model,
                output,
                steps,
                data=data,
                epochs=epochs,
                progress=progress,
                batch_size=batch_size,
                seed=seed,
                precision=precision,
                io_dtype=io_dtype,
                target=target,
                **training,
            )
    emit(found, json)
    exit_by_check(found.check)
