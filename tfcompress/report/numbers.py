"""Numbers as the report writes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MISSING = "–"
MINUS = "−"


def finite(value: Any) -> Any:
    """Plain data for JSON: NaN, infinities and what is not there become None.

    Example:
        >>> finite({"ratio": math.inf, "names": ("a",)})
        {'ratio': None, 'names': ['a']}
    """
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if hasattr(value, "tolist"):
        return finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number(value: float | None, digits: int = 0, sign: bool = False) -> str:
    """A number with thousands apart.

    Args:
        value: None and NaN give a dash.
        digits: behind the point.
        sign: also a plus.

    Example:
        >>> number(-1234.56, 1)
        '−1,234.6'
    """
    if value is None or math.isnan(value):
        return MISSING
    text = f"{value:{'+' if sign else ''},.{digits}f}"
    # What is rounded to 0 is neither.
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def significant(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, not fewer than its whole part.

    Example:
        >>> significant(0.012345), significant(123456.0)
        ('0.0123', '123,456')
    """
    if value is None or math.isnan(value):
        return MISSING
    if value == 0 or math.isinf(value):
        return number(value, 0)
    return number(value, min(9, max(0, digits - 1 - math.floor(math.log10(abs(value))))))


def spread(mean: float | None, std: float, count: int, digits: int, sign: bool = False) -> str:
    """A mean and, of several, its standard deviation.

    Example:
        >>> spread(91.234, 0.151, 3, 2), spread(91.234, 0.0, 1, 2)
        ('91.23 ± 0.15', '91.23')
    """
    text = number(mean, digits, sign)
    return text if mean is None or count < 2 else f"{text} ± {number(std, digits)}"
