"""What a layer's `call` computes, as a graph for every batch: found by running it symbolically."""

import contextlib
import dataclasses
import inspect
import itertools
import math
import re
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import KerasTensor, layers, ops, tree

from tfcompress.graph.copying import NotCopied, is_whole
from tfcompress.graph.layers import Constant, Parameter, RepeatBatch
from tfcompress.graph.nodes import (
    Graph,
    Node,
    correct,
    functional_of,
    has_own_call,
    new_input,
    tensors_in,
    unique,
)
from tfcompress.graph.recording import Part, Recording, is_concrete_array, recorded

# Keras has no public name for it.
_GET_ITEM: Any = type(keras.Input((1,))[0]._keras_history.operation)

# Two batch sizes: what differs between them depends on the batch.
_BATCHES = (37, 41)


def is_composite(operation) -> bool:
    """Whether an operation is opened by `flatten`: a model, or a user's layer made of layers."""
    if isinstance(operation, keras.Model):
        return True
    if not isinstance(operation, keras.Layer) or not operation._layers or is_whole(operation):
        return False
    return has_own_call(type(operation))


def trace(layer: keras.Layer, args: tuple, kwargs: dict) -> Graph:
    """The graph of what a layer's `call` computes, with the layers made of layers inside opened.

    Weights that a layer added for itself become `Parameter` layers of the graph, and a
    `training` that `call` itself fixes is found in `Node.training`.
    """
    leaves = unique(tensors_in((args, kwargs)))
    kwargs = {name: value for name, value in kwargs.items() if name != "training"}

    def start(batch: int | None):
        fresh = {id(t): new_input(t, batch_of(t, batch)) for t in leaves}
        return list(fresh.values()), *_replaced((args, kwargs), fresh)

    return trace_with(layer, start, lambda x: x is layer or is_composite(x))


def trace_with(layer: keras.Layer, start: Callable, opens: Callable[[Any], bool]) -> Graph:
    """See `trace`.

    Args:
        start: batch size or None -> (structure of inputs, args, kwargs), new each time.
        opens: layer -> whether it is to be opened.
    """
    tracer = _Tracer(layer, start, opens)
    run = tracer.inference()
    _warn_tied(layer, run.graph)
    if any(_takes_training(x) for x in {id(x): x for x in run.layers()}.values()):
        tracer.fix_training(run)
    else:
        for node in run.graph.nodes:
            node.kwargs.pop("training", None)
    if tracer.batch is not None:
        _respecify(run.graph, start(None)[0])
    return run.graph


@dataclasses.dataclass(eq=False)
class _Run:
    """A graph, the calls of layers that made it, and `training` by the first output of a node."""

    graph: Graph
    root: Part
    training: dict[int, bool | None]

    def layers(self, part: Part | None = None) -> Iterator[Any]:
        """The layers that were opened."""
        for child in (part or self.root).children:
            if isinstance(child, Part):
                yield child.layer
                yield from self.layers(child)


class _Tracer:
    """Runs a layer's code, as often as it takes to know its graph for every batch."""

    def __init__(self, layer: keras.Layer, start: Callable, opens: Callable[[Any], bool]):
        self.layer, self.start, self.opens = layer, start, opens
        self.parameters: dict[int, Parameter] = {}
        self.known = {id(x) for x in layer._flatten_layers()}
        self.batch: int | None = None

    def inference(self) -> _Run:
        """What the layer computes in inference.

        A `call` may read the batch size, as `ops.reshape(x, (ops.shape(x)[0], -1))` does. Two
        made-up ones then show where it goes.
        """
        try:
            return self._run(None)
        except NotCopied:
            raise
        except Exception as error:
            _, args, kwargs = self.start(None)
            first = error
        if not any(t.shape and t.shape[0] is None for t in tensors_in((args, kwargs))):
            raise _not_traced(self.layer, first) from first
        try:
            runs = []
            for self.batch in _BATCHES:
                runs.append(self._run(None))
            self._free_of_batch(*runs)
        except (NotCopied, NotTraced):
            raise
        except Exception as error:
            raise _not_traced(self.layer, error) from error
        return runs[0]

    def fix_training(self, run: _Run) -> None:
        """Marks the nodes whose `training` is the same, whatever the model is told."""
        if self.batch is not None:
            self.batch = _BATCHES[0]
        pairs = self._aligned(run, True, warn=True)
        told = {k: run.training.get(k) for k in pairs}
        same = {k for k, other in pairs.items() if told[k] is not None and told[k] == other}
        # A Functional model has defaults, which `fit` overrides.
        fixed = {k for k in same if told[k] is False}
        if same != fixed:
            others = self._aligned(run, False, warn=False)
            fixed |= {k for k in same if others.get(k) is True}
        for node in run.graph.nodes:
            key = id(node.outputs[0])
            node.kwargs.pop("training", None)
            if key in fixed:
                node.training = told[key]
            elif key in same:
                node.kwargs["training"] = True

    def _aligned(self, run: _Run, training: bool, warn: bool) -> dict[int, bool | None]:
        """The `training` of another run by the nodes of this one, where both call the same."""
        other = None
        with contextlib.suppress(Exception):
            other = self._run(training)
        others = {} if other is None else other.training
        found: dict[int, bool | None] = {}

        def align(ours: Part, theirs: Part | None) -> None:
            if theirs is None or self._called(ours) != self._called(theirs):
                if warn:
                    _warn_branches(ours.layer or self.layer)
                return
            for a, b in zip(ours.children, theirs.children, strict=True):
                if isinstance(a, Part):
                    align(a, b)
                else:
                    found[id(a.outputs[0])] = others.get(id(b.outputs[0]))

        align(run.root, None if other is None else other.root)
        return found

    def _run(self, training: bool | None) -> _Run:
        inputs, args, kwargs = self.start(self.batch)
        anchor = tree.flatten(inputs)[0] if tensors_in(inputs) else None
        recording = Recording(self.opens, anchor, self.parameters)
        if training is not None:
            kwargs = {**kwargs, "training": training}
        with recorded(recording):
            outputs = self.layer(*args, **kwargs)
            outputs = tree.map_structure(lambda x: _as_symbol(x, anchor), outputs)
            if (functional := functional_of(self.layer)) is not None:  # it unpacks lists of one
                outputs = tree.pack_sequence_as(functional._outputs_struct, tree.flatten(outputs))
            given = [t._keras_history.operation._inbound_nodes[0] for t in tree.flatten(inputs)]
            noted = given + recording.nodes
            graph = Graph(inputs, outputs, self.layer.name, noted=noted)
        for node in graph.nodes:
            node.around = recording.around.get(id(node.outputs[0]), ())
        if any(_needs_size(node.operation) for node in graph.nodes):
            raise ValueError("it reads the size of an axis that is not known.")
        return _Run(graph, recording.root, recording.training)

    def _called(self, part: Part) -> list:
        """What tells two runs of a layer apart: what it calls, in order."""
        called: list[Any] = []
        for child in part.children:
            operation = child.layer if isinstance(child, Part) else child.operation
            key = source_of(operation)
            kept = key in self.known or key in self.parameters
            called.append(key if kept else type(operation))  # others are made by `call`
        return called

    def _free_of_batch(self, run: _Run, other: _Run) -> None:
        """Rewrites a graph so that it works for any batch size."""
        graph, others = run.graph, other.graph.nodes
        anchor = tree.flatten(graph.inputs)[0]
        nodes: list[Node] = []
        for node, twin in itertools.zip_longest(graph.nodes, others):
            same = node and twin and type(node.operation) is type(twin.operation)
            free = _free_of_batch(node, twin, anchor) if same else None
            if free is None:
                around = (node or twin).around
                reason = "what it computes depends on the size of the batch in a way of its own."
                raise _not_traced(around[-1] if around else self.layer, ValueError(reason))
            nodes += free
        graph.reset(graph.inputs, graph.outputs, nodes)


def _as_symbol(x, anchor):
    """What `call` returns as a symbolic tensor: positions, say, depend on shapes alone."""
    if isinstance(x, KerasTensor):
        return x
    if anchor is None or not is_concrete_array(x):
        raise TypeError(f"call() must return tensors that depend on its inputs; got {x!r}")
    return Constant(np.asarray(x))(anchor)


def batch_of(tensor, batch: int | None) -> int | None:
    """The batch size that the copy of a tensor gets in a run with this one."""
    return batch if tensor.shape and tensor.shape[0] is None else None


def _replaced(structure, new: dict[int, Any]):
    return tree.map_structure(lambda x: new.get(id(x), x), structure)


def _warn_branches(layer) -> None:
    warnings.warn(
        f"call() of '{layer.name}' ({type(layer).__name__}) computes something else if "
        "`training` is true; the flat copy computes what it does in inference, in training "
        "too. Call the same layers in both cases, as self.dropout(x, training=training).",
        stacklevel=2,
    )


def _takes_training(layer) -> bool:
    return "training" in inspect.signature(layer.call).parameters


def source_of(operation) -> int:
    """The identity of what an operation of a traced graph stands for."""
    is_weight = isinstance(operation, Parameter)  # Moveaxis has a `source` of its own
    return id(vars(operation).get("source", operation) if is_weight else operation)


def _needs_size(operation) -> bool:
    """Whether an operation was given None where it needs the size of an axis."""
    wanted = [vars(operation).get(name, ()) for name in ("newshape", "shape", "repeats")]
    is_operation = not isinstance(operation, keras.Layer)
    return is_operation and any(isinstance(x, list | tuple) and None in x for x in wanted)


def _respecify(graph: Graph, inputs) -> None:
    """Gives all tensors of a graph the shapes that they have for other inputs."""
    new = dict(zip(map(id, tree.flatten(graph.inputs)), tree.flatten(inputs), strict=True))
    for node in graph.nodes:
        node.args, node.kwargs = _replaced((node.args, node.kwargs), new)
        if not node.is_input:
            specs = node.operation.compute_output_spec(*node.args, **node.kwargs)
            correct(node.operation, node.args, node.kwargs, specs)
            new.update(zip(map(id, node.outputs), tree.flatten(specs), strict=True))
        node.outputs = [new[id(tensor)] for tensor in node.outputs]
    graph.reset(inputs, _replaced(graph.outputs, new), graph.nodes)


def _free_of_batch(node: Node, other: Node, anchor) -> list[Node] | None:
    """The nodes that do what a node does for any batch size; None if there are none."""
    ours, theirs = (tree.flatten((n.args, n.kwargs)) for n in (node, other))
    if len(ours) != len(theirs):
        return None
    nodes: list[Node] = []
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if isinstance(a, KerasTensor) or _equal(a, b):
            continue
        if not _is_repeated(a, b):
            return None
        nodes += _repeat(np.asarray(a)[:1], anchor)
        ours[i] = nodes[-1].outputs[0]
    node.args, node.kwargs = tree.pack_sequence_as((node.args, node.kwargs), ours)
    nodes.append(node)
    operation = node.operation
    if isinstance(operation, Constant):
        values, others = operation.values, other.operation.values
        if _equal(values, others):
            return nodes
        if not _is_repeated(values, others):
            return None
        constant, repeat = _repeat(values[:1], anchor)
        return [constant, dataclasses.replace(node, operation=repeat.operation, args=repeat.args)]
    if node.is_input or isinstance(operation, layers.Layer):
        return nodes
    if same(_settings(operation), _settings(other.operation)):
        return nodes
    shapes = [tuple(n.outputs[0].shape) for n in (node, other)]
    varies = [a != b for a, b in zip(*shapes, strict=True)]
    kind = type(operation).__name__
    if kind == "Reshape" and sum(varies) == 1:
        free = tuple(-1 if vary else size for vary, size in zip(varies, shapes[0], strict=True))
        node.operation = type(operation)(free, name=operation.name)
        return nodes
    given = tuple(node.inputs[0].shape)
    if kind == "Slice" and len(given) == len(varies):
        # An axis of the batch that is taken whole.
        keys = [
            slice(None) if vary and size == whole else slice(start, start + size)
            for vary, size, whole, start in zip(varies, shapes[0], given, node.args[1], strict=True)
        ]
        node.operation = _GET_ITEM(name=operation.name)
        node.args, node.kwargs = (node.inputs[0], tuple(keys)), {}
        return (
            None
            if any(v and k.start is not None for v, k in zip(varies, keys, strict=True))
            else nodes
        )
    given = (1,) * (len(shapes[0]) - len(given)) + given
    spread = all(a == b or a == 1 for a, b in zip(given, shapes[0], strict=True))
    if (
        kind in ("BroadcastTo", "Tile", "Repeat")
        and varies == [True] + [False] * (len(varies) - 1)
        and spread
    ):
        node.operation = RepeatBatch(shapes[0][1:], name=operation.name, dtype=node.inputs[0].dtype)
        node.args, node.kwargs = (node.inputs[0], anchor), {}
        return nodes
    return None


def _is_repeated(ours, theirs) -> bool:
    """Whether two constants are the same values, repeated for every element of a batch."""
    if not (hasattr(ours, "shape") and hasattr(theirs, "shape") and len(ours.shape)):
        return False
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    if (len(ours), len(theirs)) != _BATCHES or ours.shape[1:] != theirs.shape[1:]:
        return False
    return bool(np.all(ours == ours[:1]) and np.all(theirs == ours[:1]))


def _repeat(values: np.ndarray, anchor) -> list[Node]:
    """The nodes of a constant that is repeated for every element of a batch."""
    constant = Constant(values)
    x = KerasTensor(values.shape, str(values.dtype))
    repeat = RepeatBatch(values.shape[1:], dtype=str(values.dtype))
    y = KerasTensor((None, *values.shape[1:]), str(values.dtype))
    return [Node(constant, (anchor,), {}, [x]), Node(repeat, (x, anchor), {}, [y])]


def _constants(node: Node) -> list:
    leaves = tree.flatten((node.args, node.kwargs))
    return [leaf for leaf in leaves if not isinstance(leaf, KerasTensor)]


def _settings(operation) -> list:
    names = ("name", "_inbound_nodes", "_outbound_nodes", "_auto_config")
    return [value for key, value in vars(operation).items() if key not in names]


def same(ours: list, theirs: list) -> bool:
    """Whether two lists of settings or constants are equal."""
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


class NotTraced(ValueError):
    """A layer whose code cannot be run on symbolic tensors."""

    def __init__(self, layer, message: str):
        super().__init__(message)
        self.layer = layer


def _not_traced(layer, error: Exception) -> NotTraced:
    layer = _innermost(error, layer)
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = ("Exception encountered", "Could not automatically infer", "Error encountered")
    reason = next((line for line in lines if not line.startswith(told)), text)[:300]
    return NotTraced(
        layer,
        f"layer '{layer.name}' ({type(layer).__name__}) cannot be traced symbolically: "
        f"{type(error).__name__}: {reason} Expected: a call() made of Keras layers and keras.ops, "
        "without other tf. functions than the usual ones and Python control flow on values; "
        "where it reads the size of an axis other than the batch, pass inputs= of fixed shapes.",
    )


def _innermost(error: Exception, layer):
    """The user's layer whose `call` the error comes from, which may be inside of `layer`."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if frame.f_code.co_name == "call" and isinstance(owner, keras.Layer):
            layer = owner if has_own_call(type(owner)) else layer
    return layer
