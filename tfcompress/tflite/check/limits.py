"""The limits of a target, held against what an operator measures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfcompress.tflite.check.operators import Op
from tfcompress.tflite.check.values import Value, measure

COMPARISONS = ("equals", "min", "max", "multiple_of", "in", "includes", "excludes")


def is_kept(op: Op, limit: Mapping[str, Any]) -> bool | None:
    """Tells whether an operator keeps a limit.

    Args:
        op: the operator.
        limit: an entry of a target's `limits`: the name of a measurement under `value`, one
            comparison, and perhaps a condition of the same form under `when`.

    Returns:
        None if what the limit looks at cannot be known.

    Example:
        >>> is_kept(op, {"value": "kernel_height", "max": 64})  # doctest: +SKIP
        True
    """
    condition = limit.get("when")
    if condition is not None:
        applies = is_kept(op, condition)
        if not applies:
            return None if applies is None else True
    value = measure(op, limit["value"])
    if value is None:
        return None
    name = next(name for name in COMPARISONS if name in limit)
    return compare(value, name, limit[name])


def compare(value: Value, comparison: str, expected: Any) -> bool:
    """Compares what was measured; of several values, each must hold.

    Args:
        value: a number, a text, a bool or a tuple of them.
        comparison: one of `COMPARISONS`; "includes" and "excludes" look for any of `expected`
            among the values.
        expected: a number, a text or a bool, or a list of them for "in", "includes", "excludes".

    Example:
        >>> compare((1, 2), "excludes", [0])
        True
        >>> compare(17, "multiple_of", 16)
        False
    """
    values = value if isinstance(value, tuple) else (value,)
    if comparison in ("includes", "excludes"):
        return any(v in expected for v in values) == (comparison == "includes")
    if comparison == "equals":
        return all(v == expected for v in values)
    if comparison == "in":
        return all(v in expected for v in values)
    if any(isinstance(v, str) for v in values):
        return False
    if comparison == "multiple_of":
        return all(v % expected == 0 for v in values)
    return all(v >= expected if comparison == "min" else v <= expected for v in values)


def measured(op: Op, limit: Mapping[str, Any]) -> str:
    """Says what was measured, in a few words."""
    value = measure(op, limit["value"])
    name = limit["value"].replace("_", " ")
    if value is None:
        return f"{name} is not known"
    shown = ", ".join(map(str, value)) if isinstance(value, tuple) else value
    return f"{name} {shown if shown != '' else 'none'}"
