"""What a layer's `call` computes, as a graph: found by calling it on symbolic tensors."""

import contextlib
import inspect
import math
import re
import traceback
import warnings
from typing import Any

import keras
import numpy as np
from keras import KerasTensor, layers, ops, tree

from tfcompress.graph.layers import Parameter, RepeatBatch
from tfcompress.graph.nodes import Graph, Node, has_own_call, new_input, tensors_in, unique
from tfcompress.kinds import KERNELS, is_kernel

# Two batch sizes that no layer has as a width: what differs between them depends on the batch.
_BATCHES = (1009, 2003)


def is_composite(operation) -> bool:
    """Whether an operation is opened by `flatten`: a model, or a user's layer made of layers."""
    if isinstance(operation, keras.Model):
        return True
    if not isinstance(operation, keras.Layer) or not operation._layers:
        return False
    return has_own_call(type(operation))


def trace(layer: keras.Layer, args: tuple, kwargs: dict) -> Graph:
    """The graph of what a layer's `call` computes.

    Weights that the layer added for itself become `Parameter` layers of the graph, and a
    `training` that `call` itself fixes is found in `Node.training`.
    """
    try:
        graph = _trace(layer, args, kwargs, None)
    except Exception as error:
        dynamic = _trace_batches(layer, args, kwargs, None)
        if dynamic is None:
            raise _untraceable(layer, error) from error
        graph = dynamic
    _warn_tied(layer, graph)
    if not _takes_training(layer):
        _fix_training(graph.nodes, graph.nodes)
        return graph
    try:
        other = _trace_any(layer, args, kwargs, True)
    except Exception:
        other = None
    if other is None or _identities(other) != _identities(graph):
        warnings.warn(
            f"call() of '{layer.name}' ({type(layer).__name__}) computes something else if "
            "`training` is true; the flat copy computes what it does in inference, in training "
            "too. Call the same layers in both cases, as self.dropout(x, training=training).",
            stacklevel=2,
        )
        other = graph
    _fix_training(graph.nodes, other.nodes)
    return graph


def _trace_any(layer, args, kwargs, training) -> Graph | None:
    try:
        return _trace(layer, args, kwargs, training)
    except Exception:
        return _trace_batches(layer, args, kwargs, training)


def _trace(layer, args, kwargs, training, batch: int | None = None) -> Graph:
    leaves = unique(tensors_in((args, kwargs)))
    fresh = {id(t): new_input(t, batch if t.shape and t.shape[0] is None else None) for t in leaves}

    def prepare(x):
        if not isinstance(x, KerasTensor):
            return x
        x = fresh[id(x)]
        if not layer._convert_input_args:
            return x
        return layer.dtype_policy.convert_input(x, layer.autocast, layer.input_dtype)

    args, kwargs = tree.map_structure(prepare, (args, kwargs))
    accepted = inspect.signature(layer.call).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        kwargs = {name: value for name, value in kwargs.items() if name in accepted}
    if "training" in accepted:
        kwargs["training"] = training
    with _symbolic_weights(layer, [fresh[id(t)] for t in leaves]):
        outputs = layer.call(*args, **kwargs)
    for leaf in tree.flatten(outputs):
        if not isinstance(leaf, KerasTensor):
            raise TypeError(f"call() must return tensors that depend on its inputs; got {leaf!r}")
    graph = Graph([fresh[id(t)] for t in leaves], outputs, layer.name)
    if batch is None and any(_needs_batch(node.operation) for node in graph.nodes):
        raise ValueError("the batch size is not known")
    return graph


def _takes_training(layer) -> bool:
    return "training" in inspect.signature(layer.call).parameters


@contextlib.contextmanager
def _symbolic_weights(layer, inputs: list):
    """Puts symbolic tensors in the place of a layer's own weights, while it is traced."""
    own = {k: v for k, v in vars(layer).items() if isinstance(v, keras.Variable)} if inputs else {}
    made: dict[int, Any] = {}
    for variable in own.values():
        if id(variable) not in made:
            tensor = parameter_of(variable, layer)(inputs[0])
            tensor.value = tensor  # `self.weight.value` is the weight
            made[id(variable)] = tensor
    attributes = vars(layer)
    attributes.update({name: made[id(variable)] for name, variable in own.items()})
    try:
        yield
    finally:
        attributes.update(own)


def parameter_of(variable, owner: keras.Layer) -> Parameter:
    """A `Parameter` layer that holds a copy of a weight."""
    casts = owner.autocast and keras.backend.is_float_dtype(variable.dtype)
    # Its own class is known no more.
    kernel = variable.name not in KERNELS and is_kernel(owner, variable)
    parameter = Parameter(
        tuple(variable.shape),
        dtype=owner.dtype_policy if casts else variable.dtype,
        name=f"{owner.name}_{variable.name}",
        trainable=bool(variable.trainable),
        weight="kernel" if kernel else variable.name,
        regularizer=variable.regularizer,
        constraint=variable.constraint,
    )
    parameter.build(None)
    parameter.value.assign(variable)
    parameter.__dict__["source"] = variable  # not tracked: it stays the user's
    return parameter


def _identities(graph: Graph) -> list:
    """What tells two graphs apart: their layers, weights and kinds of operations, in order."""
    operations = [node.operation for node in graph.nodes if not node.is_input]
    made = [not isinstance(x, layers.Layer) or isinstance(x, RepeatBatch) for x in operations]
    return [type(x) if new else source_of(x) for x, new in zip(operations, made, strict=True)]


def source_of(operation) -> int:
    """The identity of what an operation of a traced graph stands for."""
    return id(vars(operation).get("source", operation))


def _fix_training(nodes: list[Node], others: list[Node]) -> None:
    """Marks the nodes whose `training` is the same, whatever the layer around them is told."""
    for node, other in zip(nodes, others, strict=True):
        given = node.kwargs.get("training")
        if given is not None and other.kwargs.get("training") == given:
            node.training = bool(given)
    for node in nodes:
        node.kwargs.pop("training", None)


def _needs_batch(operation) -> bool:
    """Whether an operation was given None where it needs the batch size."""
    wanted = [vars(operation).get(name, ()) for name in ("newshape", "shape", "repeats")]
    is_operation = not isinstance(operation, keras.Layer)
    return is_operation and any(isinstance(x, list | tuple) and None in x for x in wanted)


def _trace_batches(layer, args, kwargs, training) -> Graph | None:
    """Traces a `call` that reads the batch size, as `ops.reshape(x, (ops.shape(x)[0], -1))` does.

    Two made-up batch sizes show where it goes; None if it goes where a graph cannot follow.
    """
    if not any(t.shape and t.shape[0] is None for t in tensors_in((args, kwargs))):
        return None
    try:
        graphs = [_trace(layer, args, kwargs, training, batch) for batch in _BATCHES]
    except Exception:
        return None
    if _identities(graphs[0]) != _identities(graphs[1]):
        return None
    pairs = list(zip(graphs[0].nodes, graphs[1].nodes, strict=True))
    free = all(_free_of_batch(*pair, graphs[0].inputs[0]) for pair in pairs)
    return graphs[0] if free else None


def _free_of_batch(node: Node, other: Node, anchor) -> bool:
    """Rewrites a node so that it works for any batch size; False if that is not possible."""
    if not _same(_constants(node), _constants(other)):
        return False
    operation = node.operation
    if node.is_input or isinstance(operation, layers.Layer):
        return True
    if _same(_settings(operation), _settings(other.operation)):
        return True
    shapes = [tuple(n.outputs[0].shape) for n in (node, other)]
    varies = [a != b for a, b in zip(*shapes, strict=True)]
    kind = type(operation).__name__
    if kind == "Reshape" and sum(varies) == 1:
        free = tuple(-1 if vary else size for vary, size in zip(varies, shapes[0], strict=True))
        node.operation = type(operation)(free, name=operation.name)
        return True
    given = tuple(node.inputs[0].shape)
    given = (1,) * (len(shapes[0]) - len(given)) + given
    spread = all(a == b or a == 1 for a, b in zip(given, shapes[0], strict=True))
    if (
        kind in ("BroadcastTo", "Tile", "Repeat")
        and varies == [True] + [False] * (len(varies) - 1)
        and spread
    ):
        node.operation = RepeatBatch(shapes[0][1:], name=operation.name, dtype=node.inputs[0].dtype)
        node.args, node.kwargs = (node.inputs[0], anchor), {}
        return True
    return False


def _constants(node: Node) -> list:
    leaves = tree.flatten((node.args, node.kwargs))
    return [leaf for leaf in leaves if not isinstance(leaf, KerasTensor)]


def _settings(operation) -> list:
    names = ("name", "_inbound_nodes", "_outbound_nodes", "_auto_config")
    return [value for key, value in vars(operation).items() if key not in names]


def _same(ours: list, theirs: list) -> bool:
    return len(ours) == len(theirs) and all(map(_equal, ours, theirs))


def _equal(a, b) -> bool:
    if a is b:
        return True
    if hasattr(a, "shape") and hasattr(b, "shape"):
        same = tuple(a.shape) == tuple(b.shape)
        return same and bool(ops.all(ops.equal(a, b)))
    return type(a) is type(b) and bool(a == b)


def _warn_tied(layer, graph: Graph) -> None:
    """Warns of weights of an inner layer that `call` itself computes with."""
    values = [x for node in graph.nodes for x in _constants(node) if hasattr(x, "shape")]
    sizes = {math.prod(x.shape) for x in values} - {0, 1}
    own = {id(v) for v in layer._trainable_variables + layer._non_trainable_variables}
    for variable in layer.weights:
        if id(variable) in own or math.prod(variable.shape) not in sizes:
            continue
        sorted_weight = np.sort(np.ravel(variable))
        same = [x for x in values if math.prod(x.shape) == sorted_weight.size]
        if any(np.array_equal(np.sort(np.ravel(x)), sorted_weight) for x in same):
            warnings.warn(
                f"call() of '{layer.name}' ({type(layer).__name__}) uses {variable.path}, a weight "
                "of another layer. The flat copy keeps its present value there, which no longer "
                "follows that layer in training. Tie them in one layer, as "
                "keras.layers.ReversibleEmbedding does.",
                stacklevel=3,
            )


def _untraceable(layer, error: Exception) -> ValueError:
    layer = _innermost(error, layer)
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = ("Exception encountered", "Could not automatically infer", "Error encountered")
    reason = next((line for line in lines if not line.startswith(told)), text)[:300]
    return ValueError(
        f"layer '{layer.name}' ({type(layer).__name__}) cannot be traced symbolically: "
        f"{type(error).__name__}: {reason} Expected: a call() made of Keras layers and keras.ops, "
        "without raw tf. functions on tensors and without Python control flow on their values. "
        "Ways out: write it so; or, if it is a layer inside of a model, leave it as one node with "
        f"keep=['{layer.name}']."
    )


def _innermost(error: Exception, layer):
    """The user's layer whose `call` the error comes from, which may be inside of `layer`."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if frame.f_code.co_name == "call" and isinstance(owner, keras.Layer):
            layer = owner if has_own_call(type(owner)) else layer
    return layer
