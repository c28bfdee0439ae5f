"""The commands that train or bring over: `tfcompress compress`, `distill`, `shrink`, `migrate`."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from tfcompress.cli.command import command, does_not_run
from tfcompress.cli.options import (
    RAM,
    CompressedWeights,
    Data,
    Epochs,
    KerasFile,
    TrainedOutput,
    Training,
    above_zero,
    choice,
    parse_turns,
    parsed,
    size,
)
from tfcompress.cli.terminal import Progress
from tfcompress.surgery.shrink import LOOKING, METHODS, SCOPES, SCORES, Shrink


@contextlib.contextmanager
def _training(output: Path, progress: Progress) -> Iterator[Any]:
    """The module `tfcompress.fine_tuning`; if it is interrupted, what is kept is told."""
    progress("load TensorFlow", 0, None)
    from tfcompress import fine_tuning
    from tfcompress.fine_tuning.checkpoint import told_when_interrupted

    with told_when_interrupted(output):
        yield fine_tuning


@command(fails=does_not_run)
def compress(
    model: KerasFile,
    recipe: Annotated[
        str,
        Option(
            help="A YAML file, or int8, int4, sparse50-int8, sparse80-int8, cluster16-int8, "
            "sparse-cluster-int8, distill-int8."
        ),
    ],
    data: Data,
    epochs: Epochs,
    output: TrainedOutput,
    distill: Annotated[
        bool,
        Option(
            "--distill",
            help="Learn from the model as it was before, too, also by a recipe without a section "
            "distill.",
        ),
    ] = False,
    teacher: Annotated[
        Path | None,
        Option(
            help="A .keras or .h5 file to learn from instead, with --distill or a recipe with a "
            "section distill."
        ),
    ] = None,
    keep: Annotated[
        Path | None,
        Option(help="A .keras file to write, too: the model that the .tflite file is made from."),
    ] = None,
    compressed_weights: CompressedWeights = False,
    ram: Annotated[str | None, size(RAM)] = None,
    *,
    training: Training,
    progress: Progress,
) -> Any:
    """Fine-tune a Keras model under a recipe: shrunk, pruned, clustered, quantized.

    \b
    Examples:
      tfcompress compress model.keras --recipe sparse50-int8 --data train.npz --epochs 5 \\
          -o small.tflite
      tfcompress compress model.keras --recipe recipe.yaml --data train.npz --epochs 5 \\
          -o small.keras --loss mse --optimizer adam --learning-rate 1e-4
      tfcompress compress model.keras --recipe sparse80-int8 --data train.npz --epochs 5 \\
          -o small.tflite --distill --resume

    A recipe with a section shrink makes the model smaller first and trains it in float for the
    epochs of that section; --epochs is how long it trains under the rules, and 0 for a recipe of
    surgery and precisions by layer alone. After each epoch the state is kept beside the output; an
    interrupted training goes on with --resume, and gives what it would have given. The file is
    written whole or not at all.
    """
    with _training(output, progress) as fine_tuning:
        return fine_tuning.fine_tune(
            model,
            recipe,
            data,
            output,
            epochs=parse_turns(epochs),
            progress=progress,
            distill=distill,
            teacher=teacher,
            keep=keep,
            compressed_weights=compressed_weights,
            ram=parsed(ram),
            **dataclasses.asdict(training),
        )


@command(fails=does_not_run)
def distill(
    teacher: Annotated[
        Path, Argument(help="A .keras or .h5 file to learn from; it stays as it is.")
    ],
    student: Annotated[Path, Argument(help="A .keras or .h5 file to train.")],
    data: Annotated[
        Path,
        Option(
            help="A .npz file of the arrays x and y, or named as the student's inputs and "
            "outputs; with --alpha 0 the inputs are enough."
        ),
    ],
    epochs: Epochs,
    output: TrainedOutput,
    recipe: Annotated[
        str | None,
        Option(
            help="A YAML file, or a ready recipe such as int8 or sparse50-int8: its rules "
            "compress the student, its section distill names the losses. Without it, the "
            "teacher's soft labels are learned."
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        Option(
            min=0.0,
            max=1.0,
            help="Share of the labels in the loss, 0.5 if the recipe does not say; 0 needs no "
            "labels.",
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        Option(
            callback=above_zero("2 to 8"),
            help="Softens the classes of both models, 2 if the recipe does not say.",
        ),
    ] = None,
    cache: Annotated[
        str | None,
        Option(
            metavar="FILE|memory",
            help='A file, or "memory": where the teacher\'s outputs are kept, which then costs '
            "nothing from the second epoch on. A file also serves later trainings.",
        ),
    ] = None,
    start_from_teacher: Annotated[
        bool,
        Option(
            "--start-from-teacher", help="Start from the teacher's weights, as far as they fit."
        ),
    ] = False,
    compressed_weights: CompressedWeights = False,
    *,
    training: Training,
    progress: Progress,
) -> Any:
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
    with _training(output, progress) as fine_tuning:
        return fine_tuning.distill(
            teacher,
            student,
            data,
            output,
            epochs=parse_turns(epochs),
            progress=progress,
            recipe=recipe,
            alpha=alpha,
            temperature=temperature,
            cache=cache,
            start_from_teacher=start_from_teacher,
            compressed_weights=compressed_weights,
            **dataclasses.asdict(training),
        )


@command(writes=lambda given: [given["target"]])
def migrate(
    source: Annotated[
        Path, Argument(help="A .h5 or .keras file, or a SavedModel folder, of tf_keras.")
    ],
    target: Annotated[Path, Argument(help="The .keras file to write.")],
    *,
    progress: Progress,
) -> Any:
    """Bring a tf_keras (Keras 2) model over to Keras 3, without TFMOT's wrappers.

    \b
    Examples:
      tfcompress migrate old.h5 new.keras
      tfcompress migrate saved_model/ new.keras --json

    The outputs of both models are compared; if they differ, nothing is written.
    """
    progress("migrate", 0, None)
    from tfcompress.legacy.migration import migrate as run

    return run(source, target)


@dataclasses.dataclass(frozen=True)
class Amounts:
    """How much a method of surgery takes away, and where."""

    macs: Annotated[
        float | None, Option(help="Share of the MACs that may remain, such as 0.5.")
    ] = None
    params: Annotated[float | None, Option(help="Share of the parameters that may remain.")] = None
    sparsity: Annotated[float | None, Option(help="Or the fraction of the channels to remove.")] = (
        None
    )
    latency: Annotated[
        float | None,
        Option(
            help="Share of the latency that may remain, alone or beside these: of int8 files, "
            "measured here; needs --data."
        ),
    ] = None
    rank: Annotated[int | None, Option(help="Of the factors of every layer, or blocks.")] = None
    energy: Annotated[
        float | None,
        Option(
            help="Or the share of the squared singular values that each layer keeps, such as 0.95."
        ),
    ] = None
    score: Annotated[
        str | None,
        choice(
            SCORES,
            "How important channels are, by default by their l2 norm, with --data by what is lost "
            "without them; reconstruction, taylor, fisher and apoz need --data.",
        ),
    ] = None
    scope: Annotated[
        str | None,
        choice(
            SCOPES,
            "All channels compete (global, the default), each layer loses the same fraction, or "
            "what costs least on --data.",
        ),
    ] = None
    round_to: Annotated[
        str | None,
        Option(
            metavar="<int>|latency",
            help="The channels that stay in a layer are a multiple of it, by default of 8; latency "
            "measures which multiple is fastest here, and needs --data.",
        ),
    ] = None
    max_sparsity: Annotated[
        float | None,
        Option(help="No layer loses more than this fraction of its channels, by default 0.9."),
    ] = None
    keep: Annotated[
        list[str] | None,
        Option(
            metavar="NAME",
            help="A layer, or a pattern, whose channels stay; may be given several times.",
        ),
    ] = None
    layers: Annotated[
        list[str] | None,
        Option(
            metavar="NAME",
            help="A layer, or a pattern, that other methods take, by default all that they suit; "
            "may be given several times.",
        ),
    ] = None
    depth_multiplier: Annotated[
        int | None, Option(help="Filters for each channel, of --method separable; by default 1.")
    ] = None


@command(fails=does_not_run)
def shrink(
    model: KerasFile,
    output: TrainedOutput,
    method: Annotated[
        str,
        choice(
            ("channels", *METHODS, "separable"),
            "Remove channels, take layers apart into smaller ones, or make convolutions "
            "depthwise-separable.",
        ),
    ] = "channels",
    *,
    amounts: Amounts,
    data: Annotated[
        Path | None,
        Option(
            help="A .npz file of the arrays x and y, or named as the model's inputs and outputs: "
            "to train on, and so that the weights fit what channels and factors are left."
        ),
    ] = None,
    epochs: Annotated[int, Option(min=0, help="Epochs of training after the surgery.")] = 0,
    distill: Annotated[
        bool, Option("--distill", help="Learn from the original, too, while training.")
    ] = False,
    teacher: Annotated[
        Path | None, Option(help="A .keras or .h5 file to learn from instead, with --distill.")
    ] = None,
    training: Training,
    progress: Progress,
) -> Any:
    """Make a Keras model smaller by surgery: fewer channels, or layers taken apart.

    \b
    Examples:
      tfcompress shrink model.keras --macs 0.5 -o half.keras --data train.npz
      tfcompress shrink model.keras --macs 0.5 -o half.tflite --data train.npz --epochs 5 \\
          --distill
      tfcompress shrink model.keras --method svd --energy 0.95 --layers "dense*" -o small.keras

    Without --epochs nothing is trained, and quality falls, least so with --data, to which weights
    are fitted: train the .keras file afterwards. With
    them the training goes as that of tfcompress compress, with checkpoints and --resume. To shrink,
    train and quantize at once, give tfcompress compress a recipe with a section shrink.
    """
    given = dataclasses.asdict(amounts)
    options = {"distill": distill, "teacher": teacher, **dataclasses.asdict(training)}
    steps = steps_of(method, given)
    check_training(method, given, data, epochs, options)
    check_file(output, training)
    with _training(output, progress) as fine_tuning:
        return fine_tuning.shrink(
            model, output, steps, data=data, epochs=epochs, progress=progress, **options
        )


# Methods of surgery -> the options that say how much and how, beside --method.
_OPTIONS = {
    "channels": tuple(
        "macs params sparsity latency score scope round_to max_sparsity keep".split()
    ),
    "separable": ("layers", "depth_multiplier"),
}

_OPTIONS_OF_FACTORS = ("macs", "params", "rank", "energy", "layers")

# Options that say how much, of which a method that has some needs one.
_AMOUNTS = ("macs", "params", "sparsity", "latency", "rank", "energy")

# Scores and scopes of channels that look at data.
_LOOKING = (*LOOKING, "sensitivity")

# Options that mean something without training, too.
_WITHOUT_TRAINING = ("batch_size", "seed", "precision", "io_dtype", "target")


def steps_of(method: str, given: Mapping[str, Any]) -> Shrink:
    """The surgery that options ask for; of these, None and empty ones were left out."""
    arguments = {name: value for name, value in given.items() if value not in (None, [])}
    if re.fullmatch(r"-?\d+", arguments.get("round_to", "")):
        arguments["round_to"] = int(arguments["round_to"])
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


def check_training(
    method: str, given: Mapping[str, Any], data: Any, epochs: int, training: Mapping[str, Any]
) -> None:
    """Raises a ValueError unless the options for data and training make sense together."""
    looking = [name for name in ("score", "scope") if given.get(name) in _LOOKING]
    if looking and data is None:
        raise ValueError(
            f"the {looking[0]} '{given[looking[0]]}' needs data; received none. Pass --data."
        )
    measured = {"--latency": given.get("latency") is not None}
    measured |= {"--round-to latency": given.get("round_to") == "latency"}
    for option in (name for name, asked in measured.items() if asked and data is None):
        raise ValueError(f"{option} is measured of int8 files, which need data. Pass --data.")
    if epochs and data is None:
        raise ValueError(f"--epochs {epochs} needs data to train on; received none. Pass --data.")
    if data is not None and not epochs and method not in ("channels", "svd"):
        raise ValueError(
            f"--data are for training, or for a method that looks at them; received --method "
            f"{method} alone. Pass --epochs, or leave --data out."
        )
    # With the loss, scores are computed.
    also = _WITHOUT_TRAINING if data is None else (*_WITHOUT_TRAINING, "loss", "from_logits")
    others = [name for name, value in training.items() if value and name not in also]
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


def check_file(output: Path, training: Training) -> None:
    """Raises a ValueError unless a file can be written as the options say."""
    precision, target = training.precision, training.target
    if output.suffix not in (".keras", ".tflite"):
        raise ValueError(f"--output must end in .keras or .tflite; received '{output}'. Rename it.")
    names = ("precision", "io_dtype", "target")
    given = [name for name in names if getattr(training, name) is not None]
    if given and output.suffix == ".keras":
        raise ValueError(
            f"{_dashed(given[0])} is for .tflite files; received it with '{output}'. Leave it out, "
            "or write a .tflite file."
        )
    takes = [precision or "float32"]
    if target is not None and precision is None:
        from tfcompress.targets.targets import load_target

        takes = load_target(target).precisions
    if set(takes) <= {"int8", "int16x8"}:
        asked = f"--target {target}" if precision is None else f"--precision {precision}"
        raise ValueError(
            f"{asked} needs the ranges of activations, which shrink does not find. Write a .keras "
            "file and pass it to tfcompress convert --calibration; or train for int8 with "
            "tfcompress compress and a recipe with shrink."
        )


def _dashed(name: str) -> str:
    return f"--{name.replace('_', '-')}"
