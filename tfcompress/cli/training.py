"""The commands that train or bring over: `tfcompress compress`, `distill` and `migrate`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tfcompress.cli.options import (
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
    above_zero,
)
from tfcompress.cli.terminal import Progress, emit, exit_by_check
from tfcompress.surgery.shrink import Shrink


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


# Methods of surgery -> the options that say how much and how, beside --method.
_OPTIONS = {
    "channels": (
        "macs",
        "params",
        "sparsity",
        "score",
        "scope",
        "round_to",
        "max_sparsity",
        "keep",
    ),
    "separable": ("layers", "depth_multiplier"),
}

_OPTIONS_OF_FACTORS = ("macs", "params", "rank", "energy", "layers")

# Options that say how much, of which a method that has some needs one.
_AMOUNTS = ("macs", "params", "sparsity", "rank", "energy")

# Scores and scopes of channels that look at data.
_LOOKING = ("taylor", "fisher", "apoz", "sensitivity")


def steps_of(method: str, given: Mapping[str, Any]) -> Shrink:
    """The surgery that options ask for.

    Args:
        method: "channels", "separable" or one of `factorize`.
        given: options by the names of arguments; None and empty ones are left out.

    Raises:
        ValueError: the method takes no such option, too many of them or too few, or a value is out
            of its range.

    Example:
        >>> steps_of("svd", {"rank": 8, "energy": None})
        Shrink({'factorize': {'method': 'svd', 'rank': 8}})
    """
    arguments = {name: value for name, value in given.items() if value not in (None, [])}
    taken = _OPTIONS.get(method, _OPTIONS_OF_FACTORS)
    wrong = next((name for name in arguments if name not in taken), None)
    if wrong is not None:
        listed = ", ".join(map(_dashed, taken))
        raise ValueError(
            f"--method {method} takes {listed}; received {_dashed(wrong)}. Leave it out, or choose "
            "another method."
        )
    amounts = [name for name in taken if name in _AMOUNTS]
    if amounts and not set(amounts) & set(arguments):
        raise ValueError(
            f"--method {method} needs one of {', '.join(map(_dashed, amounts))}; received none. "
            "Pass --macs 0.5 to leave half of the MACs."
        )
    if method in _OPTIONS:
        return Shrink({method: arguments})
    return Shrink({"factorize": {"method": method, **arguments}})


def check_training(method: str, given: Mapping[str, Any], training: Mapping[str, Any]) -> None:
    """Raises a ValueError unless the options for data and training make sense together.

    Args:
        method, given: see `steps_of`.
        training: options of the training by name: data, epochs and the others, where what is left
            out is None or False.
    """
    data, epochs = training["data"], training["epochs"]
    looking = [name for name in ("score", "scope") if given.get(name) in _LOOKING]
    if looking and data is None:
        raise ValueError(
            f"the {looking[0]} '{given[looking[0]]}' needs data; received none. Pass --data."
        )
    if epochs and data is None:
        raise ValueError(f"--epochs {epochs} needs data to train on; received none. Pass --data.")
    if data is not None and not epochs and not looking and method != "svd":
        raise ValueError(
            "--data are for training, or for a --score or --method that looks at them; received "
            "neither. Pass --epochs, or leave --data out."
        )
    # With the loss, scores are computed.
    others = [k for k, v in training.items() if v and k not in ("data", "epochs")]
    others = [k for k in others if k not in ("loss", "from_logits") or data is None]
    if others and not epochs:
        raise ValueError(
            f"{_dashed(others[0])} is for training, which --epochs asks for; received no --epochs. "
            f"Pass --epochs and --data, or leave {_dashed(others[0])} out."
        )
    if training["from_logits"] and training["loss"] is None:
        raise ValueError(
            "--from-logits belongs to a loss that is given by name; received none. Pass --loss."
        )
    if training["teacher"] is not None and not training["distill"]:
        raise ValueError("--teacher is for --distill; received no --distill. Add it.")


def check_file(output: Path, precision: str | None, others: Mapping[str, Any]) -> None:
    """Raises a ValueError unless a file can be written as the options say.

    Args:
        output: the file.
        precision: of a .tflite file.
        others: further options that only a .tflite file has, by name.
    """
    if output.suffix not in (".keras", ".tflite"):
        raise ValueError(f"--output must end in .keras or .tflite; received '{output}'. Rename it.")
    given = [k for k, v in {"precision": precision, **others}.items() if v is not None]
    if given and output.suffix == ".keras":
        raise ValueError(
            f"{_dashed(given[0])} is for .tflite files; received it with '{output}'. Leave it out, "
            "or write a .tflite file."
        )
    takes = [precision or "float32"]
    if others.get("target") is not None and precision is None:
        from tfcompress.targets.targets import load_target

        takes = load_target(others["target"]).precisions
    if set(takes) <= {"int8", "int16x8"}:
        asked = f"--target {others['target']}" if precision is None else f"--precision {precision}"
        raise ValueError(
            f"{asked} needs the ranges of activations, which shrink does not find. Write a .keras "
            "file and pass it to tfcompress convert --calibration; or train for int8 with "
            "tfcompress compress and a recipe with shrink."
        )


def _dashed(name: str) -> str:
    return f"--{name.replace('_', '-')}"
