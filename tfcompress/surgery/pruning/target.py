"""How small a model is to become."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tfcompress.suggestions import require_share
from tfcompress.techniques.technique import check


@dataclasses.dataclass(frozen=True)
class Target:
    """How small a model is to become; exactly one of these.

    Attributes:
        macs, params: the share that may remain, in (0, 1).
        sparsity: the fraction of channels that go, in (0, 1).
        per_layer: {name of a layer: fraction of its channels that go}.

    Raises:
        ValueError: there is none or more than one, or a number is out of its range.
    """

    macs: float | None = None
    params: float | None = None
    sparsity: float | None = None
    per_layer: Mapping[str, float] | None = None

    def __post_init__(self):
        given = [name for name in _NAMES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"exactly one of {', '.join(_NAMES)} must be given; received "
                f"{', '.join(given) or 'none'}. macs=0.5 leaves half of the MACs."
            )
        shares = {given[0]: getattr(self, given[0])}
        if self.per_layer is not None:
            check(bool(self.per_layer), "per_layer", "{layer: sparsity}", self.per_layer)
            shares = {f"per_layer[{key!r}]": value for key, value in self.per_layer.items()}
        for name, value in shares.items():
            require_share(name, value)

    @property
    def name(self) -> str:
        """Which of the four it is."""
        return next(name for name in _NAMES if getattr(self, name) is not None)

    @property
    def value(self) -> float:
        """Its number; not of `per_layer`."""
        return getattr(self, self.name)


_NAMES = tuple(field.name for field in dataclasses.fields(Target))
