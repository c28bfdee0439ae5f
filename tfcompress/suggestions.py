"""What errors say to someone who misspelt a name."""

import difflib
from collections.abc import Iterable


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
