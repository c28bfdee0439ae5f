"""The commands `tfcompress compress` and `tfcompress migrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tfcompress.options import IoDtype, Json, Quiet, TrainedPrecision
from tfcompress.terminal import Progress, emit, say


def compress(
    model: Annotated[Path, typer.Argument(help="A .keras or .h5 file.", show_default=False)],
    recipe: Annotated[
        str,
        typer.Option(
            help="A YAML file, or int8, int4, sparse50-int8, sparse80-int8, cluster16-int8, "
            "sparse-cluster-int8.",
            show_default=False,
        ),
    ],
    data: Annotated[
        Path,
        typer.Option(
            help="A .npz file of the arrays x and y, or named as the model's inputs and outputs.",
            show_default=False,
        ),
    ],
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of training.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="The .keras or .tflite file to write.",
            readable=False,
            show_default=False,
        ),
    ],
    batch_size: Annotated[int, typer.Option(min=1, help="Samples in each step.")] = 32,
    loss: Annotated[
        str | None,
        typer.Option(
            help="A Keras loss such as sparse_categorical_crossentropy; by default the one that "
            "the model was saved with.",
            show_default=False,
        ),
    ] = None,
    from_logits: Annotated[
        bool, typer.Option("--from-logits", help="The model gives logits, for --loss.")
    ] = False,
    optimizer: Annotated[
        str | None,
        typer.Option(
            help="A Keras optimizer such as adam; by default the one that was saved.",
            show_default=False,
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Instead of the optimizer's; it falls to 0 along a cosine, unless the saved "
            "optimizer has a schedule of its own.",
            show_default=False,
        ),
    ] = None,
    constant_rate: Annotated[
        bool, typer.Option("--constant-rate", help="Keep the learning rate as it is.")
    ] = False,
    validation_data: Annotated[
        Path | None,
        typer.Option(
            help="A .npz file to judge with: x_val and y_val, x_test and y_test, or x and y.",
            show_default=False,
        ),
    ] = None,
    validation_split: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Or a fraction of the data, drawn at random.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is random.")] = 0,
    precision: TrainedPrecision = None,
    io_dtype: IoDtype = "float32",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted training.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew although there is one.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a Keras model under a recipe: pruned, clustered, quantized.

    \b
    Examples:
      tfcompress compress model.keras --recipe sparse50-int8 --data train.npz --epochs 5 \\
          -o small.tflite
      tfcompress compress model.keras --recipe recipe.yaml --data train.npz --epochs 5 \\
          -o small.keras --loss mse --optimizer adam --learning-rate 1e-4
      tfcompress compress model.keras --recipe sparse50-int8 --data train.npz --epochs 5 \\
          -o small.tflite --resume

    After each epoch the state is kept beside the output; an interrupted training goes on with
    --resume, and gives what it would have given. The file is written whole or not at all.
    """
    options = {
        "batch_size": batch_size,
        "loss": loss,
        "from_logits": from_logits,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "constant_rate": constant_rate,
        "validation_data": validation_data,
        "validation_split": validation_split,
        "seed": seed,
        "precision": precision,
        "io_dtype": io_dtype,
        "resume": resume,
        "overwrite": overwrite,
    }
    with Progress(quiet) as progress:
        progress("load TensorFlow", 0, None)
        from tfcompress.fine_tuning import fine_tune
        from tfcompress.fine_tuning.checkpoint import Checkpoint

        try:
            found = fine_tune(
                model, recipe, data, output, epochs=epochs, progress=progress, **options
            )
        except KeyboardInterrupt:
            done = Checkpoint(f"{output}.checkpoint").epoch()
            if done:
                say(f"{done} of {epochs} epochs are kept: go on with --resume added.")
            raise
    emit(found, json)


def migrate(
    source: Annotated[
        Path,
        typer.Argument(
            help="A .h5 or .keras file, or a SavedModel folder, of tf_keras.", show_default=False
        ),
    ],
    target: Annotated[Path, typer.Argument(help="The .keras file to write.", show_default=False)],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Bring a tf_keras (Keras 2) model over to Keras 3, without TFMOT's wrappers.

    \b
    Examples:
      tfcompress migrate old.h5 new.keras
      tfcompress migrate saved_model/ new.keras --json

    The outputs of both models are compared; if they differ, nothing is written.
    """
    with Progress(quiet) as progress:
        progress("migrate", 0, None)
        from tfcompress.legacy.migration import migrate as run

        report = run(source, target)
    emit(report, json)
