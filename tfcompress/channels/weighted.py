"""The layers of a model that have weights, and what the axes of these count."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from tfcompress.channels.terms import Axis
from tfcompress.graph.layers import Parameter
from tfcompress.graph.nodes import Node

# The axes of a tensor; None where nothing is known of one, as of the batch.
Axes: TypeAlias = list[Axis | None]

# What an argument of a layer's class is the size of.
Count: TypeAlias = Axis | tuple[Axis | None, ...]


@dataclasses.dataclass(frozen=True)
class Weight:
    """A variable with what its axes count.

    Attributes:
        variable: a `keras.Variable`.
        axes: None for an axis of which nothing can be cut, as the positions of a kernel.
        makes: the axes whose channels it makes, and so tells the importance of.
    """

    variable: Any
    axes: tuple[Axis | None, ...]
    makes: tuple[int, ...] = ()


@dataclasses.dataclass(eq=False)
class Weighted:
    """A layer with weights, or a lone weight of an opened layer.

    Attributes:
        name: in the flat model.
        kind: its class.
        layer: the wrapped or plain layer itself.
        weights: its variables.
        inputs: axes of its input of which all channels must stay, if it is of an unknown class.
        counts: arguments of its class -> the axes whose sizes they are.
    """

    name: str
    kind: str
    layer: Any
    weights: list[Weight]
    inputs: list[Axis] = dataclasses.field(default_factory=list)
    counts: dict[str, Count] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        return [tuple(weight.variable.shape) for weight in self.weights]

    @property
    def size(self) -> int:
        """How many numbers its weights are."""
        return sum(math.prod(shape) for shape in self.shapes)


@dataclasses.dataclass
class Call:
    """One call of a layer or operation.

    Attributes:
        name: of the node.
        layer: the operation, without the layers of compression around it.
        inputs: axes of the tensors that it is called with.
        shapes: of its outputs.
        node: the node itself.
    """

    name: str
    layer: Any
    inputs: list[Axes]
    shapes: list[tuple[int | None, ...]]
    node: Node

    @property
    def source(self) -> str:
        return f"{type(self.layer).__name__} '{self.name}'"

    @property
    def given(self) -> dict[str, Any]:
        """The arguments of the call, by name."""
        return arguments_of(self.layer, self.node.args, self.node.kwargs)


def arguments_of(operation, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an operation by the names that its `call` has for them."""
    names = list(inspect.signature(operation.call).parameters)
    return {**dict(zip(names, args, strict=False)), **kwargs}


def variable_of(operation):
    """The weight that a `Parameter` stands for, the user's own if there is one; else the layer."""
    if not isinstance(operation, Parameter):
        return operation
    return vars(operation).get("source", operation.value)
