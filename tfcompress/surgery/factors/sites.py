"""What a method of factorization needs to know of a layer that it takes apart."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

import keras
import numpy as np

from tfcompress.surgery.factors import maths, ranks
from tfcompress.surgery.factors.layers import Part, kernel_of
from tfcompress.surgery.macs import macs_of
from tfcompress.surgery.shapes import Shape, own_shape, size

Rank = int | tuple[int, int]
R = TypeVar("R", int, tuple[int, int])


@dataclasses.dataclass(frozen=True)
class Cost:
    """Multiply-accumulate operations of all calls, and numbers in all weights."""

    macs: int
    params: int


class Site(abc.ABC, Generic[R]):
    """A layer that a method can take apart.

    Args:
        layer: the built layer.
        calls: (shape of the input, shape of the output) of each of its calls, for one sample.
        name: of a new layer, given the wanted one: `name(wanted) -> unique name`.
    """

    kinds: ClassVar[tuple[type, ...]]
    # Whether convolutions must cover more than one place.
    spatial: ClassVar[bool] = False

    def __init__(self, layer, calls: list[tuple[Shape, Shape]], name: Callable[[str], str]):
        self.layer, self.calls, self.name = layer, calls, name
        # What data says of it, see `maths.weighted_svd`.
        self.moment: dict[str, np.ndarray] = {}
        # The mean of what the kernel gives on data, where errors of it do not count.
        self.mean: np.ndarray | None = None

    @classmethod
    def refuses(cls, layer) -> str | None:
        """Why the method cannot take a layer of its kinds apart; None if it can."""
        return None

    @property
    @abc.abstractmethod
    def full(self) -> R:
        """The largest rank, which is exact."""

    @property
    def least(self) -> R:
        """The rank of least cost."""
        return 1  # type: ignore[return-value]

    @abc.abstractmethod
    def cost(self, rank: R) -> Cost:
        """What the layer costs once it is taken apart."""

    @functools.cached_property
    @abc.abstractmethod
    def ladder(self) -> tuple[list[Any], np.ndarray]:
        """The ranks to choose from, of rising cost, and the share of energy that each loses."""

    @abc.abstractmethod
    def parts(self, rank: R) -> tuple[list[Part], float]:
        """What takes the layer's place, and the share of its energy that is kept."""

    def rank_for(self, energy: float) -> R:
        """The cheapest rank that keeps a share of the energy."""
        options, lost = self.ladder
        return options[ranks.first_within(lost, energy)]

    def noiseless(self) -> R:
        """The rank that stands out of noise (EVBMF)."""
        raise NotImplementedError

    def text(self, rank: R) -> str:
        """A rank in words."""
        return f"rank {rank} of {self.full}"

    @functools.cached_property
    def own_cost(self) -> Cost:
        """What the layer costs as it is."""
        macs = sum(macs_of(self.layer, own_shape, [x], [y]) for x, y in self.calls)
        return Cost(macs, self.weights + self.biases)

    @property
    def weights(self) -> int:
        """Numbers in the kernel."""
        return size(kernel_of(self.layer).shape)

    @property
    def biases(self) -> int:
        """Numbers in the bias, which stays."""
        bias = getattr(self.layer, "bias", None)
        return 0 if bias is None else size(bias.shape)

    @property
    def places(self) -> int:
        """How often the whole kernel is applied to one sample."""
        return self.own_cost.macs // self.weights


class MatrixSite(Site[int]):
    """A layer whose kernel is seen as a matrix, which is taken apart by its singular values."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int]:
        """Of the matrix."""

    @abc.abstractmethod
    def matrix(self) -> np.ndarray:
        """The matrix in float64."""

    @property
    def full(self) -> int:
        return min(self.shape)

    @functools.cached_property
    def ladder(self) -> tuple[list[int], np.ndarray]:
        """All ranks."""
        if self.moment:
            found = maths.weighted_energies(self.matrix(), **self.moment)
        else:
            found = maths.energies(self.matrix())
        return list(range(1, self.full + 1)), ranks.lost_by_rank(found)

    def noiseless(self) -> int:
        return max(1, ranks.evbmf(maths.energies(self.matrix()), self.shape))

    def kept(self, rank: int) -> float:
        """The share of energy that a rank keeps."""
        return 1.0 - float(self.ladder[1][rank - 1])


def common_reason(layer) -> str | None:
    """Why no method can take a layer apart, whatever it is; None if one may."""
    if getattr(layer, "lora_enabled", False):
        return "it has LoRA weights; merge them first"
    if getattr(layer, "groups", 1) > 1:
        return f"its {layer.groups} groups make it a structured one already"
    finite = keras.ops.all(keras.ops.isfinite(kernel_of(layer)))
    return None if bool(finite) else "its kernel holds NaN or infinite values"
