"""Regularization that makes weights small before they are pruned."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from tfcompress.errors import check
from tfcompress.kinds import weight_axes
from tfcompress.techniques.masks import Pattern, group
from tfcompress.techniques.technique import Technique

_register = keras.saving.register_keras_serializable("tfcompress")


@_register
class GroupLasso(keras.regularizers.Regularizer):
    """Drives whole groups of weights to zero together (Wen et al. 2016, arXiv:1608.03665).

    The penalty is strength * sum over groups of sqrt(size) * L2 norm. It is an ordinary Keras
    regularizer, for `kernel_regularizer=` as for `Regularize`.

    Args:
        strength: factor of the penalty, 0 or more.
        pattern: "filters" (output channels), "channels" (input channels) or a block "RxC", as of
            `Prune`.
        inputs, outputs: axes of the weight that count its channels; by default the last but one
            and the last, as of Dense and Conv2D. `Regularize` and `PruneCallback` fill them in.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> import keras
        >>> penalty = GroupLasso(0.5)(keras.ops.array([[3.0, 0.0], [4.0, 0.0]]))
        >>> print(round(float(penalty), 4))
        3.5355
    """

    def __init__(
        self, strength: float = 1e-4, pattern: str = "filters", inputs=(-2,), outputs=(-1,)
    ):
        check(strength >= 0, "strength", "0 or more", strength, "1e-4 is usual.")
        kinds = Pattern.parse(pattern).kind in ("filters", "channels", "block")
        check(kinds, "pattern", "'filters', 'channels' or a block such as '1x4'", pattern)
        self.strength, self.pattern = float(strength), pattern
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)

    def __call__(self, x):
        rank = len(x.shape)
        axes = [tuple(axis % rank for axis in found) for found in (self.inputs, self.outputs)]
        groups = group(tuple(x.shape), Pattern.parse(self.pattern), *axes)
        number = groups.expand(np.arange(groups.count, dtype="int32")).ravel()
        flat = ops.reshape(ops.square(ops.cast(x, "float32")), (-1,))
        squares = ops.segment_sum(flat, ops.convert_to_tensor(number), num_segments=groups.count)
        sizes = ops.convert_to_tensor(groups.sizes.astype("float32"))
        return self.strength * ops.sum(ops.sqrt(sizes) * norms_of(squares))

    def get_config(self) -> dict[str, Any]:
        own = {"strength": self.strength, "pattern": self.pattern}
        return {**own, "inputs": list(self.inputs), "outputs": list(self.outputs)}


def norms_of(squares):
    """Square roots, without a gradient at 0, where a group that is gone shall stay."""
    alive = squares > 0.0
    return ops.where(alive, ops.sqrt(ops.where(alive, squares, 1.0)), 0.0)


class Penalty(keras.regularizers.Regularizer):
    """A function of a weight as the regularizer that Keras demands; not saved with the model."""

    def __init__(self, function: Callable[[Any], Any]):
        self.function = function

    def __call__(self, x):
        return self.function(x)


@_register
@dataclasses.dataclass(frozen=True)
class Regularize(Technique):
    """Adds a penalty on the weights that a recipe chooses to the loss, as an aid to pruning.

    Args:
        regularizer: any Keras regularizer: `keras.regularizers.L1(1e-5)`, `GroupLasso(1e-4)`, or
            its name.

    Raises:
        ValueError: if it is none.

    Example:
        >>> import keras
        >>> sparse = Regularize(keras.regularizers.L1(1e-5))
    """

    regularizer: Any

    order: ClassVar[int] = 0

    def __post_init__(self):
        found = keras.regularizers.get(self.regularizer)
        if not callable(found) or isinstance(found, type):
            raise ValueError(
                "regularizer must be a Keras regularizer such as keras.regularizers.L1(1e-5); "
                f"received {self.regularizer!r}."
            )
        object.__setattr__(self, "regularizer", found)

    def refuses(self, layer, variable) -> str | None:
        return "a vector" if len(variable.shape) < 2 else None

    def bind(self, layer, weight: str, before=()) -> "Regularize":
        found = self.regularizer
        if not isinstance(found, GroupLasso):
            return self
        inputs, outputs = weight_axes(layer, weight)
        axes = inputs or found.inputs, outputs or found.outputs
        return Regularize(GroupLasso(found.strength, found.pattern, *axes))

    def penalty(self, weight):
        return self.regularizer(weight)
