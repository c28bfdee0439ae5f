"""CompressionLogger: how sparse and how clustered a model is, while it trains."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from tfcompress.backend import as_tensor
from tfcompress.compression.callbacks import iterations, layers_of, models_of
from tfcompress.errors import check, is_whole
from tfcompress.layers.compressed import (
    Compressed,
    effective_weight,
    is_compressed,
    target_variables,
    weight_name,
)
from tfcompress.layers.fake_quant import FakeQuant
from tfcompress.layers.step_rnn import opened_layers
from tfcompress.techniques import Cluster, Codebook, Prune, Quantize, Technique
from tfcompress.techniques.cluster import by_channel


class CompressionLogger(keras.callbacks.Callback):
    """Shows how far compression has come in the progress bar, the history and TensorBoard.

    The logs get `sparsity`, the fraction of zeros of all weights with `Prune`, and
    `unique_weights`, the most values that a weight (or channel) with `Cluster` or `Codebook` has.
    TensorBoard gets for each weight its sparsity, its unique values and its threshold, which is the
    smallest |w| that is kept, and for each `FakeQuant` its range; steps are those of the optimizer.

    Weights are measured as `finalize` bakes them: pruned and clustered, not rounded by `Quantize`.
    Of a plain model (see `PruneCallback`) all weights count that `Prune` takes by default. Put it
    after the callbacks that compress.

    Args:
        log_dir: the folder of the TensorBoard logs, written under `log_dir`/compression; None
            writes none. The `tensorboard` package is needed to look at them only.
        frequency: "epoch", or the number of optimizer steps between measurements. The first one is
            after the first batch, and each epoch ends with one.

    Raises:
        ValueError: if `frequency` is neither, `log_dir` is given on another backend than
            TensorFlow, or, at the start of `fit`, the model has nothing to measure.

    Example:
        >>> model.fit(
        ...     x, y, callbacks=[UpdateCompression(), CompressionLogger("logs")]
        ... )  # doctest: +SKIP
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str] | None = None,
        frequency: int | Literal["epoch"] = "epoch",
    ):
        super().__init__()
        known = frequency == "epoch" or is_whole(frequency)
        check(known, "frequency", "'epoch' or a number of steps", frequency)
        if log_dir is not None and keras.backend.backend() != "tensorflow":
            raise ValueError(
                "log_dir needs the TensorFlow backend, which writes the logs; received "
                f"log_dir={os.fspath(log_dir)!r} on {keras.backend.backend()}. Leave it out: the "
                "history has the same overall numbers."
            )
        self.log_dir, self.frequency = log_dir, frequency
        self._overall: dict[str, float] = {}
        self._last: int | None = None  # the step of the last measurement; None in a new `fit`
        self._written: Any = None
        self._writer: Any = None

    def on_train_begin(self, logs=None):
        self._overall, _ = found = measure(self.model)
        if not any(found):
            raise ValueError(
                f"CompressionLogger found nothing to measure in model '{self.model.name}': it has "
                "no kernels and does not come from tfcompress.compress. Leave the callback out."
            )
        self._last = None

    def on_train_batch_end(self, batch, logs=None):
        if self._last is None or self.frequency != "epoch":
            self._measure_if_due()
        if logs is not None:
            logs.update(self._overall)

    def on_epoch_end(self, epoch, logs=None):
        # Also where this step was measured: later callbacks may have changed the model since.
        self._measure(iterations(self.model))
        if self._writer is not None:
            self._writer.flush()
        if logs is not None:
            logs.update(self._overall)

    def on_train_end(self, logs=None):
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _measure_if_due(self) -> None:
        step, every = iterations(self.model), self.frequency
        # Whole periods, so that none is missed where one call runs several steps.
        if self._last is None or every == "epoch" or step // every > self._last // every:
            self._measure(step)

    def _measure(self, step: int) -> None:
        overall, details = measure(self.model)
        new = (step, overall, details)
        if self.log_dir is not None and new != self._written:
            self._write({**overall, **details}, step)
            self._written = new
        self._overall, self._last = overall, step

    def _write(self, values: dict[str, float], step: int) -> None:
        import tensorflow as tf

        if self._writer is None:
            folder = os.path.join(self.log_dir or "", "compression")
            self._writer = tf.summary.create_file_writer(folder)
        # What tf.summary.scalar does, which fails where the tensorboard package is missing.
        metadata = tf.compat.v1.SummaryMetadata(data_class="DATA_CLASS_SCALAR")
        metadata.plugin_data.plugin_name = "scalars"
        with self._writer.as_default():
            for tag, value in values.items():
                tf.summary.write(tag, tf.constant(value, tf.float32), step, metadata)


def measure(model: keras.Model) -> tuple[dict[str, float], dict[str, float]]:
    """How sparse and how clustered a model is.

    Returns (overall numbers by name, those of each weight and range by the tag that TensorBoard
    shows).
    """
    overall: dict[str, float] = {}
    details: dict[str, float] = {}
    zeros, total, most = 0, 0, 0.0
    for name, weight, techniques in _weights(model):
        kept = np.abs(weight[weight != 0])
        details[f"{name}/sparsity"] = 1 - kept.size / weight.size
        if any(isinstance(t, Prune) for t in techniques):
            zeros, total = zeros + weight.size - kept.size, total + weight.size
            details[f"{name}/threshold"] = float(kept.min()) if kept.size else 0.0
        if any(isinstance(t, Cluster | Codebook) for t in techniques):
            unique = float(count_values(weight, techniques))
            details[f"{name}/unique_weights"] = unique
            most = max(unique, most)
    if total:
        overall["sparsity"] = zeros / total
    if most:
        overall["unique_weights"] = most
    for layer in layers_of(model):
        if isinstance(layer, FakeQuant):
            low, high = layer.limits()
            details[f"{layer.name}/range_min"] = float(low)
            details[f"{layer.name}/range_max"] = float(high)
    return overall, details


def _weights(model) -> Iterator[tuple[str, np.ndarray, list[Technique]]]:
    """(tag, value, techniques) of the weights that compression is on."""
    if is_compressed(model):
        for tag, weight, techniques in compressed_weights(model):
            kept = [t for t in techniques if not isinstance(t, Quantize)]
            if kept:
                yield tag, weight, kept
        return
    prune = Prune(0.5)
    for owner, variable in (pair for part in models_of(model) for pair in target_variables(part)):
        if prune.refuses(owner, variable) is None:
            yield variable.path, ops.convert_to_numpy(as_tensor(variable)), [prune]


@dataclasses.dataclass(frozen=True)
class Weight:
    """A weight before it is quantized.

    Attributes:
        name: layer and weight.
        count: elements.
        techniques: what was done to it.
        sparsity: fraction of zeros.
        unique: different values; with centroids or scales for each channel, the most in one.
    """

    name: str
    count: int
    techniques: tuple[str, ...]
    sparsity: float
    unique: int


def describe(name: str, value: Any, techniques: Sequence[Technique] = ()) -> Weight:
    """A weight in numbers."""
    array = keras.ops.convert_to_numpy(value)
    names = tuple(type(technique).__name__ for technique in techniques)
    sparsity = 1 - np.count_nonzero(array) / array.size if array.size else 0.0
    return Weight(name, array.size, names, float(sparsity), count_values(array, techniques))


def count_values(array: np.ndarray, techniques: Sequence[Technique] = ()) -> int:
    """How many values a weight has, or its channel with the most, if values differ by channel."""
    channels = next((t.channels for t in techniques if isinstance(t, Cluster | Codebook)), ())
    columns = by_channel(array, channels).T
    return max((np.unique(column).size for column in columns), default=0)


def compressed_weights(model: Any) -> Iterator[tuple[str, np.ndarray, list[Technique]]]:
    """The weights of a model from `compress` as `finalize` bakes them: before `Quantize`.

    Returns (name, value, bound techniques, `Quantize` among them) of each.
    """
    for layer in (x for x in model._flatten_layers() if isinstance(x, Compressed)):
        for target in layer.bound:
            value = keras.ops.convert_to_numpy(effective_weight(target, stop=Quantize))
            yield weight_name(layer.layer, target.owner, target.variable), value, target.techniques


def weights_of(model: keras.Model) -> tuple[Weight, ...]:
    """All kernels of a model from `compress`, also those that no technique takes."""
    plain = [
        describe(weight_name(layer, owner, variable), variable)
        for layer in opened_layers(model)
        if not isinstance(layer, Compressed)
        for owner, variable in target_variables(layer)
    ]
    return (*(describe(*each) for each in compressed_weights(model)), *plain)
