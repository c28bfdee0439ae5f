"""What errors say to someone who misspelt a name."""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Iterable
from typing import Any


def did_you_mean(received: str, known: Iterable[str], otherwise: str = "") -> str:
    """The known name that a wrong one is nearest to, as a question; `otherwise` if none is near."""
    close = difflib.get_close_matches(received, list(known), n=1)
    return f"Did you mean {close[0]!r}?" if close else otherwise


def expected_one_of(received: str, known: Iterable[str]) -> str:
    """What was expected, in words, and which of it may have been meant."""
    names = list(known)
    several = "one of " if len(names) > 1 else ""
    return f"expected {several}{', '.join(names)}. {did_you_mean(received, names)}".strip()


def fraction_meant(received: float, otherwise: str = "") -> str:
    """The fraction that a percentage was meant as, as a question; `otherwise` if it was none."""
    return f"Did you mean {received / 100:g}?" if 1 < received < 100 else otherwise


def require_share(name: str, value: Any, *, or_one: bool = False) -> None:
    """Raises a ValueError unless a value is a share of something."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if number and (0 < value < 1 or (or_one and value == 1)):
        return
    expected = "a number in (0, 1]" if or_one else "a number in (0, 1)"
    mend = fraction_meant(value, "0.5 is a half.") if number else "0.5 is a half."
    raise ValueError(f"{name} must be {expected}; received {value!r}. {mend}")


def is_whole(value: Any, least: int = 1) -> bool:
    """Whether a value is a whole number that is not too small; NumPy's are such numbers, too."""
    return (
        isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= least
    )


def named_in_keras(what: str, name: Any) -> Any:
    """A Keras loss or optimizer by its name."""
    import keras  # which takes seconds, and not every error needs

    module = keras.losses if what == "loss" else keras.optimizers
    try:
        if isinstance(name, str):
            return module.get(name)
    except (ValueError, TypeError):
        pass
    # Functions of losses, classes of optimizers, which Keras finds by their small letters.
    known = [n.lower() for n in dir(module) if n[0].islower() == (what == "loss")]
    usual = "mse" if what == "loss" else "adam"
    mend = did_you_mean(str(name).lower(), known, "Look it up in keras.io/api.")
    raise ValueError(
        f"unknown {what} {name!r}; expected the name of a Keras {what} such as {usual}. {mend}"
    )


def check(holds: bool, name: str, expected: str, received: Any, mend: str = "") -> None:
    """Raises a ValueError that says what an argument must be, unless it holds."""
    if not holds:
        raise ValueError(f"{name} must be {expected}; received {received!r}. {mend}".strip())
