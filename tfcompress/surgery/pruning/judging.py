"""What judges channels: batches of the user's data, and the loss of a model on them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops, tree

from tfcompress.errors import check, is_whole, named_in_keras
from tfcompress.files.samples import as_rows


class Batch(NamedTuple):
    """Inputs, labels and weights of some samples, as `Model.fit` takes them."""

    x: Any
    y: Any
    sample_weight: Any

    def __len__(self) -> int:
        return len(tree.flatten(self.x)[0])

    def cut(self, rows: slice | np.ndarray) -> Batch:
        """Some of the samples."""
        return Batch(*tree.map_structure(lambda a: None if a is None else a[rows], tuple(self)))


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss as `compile` takes it.

    Attributes:
        loss: name, function or object; a list or dict of them for several outputs.
        weights: of the losses of several outputs.
    """

    loss: Any
    weights: Any = None


def objective(model: keras.Model, loss: Any = None) -> Objective:
    """The loss that judges a model."""
    if isinstance(loss, Objective):
        return loss
    if loss is not None:
        for name in tree.flatten(loss):
            if isinstance(name, str):
                named_in_keras("loss", name)
        return Objective(loss)
    found = compiled_with(model)
    if found is None:
        raise ValueError(
            f"expected a loss to judge channels with; model '{model.name}' is not compiled with "
            "one. Call model.compile(loss=...), or pass loss=, such as loss='mse'."
        )
    return found


def compiled_with(model: keras.Model) -> Objective | None:
    """The loss that a model is compiled with; None if there is none."""
    config = model._compile_config.config if model.compiled else {}
    if config.get("loss") is None:
        return None
    return Objective(config["loss"], config.get("loss_weights"))


class Judge(keras.Model):
    """A model that shares all layers with another, and whose loss has no penalties on weights.

    Penalties shrink with the weights, and would praise what harms the model.
    """

    @property
    def losses(self):
        return []


def judge(model: keras.Model, loss: Objective) -> Judge:
    """A compiled twin of a flat model, of the same layers."""
    twin = Judge(model._inputs_struct, model._outputs_struct, name=model.name)
    jit = keras.backend.backend() == "jax"  # XLA is slow on CPUs, but all that JAX has
    twin.compile(loss=loss.loss, loss_weights=loss.weights, jit_compile=jit)
    return twin


def mean_loss(twin: Judge, data: Iterable[Batch]) -> float:
    """The loss over all samples."""
    total, count = 0.0, 0
    for batch in data:
        twin.reset_metrics()  # some versions of Keras go on from batch to batch
        total += len(batch) * float(twin.test_on_batch(*batch, return_dict=True)["loss"])
        count += len(batch)
    return total / count


def labelled(data: Iterable[Batch], who: str) -> Iterator[Batch]:
    """The batches, as long as they have labels."""
    for batch in data:
        if batch.y is None:
            raise ValueError(
                f"{who} needs labels, as it measures a loss; received data without. Pass (x, y), "
                "or a dataset of such pairs."
            )
        yield batch


def batches(
    data: Any, model: keras.Model, batch_size: int = 32, samples: int | None = None
) -> Iterator[Batch]:
    """Batches of the data that `Model.fit` takes, one at a time.

    Args:
        data: x as an array, a dict or a list of arrays; (x, y) or (x, y, sample_weight) of these;
            a batched `tf.data.Dataset`, a `keras.utils.PyDataset` or another iterable of batches.
    """
    check(is_whole(batch_size), "batch_size", "1 or more", batch_size)
    check(samples is None or is_whole(samples), "samples", "1 or more, or None", samples)
    found = _limited(_read(data, batch_size, samples), samples)
    first = next(found, None)
    if first is None:
        raise ValueError(
            "data must hold at least one sample; received none. A generator may have been used "
            "up: make it anew for each call."
        )
    _require_fit(first, model)
    yield first
    yield from found


def _read(data: Any, batch_size: int, samples: int | None) -> Iterator[Batch]:
    if isinstance(data, tuple):
        check(1 <= len(data) <= 3, "data", "(x, y) or (x, y, sample_weight)", f"{len(data)} parts")
        return _sliced(Batch(*data, *(None,) * (3 - len(data))), batch_size, samples)
    if isinstance(data, Mapping | list) or hasattr(data, "__array__"):
        return _sliced(Batch(data, None, None), batch_size, samples)
    if isinstance(data, keras.utils.PyDataset):
        count = len(data) if data.num_batches is None else data.num_batches
        return (_as_arrays(data[i]) for i in range(count))
    if not isinstance(data, Iterable) or isinstance(data, str):
        raise TypeError(
            "data must be arrays, (x, y) or a batched dataset, as for Model.fit; received "
            f"{type(data).__name__}."
        )
    cardinality = getattr(data, "cardinality", None)
    if samples is None and cardinality is not None and int(cardinality()) == -1:
        raise ValueError("data must have an end; received a dataset without. Pass samples=512.")
    return map(_as_arrays, data)


def _as_arrays(element: Any) -> Batch:
    parts = keras.utils.unpack_x_y_sample_weight(element)
    return Batch(*tree.map_structure(lambda a: None if a is None else np.asarray(a), parts))


def _sliced(whole: Batch, batch_size: int, samples: int | None) -> Iterator[Batch]:
    whole = Batch(*tree.map_structure(lambda a: None if a is None else np.asarray(a), tuple(whole)))
    lengths = {np.shape(a)[:1] for a in tree.flatten(tuple(whole)) if a is not None}
    check(len(lengths) == 1, "data", "arrays with the same number of samples", sorted(lengths))
    count = len(whole)
    rows = np.arange(count)
    if samples is not None:
        rows = np.linspace(0, count - 1, min(samples, count)).round().astype(int)
    starts = range(0, len(rows), batch_size)
    return (whole.cut(rows[i : i + batch_size]) for i in starts)


def _limited(found: Iterator[Batch], samples: int | None) -> Iterator[Batch]:
    left = math.inf if samples is None else samples
    for batch in found:
        if not len(batch):
            continue
        yield batch if len(batch) <= left else batch.cut(slice(int(left)))
        left -= len(batch)
        if left <= 0:
            return


def _require_fit(batch: Batch, model: keras.Model) -> None:
    """Raises unless a batch has what the inputs of a model take, and a batch axis."""
    wanted = tree.flatten(model._inputs_struct)
    found = batch.x if isinstance(batch.x, Mapping) else tree.flatten(batch.x)
    names = [tensor.name for tensor in wanted]
    if isinstance(found, Mapping):
        missing = [name for name in names if name not in found]
        check(not missing, "the names in data", ", ".join(names), ", ".join(found))
        found = [found[name] for name in names]
    check(
        len(found) == len(wanted), "data", f"{len(wanted)} inputs ({', '.join(names)})", len(found)
    )
    for tensor, array in zip(wanted, found, strict=True):
        if as_rows(tensor, array).ndim != np.ndim(array):
            raise ValueError(
                f"data must come in batches; received single samples of shape {np.shape(array)} "
                f"for input '{tensor.name}'. Call dataset.batch(32)."
            )


def gradients_of(
    loss: Callable[[Batch], Any], variables: list, made: Callable[[Sequence[Any]], list]
) -> Callable[[Batch], list]:
    """Batch -> what `made` makes of the gradients of its loss by these variables."""
    return _BACKENDS[keras.backend.backend()](loss, variables, made)


def _tensorflow(loss, variables: list, made) -> Callable[[Batch], list]:
    import tensorflow as tf

    weights = [variable.value for variable in variables]

    @tf.function(reduce_retracing=True)
    def run(batch: Batch) -> list:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            value = loss(batch)
        gradients = tape.gradient(value, weights, unconnected_gradients="zero")
        return made([tf.convert_to_tensor(gradient) for gradient in gradients])

    return lambda batch: run(_tensors(batch))


def _jax(loss, variables: list, made) -> Callable[[Batch], list]:
    import jax

    def loss_of(values: list, batch: Batch) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return loss(batch)

    gradients = jax.jit(jax.grad(loss_of))
    return lambda batch: made(gradients([v.value for v in variables], _tensors(batch)))


def _torch(loss, variables: list, made) -> Callable[[Batch], list]:
    import torch

    def run(batch: Batch) -> list:
        frozen = [v for v in variables if not v.value.requires_grad]
        for variable in frozen:
            variable.value.requires_grad_(True)
        weights = [v.value for v in variables]
        found = torch.autograd.grad(loss(_tensors(batch)), weights, allow_unused=True)
        for variable in frozen:
            variable.value.requires_grad_(False)
        pairs = zip(found, weights, strict=True)
        return made([torch.zeros_like(w) if g is None else g for g, w in pairs])

    return run


def _tensors(batch: Batch) -> Batch:
    parts = tuple(batch)
    return Batch(
        *keras.tree.map_structure(lambda a: None if a is None else ops.convert_to_tensor(a), parts)
    )


_BACKENDS = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}
