"""migrate: a file of tf_keras (Keras 2), with or without TFMOT's wrappers, as a Keras 3 file."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from rich.markup import escape
from rich.table import Table

from tfcompress.compression.logger import Weight, describe
from tfcompress.files import temporary, writing
from tfcompress.legacy import import_tf_keras, reading, require_graph
from tfcompress.legacy.functions import FUNCTIONS
from tfcompress.legacy.rebuild import (
    Found,
    Rebuild,
    copy_layer,
    kind_of,
    plain_activations,
    wrappers_of,
)
from tfcompress.results import Result

if TYPE_CHECKING:
    from rich.console import Console

# Largest difference of outputs, relative to the largest output, that rounding explains.
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class MigrationReport(Result):
    """What a migration did.

    Attributes:
        source, target: the two files.
        keras_version: of tf_keras that wrote the source.
        parameters: number of weights.
        pruned, clustered, quantized: names of layers that came out of such a wrapper.
        weights: the kernels of pruned and clustered layers.
        max_difference: between the outputs of the two models on random inputs.
        relative_difference: the same, divided by the largest output.
        notes: other things worth knowing.
    """

    source: str
    target: str
    keras_version: str
    parameters: int
    pruned: list[str]
    clustered: list[str]
    quantized: list[str]
    weights: list[Weight]
    max_difference: float
    relative_difference: float
    notes: list[str]

    def _print(self, console: Console) -> None:
        title = f"{self.source} (tf_keras {self.keras_version}) -> {self.target}"
        table = Table("what", "value", title=escape(title))
        table.add_row("parameters", f"{self.parameters:,}")
        for kind in ("pruned", "clustered", "quantized"):
            names = getattr(self, kind)
            if names:
                table.add_row(f"{kind}, stripped", escape(f"{len(names)}: {', '.join(names[:6])}"))
        for weight in self.weights[:20]:
            value = f"{weight.sparsity:.1%} zeros, {weight.unique:,} different values"
            table.add_row(escape(weight.name), value)
        largest = f"{self.max_difference:.3g} ({self.relative_difference:.1g} of the largest)"
        table.add_row("difference of outputs", largest)
        for note in self.notes:
            table.add_row("[yellow]note[/]", escape(note))
        console.print(table)


def migrate(source: writing.PathLike, target: writing.PathLike) -> MigrationReport:
    """Brings a model saved by tf_keras (Keras 2) over to Keras 3.

    Wrappers of TensorFlow Model Optimization are stripped: pruned and clustered weights stay as
    they are; of quantization-aware training the float weights stay, and its ranges go.
    """
    _check_paths(source, target)
    version = reading.check(source)
    old = reading.load(source)
    require_graph(old)
    found = wrappers_of(old)
    rebuild = Rebuild(keras, layer_of, name_of)
    try:
        new = rebuild.run(old)
    except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError) as error:
        raise _cannot(source, error) from error
    # What is compared with does not round, either.
    plain = Rebuild(import_tf_keras(), copy_layer).run(old) if found.quantized else old
    difference, relative, allowed = _compare(plain, new)
    if not relative <= allowed:  # nan too
        raise ValueError(
            f"'{source}' was rebuilt in Keras 3, but its outputs differ by {difference:.3g} "
            f"({relative:.1g} of the largest); expected at most {allowed:.1g} of it. Nothing was "
            "written. A layer means something else in Keras 3: rebuild the model there by hand."
        )
    _save(new, target)
    return MigrationReport(
        source=str(source),
        target=str(target),
        keras_version=version,
        parameters=new.count_params(),
        pruned=found.pruned,
        clustered=found.clustered,
        quantized=found.quantized,
        weights=_weights(rebuild.pairs),
        max_difference=difference,
        relative_difference=relative,
        notes=_notes(found, new, old),
    )


def _check_paths(source: writing.PathLike, target: writing.PathLike) -> None:
    if Path(target).suffix != ".keras":
        raise ValueError(
            f"the new file must end in .keras; received '{target}'. That is the format of Keras 3."
        )
    if writing.is_same(source, target):
        raise ValueError(f"'{target}' is the old model itself. Name another file to write.")
    writing.check_writable(target)


def _compare(old, new) -> tuple[float, float, float]:
    """How far the outputs of two models are apart on random inputs."""
    inputs = [_random(tensor, old, seed) for seed, tensor in enumerate(old.inputs)]

    def run(values):
        packed = tf.nest.pack_sequence_as(old._nested_inputs, values)
        return [np.asarray(x) for x in tf.nest.flatten(old(packed, training=False))]

    functional = getattr(new, "_functional", new)  # inside of a Sequential
    ours = keras.tree.pack_sequence_as(functional._inputs_struct, inputs)
    received = [np.asarray(x) for x in keras.tree.flatten(new(ours, training=False))]
    expected = run(inputs)
    # What rounding alone makes of the model: few grow a difference in the last bits beyond all.
    nudged = [x * np.float32(1 + 2**-22) if x.dtype.kind == "f" else x for x in inputs]
    _, rounding = _difference(expected, run(nudged))
    return *_difference(expected, received), min(max(TOLERANCE, 10 * rounding), 0.01)


def _difference(expected, received) -> tuple[float, float]:
    pairs = list(zip(expected, received, strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return float("inf"), float("inf")
    absolute = [float(np.max(np.abs(a - b), initial=0.0)) for a, b in pairs]
    largest = [max(float(np.max(np.abs(a), initial=0.0)), 1e-12) for a, _ in pairs]
    return max(absolute), max(d / size for d, size in zip(absolute, largest, strict=True))


def _random(tensor, model, seed: int) -> np.ndarray:
    """Random values for an input; indices where an Embedding may look them up."""
    shape = (
        4 if tensor.shape[0] is None else tensor.shape[0],
        *(d or 32 for d in tensor.shape[1:]),
    )
    random = np.random.default_rng(seed)
    dtype = tensor.dtype.as_numpy_dtype
    if not np.issubdtype(dtype, np.number):
        raise ValueError(
            f"input '{tensor.name}' is of type {tensor.dtype.name}; expected numbers. Cut the "
            "preprocessing of text off the model, and save the rest."
        )
    layers = [getattr(layer, "layer", layer) for layer in model._flatten_layers()]
    words = [layer.input_dim for layer in layers if type(layer).__name__ == "Embedding"]
    if words or np.issubdtype(dtype, np.integer):
        return random.integers(0, min(words, default=256), shape).astype(dtype)
    return random.normal(size=shape).astype(dtype)


def _save(model: keras.Model, target: writing.PathLike) -> None:
    with temporary.folder() as folder:
        path = Path(folder, "model.keras")
        model.save(path)
        writing.atomic_write(target, path.read_bytes())


def _weights(pairs) -> list[Weight]:
    """Sparsity and numbers of values of the kernels that were pruned or clustered."""
    rows = []
    for old, new in pairs:
        if kind_of(old) not in ("prune", "cluster"):
            continue
        for variable in new.weights:
            if len(variable.shape) > 1:
                rows.append(describe(f"{new.name}/{variable.name}", variable))
    return rows


def _notes(found: Found, new, old) -> list[str]:
    notes = []
    if found.quantized:
        notes.append(
            "quantization-aware training was undone: the float weights were kept, the ranges of "
            "activations were not. Continue with tfcompress.quantize_aware, or convert with "
            "calibration data."
        )
    renamed = [layer.name for layer in old._flatten_layers(include_self=False) if "/" in layer.name]
    if renamed:
        notes.append(f"Keras 3 allows no '/' in names: {len(renamed)} layers have '_' instead")
    return notes


def _cannot(source, error: Exception) -> ValueError:
    text = " ".join(str(error).split())
    if isinstance(error, ValueError) and text.startswith(("layer '", "input '", "model '")):
        return ValueError(f"'{source}' cannot be brought over: {text}")
    return ValueError(
        f"'{source}' cannot be brought over to Keras 3: {type(error).__name__}: {text[:300]}. "
        "Rebuild the model in Keras 3 and load its weights layer by layer."
    )


# Settings of tf_keras that change nothing in what a layer computes, or are known from its input.
_IDLE = frozenset(
    "batch_input_shape input_length implementation sparse ragged fused "
    "query_shape key_shape value_shape input_shape".split()
)

# Settings that Keras 3 lacks, with the value that means the same as lacking them.
_ABSENT = {"groups": 1, "time_major": False, "softmax_robust_masking": False}
_RENAMED = {"LeakyReLU": {"alpha": "negative_slope"}}
_BASE = frozenset(["name", "trainable", "dtype", "activity_regularizer"])


def layer_of(layer) -> Any:
    """The Keras 3 layer for a plain tf_keras layer; a function for TensorFlow's own operations."""
    kind = type(layer).__name__
    if kind in ("TFOpLambda", "SlicingOpLambda"):
        return _function_of(layer)
    if not type(layer).__module__.startswith("tf_keras."):
        raise ValueError(
            f"layer '{layer.name}' is of the class '{kind}', which is your own; expected layers of "
            "tf_keras. Port the class to Keras 3, build the model there and load its weights."
        )
    config = plain_activations(layer.get_config())
    config["dtype"] = layer.dtype_policy.name if hasattr(layer, "dtype_policy") else layer.dtype
    return _from_config(kind, config)


def name_of(name: str) -> str:
    """A name that Keras 3 allows."""
    return name.replace("/", "_")


def _function_of(layer):
    symbol = layer.symbol if hasattr(layer, "symbol") else layer.get_config().get("function")
    function, names = FUNCTIONS[symbol], itertools.count()

    def call(*args, name=None, **kwargs):
        y = function(*args, **kwargs)
        # Else Keras would choose names, which the layers may have already.
        number = next(names)
        y._keras_history.operation.name = f"{layer.name}_{number}" if number else layer.name
        return y

    return call


def _from_config(kind: str, config: dict[str, Any]):
    cls = getattr(keras.layers, kind, None)
    if cls is None or kind == "Lambda":
        raise ValueError(
            f"layer '{config.get('name')}' is a {kind}, which cannot be brought over to Keras 3. "
            "Replace it in the tf_keras model by other layers, and save that."
        )
    known = _arguments_of(cls)
    new = {}
    for key, value in config.items():
        key = _RENAMED.get(kind, {}).get(key, key)
        if key in known:
            new[key] = _value_of(key, value)
        elif key not in _IDLE | _BASE and value != _ABSENT.get(key) and "initializer" not in key:
            raise ValueError(
                f"layer '{config.get('name')}' ({kind}) sets {key}={value!r}, which Keras 3 does "
                "not have. Replace the layer in the tf_keras model, and save that."
            )
    return cls(**new)


def _arguments_of(cls) -> set[str]:
    """The names that a class's __init__ takes."""
    parameters = inspect.signature(cls.__init__).parameters.values()
    names = {p.name for p in parameters} - {"self"}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        names |= _BASE
    return names


def _value_of(key: str, value):
    if key == "name":
        return name_of(value)
    if key == "axis" and isinstance(value, (list, tuple)) and len(value) == 1:
        return value[0]
    if key == "cells" or (isinstance(value, list) and value and _is_layer(value[0])):
        return [_value_of("", part) for part in value]
    if _is_layer(value):
        return _from_config(value["class_name"], value["config"])
    return value


def _is_layer(value) -> bool:
    if not isinstance(value, dict) or "class_name" not in value or "config" not in value:
        return False
    known = getattr(keras.layers, str(value["class_name"]), None)
    return inspect.isclass(known) and isinstance(value["config"], dict)
