"""What techniques made of the weights of a model: how many are zero, how many values they have."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.layers import Compressed, effective_weight, target_variables, weight_name
from tfcompress.techniques import Cluster, Quantize, Technique


@dataclasses.dataclass(frozen=True)
class Weight:
    """A weight before it is quantized.

    Attributes:
        name: layer and weight.
        count: elements.
        techniques: what was done to it.
        sparsity: fraction of zeros.
        unique: different values; with centroids for each channel, the most in one.
    """

    name: str
    count: int
    techniques: tuple[str, ...]
    sparsity: float
    unique: int


def describe(name: str, value: Any, techniques: Sequence[Technique] = ()) -> Weight:
    """A weight in numbers.

    Args:
        name: layer and weight.
        value: its tensor or array.
        techniques: the bound ones that were applied to it.

    Example:
        >>> describe("dense/kernel", np.array([[0.0, 0.5], [0.5, 0.5]]))
        Weight(name='dense/kernel', count=4, techniques=(), sparsity=0.25, unique=2)
    """
    array = keras.ops.convert_to_numpy(value)
    names = tuple(type(technique).__name__ for technique in techniques)
    sparsity = 1 - np.count_nonzero(array) / array.size if array.size else 0.0
    return Weight(name, array.size, names, float(sparsity), count_values(array, techniques))


def count_values(array: np.ndarray, techniques: Sequence[Technique] = ()) -> int:
    """How many values a weight has, or the channel that has the most, if clustered by channel."""
    channels = next((t.channels for t in techniques if isinstance(t, Cluster)), ())
    count = math.prod(array.shape[axis] for axis in channels)
    last = tuple(range(-len(channels), 0))
    columns = np.moveaxis(array, channels, last).reshape(-1, count).T
    return max((np.unique(column).size for column in columns), default=0)


def compressed_weights(model: Any) -> Iterator[tuple[str, np.ndarray, list[Technique]]]:
    """The weights of a model from `compress` as `finalize` bakes them: before `Quantize`.

    Returns:
        (name, value, bound techniques, `Quantize` among them) of each.
    """
    for layer in (x for x in model._flatten_layers() if isinstance(x, Compressed)):
        for target in layer.bound:
            value = keras.ops.convert_to_numpy(effective_weight(target, stop=Quantize))
            yield weight_name(layer.layer, target.owner, target.variable), value, target.techniques


def weights_of(model: keras.Model) -> tuple[Weight, ...]:
    """All kernels of a model from `compress`, also those that no technique takes."""
    plain = [
        describe(weight_name(layer, owner, variable), variable)
        for layer in model.layers
        if not isinstance(layer, Compressed)
        for owner, variable in target_variables(layer)
    ]
    return (*(describe(*each) for each in compressed_weights(model)), *plain)
