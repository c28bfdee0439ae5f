"""A Keras model as a flat graph of operations: flatten, neighbours, rebuild."""

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
from keras import KerasTensor, layers, tree

from tfcompress.layers import Parameter

# Keras's own layers are the leaves of the graph, whatever they hold inside.
_LEAF_MODULES = ("keras.src.layers.", "keras.layers.", "tfcompress.")


@dataclasses.dataclass(eq=False)
class Node:
    """One call of one operation.

    `operation` is a Keras layer or a `keras.ops` operation, `args` and `kwargs` are what it was
    called with (the `KerasTensor`s in them are `inputs`), `outputs` the `KerasTensor`s it gave.
    """

    operation: Any
    args: tuple
    kwargs: dict
    outputs: list

    @property
    def name(self) -> str:
        return self.operation.name

    @property
    def inputs(self) -> list:
        leaves = tree.flatten((self.args, self.kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, KerasTensor)]

    @property
    def is_input(self) -> bool:
        return isinstance(self.operation, layers.InputLayer)


class Graph:
    """The nodes of a Functional model in topological order, with neighbour look-ups.

    Args:
        inputs: structure of `KerasTensor`s that the graph starts from.
        outputs: structure of `KerasTensor`s that the graph computes.
        name: name of the model that `rebuild` makes.
    """

    def __init__(self, inputs, outputs, name: str | None = None):
        self.inputs, self.outputs, self.name = inputs, outputs, name
        self.nodes = [_to_node(node) for node in _sorted_nodes(inputs, outputs)]
        self._producer = {id(t): node for node in self.nodes for t in node.outputs}
        self._consumers: dict[int, list[Node]] = {}
        for node in self.nodes:
            for key in {id(tensor) for tensor in node.inputs}:
                self._consumers.setdefault(key, []).append(node)
        self._outputs = {id(tensor) for tensor in tree.flatten(outputs)}

    @classmethod
    def of(cls, model: keras.Model) -> "Graph":
        """The graph of a Functional model (`flatten` makes one of any other)."""
        return cls(model._inputs_struct, model._outputs_struct, model.name)

    def producer(self, tensor) -> Node | None:
        """The node that computes `tensor`."""
        return self._producer.get(id(tensor))

    def consumers(self, tensor) -> list[Node]:
        """The nodes that read `tensor`, in topological order."""
        return self._consumers.get(id(tensor), [])

    def is_output(self, tensor) -> bool:
        """Whether `tensor` is an output of the whole graph."""
        return id(tensor) in self._outputs

    def only_consumer(self, tensor) -> Node | None:
        """The node that alone reads `tensor`; None if several do or it leaves the graph."""
        consumers = self.consumers(tensor)
        return consumers[0] if len(consumers) == 1 and not self.is_output(tensor) else None

    def run(self, inputs: Iterable, call: Callable) -> Any:
        """Carries the graph out on new tensors.

        Args:
            inputs: new tensors, in the order of the flattened `inputs`.
            call: `call(node, *args, **kwargs) -> outputs`, where args hold the new tensors.

        Returns:
            The new tensors in the structure of `outputs`.
        """
        values = {id(t): new for t, new in zip(tree.flatten(self.inputs), inputs, strict=True)}
        for node in self.nodes:
            if node.is_input:
                new = call(node, values[id(node.outputs[0])])
            else:
                args, kwargs = tree.map_structure(
                    lambda x: values[id(x)] if isinstance(x, KerasTensor) else x,
                    (node.args, node.kwargs),
                )
                new = call(node, *args, **kwargs)
            for tensor, value in zip(node.outputs, tree.flatten(new), strict=True):
                values[id(tensor)] = value
        return tree.map_structure(lambda x: values[id(x)], self.outputs)

    def rebuild(self, call: Callable | None = None, batch_size: int | None = None) -> keras.Model:
        """A new Functional model of this graph, with nodes replaced or inserted by `call`.

        Args:
            call: `call(node, *args, **kwargs) -> outputs`; by default each node's own operation is
                called, so that the new model shares its layers. Input nodes are passed too, with
                their new `KerasTensor`.
            batch_size: fixed batch size of the inputs; None leaves them as they are.

        Returns:
            A Functional `keras.Model` with inputs of the same names and structure.
        """
        new_inputs = tree.map_structure(lambda t: _new_input(t, batch_size), self.inputs)
        outputs = self.run(tree.flatten(new_inputs), call or call_node)
        return keras.Model(new_inputs, outputs, name=self.name)


def call_node(node: Node, *args, **kwargs):
    """Calls the node's own operation on new tensors; an input stays what it is."""
    return args[0] if node.is_input else node.operation(*args, **kwargs)


def copy_operation(operation):
    """A copy of a layer or operation, without its place in a graph; weights come later.

    Args:
        operation: a `keras.Layer` or `keras.Operation`.

    Returns:
        A new, unbuilt layer of the same configuration and name, or a new operation.

    Raises:
        ValueError: if the layer cannot be made anew from its `get_config`.
    """
    if not isinstance(operation, keras.Layer):
        twin = copy.copy(operation)
        twin._inbound_nodes, twin._outbound_nodes = [], []
        return twin
    if isinstance(operation, layers.Lambda):  # its from_config refuses Python functions
        return layers.Lambda(
            operation.function, arguments=dict(operation.arguments or {}), name=operation.name
        )
    try:
        return type(operation).from_config(operation.get_config())
    except Exception as error:
        raise ValueError(
            f"layer '{operation.name}' ({type(operation).__name__}) cannot be copied: its "
            f"get_config/from_config failed with {type(error).__name__}: {error}. Return every "
            "argument of __init__ from get_config(), as keras.saving needs it too."
        ) from error


def copy_weights(pairs: Iterable[tuple[Any, Any]]) -> None:
    """Copies all variables (weights, metrics of state, random seeds) between layers of one kind."""
    for source, target in pairs:
        ours, theirs = getattr(target, "variables", []), getattr(source, "variables", [])
        if len(ours) != len(theirs):
            raise ValueError(
                f"layer '{source.name}' ({type(source).__name__}) has {len(theirs)} variables, its "
                f"copy {len(ours)}. Create all of them in __init__ or build()."
            )
        for new, old in zip(ours, theirs, strict=True):
            new.assign(old)


def flatten(model: keras.Model, *, inputs=None, keep: Iterable[str] = ()) -> keras.Model:
    """A flat Functional copy of any Keras 3 model, with weights of its own.

    Nested models, `Sequential`s and subclassed models and layers are opened; the layers of Keras
    itself (RNNs and MultiHeadAttention among them) and `keras.ops` calls become the nodes.
    Outputs equal the original's exactly in inference; Dropout and BatchNormalization keep obeying
    `training`. The user's model is left untouched.

    Args:
        model: Sequential, Functional, nested or subclassed `keras.Model`, built.
        inputs: structure of `keras.Input` tensors for a subclassed model whose input shapes or
            dtypes are not the ones it was built with (float32 is assumed otherwise).
        keep: names of composite layers to leave as one node each.

    Returns:
        A Functional `keras.Model`, not compiled.

    Raises:
        ValueError: if the model is not built, or a layer cannot be traced symbolically.

    Example:
        >>> inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> model = keras.Sequential([keras.Input((4,)), inner, keras.layers.Softmax()])
        >>> [layer.name for layer in flatten(model).layers]  # doctest: +SKIP
        ['input_layer_1', 'dense', 'softmax']
    """
    _require_model(model)
    keep, copies = set(keep), {}
    with _restored_nodes(model):
        graph = _root_graph(model, inputs)
        flat = graph.rebuild(lambda node, *a, **k: _expand(node, a, k, copies, keep, ()))
    copy_weights(copies.values())
    return flat


def is_composite(operation) -> bool:
    """Whether an operation is opened by `flatten`: a model, or a user's layer made of layers."""
    if isinstance(operation, keras.Model):
        return True
    own = type(operation).__module__.startswith(_LEAF_MODULES)
    return isinstance(operation, keras.Layer) and not own and bool(operation._layers)


def trace(layer: keras.Layer, args: tuple, kwargs: dict) -> Graph:
    """The graph of what a layer's `call` computes.

    Args:
        layer: a built layer whose `call` uses Keras layers and `keras.ops`.
        args, kwargs: structures holding the `KerasTensor`s it is called with.

    Returns:
        A `Graph` whose inputs are the flat list of new tensors in place of those in args, kwargs.

    Raises:
        ValueError: naming the layer and the ways out, if it cannot be traced.
    """
    leaves = [x for x in tree.flatten((args, kwargs)) if isinstance(x, KerasTensor)]
    fresh = {id(t): _new_input(t) for t in leaves}
    args, kwargs = tree.map_structure(
        lambda x: fresh[id(x)] if isinstance(x, KerasTensor) else x, (args, kwargs)
    )
    accepted = inspect.signature(layer.call).parameters
    kwargs = {name: value for name, value in kwargs.items() if name in accepted}
    try:
        outputs = layer.call(*args, **kwargs)
        if not all(isinstance(t, KerasTensor) for t in tree.flatten(outputs)):
            raise TypeError("it returned something that is not a symbolic tensor")
    except Exception as error:
        if isinstance(error, ValueError) and "Ways out:" in str(error):
            raise
        reason = str(error).strip().splitlines() or [""]
        raise ValueError(
            f"layer '{layer.name}' ({type(layer).__name__}) cannot be traced symbolically: "
            f"{type(error).__name__}: {reason[0][:300]} Ways out: write its call() with keras.ops "
            "in place of raw tf. functions and without Python control flow on tensor values; or, "
            f"if it is a layer inside of a model, leave it as one node with keep=['{layer.name}']."
        ) from error
    return Graph([fresh[id(t)] for t in _unique(leaves)], outputs, layer.name)


def _expand(node: Node, args, kwargs, copies: dict, keep: set, path: tuple):
    """Calls a copy of the node's operation, or runs what is inside of a composite."""
    operation = node.operation
    if node.is_input:
        return args[0]
    if is_composite(operation) and operation.name not in keep:
        training = kwargs.get("training")
        functional = _functional(operation)
        if functional is not None:
            graph = Graph.of(functional)
            inner = [x for x in tree.flatten(args) if isinstance(x, KerasTensor)]
        else:
            graph = trace(operation, args, kwargs)
            inner = _unique(
                x for x in tree.flatten((args, kwargs)) if isinstance(x, KerasTensor)
            )
        here = (*path, node.name)

        def call(inner_node, *a, **k):
            if training is not None and isinstance(inner_node.operation, keras.Layer):
                k["training"] = training
            return _expand(inner_node, a, k, copies, keep, here)

        return graph.run(inner, call)
    args, kwargs = _parameters_for_variables(args, kwargs, copies)
    if id(operation) not in copies:
        copies[id(operation)] = (operation, _named_copy(operation, path, copies))
    return copies[id(operation)][1](*args, **kwargs)


def _named_copy(operation, path: tuple, copies: dict):
    """A copy whose name is made unique by the names of the models around it."""
    twin = copy_operation(operation)
    taken = {pair[1].name for pair in copies.values()}
    parts = list(path)
    while twin.name in taken and parts:
        twin.name = f"{parts.pop()}_{twin.name}"
    number, base = 1, twin.name
    while twin.name in taken:
        twin.name, number = f"{base}_{number}", number + 1
    return twin


def _parameters_for_variables(args, kwargs, copies: dict):
    """Weights that an opened layer uses directly become `Parameter` layers, so that they are kept.

    A `Parameter` needs a tensor to hang on in the graph; any input of the same node serves.
    """
    anchor = next((x for x in tree.flatten((args, kwargs)) if isinstance(x, KerasTensor)), None)

    def convert(x):
        if not isinstance(x, keras.Variable) or anchor is None:
            return x
        if id(x) not in copies:
            layer = Parameter(x.shape, dtype=x.dtype, trainable=x.trainable, name=_slug(x.path))
            copies[id(x)] = (_Holder(x), layer)
        return copies[id(x)][1](anchor)

    return tree.map_structure(convert, (args, kwargs))


class _Holder:
    """Gives a lone variable the face of a layer, for `copy_weights`."""

    def __init__(self, variable):
        self.name, self.variables = variable.name, [variable]


def _root_graph(model, inputs) -> Graph:
    functional = _functional(model)
    if functional is not None:
        return Graph(functional._inputs_struct, functional._outputs_struct, model.name)
    inputs = inputs if inputs is not None else _inputs_as_built(model)
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    accepted = inspect.signature(model.call).parameters
    kwargs = {"training": None} if "training" in accepted else {}
    traced = trace(model, args, kwargs)
    flat = _unique(x for x in tree.flatten(args) if isinstance(x, KerasTensor))
    names = [t.name for t in flat]
    for tensor, name in zip(traced.inputs, names, strict=True):
        tensor.name = name
    structure = inputs if not isinstance(inputs, tuple) else list(inputs)
    renamed = {id(old): new for old, new in zip(flat, traced.inputs, strict=True)}
    traced.inputs = tree.map_structure(lambda t: renamed[id(t)], structure)
    return traced


def _functional(model):
    """The Functional model behind a model, if there is one (a built Sequential holds one)."""
    if isinstance(model, keras.Sequential):
        return model._functional
    return model if hasattr(model, "_inputs_struct") else None


def _inputs_as_built(model):
    config = model.get_build_config() or {}
    shapes = config.get("shapes_dict") or config.get("input_shape")
    if not model.built or not shapes:
        raise ValueError(
            f"model '{model.name}' ({type(model).__name__}) is not built, so its inputs are not "
            "known. Call it once on a batch of data, or pass inputs=keras.Input(shape)."
        )
    if isinstance(shapes, dict):
        made = {
            name: _input_of(shape, name.removesuffix("_shape")) for name, shape in shapes.items()
        }
        return next(iter(made.values())) if len(made) == 1 else tuple(made.values())
    return _input_of(shapes, "inputs")


def _input_of(shape, name: str):
    if isinstance(shape, dict):
        return {key: _input_of(value, key) for key, value in shape.items()}
    if shape and isinstance(shape[0], list | tuple):
        return [_input_of(part, f"{name}_{i}") for i, part in enumerate(shape)]
    return keras.Input(batch_shape=(None, *shape[1:]), name=name)


def _new_input(tensor, batch_size: int | None = None):
    shape = tuple(tensor.shape)
    if batch_size is not None:
        shape = (batch_size, *shape[1:])
    return keras.Input(batch_shape=shape, dtype=tensor.dtype, name=tensor.name)


def _to_node(node) -> Node:
    return Node(node.operation, node.arguments.args, node.arguments.kwargs, node.outputs)


def _sorted_nodes(inputs, outputs) -> Iterator:
    """Keras nodes between inputs and outputs, every node after those it depends on."""
    starts = {id(t) for t in tree.flatten(inputs)}
    done: set[int] = set()
    ordered = []
    stack = [(_node_of(t), False) for t in reversed(tree.flatten([inputs, outputs]))]
    while stack:
        node, ready = stack.pop()
        if node is None or id(node) in done:
            continue
        if ready:
            done.add(id(node))
            ordered.append(node)
            continue
        stack.append((node, True))
        if not all(id(t) in starts for t in node.outputs):
            stack.extend((_node_of(t), False) for t in reversed(node.input_tensors))
    return iter(ordered)


def _node_of(tensor):
    history = getattr(tensor, "_keras_history", None)
    if history is None or history.operation is None:
        return None
    return history.operation._inbound_nodes[history.node_index]


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


def _require_model(model) -> None:
    if not isinstance(model, keras.Model):
        kind = f"{type(model).__module__}.{type(model).__name__}"
        hint = (
            "tf_keras (Keras 2) models are not supported here yet: rebuild it with Keras 3."
            if kind.startswith("tf_keras")
            else "Pass a keras.Model, or load one with keras.saving.load_model(path)."
        )
        raise TypeError(f"model must be a keras.Model of Keras 3; received {kind}. {hint}")


def _unique(tensors) -> list:
    return list({id(t): t for t in tensors}.values())


def _slug(path: str) -> str:
    return path.replace("/", "_")
