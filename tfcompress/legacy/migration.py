"""migrate: a file of tf_keras (Keras 2), with or without TFMOT's wrappers, as a Keras 3 file."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tfcompress import files
from tfcompress.legacy import import_tf_keras, reading, require_graph
from tfcompress.legacy.keras3 import layer_of, name_of
from tfcompress.legacy.rebuild import Found, Rebuild, copy_layer, kind_of, wrappers_of
from tfcompress.weights import Weight, describe

# Largest difference of outputs, relative to the largest output, that rounding explains.
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class MigrationReport:
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

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return dataclasses.asdict(self)

    def render(self, console: Console | None = None) -> None:
        """Prints the report as a table."""
        console = console or Console()
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


def migrate(source: files.PathLike, target: files.PathLike) -> MigrationReport:
    """Brings a model saved by tf_keras (Keras 2) over to Keras 3.

    Wrappers of TensorFlow Model Optimization are stripped: pruned and clustered weights stay as
    they are; of quantization-aware training the float weights stay, and its ranges go.

    Args:
        source: a .h5 or .keras file or a SavedModel folder that tf_keras wrote.
        target: the .keras file to write, whole or not at all; one that exists is replaced.

    Returns:
        A `MigrationReport`; the outputs of both models agree, or nothing is written.

    Raises:
        ValueError: if the source is no such file, holds code or layers that Keras 3 lacks, or the
            outputs differ.

    Example:
        >>> migrate("old.h5", "new.keras").render()  # doctest: +SKIP
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
    difference, relative, allowed = _compare(_reference(old, found), new)
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


def _check_paths(source: files.PathLike, target: files.PathLike) -> None:
    if Path(target).suffix != ".keras":
        raise ValueError(
            f"the new file must end in .keras; received '{target}'. That is the format of Keras 3."
        )
    if files.is_same(source, target):
        raise ValueError(f"'{target}' is the old model itself. Name another file to write.")
    files.check_writable(target)


def _reference(old, found: Found):
    """The model to compare with: as saved, but for rounding, which the new one does not have."""
    if not found.quantized:
        return old
    return Rebuild(import_tf_keras(), copy_layer).run(old)


def _compare(old, new) -> tuple[float, float, float]:
    """How far the outputs of two models are apart on random inputs.

    Returns:
        The largest difference; the same relative to the largest output; how large that may be.
    """
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


def _save(model: keras.Model, target: files.PathLike) -> None:
    with tempfile.TemporaryDirectory(prefix="tfcompress_") as folder:
        path = Path(folder, "model.keras")
        model.save(path)
        files.atomic_write(target, path.read_bytes())


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
