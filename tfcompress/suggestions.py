"""What errors say to someone who misspelt a name."""

import difflib
from collections.abc import Iterable
from typing import Any


def did_you_mean(received: str, known: Iterable[str], otherwise: str = "") -> str:
    """The known name that a wrong one is nearest to, as a question; `otherwise` if none is near.

    Example:
        >>> did_you_mean("sparcity", ["sparsity", "pattern"])
        "Did you mean 'sparsity'?"
    """
    close = difflib.get_close_matches(received, list(known), n=1)
    return f"Did you mean {close[0]!r}?" if close else otherwise


def expected_one_of(received: str, known: Iterable[str]) -> str:
    """What was expected, in words, and which of it may have been meant.

    Example:
        >>> expected_one_of("sparcity", ["sparsity", "pattern"])
        "expected one of sparsity, pattern. Did you mean 'sparsity'?"
    """
    names = list(known)
    several = "one of " if len(names) > 1 else ""
    return f"expected {several}{', '.join(names)}. {did_you_mean(received, names)}".strip()


def named_in_keras(what: str, name: Any) -> Any:
    """A Keras loss or optimizer by its name.

    Args:
        what: "loss" or "optimizer".
        name: as `compile` takes it.

    Raises:
        ValueError: Keras has none of that name.
    """
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
