"""A Keras model as a flat graph of operations: flatten, neighbours, rebuild."""

import contextlib
import inspect
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import keras
from keras import KerasTensor, layers, ops, tree

from tfcompress.graph.copying import NotCopied, copy_operation, copy_weights, keep_whole
from tfcompress.graph.inputs import inputs_of, require_model
from tfcompress.graph.layers import RepeatBatch, SetMask, fix_training
from tfcompress.graph.nodes import Graph, Node, functional_of, has_own_call, new_input, tensors_in
from tfcompress.graph.recording import parameter_of
from tfcompress.graph.tracing import NotTraced, batch_of, is_composite, source_of, trace_with
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
            dtypes are not the ones it was built with (float32 is assumed otherwise), or for any
            model that reads the size of an axis it leaves open, as the length of a sequence.
        keep: names of composite layers to leave as one node each. Other functions that take the
            copy keep them, too; a layer whose code is not made of `keras.ops` is kept by itself.

    Returns:
        A Functional `keras.Model`, not compiled; of the user's own class, with what its attributes
        say, if that is made from inputs and outputs.

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


def as_flat(model: keras.Model) -> keras.Model:
    """The model itself if it is flat, as `flatten` makes one; else a flat copy."""
    functional = hasattr(model, "_inputs_struct") and not has_own_call(type(model))
    if functional and not any(is_composite(layer) for layer in model.layers):
        return model
    return flatten(model)


def flatten_with_sources(
    model: keras.Model, *, inputs=None, keep: Iterable[str] = ()
) -> tuple[keras.Model, dict[int, Any]]:
    """See `flatten`: the flat copy, and what each of its operations is a copy of."""
    require_model(model)
    keep = {keep} if isinstance(keep, str) else set(keep)
    opening = _Opening(model, keep)
    while True:
        try:
            graph = _root_graph(model, inputs, opening)
            if found := {type(x) for x in _remembering(graph)} - opening.types:
                opening.types |= found
                continue
            flattener = _Flattener(model, graph)
            flat = graph.rebuild(flattener.call)
            copies = list(flattener.copies.values())
            copy_weights(copies)
        except (NotCopied, NotTraced) as error:
            opening.change(error)
            continue
        opening.warn()
        _warn_lost_loops(model, graph)
        return flat, {id(twin): operation for operation, twin in copies}


class _Opening:
    """Which layers of a model are opened.

    Attributes:
        kept: names of layers that the user keeps whole.
        untraced: id of a layer that has to stay whole -> (it, why).
        types: classes of users' layers that cannot be copied, or whose calls depend on one
            another, and are opened instead.
    """

    def __init__(self, model: keras.Model, kept: set[str]):
        self.model, self.kept = model, kept
        self.untraced: dict[int, tuple[Any, str]] = {}
        self.types: set[type] = set()

    def __call__(self, layer) -> bool:
        if layer is self.model:
            return True
        if layer.name in self.kept or id(layer) in self.untraced:
            return False
        return is_composite(layer) or type(layer) in self.types

    def change(self, error: NotCopied | NotTraced) -> None:
        """Leaves a layer whole that could not be traced, opens one that could not be copied."""
        layer = error.layer
        if id(layer) in self.untraced:
            raise ValueError(self.untraced[id(layer)][1]) from error
        if isinstance(error, NotTraced):
            if layer is self.model or not self(layer):
                raise error
            self.untraced[id(layer)] = layer, str(error)
        elif type(layer) in self.types or not _can_open(layer):
            raise error
        else:
            self.types.add(type(layer))

    def warn(self) -> None:
        """Names the layers that stay whole."""
        for _, reason in self.untraced.values():
            warnings.warn(
                f"{reason} It stays one node of the flat copy: float, and not compressed inside.",
                stacklevel=4,
            )


def _can_open(layer) -> bool:
    """Whether a user's layer that cannot be copied is the same as what its code computes."""
    random = len(layer.variables) != len(layer.weights)
    return has_own_call(type(layer)) and not random and not _obeys_training(layer)


def _remembering(graph: Graph) -> Iterator[Any]:
    """Users' layers that keep tensors of one call for the next, which no graph shows.

    Such as a normalization that is undone at the end of a model by a second call.
    """
    calls = Counter(id(node.operation) for node in graph.nodes)
    for node in graph.nodes:
        layer = node.operation
        if node.is_input or calls[id(layer)] < 2 or not isinstance(layer, keras.Layer):
            continue
        if has_own_call(type(layer)) and not layer._layers and _can_open(layer):
            before = dict(vars(layer))
            args, kwargs = tree.map_structure(_symbol, (node.args, node.kwargs))
            with contextlib.suppress(Exception):
                layer.call(*args, **kwargs)
            after = dict(vars(layer))
            vars(layer).clear()
            vars(layer).update(before)
            changed = [v for k, v in after.items() if v is not before.get(k)]
            if any(isinstance(value, KerasTensor) for value in changed):
                yield layer


def _symbol(x):
    """A symbolic tensor with no place in any graph, for another one."""
    return KerasTensor(x.shape, x.dtype) if isinstance(x, KerasTensor) else x


class _Flattener:
    """Calls copies of a graph's operations, in its order.

    `copies` maps the identity of an operation or variable to (it, its copy).
    """

    def __init__(self, model: keras.Model, graph: Graph):
        self.model, self.graph = model, graph
        self.copies: dict[int, tuple[Any, Any]] = {}
        self.fixed: dict[int, bool | None] = {}
        self.anchor: Any = None
        found = {id(node.operation): node.operation for node in graph.nodes if not node.is_input}
        self.counts = Counter(x.name for x in found.values() if isinstance(x, keras.Layer))
        self.taken: set[str] = set()

    def call(self, node: Node, *args, **kwargs):
        """Calls a copy of the node's operation."""
        if node.is_input:
            if self.anchor is None:
                self.anchor = args[0]
            self.taken.add(args[0].name)
            return args[0]
        operation, fixed = node.operation, node.training
        if isinstance(operation, SetMask) and not _is_mask_read(self.graph, node):
            return args[0]
        if _converts(operation):
            x, dtype = args[0], node.outputs[0].dtype
            return x if x.dtype == dtype else ops.cast(x, dtype)
        if not _obeys_training(operation):
            fixed = None
            kwargs.pop("training", None)
        if fixed is False and is_of(operation, DROPOUTS):
            return args[0]
        owner = node.around[-1] if node.around else self.model

        def as_parameter(x):
            """A weight handed to an operation directly, as from a list of weights, is kept too."""
            if not isinstance(x, keras.Variable):
                return x
            return self._copy(parameter_of(x, owner), node, None)(self.anchor)

        args, kwargs = tree.map_structure(as_parameter, (args, kwargs))
        return self._copy(operation, node, fixed)(*args, **kwargs)

    def _copy(self, operation, node: Node, fixed: bool | None):
        key = source_of(operation)
        if key not in self.copies:
            twin = copy_operation(operation)
            if is_composite(operation):
                keep_whole(twin)
            twin.name = self._unique_name(operation, node.around)
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
        return self.copies[key][1]

    def _unique_name(self, operation, around: tuple) -> str:
        """The operation's own name, if need be behind the names of the models around it."""
        name, path = operation.name, [layer.name for layer in around[1:]]
        is_layer = isinstance(operation, keras.Layer) and not isinstance(operation, RepeatBatch)
        if not is_layer and not functional_of(around[-1] if around else self.model):
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


def _converts(operation) -> bool:
    """Whether an operation is what a Functional model does to its inputs."""
    return type(operation).__name__ == "ConvertToTensor"


def _is_mask_read(graph: Graph, node: Node) -> bool:
    """Whether the mask of a node's output reaches a loss, or a layer that reads it."""
    if any(graph.is_output(tensor) for tensor in node.outputs):
        return True
    for tensor in node.outputs:
        for consumer in graph.consumers(tensor):
            layer = consumer.operation
            if _converts(layer) and _is_mask_read(graph, consumer):
                return True
            if not isinstance(layer, keras.Layer) or not layer.supports_masking:
                continue
            names = inspect.signature(layer.call).parameters
            if layer._layers or any(x == "mask" or x.endswith("_mask") for x in names):
                return True
            if _is_mask_read(graph, consumer):
                return True
    return False


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


def _root_graph(model, inputs, opens: _Opening) -> Graph:
    functional = functional_of(model)
    like = None
    given: tuple[Any, tuple, dict]
    if functional is None:
        given = inputs_of(model, inputs)
    else:
        graph = Graph.of(functional)
        graph.name, like = model.name, graph.like
        if inputs is None and not any(map(opens, functional.operations)):
            return graph
        given_inputs = functional._inputs_struct if inputs is None else inputs
        given = given_inputs, (given_inputs,), {}

    def start(batch: int | None):
        fresh = {id(t): new_input(t, batch_of(t, batch)) for t in tensors_in(given)}
        return tree.map_structure(lambda x: fresh.get(id(x), x), given)

    graph = trace_with(model, start, opens)
    graph.like = like
    return graph


def _warn_lost_loops(model, graph: Graph) -> None:
    if graph.like is not None:  # where it cannot be made again, that is told
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
