"""Who makes files: names, and the colour and marker that stand for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from tfcompress.bench.methods.method import AEQ, CONVERTER, OURS, TFMOT

# Markers of plotly; the page has the same as symbols. The style has a colour for each number.
MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down")
# In pixels, so that they look equally large.
_SIZES = (9, 9, 10, 12, 10, 12)
_FIRST = (OURS, TFMOT, CONVERTER, AEQ)


@dataclasses.dataclass(frozen=True)
class Maker:
    """One of those who make files; `number` picks colour and marker."""

    name: str
    number: int

    @property
    def marker(self) -> str:
        """The plotly marker."""
        return MARKERS[self.number]

    @property
    def size(self) -> int:
        """Of the marker, in pixels."""
        return _SIZES[self.number]


def makers(names: Iterable[str]) -> dict[str, Maker]:
    """By name; the known ones look the same in every report.

    Example:
        >>> makers(["TFMOT", "tfcompress"])["TFMOT"].marker
        'square'
    """
    given = list(dict.fromkeys(names))
    order = [*_FIRST, *sorted(name for name in given if name not in _FIRST)]
    last = len(MARKERS) - 1
    return {name: Maker(name, min(i, last)) for i, name in enumerate(order) if name in given}
