"""What the options of `tfcompress shrink` mean together, known before TensorFlow is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfcompress.surgery.settings import Shrink

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
        from tfcompress.targets import load_target

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
