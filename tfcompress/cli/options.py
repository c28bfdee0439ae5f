"""Options that several commands share."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from tfcompress.errors import did_you_mean
from tfcompress.surgery.shrink import METHODS, SCOPES, SCORES

# Known here, too, so that a slip costs no seconds of importing TensorFlow.
PRECISIONS = ("float32", "float16", "dynamic_int8", "int8", "int16x8", "int4")
IO_DTYPES = ("float32", "int8", "uint8", "int16")
FORMATS = ("tflite", "onnx", "openvino")
SCALINGS = ("none", "0_1", "-1_1")
SHRINK_METHODS = ("channels", *METHODS, "separable")


def one_of(option: str, choices: tuple[str, ...]) -> Callable[[str | None], str | None]:
    """Return the check of an option that takes one of a few values.

    Args:
        option: its name, with dashes.
        choices: the values.

    Returns:
        What typer calls with a value: it returns the value, or raises ValueError. None, which
        stands for an option that is left out, is returned as it is.

    Example:
        >>> one_of("--scaling", SCALINGS)("0_1")
        '0_1'
    """

    def check(value: str | None) -> str | None:
        if value is None or value in choices:
            return value
        mend = did_you_mean(value, choices, "Choose one of them.")
        raise ValueError(
            f"{option} must be one of {', '.join(choices)}; received {value!r}. {mend}"
        )

    return check


def above_zero(option: str, usual: str) -> Callable[[float | None], float | None]:
    """Return the check of an option that takes a number greater than 0.

    Args:
        option: its name, with dashes.
        usual: values to try, in words.

    Returns:
        See `one_of`.

    Example:
        >>> above_zero("--temperature", "2 to 8")(4.0)
        4.0
    """

    def check(value: float | None) -> float | None:
        if value is None or 0 < value < math.inf:
            return value
        raise ValueError(
            f"{option} must be a number greater than 0; received {value!r}. Usual is {usual}."
        )

    return check


def parse_size(value: str | None) -> tuple[int, int] | None:
    """Parse "224x192", or "224" for a square.

    Args:
        value: height and width in pixels, or None.

    Returns:
        (height, width), or None if there is no value.

    Raises:
        ValueError: the value is something else.

    Example:
        >>> parse_size("224x192")
        (224, 192)
    """
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


Json = Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress, only the result.")]

ImageSize = Annotated[
    str | None,
    typer.Option(
        metavar="HxW",
        callback=_check_size,
        help="Resize images to this; by default to what the model takes.",
    ),
]

Scaling = Annotated[
    str,
    typer.Option(
        metavar="|".join(SCALINGS),
        callback=one_of("--scaling", SCALINGS),
        help="Range of the pixels that the model was trained with: none is 0 to 255.",
    ),
]

Samples = Annotated[
    int | None,
    typer.Option(
        min=1, help="Use at most so many samples; by default all, of a folder of images 500."
    ),
]

Model = Annotated[
    Path, typer.Argument(help="A .keras or .h5 file, or a SavedModel folder.", show_default=False)
]

Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        help="The file to write: .tflite, or .onnx or .xml (OpenVINO).",
        readable=False,
        show_default=False,
    ),
]

Precision = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(PRECISIONS),
        callback=one_of("--precision", PRECISIONS),
        help="What the file computes in; int4 means the weights. By default what the target "
        "prefers, or int8.",
        show_default=False,
    ),
]

FileIoDtype = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(IO_DTYPES),
        callback=one_of("--io-dtype", IO_DTYPES),
        help="Type of inputs and outputs of the file; by default what the target prefers, or "
        "float32.",
        show_default=False,
    ),
]

ForTarget = Annotated[
    str | None,
    typer.Option(
        "--target",
        help="A device (see tfcompress targets) or a target file of your own: fills in what is "
        "left out, and checks the file.",
        show_default=False,
    ),
]

TrainedPrecision = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(PRECISIONS),
        callback=one_of("--precision", PRECISIONS),
        help="What a .tflite file computes in; by default what the model was trained for.",
        show_default=False,
    ),
]

Calibration = Annotated[
    Path | None,
    typer.Option(
        help="Typical inputs, for int8 and the like of a model trained without quantization: "
        "a .npy or .npz file, or a folder of images.",
        show_default=False,
    ),
]

# Of the commands that train.
Data = Annotated[
    Path,
    typer.Option(
        help="A .npz file of the arrays x and y, or named as the model's inputs and outputs.",
        show_default=False,
    ),
]

Epochs = Annotated[int, typer.Option(min=1, help="Epochs of training.", show_default=False)]

TrainedOutput = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        help="The .keras or .tflite file to write.",
        readable=False,
        show_default=False,
    ),
]

BatchSize = Annotated[int, typer.Option(min=1, help="Samples in each step.")]

Loss = Annotated[
    str | None,
    typer.Option(
        help="A Keras loss such as sparse_categorical_crossentropy; by default the one that "
        "the model was saved with.",
        show_default=False,
    ),
]

FromLogits = Annotated[
    bool, typer.Option("--from-logits", help="The model gives logits, for --loss.")
]

Optimizer = Annotated[
    str | None,
    typer.Option(
        help="A Keras optimizer such as adam; by default the one that was saved.",
        show_default=False,
    ),
]

LearningRate = Annotated[
    float | None,
    typer.Option(
        callback=above_zero("--learning-rate", "1e-3 to 1e-5"),
        help="Instead of the optimizer's; it falls to 0 along a cosine, unless the saved "
        "optimizer has a schedule of its own.",
        show_default=False,
    ),
]

ConstantRate = Annotated[
    bool, typer.Option("--constant-rate", help="Keep the learning rate as it is.")
]

ValidationData = Annotated[
    Path | None,
    typer.Option(
        help="A .npz file to judge with: x_val and y_val, x_test and y_test, or x and y.",
        show_default=False,
    ),
]

ValidationSplit = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Or a fraction of the data, drawn at random.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of all that is random.")]

# Of surgery.
Method = Annotated[
    str,
    typer.Option(
        metavar="|".join(SHRINK_METHODS),
        callback=one_of("--method", SHRINK_METHODS),
        help="Remove channels, take layers apart into smaller ones, or make convolutions "
        "depthwise-separable.",
    ),
]

Score = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(SCORES),
        callback=one_of("--score", SCORES),
        help="How important channels are, by default by their l2 norm; taylor, fisher and apoz "
        "need --data.",
        show_default=False,
    ),
]

Scope = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(SCOPES),
        callback=one_of("--scope", SCOPES),
        help="All channels compete (global, the default), each layer loses the same fraction, or "
        "what costs least on --data.",
        show_default=False,
    ),
]

Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted training.")]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Begin anew although an interrupted training is kept."),
]
