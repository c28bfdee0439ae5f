"""Options that several commands share, singly and in groups, and checks of their values.

A group is a dataclass: a command that takes one takes all its options, see `command`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from tfcompress.errors import did_you_mean
from tfcompress.files.quantities import parse_bytes
from tfcompress.targets.targets import IO_DTYPES as _IO_DTYPES

PRECISIONS = tuple(_IO_DTYPES)
IO_DTYPES = tuple(dict.fromkeys(dtype for dtypes in _IO_DTYPES.values() for dtype in dtypes))
# Known here, too, so that a slip costs no seconds of importing TensorFlow.
FORMATS = ("tflite", "onnx", "openvino")
OBSERVERS = ("min_max", "moving_average", "percentile", "mse", "kl", "octav")
WEIGHT_OBSERVERS = ("max", "mse", "octav")
SCALINGS = ("none", "0_1", "-1_1")


def choice(
    choices: Sequence[str], help: str, parts: int = 1, or_ending: tuple[str, ...] = ()
) -> Any:
    """An option that takes one of a few values, or so many of them with commas between, or the
    name of a file with an ending.
    """

    def check(param: typer.CallbackParam, value: str | None) -> str | None:
        if value is None or all(v in choices for v in value.split(",", parts - 1)):
            return value
        if or_ending and value.endswith(or_ending):
            return value
        mend = did_you_mean(value, choices, "Choose one of them.")
        known = ", ".join(choices) + (f", or a {or_ending[0]} file" if or_ending else "")
        raise ValueError(f"{param.opts[0]} must be one of {known}; received {value!r}. {mend}")

    return Option(metavar="|".join(choices), callback=check, help=help)


def precision_asked(precision: str | None) -> Any:
    """What --precision of a conversion says: a name, or precisions by layer in a recipe's file."""
    if precision is None or precision in PRECISIONS:
        return precision
    from tfcompress.recipe.file import precision_in

    return precision_in(precision)


def above_zero(usual: str) -> Callable[..., float | None]:
    """The check of an option that takes a number greater than 0; `usual` are values to try."""

    def check(param: typer.CallbackParam, value: float | None) -> float | None:
        if value is None or 0 < value < math.inf:
            return value
        raise ValueError(
            f"{param.opts[0]} must be a number greater than 0; received {value!r}. "
            f"Usual is {usual}."
        )

    return check


def parse_size(value: str | None) -> tuple[int, int] | None:
    """(height, width) out of "224x192", or of "224" for a square."""
    if value is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,4})(?:[xX×]([1-9]\d{0,4}))?", value)
    if match is None:
        raise ValueError(
            f"--image-size must be HEIGHTxWIDTH in pixels; received {value!r}. Try 224x224."
        )
    return int(match[1]), int(match[2] or match[1])


def _check_size(value: str | None) -> str | None:
    parse_size(value)
    return value


def parse_turns(value: str) -> int | tuple[int, ...]:
    """Epochs out of "5", or of several turns of a training out of "3+9"."""
    if re.fullmatch(r"\d{1,9}(\+\d{1,9})*", value) is None:
        raise ValueError(
            f"--epochs must be whole numbers, such as 5, or 3+9 for two turns; received {value!r}."
        )
    turns = tuple(map(int, value.split("+")))
    return turns if turns[1:] else turns[0]


def _check_turns(value: str | None) -> str | None:
    if value is not None:
        parse_turns(value)
    return value


def _check_bytes(param: typer.CallbackParam, value: str | None) -> str | None:
    try:
        parsed(value)
    except ValueError as error:
        raise ValueError(f"{param.opts[0]}: {error}") from None
    return value


def parsed(value: str | None) -> int | None:
    """The bytes that an option of `size` tells; None if it was not given."""
    return None if value is None else parse_bytes(value)


def size(help: str) -> Any:
    """An option that takes a number of bytes, see `parse_bytes`."""
    return Option(metavar="BYTES", callback=_check_bytes, help=help)


def turns(help: str) -> Any:
    """An option that takes epochs, see `parse_turns`."""
    return Option(callback=_check_turns, metavar="<int>[+<int>...]", help=help)


Json = Annotated[bool, Option("--json", help="Print JSON, for other programs.")]
Quiet = Annotated[bool, Option("--quiet", "-q", help="Show no progress, only the result.")]

KerasFile = Annotated[Path, Argument(help="A .keras or .h5 file.")]
Model = Annotated[Path, Argument(help="A .keras or .h5 file, or a SavedModel folder.")]
TFLiteFile = Annotated[Path, Argument(help="A .tflite file.")]

IoDtype = Annotated[
    str | None,
    choice(
        IO_DTYPES,
        "Type of inputs and outputs of the file, or one for each as in uint8,float32; by default "
        "what the target prefers, or float32.",
        parts=2,
    ),
]
ForTarget = Annotated[
    str | None,
    Option(
        "--target",
        help="A device (see tfcompress targets) or a target file of your own: fills in what is "
        "left out, and checks the file.",
    ),
]

CODES = (
    "For --target microcontroller: weights stay in codes in flash, which TFLite Micro decodes as "
    "it runs"
)

RAM = "The most of the arena, such as 64k, in which weights in codes are decoded."

# Of the commands that train.
Data = Annotated[
    Path,
    Option(help="A .npz file of the arrays x and y, or named as the model's inputs and outputs."),
]
Epochs = Annotated[
    str,
    turns(
        "Epochs of training, or of several turns of it as in 3+9, in each of which the learning "
        "rate falls anew. Shares in a recipe, such as 60%, are of the first."
    ),
]
TrainedOutput = Annotated[
    Path,
    Option("--output", "-o", help="The .keras or .tflite file to write.", readable=False),
]
CompressedWeights = Annotated[bool, Option("--compressed-weights", help=f"{CODES}.")]


@dataclasses.dataclass(frozen=True)
class Fitting:
    """How a model is trained and judged."""

    batch_size: Annotated[int, Option(min=1, help="Samples in each step.")] = 32
    loss: Annotated[
        str | None,
        Option(
            help="A Keras loss such as sparse_categorical_crossentropy; by default the one that "
            "the model was saved with."
        ),
    ] = None
    from_logits: Annotated[
        bool, Option("--from-logits", help="The model gives logits, for --loss.")
    ] = False
    optimizer: Annotated[
        str | None,
        Option(help="A Keras optimizer such as adam; by default the one that was saved."),
    ] = None
    learning_rate: Annotated[
        float | None,
        Option(
            callback=above_zero("1e-3 to 1e-5"),
            help="Instead of the optimizer's; it falls to 0 along a cosine. A saved CosineDecay or "
            "PolynomialDecay begins anew, as long as this training; other schedules stay.",
        ),
    ] = None
    constant_rate: Annotated[
        bool, Option("--constant-rate", help="Keep the learning rate as it is.")
    ] = False
    validation_data: Annotated[
        Path | None,
        Option(help="A .npz file to judge with: x_val and y_val, x_test and y_test, or x and y."),
    ] = None
    validation_split: Annotated[
        float, Option(min=0.0, max=1.0, help="Or a fraction of the data, drawn at random.")
    ] = 0.0
    seed: Annotated[int, Option(min=0, help="Of all that is random.")] = 0


@dataclasses.dataclass(frozen=True)
class Training(Fitting):
    """How a model is trained, and what kind of file is written then."""

    precision: Annotated[
        str | None,
        choice(
            PRECISIONS,
            "What a .tflite file computes in; by default what the model was trained for.",
        ),
    ] = None
    io_dtype: IoDtype = None
    target: ForTarget = None
    resume: Annotated[bool, Option("--resume", help="Go on with an interrupted training.")] = False
    overwrite: Annotated[
        bool, Option("--overwrite", help="Begin anew although an interrupted training is kept.")
    ] = False


@dataclasses.dataclass(frozen=True)
class Samples:
    """How many samples are read from files of data, and how from a folder of images."""

    image_size: Annotated[
        str | None,
        Option(
            metavar="HxW",
            callback=_check_size,
            help="Resize images to this; by default to what the model takes.",
        ),
    ] = None
    scaling: Annotated[
        str | None,
        choice(
            SCALINGS,
            "Range of the pixels that the model was trained with: none is 0 to 255. By default "
            "what the .tflite file or the model tells; needed where they tell nothing.",
        ),
    ] = None
    samples: Annotated[
        int | None,
        Option(
            min=1, help="Use at most so many samples; by default all, of a folder of images 500."
        ),
    ] = None
    trusted: Annotated[
        bool,
        Option(
            "--trusted",
            help="Take a SavedModel whose operators read or write files or run code, too.",
        ),
    ] = False

    def load(
        self,
        model: Path,
        data: Path | None,
        progress: Callable[[str, int, int | None], None],
        shapes: Sequence[tuple[int | None, ...]] | None = None,
        file: Path | None = None,
    ) -> tuple[Any, Any]:
        """Load model and data, first what is quick to be found wrong.

        Images get the shape of the inputs: `shapes`, or by default those of the model; and the
        scaling that the .tflite `file` or the model tells, if none was given.
        """
        from tfcompress.files import models
        from tfcompress.files.arrays import load_arrays, load_inputs

        images = data is not None and data.is_dir()
        arrays: Any = None if data is None or images else load_arrays(data)
        progress("load the model", 0, None)
        loaded = models.load_model(model, trusted=self.trusted)
        if data is not None and images:
            if shapes is None:
                # A model that is not built, or no Keras model, cannot tell its inputs.
                shapes = [tuple(x.shape) for x in getattr(loaded, "inputs", None) or ()]
            arrays = load_inputs(
                data,
                shapes,
                size=parse_size(self.image_size),
                scaling=self.scaling or _normalization(loaded, file),
                limit=self.samples or 500,
                progress=lambda done, total: progress("read images", done, total),
            )
        return loaded, arrays


def _normalization(model: Any, file: Path | None) -> Any:
    """How a model takes pixels, as its file or it tells; None if neither does."""
    from tfcompress.graph.pixels import normalization_in_front
    from tfcompress.tflite import flatbuffer
    from tfcompress.tflite.metadata import read_metadata
    from tfcompress.tflite.pixels import normalization_of

    told = None
    if file is not None:
        told = normalization_of(flatbuffer.read(file), read_metadata(file), 0)
    return told or normalization_in_front(model)
