"""Names of tensors that tell the layer they come from, where that of an operation does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from tfcompress.graph.nodes import Graph, Node, scope_name, tensors_in


class Scopes:
    """Remembers which layer each operation of a rebuilt model stands for.

    Args:
        origins: by the ids of operations that layers were opened into, the names of these.
    """

    def __init__(self, origins: Mapping[int, str]):
        self._origins = origins
        self._layers: dict[int, tuple[Any, str]] = {}

    def around(self, call: Callable) -> Callable:
        """A way to call nodes that also remembers which operations came of each."""

        def remembering(node: Node, *args, **kwargs):
            made = call(node, *args, **kwargs)
            if not node.is_input:
                layer = self._origins.get(id(node.operation), node.name)
                for part in Graph(tensors_in((args, kwargs)), made).nodes:
                    self._layers.setdefault(id(part.operation), (part.operation, layer))
            return made

        return remembering

    def give(self, model: keras.Model) -> None:
        """Puts operations whose names do not tell their layers under scopes that do."""
        for number, operation in enumerate(model.operations):
            _, layer = self._layers.get(id(operation), (None, operation.name))
            own = isinstance(operation, keras.Layer) and operation.name == scope_name(layer)
            if not own and not isinstance(operation, keras.layers.InputLayer):
                # As layers' own scopes are numbered; the part makes it the only one of its name.
                _enter(operation, f"{scope_name(layer)}_1/part_{number}")


def _enter(operation, scope: str) -> None:
    call = operation.call

    def within(*args, **kwargs):
        with tf.name_scope(scope):
            return call(*args, **kwargs)

    operation.call = within
