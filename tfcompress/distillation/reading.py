"""A model together with the tensors that losses want of it, got in one forward pass."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops, tree

# JAX tensors take no attributes; Keras knows where their masks are, but has no public way to ask.
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask

from tfcompress.errors import did_you_mean
from tfcompress.files.models import reason_of
from tfcompress.graph.inputs import inputs_of
from tfcompress.graph.nodes import Graph
from tfcompress.layers.compressed import Compressed
from tfcompress.layers.fake_quant import FakeQuant

Tensors = dict["Source", Any]


class CannotTap(ValueError):
    """It is not clear which tensor of a layer is meant."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where in a model a tensor is found.

    Attributes:
        output: index of an output of the model, flattened; None if it is inside.
        operation: the layer or operation inside that gives it.
        given: take what the operation is given (logits before a softmax), not what it gives.
        logits_of: "softmax" or "sigmoid" if logits are to be computed from probabilities.
    """

    output: int | None = None
    operation: Any = None
    given: bool = False
    logits_of: str | None = None

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return "the output" if self.operation is None else f"layer '{self.operation.name}'"


class Reader:
    """Runs a model once and gives its outputs and the tensors of some sources.

    Args:
        model: a built model.
        sources: what is wanted.
        names: of the inputs it is called with, if they come as a list.
    """

    def __init__(self, model: keras.Model, sources: Iterable[Source], names: Sequence[str] = ()):
        self.model, self.sources = model, tuple(dict.fromkeys(sources))
        self.names = list(names)
        self.masks: dict[Source, int] = {}  # source -> axes of its mask, once specs are known

    def __call__(self, inputs, training: bool | None = None) -> tuple[Any, Tensors]:
        """(outputs of the model, source -> tensor)."""
        wanted = [source.operation for source in self.sources if source.operation is not None]
        with recorded(wanted) as record:
            outputs = self.model(_as_called(self.model, inputs, self.names), training=training)
        return outputs, {source: self._pick(source, outputs, record) for source in self.sources}

    def _pick(self, source: Source, outputs, record) -> Any:
        if source.operation is None:
            tensor = tree.flatten(outputs)[source.output]
        else:
            calls = record[id(source.operation)]
            if not calls:
                raise CannotTap(
                    f"{source.name} of '{self.model.name}' is not called where it can be seen: it "
                    "is quantized by Keras, or inside of a tf.function or a loop. Name another "
                    "layer."
                )
            if len(calls) != 1:
                raise CannotTap(
                    f"{source.name} of '{self.model.name}' runs {len(calls)} times in the model; "
                    "expected once, so that it is clear which tensor is meant. Name another layer."
                )
            tensor = calls[0][0 if source.given else 1]
            if tree.is_nested(tensor):
                raise CannotTap(
                    f"{source.name} of '{self.model.name}' gives {len(tree.flatten(tensor))} "
                    "tensors; expected one. Name another layer."
                )
        if source.logits_of is not None:
            mask = mask_of(tensor)
            tensor = to_logits(tensor, source.logits_of)
            keep_mask(tensor, mask)
        return tensor

    def specs(self, inputs: Any, whose: str) -> tuple[Any, Tensors]:
        """What a call gives, as symbolic tensors; the model is left as it was."""
        try:
            outputs, tensors = _Symbolic(self).compute_output_spec(inputs)
        except CannotTap as error:
            raise error.__context__ or error from None
        except Exception as error:  # Keras and TensorFlow raise many kinds.
            shapes = ", ".join(str(tuple(t.shape)) for t in tree.flatten(inputs))
            raise ValueError(
                f"the {whose} '{self.model.name}' cannot run on the student's inputs {shapes}: "
                f"{_innermost(error)}. Student and teacher must take the same inputs; put layers "
                "such as keras.layers.Resizing before the teacher where they differ."
            ) from error
        return outputs, dict(zip(self.sources, tensors, strict=True))


def _innermost(error: Exception) -> str:
    """What went wrong, without the layers that Keras tells about on the way."""
    text = str(error.__context__ or error)
    marked = re.findall(r"\x1b\[1m(.+?)\x1b\[0m", text, re.DOTALL)  # bold
    return reason_of(ValueError(marked[-1] if marked else text))


class _Symbolic(keras.Operation):
    """A call of a `Reader` whose results are only described."""

    def __init__(self, reader: Reader):
        super().__init__()
        self.reader = reader

    def call(self, inputs):
        outputs, tensors = self.reader(inputs, training=False)
        masks = {source: mask_of(tensor) for source, tensor in tensors.items()}
        self.reader.masks = {s: len(mask.shape) for s, mask in masks.items() if mask is not None}
        return outputs, list(tensors.values())


def _as_called(model: keras.Model, inputs: Any, names: list[str]) -> Any:
    """The inputs of one model in the structure that another takes them in."""
    struct = getattr(model, "_inputs_struct", None)
    if struct is None or isinstance(model, keras.Sequential):
        return inputs
    flat, wanted = tree.flatten(inputs), tree.flatten(struct)
    listed = isinstance(struct, dict) and isinstance(inputs, list | tuple)
    if listed and sorted(names) == sorted(t.name for t in wanted):
        return {key: flat[names.index(t.name)] for key, t in struct.items()}
    fits = isinstance(inputs, dict) and {t.name for t in wanted} <= set(inputs)
    if fits or len(flat) != len(wanted) or type(inputs) is type(struct) is not dict:
        return inputs
    if isinstance(inputs, dict) and isinstance(struct, dict) and set(inputs) == set(struct):
        return inputs
    return tree.pack_sequence_as(struct, flat)


def frozen(tensors: Any) -> Any:
    """Tensors that no gradient flows back from, in float32, with their masks."""

    def freeze(tensor):
        new = ops.stop_gradient(ops.cast(tensor, "float32"))
        keep_mask(new, mask_of(tensor))
        return new

    return tree.map_structure(freeze, tensors)


def mask_of(tensor: Any) -> Any:
    """The mask of a tensor, true where it is not padded; None if it has none."""
    return get_keras_mask(tensor)


def keep_mask(tensor: Any, mask: Any) -> None:
    """Gives a tensor a mask, unless that is None or the tensor has one."""
    if mask is not None and get_keras_mask(tensor) is None:
        set_keras_mask(tensor, mask)


def unpadded(tensor: Any, masks: Iterable[Any]) -> Any:
    """A tensor without a mask, with zeros where one of some masks says that it is padded.

    Args:
        tensor: of shape (batch, positions..., channels).
    """
    for mask in masks:
        rank = len(mask.shape)
        if len(tensor.shape) > rank and alike(mask.shape[1:], tensor.shape[1:rank]):
            axes = [1] * (len(tensor.shape) - rank)
            tensor = tensor * ops.cast(ops.reshape(mask, (*ops.shape(mask), *axes)), tensor.dtype)
    return tensor


def alike(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether two shapes are the same, as far as they are known."""
    return len(a) == len(b) and all(
        x == y or x is None or y is None for x, y in zip(a, b, strict=True)
    )


# Below it float32 has no normal numbers.
_TINY = 1e-37

# What may stand behind an activation and change nothing that matters here.
_PASSING = (FakeQuant, layers.Identity, layers.Reshape, layers.Dropout)

# How far probabilities may be from 1 together: those of an int8 model are rounded.
_TOLERANCE = 0.03


def activation_of(model: keras.Model, index: int) -> tuple[str | None, Any]:
    """The activation behind an output, as far as the structure of a model tells.

    Returns ("softmax", "sigmoid", "linear" or None if that is not known; the operation that
    computes the activation from logits alone, or None if a layer computes logits and activation).
    """
    functional = getattr(model, "_functional", None) or model
    if getattr(functional, "_outputs_struct", None) is None:
        return None, None
    graph = Graph.of(functional)
    tensor = tree.flatten(graph.outputs)[index]
    node = graph.producer(tensor)
    shape = tuple(tensor.shape)
    while node is not None and isinstance(node.operation, _PASSING) and node.inputs:
        tensor = node.inputs[0]
        node = graph.producer(tensor)
    if tuple(tensor.shape)[-1] != shape[-1]:
        return None, None
    if node is None or node.is_input:
        return None, None
    if isinstance(node.operation, keras.Model):
        position = [id(t) for t in node.outputs].index(id(tensor))
        kind, operation = activation_of(node.operation, position)
    else:
        kind, operation = of_operation(node.operation)
    # What is given to an activation before a Reshape has another shape than the output.
    return kind, operation if tuple(tensor.shape) == shape else None


def of_operation(operation: Any) -> tuple[str | None, Any]:
    """The activation of a layer, and the layer if it does nothing else; see `activation_of`."""
    inner = getattr(operation, "layer", operation)  # of Compressed, TimeDistributed
    kind = type(inner).__name__.lower()
    if kind in ("softmax", "sigmoid"):
        last = getattr(inner, "axis", -1) in (-1, None)
        return (kind, operation) if last else (None, None)
    function = getattr(inner, "activation", None)
    if function is None:
        return None, None
    name = getattr(function, "__name__", type(function).__name__).lower()
    if name not in ("softmax", "sigmoid", "linear"):
        return None, None
    alone = isinstance(inner, layers.Activation) and name != "linear"
    return name, operation if alone else None


def looks_like_probabilities(values: np.ndarray) -> bool:
    """Whether numbers are distributions along their last axis: from 0 to 1, with the sum 1."""
    if values.shape[-1] < 2 or values.min() < 0 or values.max() > 1 + _TOLERANCE:
        return False
    return bool(np.abs(values.sum(-1) - 1).max() < _TOLERANCE)


def try_out(model: Callable[[Any], Any], inputs: Any) -> list[np.ndarray]:
    """The outputs of a model for a few samples of noise, to see what they look like."""
    random = np.random.default_rng(0)

    def sample(tensor):
        shape = [8, *(64 if size is None else size for size in tensor.shape[1:])]
        if "float" in tensor.dtype:
            return ops.convert_to_tensor(random.normal(size=shape), dtype=tensor.dtype)
        return ops.zeros(shape, dtype=tensor.dtype)  # the one index that each table has

    outputs = model(tree.map_structure(sample, inputs))
    return [ops.convert_to_numpy(x).astype("float32") for x in tree.flatten(outputs)]


def symbolic_inputs(model: keras.Model) -> Any:
    """The structure of symbolic tensors that a built model is called with."""
    return inputs_of(model)[0]


def to_logits(values: Any, kind: str) -> Any:
    """Logits of probabilities; softmax and sigmoid of them give the same probabilities."""
    known = getattr(values, "_keras_logits", None)  # which Keras leaves there on TensorFlow
    if known is not None:
        return known
    values = ops.cast(values, "float32")
    log = ops.log(ops.maximum(values, _TINY))
    return log if kind == "softmax" else log - ops.log(ops.maximum(1 - values, _TINY))


# What `compress` makes of one layer "conv": the last of these gives what the layer gave.
_PIECES = ("__output", "_activation_range", "_activation", "_range", "")
_lock = threading.Lock()
_running = threading.local()


def find_operation(model: keras.Model, name: str, whose: str) -> Any:
    """The layer of a model, or the operation of a Functional one, that bears a name.

    Layers inside of nested and subclassed models are found, too. In a model of `compress`, which
    makes several operations of a layer, it is the last of them: the layer with its activation.
    """
    known = list(operations(model))
    compressed = any(isinstance(operation, (Compressed, FakeQuant)) for _, operation in known)
    for piece in _PIECES if compressed else ("",):
        path = f"{name}{piece}"
        found = {
            id(operation): operation
            for full, operation in known
            if full == path or full.endswith(f"/{path}")
        }
        exact = [operation for full, operation in known if full == path]
        if len(found) == 1 or exact:
            return exact[0] if exact else next(iter(found.values()))
        if found:
            paths = ", ".join(sorted({full for full, _ in known if full.endswith(f"/{path}")}))
            raise ValueError(
                f"the {whose} '{model.name}' has {len(found)} layers named {name!r}: {paths}. "
                "Write one of these paths."
            )
    inputs = keras.layers.InputLayer
    names = dict.fromkeys([o.name for _, o in known if not isinstance(o, inputs)])
    mend = did_you_mean(name, names, "Look them up with model.summary(expand_nested=True).")
    shown = ", ".join(list(names)[:12]) + (", ..." if len(names) > 12 else "")
    raise ValueError(
        f"the {whose} '{model.name}' has no layer named {name!r}; expected one of {shown}. {mend}"
    )


def operations(model: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    """(path, layer or operation) of all that a model is made of, outer ones first."""
    parts = list(getattr(model, "operations", [])) or list(model._layers)
    for part in parts:
        full = f"{path}{part.name}"
        yield full, part
        # What a compressed layer wraps is not called as such.
        if isinstance(part, keras.Layer) and part._layers and not isinstance(part, Compressed):
            yield from operations(part, f"{full}/")


@contextlib.contextmanager
def recorded(wanted: Iterable[Any]):
    """While it is open, operations that run take down what they are given and what they give."""
    wanted = list({id(operation): operation for operation in wanted}.values())
    record: dict[int, list[tuple[Any, Any]]] = {id(operation): [] for operation in wanted}
    stack = _running.__dict__.setdefault("stack", [])
    with _lock:
        for operation in wanted:
            _install(operation)
    stack.append(record)
    try:
        yield record
    finally:
        stack.pop()
        with _lock:
            for operation in wanted:
                _remove(operation)


def _install(operation: Any) -> None:
    """Puts a listener in place of `call`; replicas trace in threads, so one may be there already.

    Keras has no hooks on layers, and what a nested or subclassed model computes inside of its
    `call` can be had in no other way without running it twice.
    """
    call = operation.call
    if hasattr(call, "listeners"):
        call.listeners += 1
        return

    @functools.wraps(call)
    def listen(*args, **kwargs):
        outputs = call(*args, **kwargs)
        for record in getattr(_running, "stack", []):
            if id(operation) in record:
                given = next(iter(tree.flatten((args, kwargs))), None)
                record[id(operation)].append((given, outputs))
        return outputs

    listen.listeners = 1  # type: ignore[attr-defined]
    listen.before = operation.__dict__.get("call")  # type: ignore[attr-defined]
    operation.__dict__["call"] = listen


def _remove(operation: Any) -> None:
    listener = operation.__dict__["call"]
    listener.listeners -= 1
    if listener.listeners:
        return
    del operation.__dict__["call"]
    if listener.before is not None:  # the user's own
        operation.__dict__["call"] = listener.before
