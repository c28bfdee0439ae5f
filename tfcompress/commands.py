"""The commands that train or bring over: `tfcompress compress`, `distill` and `migrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tfcompress.options import (
    BatchSize,
    ConstantRate,
    Data,
    Epochs,
    FileIoDtype,
    ForTarget,
    FromLogits,
    Json,
    LearningRate,
    Loss,
    Optimizer,
    Overwrite,
    Quiet,
    Resume,
    Seed,
    TrainedOutput,
    TrainedPrecision,
    ValidationData,
    ValidationSplit,
    above_zero,
)
from tfcompress.terminal import Progress, emit, exit_by_check


def compress(
    model: Annotated[Path, typer.Argument(help="A .keras or .h5 file.", show_default=False)],
    recipe: Annotated[
        str,
        typer.Option(
            help="A YAML file, or int8, int4, sparse50-int8, sparse80-int8, cluster16-int8, "
            "sparse-cluster-int8, distill-int8.",
            show_default=False,
        ),
    ],
    data: Data,
    epochs: Epochs,
    output: TrainedOutput,
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="A .keras or .h5 file, for a recipe with a section distill; by default the model "
            "itself as it was before.",
            show_default=False,
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
    """Fine-tune a Keras model under a recipe: shrunk, pruned, clustered, quantized.

    \b
    Examples:
      tfcompress compress model.keras --recipe sparse50-int8 --data train.npz --epochs 5 \\
          -o small.tflite
      tfcompress compress model.keras --recipe recipe.yaml --data train.npz --epochs 5 \\
          -o small.keras --loss mse --optimizer adam --learning-rate 1e-4
      tfcompress compress model.keras --recipe distill-int8 --data train.npz --epochs 5 \\
          -o small.tflite --resume

    A recipe with a section shrink makes the model smaller first and trains it in float for the
    epochs of that section; --epochs is how long it trains under the rules. After each epoch the
    state is kept beside the output; an interrupted training goes on with --resume, and gives what
    it would have given. The file is written whole or not at all.
    """
    with Progress(quiet) as progress:
        progress("load TensorFlow", 0, None)
        from tfcompress.fine_tuning import fine_tune
        from tfcompress.fine_tuning.checkpoint import told_when_interrupted

        with told_when_interrupted(output):
            found = fine_tune(
                model,
                recipe,
                data,
                output,
                epochs=epochs,
                progress=progress,
                teacher=teacher,
                batch_size=batch_size,
                loss=loss,
                from_logits=from_logits,
                optimizer=optimizer,
                learning_rate=learning_rate,
                constant_rate=constant_rate,
                validation_data=validation_data,
                validation_split=validation_split,
                seed=seed,
                precision=precision,
                io_dtype=io_dtype,
                target=target,
                resume=resume,
                overwrite=overwrite,
            )
    emit(found, json)
    exit_by_check(found.check)


def distill(
    teacher: Annotated[
        Path,
        typer.Argument(
            help="A .keras or .h5 file to learn from; it stays as it is.", show_default=False
        ),
    ],
    student: Annotated[
        Path, typer.Argument(help="A .keras or .h5 file to train.", show_default=False)
    ],
    data: Annotated[
        Path,
        typer.Option(
            help="A .npz file of the arrays x and y, or named as the student's inputs and "
            "outputs; with --alpha 0 the inputs are enough.",
            show_default=False,
        ),
    ],
    epochs: Epochs,
    output: TrainedOutput,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A YAML file, or a ready recipe such as int8 or sparse50-int8: its rules "
            "compress the student, its section distill names the losses. Without it, the "
            "teacher's soft labels are learned.",
            show_default=False,
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of the labels in the loss, 0.1 if the recipe does not say; 0 needs no "
            "labels.",
            show_default=False,
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            callback=above_zero("--temperature", "2 to 8"),
            help="Softens the classes of both models, 4 if the recipe does not say.",
            show_default=False,
        ),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|memory",
            help='A file, or "memory": where the teacher\'s outputs are kept, which then costs '
            "nothing from the second epoch on. A file also serves later trainings.",
            show_default=False,
        ),
    ] = None,
    start_from_teacher: Annotated[
        bool,
        typer.Option(
            "--start-from-teacher", help="Start from the teacher's weights, as far as they fit."
        ),
    ] = False,
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
    """Train a small student from a larger teacher, and compress it on the way.

    \b
    Examples:
      tfcompress distill teacher.keras student.keras --data train.npz --epochs 20 \\
          -o student.tflite
      tfcompress distill teacher.keras student.keras --data train.npz --epochs 20 \\
          -o student.tflite --recipe sparse50-int8 --temperature 2 --cache outputs.h5
      tfcompress distill teacher.keras student.keras --data unlabelled.npz --epochs 20 \\
          -o student.keras --alpha 0 --start-from-teacher

    Loss, optimizer and metrics are those the student was saved with. A recipe with a section
    distill makes pruning, quantization and distillation one file; models of quantities, not of
    classes, need one with distill: {losses: [mse]}. Without labels, the student is judged by how
    near it is to the teacher. After each epoch the state is kept beside the output; an interrupted
    training goes on with --resume, and gives what it would have given.
    """
    with Progress(quiet) as progress:
        progress("load TensorFlow", 0, None)
        from tfcompress.fine_tuning import distill as run
        from tfcompress.fine_tuning.checkpoint import told_when_interrupted

        with told_when_interrupted(output):
            found = run(
                teacher,
                student,
                data,
                output,
                epochs=epochs,
                progress=progress,
                recipe=recipe,
                alpha=alpha,
                temperature=temperature,
                cache=cache,
                start_from_teacher=start_from_teacher,
                batch_size=batch_size,
                loss=loss,
                from_logits=from_logits,
                optimizer=optimizer,
                learning_rate=learning_rate,
                constant_rate=constant_rate,
                validation_data=validation_data,
                validation_split=validation_split,
                seed=seed,
                precision=precision,
                io_dtype=io_dtype,
                target=target,
                resume=resume,
                overwrite=overwrite,
            )
    emit(found, json)
    exit_by_check(found.check)


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
