"""The nodes of a flat Functional model: look-ups of neighbours, and rebuilding."""

import contextlib
import dataclasses
import functools
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import keras
from keras import KerasTensor, layers, tree

from tfcompress.graph.copying import NotCopied


@dataclasses.dataclass(eq=False)
class Node:
    """One call of one operation.

    Attributes:
        operation: a Keras layer or a `keras.ops` operation.
        args, kwargs: what it was called with; the `KerasTensor`s in them are `inputs`.
        outputs: list of the `KerasTensor`s it gave.
        training: True or False if a subclassed model's `call` fixed it; None if it follows `fit`.
        around: the opened layers whose code called it, the model first.
    """

    operation: Any
    args: tuple
    kwargs: dict
    outputs: list
    training: bool | None = None
    around: tuple = ()

    @property
    def name(self) -> str:
        return self.operation.name

    @property
    def inputs(self) -> list:
        return tensors_in((self.args, self.kwargs))

    @property
    def is_input(self) -> bool:
        return isinstance(self.operation, layers.InputLayer)


class Graph:
    """The nodes of a Functional model in topological order, with neighbour look-ups.

    Args:
        inputs: structure of `KerasTensor`s that the graph starts from.
        outputs: structure of `KerasTensor`s that the graph computes.
        name: name of the model that `rebuild` makes.
        like: a model whose class, with its settings, is that of the model that `rebuild` makes.
        noted: the nodes of Keras that were noted on the way to the outputs, in order; by default
            they are found by the histories of the outputs.
    """

    def __init__(
        self, inputs, outputs, name: str | None = None, like: keras.Model | None = None, noted=None
    ):
        self.name, self.like = name, like
        nodes = _sorted_nodes(inputs, outputs) if noted is None else _needed(noted, outputs)
        self.reset(inputs, outputs, [as_node(node) for node in nodes])

    def reset(self, inputs, outputs, nodes: list[Node]) -> None:
        """Takes other tensors and nodes, which are in topological order."""
        self.inputs, self.outputs, self.nodes = inputs, outputs, nodes
        self._outputs = {id(tensor) for tensor in tree.flatten(outputs)}
        self._producer = {id(t): node for node in self.nodes for t in node.outputs}
        self._consumers: dict[int, list[Node]] = {}
        for node in self.nodes:
            for key in {id(tensor) for tensor in node.inputs}:
                self._consumers.setdefault(key, []).append(node)

    @classmethod
    def of(cls, model: keras.Model) -> "Graph":
        """The graph of a Functional model (`flatten` makes one of any other).

        A class of the user's own, with its own `train_step` say, is kept by `rebuild`.
        """
        like = model if is_functional_class(type(model)) else None
        return cls(model._inputs_struct, model._outputs_struct, model.name, like)

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
        """Carries the graph out on new tensors."""
        values = {id(t): new for t, new in zip(tree.flatten(self.inputs), inputs, strict=True)}
        for node in self.nodes:
            if node.is_input:
                new = call(node, values[id(node.outputs[0])])
                values[id(node.outputs[0])] = new
                continue
            args, kwargs = tree.map_structure(
                lambda x: values[id(x)] if isinstance(x, KerasTensor) else x,
                (node.args, node.kwargs),
            )
            new = call(node, *args, **kwargs)
            correct(_in_place(node.operation, args, kwargs, new), args, kwargs, new)
            for tensor, value in zip(node.outputs, tree.flatten(new), strict=True):
                values.setdefault(id(tensor), value)
        return tree.map_structure(lambda x: values[id(x)], self.outputs)

    def rebuild(self, call: Callable | None = None, batch_size: int | None = None) -> keras.Model:
        """A new Functional model of this graph, with nodes replaced or inserted by `call`."""
        new_inputs = tree.map_structure(lambda t: new_input(t, batch_size), self.inputs)
        outputs = self.run(tree.flatten(new_inputs), call or call_node)
        if self.like is not None:
            try:
                with _prepared(new_inputs, outputs):
                    return _model_like(self.like, new_inputs, outputs, self.name)
            except TypeError as error:
                warnings.warn(
                    f"a model of class {type(self.like).__name__} cannot be made again: "
                    f"{error}. The new model is a plain keras.Model, without the class's own "
                    "train_step or losses.",
                    stacklevel=3,
                )
        return model_of(new_inputs, outputs, self.name)


def model_of(inputs, outputs, name: str | None = None) -> keras.Model:
    """A Functional model, also a deep one, with a name of its own for each operation."""
    with _prepared(inputs, outputs):
        return keras.Model(inputs, outputs, name=name)


@contextlib.contextmanager
def _prepared(inputs, outputs):
    nodes = _sorted_nodes(inputs, outputs)
    _make_names_unique([node.operation for node in nodes])
    with _deep_recursion(len(nodes)):
        yield


def exchanged(graph: Graph, call: Callable) -> keras.Model:
    """A new model of the graph of a copy that is used up: its operations may be used again."""
    for node in graph.nodes:
        if not node.is_input:
            # Else they would know two calls, of which one is in no model.
            node.operation._inbound_nodes.clear()
            node.operation._outbound_nodes.clear()
    return graph.rebuild(
        lambda node, *args, **kwargs: args[0] if node.is_input else call(node, *args, **kwargs)
    )


def call_node(node: Node, *args, **kwargs):
    """Calls the node's own operation on new tensors; an input stays what it is."""
    return args[0] if node.is_input else node.operation(*args, **kwargs)


def tensors_in(structure) -> list:
    """The `KerasTensor`s of a structure, in order, as often as they occur."""
    return [x for x in tree.flatten(structure) if isinstance(x, KerasTensor)]


def _in_place(operation, args, kwargs, outputs):
    """The operation of the same class that made outputs of arguments; else that which was there."""
    made = _maker(outputs)
    if type(made) is not type(operation):
        return operation
    given = {id(x) for x in tensors_in((args, kwargs))}
    return made if given == {id(x) for x in made._inbound_nodes[-1].input_tensors} else operation


def _maker(outputs):
    """The operation that made symbolic outputs; None of those that none made."""
    history = [getattr(x, "_keras_history", None) for x in tensors_in(outputs)[:1]]
    return history[0].operation if history and history[0] else None


def correct(operation, args: tuple, kwargs: dict, outputs) -> None:
    """Tells symbolic outputs what Keras does not know of them.

    It takes them for sparse where a number is multiplied with, the axes of an EinsumDense that its
    `output_shape` leaves open for unknown, and believes what a user's layer says of its shapes,
    of which it concludes that they are of floats.
    """
    given, found = tensors_in((args, kwargs)), tensors_in(outputs)
    if not any(x.sparse for x in given):
        for x in found:
            x._sparse = False
    if not isinstance(operation, keras.Layer) or isinstance(operation, layers.InputLayer):
        return
    known = not any(None in x.shape[1:] for x in given)
    says = "compute_output_shape", "compute_output_spec"
    own = has_own_call(type(operation)) and any(_is_own(operation, name) for name in says)
    if own or (known and any(None in x.shape[1:] for x in found)):
        if "training" not in inspect.signature(operation.call).parameters:
            kwargs = {key: value for key, value in kwargs.items() if key != "training"}
        try:
            specs = tensors_in(keras.Operation.compute_output_spec(operation, *args, **kwargs))
        except Exception:  # what Keras was told has to do
            return
        if len(specs) != len(found):
            raise NotCopied(
                operation,
                f"layer '{operation.name}' ({type(operation).__name__}) returns {len(specs)} "
                f"tensors, but {len(found)} by its compute_output_shape or compute_output_spec. "
                "Let them tell the shapes of what call() returns.",
            )
        maker = _maker(found)
        for x, spec in zip(found, specs, strict=True):
            # What others made in its place may be smaller.
            others = maker is not None and maker is not operation
            x._shape = _known(spec.shape, x.shape) if others else _known(x.shape, spec.shape)
            x._dtype = spec.dtype


def _is_own(layer, name: str) -> bool:
    return not getattr(type(layer), name).__module__.startswith("keras.")


def _known(told, found) -> tuple:
    """A shape that was found, with the axes that are only known by what was told."""
    if len(told) != len(found):
        return tuple(found)
    return tuple(a if b is None else b for a, b in zip(told, found, strict=True))


def spec_of(x):
    """The shape and dtype of a tensor; what is none as it is."""
    return (tuple(x.shape), x.dtype) if isinstance(x, KerasTensor) else x


def unique(tensors: Iterable) -> list:
    """Tensors without repetitions, in order."""
    return list({id(t): t for t in tensors}.values())


def new_input(tensor, batch_size: int | None = None):
    """A `keras.Input` of a tensor's shape, dtype and name, with another batch size if given."""
    shape = tuple(tensor.shape)
    if batch_size is not None:
        shape = (batch_size, *shape[1:])
    node = _node_of(tensor)
    optional = node is not None and getattr(node.operation, "optional", False)
    return keras.Input(
        batch_shape=shape,
        dtype=tensor.dtype,
        name=tensor.name,
        sparse=bool(tensor.sparse),
        optional=optional,
    )


def is_functional_class(model_class: Any) -> bool:
    """Whether models of a user's class are made from inputs and outputs."""
    if not issubclass(model_class, _FUNCTIONAL) or has_own_call(model_class):
        return False
    if model_class is _FUNCTIONAL:
        return False
    spec = inspect.getfullargspec(model_class.__init__)
    return {"inputs", "outputs"} <= {*spec.args} or (spec.varargs is not None)


def _model_like(model, inputs, outputs, name: str | None) -> keras.Model:
    """A model of a user's class with other inputs and outputs, and with what is set in another.

    Raises a TypeError if that is not known.
    """
    new = type(model)(inputs, outputs, **_arguments_of(model, name))
    for key, value in vars(model).items():
        if key in _attributes_of_models() or isinstance(value, keras.Metric):
            continue
        if any(isinstance(x, keras.Variable) for x in tree.flatten(value)):
            raise TypeError(f"its attribute '{key}' is a weight of its own")
        held = [x for x in tree.flatten(value) if isinstance(x, keras.Layer)]
        inside = {id(part) for x in held for part in x._flatten_layers()}
        if inside & {id(operation) for operation in model.operations}:
            raise TypeError(f"its attribute '{key}' holds layers of the model itself")
        if not held or key not in vars(new):
            setattr(new, key, value)
    new.name = model.name if name is None else name
    return new


def _arguments_of(model, name: str | None) -> dict[str, Any]:
    """What a user's class is made with, beside inputs and outputs: by its attributes."""
    parameters = list(inspect.signature(type(model).__init__).parameters.values())[1:]
    found: dict[str, Any] = {}
    for p in parameters:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) or p.name in ("inputs", "outputs"):
            continue
        if p.name == "name":
            found["name"] = name
            continue
        known = [key for key in (p.name, f"_{p.name}") if key in vars(model)]
        if known:
            found[p.name] = vars(model)[known[0]]
        elif p.default is p.empty:
            raise TypeError(f"it has no attribute '{p.name}' for its argument of this name")
    return found


def functional_of(model):
    """The Functional model that a model runs, if there is one (a built Sequential holds one)."""
    if not isinstance(model, keras.Model) or has_own_call(type(model)):
        return None
    if isinstance(model, keras.Sequential):
        return model._functional
    return model if hasattr(model, "_inputs_struct") else None


def has_own_call(layer_class: Any) -> bool:
    """Whether a class has a `call` written outside of Keras (and of this package).

    The layers of keras.applications are written as users write theirs, with operations inside.
    """
    home = layer_class.call.__module__
    return home.startswith("keras.src.applications.") or not home.startswith(
        ("keras.", "tfcompress.")
    )


def _functional_class() -> type:
    x = keras.Input((1,))
    return type(keras.Model(x, keras.layers.Identity()(x)))


# Keras has no public names for them.
_FUNCTIONAL: Any = _functional_class()
KERAS_NODE: Any = type(keras.Input((1,))._keras_history.operation._inbound_nodes[0])


@functools.cache
def _attributes_of_models() -> set[str]:
    """What Keras itself sets in a model, compiled and fitted, say."""
    x = keras.Input((1,))
    model = keras.Model(x, keras.layers.Identity()(x))
    model.compile("sgd", "mse")
    return {*vars(model), "history", "_val_metrics", "_eval_epoch_iterator"}


def as_node(node) -> Node:
    """A node of Keras as one of ours."""
    return Node(node.operation, node.arguments.args, dict(node.arguments.kwargs), node.outputs)


def _needed(noted: list, outputs) -> list:
    """Those of some Keras nodes that outputs depend on."""
    wanted = {id(t) for t in tree.flatten(outputs)}
    needed = []
    for node in reversed(noted):
        if not wanted.isdisjoint(id(t) for t in node.outputs):
            needed.append(node)
            wanted.update(id(t) for t in node.input_tensors)
    return needed[::-1]


def _sorted_nodes(inputs, outputs) -> list:
    """Keras nodes between inputs and outputs, every node after those it depends on."""
    starts = {id(t) for t in tree.flatten(inputs)}

    def node_before(tensor):
        node = _node_of(tensor)
        given = node is None or (id(tensor) in starts and node.input_tensors)
        return None if given else node

    done: set[int] = set()
    ordered = []
    stack = [(node_before(t), False) for t in reversed(tree.flatten([inputs, outputs]))]
    while stack:
        node, ready = stack.pop()
        if node is None or id(node) in done:
            continue
        if ready:
            done.add(id(node))
            ordered.append(node)
            continue
        stack.append((node, True))
        stack.extend((node_before(t), False) for t in reversed(node.input_tensors))
    return ordered


def _node_of(tensor):
    history = getattr(tensor, "_keras_history", None)
    if history is None or history.operation is None:
        return None
    return history.operation._inbound_nodes[history.node_index]


def scope_name(name: str) -> str:
    """A name that TensorFlow takes for a scope, as each layer of a compiled step must have."""
    return re.sub(r"[^A-Za-z0-9_.>-]", "_", name)


def _make_names_unique(operations: list) -> None:
    """Numbers names that occur twice: those of operations are given anew in every process."""
    different = list({id(operation): operation for operation in operations}.values())
    different.sort(key=lambda operation: not isinstance(operation, keras.Layer))
    taken = {operation.name for operation in different}
    if len(taken) == len(different):
        return
    seen: set[str] = set()
    for operation in different:
        number, base = 1, operation.name
        while operation.name in seen or (number > 1 and operation.name in taken):
            operation.name, number = f"{base}_{number}", number + 1
        seen.add(operation.name)


@contextlib.contextmanager
def _deep_recursion(nodes: int):
    """Keras walks a new Functional model recursively, one frame per node of its longest path."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(before + 2 * nodes)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
