"""A Keras model as a flat graph of operations: flatten, neighbours, rebuild."""

import dataclasses
import inspect
import re
import warnings
from collections import Counter
from collections.abc import Iterable
from typing import Any

import keras
from keras import layers, tree

from tfcompress.graph.copying import copy_operation, copy_weights
from tfcompress.graph.inputs import inputs_of, nested_inputs, require_model, with_mask
from tfcompress.graph.layers import Parameter, RepeatBatch, fix_training
from tfcompress.graph.nodes import Graph, Node, has_own_call, tensors_in, unique
from tfcompress.graph.tracing import is_composite, parameter_of, source_of, trace
from tfcompress.kinds import DROPOUTS, is_of

# Layers whose `call` takes `training` for Keras's own quantization alone.
_SAME_IN_TRAINING = (layers.Dense, layers.EinsumDense)

# What a class of the user's own may change in how `fit` works.
_LOOPS = ("train_step", "test_step", "predict_step", "compute_loss", "compute_metrics")


def flatten(model: keras.Model, *, inputs=None, keep: Iterable[str] = ()) -> keras.Model:
    """A flat Functional copy of any Keras 3 model, with weights of its own.

    Nested models, `Sequential`s and subclassed models and layers are opened; the layers of Keras
    itself (RNNs and MultiHeadAttention among them) and `keras.ops` calls become the nodes.
    Outputs equal the original's exactly in inference; Dropout and BatchNormalization keep obeying
    `training`, and frozen layers stay frozen. The user's model is left untouched. Layers keep
    their names; where a name occurs twice, the nested layer takes its model's name in front.

    Args:
        model: Sequential, Functional, nested or subclassed `keras.Model`, built.
        inputs: structure of `keras.Input` tensors for a subclassed model whose input shapes or
            dtypes are not the ones it was built with (float32 is assumed otherwise).
        keep: names of composite layers to leave as one node each.

    Returns:
        A Functional `keras.Model`, not compiled; of the user's own class if that can be made from
        (inputs, outputs, name).

    Raises:
        TypeError: if the model is not a Keras 3 model.
        ValueError: if the model is not built, a layer cannot be traced symbolically, or it cannot
            be copied from its `get_config`.

    Example:
        >>> inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="hidden")])
        >>> model = keras.Sequential([keras.Input((4,)), inner, keras.layers.Softmax(name="top")])
        >>> [layer.name for layer in flatten(model).layers[1:]]
        ['hidden', 'top']
    """
    return flatten_with_sources(model, inputs=inputs, keep=keep)[0]


def flatten_with_sources(
    model: keras.Model, *, inputs=None, keep: Iterable[str] = ()
) -> tuple[keras.Model, dict[int, Any]]:
    """See `flatten`: the flat copy, and what each of its operations is a copy of."""
    require_model(model)
    keep = {keep} if isinstance(keep, str) else set(keep)
    with _restored_nodes(model):
        graph = _root_graph(model, inputs)
        _warn_lost_loops(model, graph)
        flattener = _Flattener(model, keep)
        flat = graph.rebuild(flattener.call)
    copies = list(flattener.copies.values())
    copy_weights(copies)
    return flat, {id(twin): operation for operation, twin in copies}


@dataclasses.dataclass(frozen=True)
class _Scope:
    """Where in the model a node is.

    `path` holds the names of the models around it. `fixed` is the `training` that one of them
    fixed in its `call`; `default` is the one that a Functional model gives where `fit` says none.
    """

    owner: keras.Layer
    path: tuple[str, ...] = ()
    fixed: bool | None = None
    default: bool | None = None


class _Flattener:
    """Calls copies of a model's leaf operations, in the order of a graph.

    `copies` maps the identity of an operation or variable to (it, its copy).
    """

    def __init__(self, model: keras.Model, keep: set[str]):
        self.keep = keep
        self.copies: dict[int, tuple[Any, Any]] = {}
        self.fixed: dict[int, bool | None] = {}
        self.anchor: Any = None
        self.scope = _Scope(model)
        self.counts = Counter(_leaf_names(model, keep))
        self.taken: set[str] = set()

    def call(self, node: Node, *args, **kwargs):
        """Calls a copy of the node's operation, or runs what is inside of a composite."""
        operation = node.operation
        if node.is_input:
            if self.anchor is None:
                self.anchor = args[0]
            self.taken.add(args[0].name)
            return args[0]
        scope = self.scope
        fixed = node.training if scope.fixed is None else scope.fixed
        given = kwargs.pop("training", None)
        default = given if scope.default is None else scope.default
        if is_composite(operation) and operation.name not in self.keep:
            self.scope = _Scope(operation, (*scope.path, operation.name), fixed, default)
            try:
                return self._run_inside(node, args, kwargs)
            finally:
                self.scope = scope
        return self._call_leaf(operation, args, kwargs, fixed, default)

    def _run_inside(self, node: Node, args, kwargs):
        operation = node.operation
        functional = _functional(operation)
        if functional is not None:
            graph, tensors = Graph.of(functional), nested_inputs(functional, node, args, kwargs)
        else:
            kwargs = with_mask(operation, args, kwargs)
            graph, tensors = trace(operation, args, kwargs), unique(tensors_in((args, kwargs)))

        def call(inner, *a, **k):
            return a[0] if inner.is_input else self.call(inner, *a, **k)

        return graph.run(tensors, call)

    def _call_leaf(self, operation, args, kwargs, fixed, default):
        if isinstance(operation, Parameter) and "source" in vars(operation):
            args = (self.anchor,)
        args, kwargs = tree.map_structure(self._parameter_for_variable, (args, kwargs))
        if not _obeys_training(operation):
            fixed = None
        elif fixed is None and default is not None:
            kwargs["training"] = default
        if fixed is False and is_of(operation, DROPOUTS):
            return args[0]
        key = source_of(operation)
        if key not in self.copies:
            twin = copy_operation(operation)
            twin.name = self._unique_name(operation)
            if fixed is not None:
                twin = fix_training(twin, fixed)
            self.copies[key], self.fixed[key] = (operation, twin), fixed
        if self.fixed[key] != fixed:
            raise ValueError(
                f"layer '{operation.name}' ({type(operation).__name__}) is called with training="
                f"{self.fixed[key]} in one place and training={fixed} in another, which a flat "
                "model cannot keep. Expected: the same in all calls (None follows fit). Ways out: "
                "use two layers, or leave the layer around it as one node with keep=[name]."
            )
        return self.copies[key][1](*args, **kwargs)

    def _unique_name(self, operation) -> str:
        """The operation's own name, if need be behind the names of the models around it."""
        name, path = operation.name, list(self.scope.path)
        is_layer = isinstance(operation, keras.Layer) and not isinstance(operation, RepeatBatch)
        if not is_layer and not _functional(self.scope.owner):
            # Tracing numbered it by what else was ever made in this process.
            name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(operation).__name__).lower()
            name, path = "_".join([*path[-1:], name]), []
        elif is_layer and self.counts[name] > 1 and path:
            name = f"{path.pop()}_{name}"
        while name in self.taken and path:
            name = f"{path.pop()}_{name}"
        number, base = 1, name
        while name in self.taken:
            name, number = f"{base}_{number}", number + 1
        self.taken.add(name)
        return name

    def _parameter_for_variable(self, x):
        """A weight handed to an operation directly, as from a list of weights, is kept too."""
        if not isinstance(x, keras.Variable):
            return x
        parameter = parameter_of(x, self.scope.owner)
        return self._call_leaf(parameter, (self.anchor,), {}, None, None)


def _obeys_training(operation) -> bool:
    """Whether an operation does something else in training."""
    if not isinstance(operation, keras.Layer) or isinstance(operation, _SAME_IN_TRAINING):
        return False
    if isinstance(operation, layers.Lambda):
        return operation._fn_expects_training_arg
    if isinstance(operation, layers.RNN | layers.MultiHeadAttention):
        config = operation.get_config()
        if not any(config.get(name) for name in ("dropout", "recurrent_dropout", "cell")):
            return False
    return "training" in inspect.signature(operation.call).parameters


def _leaf_names(layer, keep: set[str]) -> list[str]:
    """The names of the layers that become nodes, each layer once."""
    names, seen, stack = [], set(), [layer]
    while stack:
        layer = stack.pop()
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        if is_composite(layer) and (len(seen) == 1 or layer.name not in keep):
            stack.extend(layer._layers)
        elif not isinstance(layer, layers.InputLayer):
            names.append(layer.name)
    return names


def _root_graph(model, inputs) -> Graph:
    functional = _functional(model)
    if functional is not None:
        graph = Graph.of(functional)
        graph.name = model.name
        return graph
    structure, args, kwargs = inputs_of(model, inputs)
    traced = trace(model, args, kwargs)
    given = unique(tensors_in((args, kwargs)))
    new = {id(old): fresh for old, fresh in zip(given, traced.inputs, strict=True)}
    traced.inputs = tree.map_structure(lambda t: new[id(t)], structure)
    return traced


def _functional(model):
    """The Functional model that a model runs, if there is one (a built Sequential holds one)."""
    if not isinstance(model, keras.Model) or has_own_call(type(model)):
        return None
    if isinstance(model, keras.Sequential):
        return model._functional
    return model if hasattr(model, "_inputs_struct") else None


class _restored_nodes:
    """Tracing adds nodes to the user's layers; this takes them away again."""

    def __init__(self, model):
        self.layers = list(model._flatten_layers())

    def __enter__(self):
        self.counts = [(len(x._inbound_nodes), len(x._outbound_nodes)) for x in self.layers]

    def __exit__(self, *_):
        for layer, (inbound, outbound) in zip(self.layers, self.counts, strict=True):
            del layer._inbound_nodes[inbound:]
            del layer._outbound_nodes[outbound:]


def _warn_lost_loops(model, graph: Graph) -> None:
    if graph.model_class is type(model):
        return
    lost = [name for name in _LOOPS if not _is_from_keras(getattr(type(model), name))]
    if lost:
        warnings.warn(
            f"model '{model.name}' has its own {', '.join(lost)}, which its flat copy has not: "
            f"class {type(model).__name__} cannot be made from (inputs, outputs, name). To train "
            "the copy so, give a Functional keras.Model class the same methods and make it from "
            "the copy's inputs and outputs.",
            stacklevel=4,
        )


def _is_from_keras(function) -> bool:
    return function.__module__.startswith("keras.")
