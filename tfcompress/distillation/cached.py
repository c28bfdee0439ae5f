"""Teachers whose outputs come from a cache where it has them."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from tfcompress.distillation.base import replicas
from tfcompress.distillation.cache import TeacherCache
from tfcompress.distillation.reading import Reader, Tensors, frozen, keep_mask, mask_of, operations
from tfcompress.graph.nodes import Graph

_CHANGING = ("name", "registered_name", "build_config", "shared_object_id", "seed")
_TENSORS = (keras.KerasTensor, keras.Variable)


class CachedTeachers:
    """What the losses want of the teachers: computed once for each sample, then looked up.

    Args:
        readers: of the teachers.
        inputs: structure of the student's symbolic inputs.
        where: path of the file, or "memory".
    """

    def __init__(self, readers: Sequence[Reader], inputs: Any, where: Any):
        self.readers = list(readers)
        self.where = where
        self._keys = [(k, s) for k, reader in enumerate(readers) for s in reader.sources]
        specs = [reader.specs(inputs, "teacher")[1] for reader in readers]
        self._shapes = [tuple(specs[k][s].shape) for k, s in self._keys]
        for (k, source), shape in zip(self._keys, self._shapes, strict=True):
            if None in shape[1:]:
                raise ValueError(
                    f"cache needs outputs of the same shape for all samples; {source.name} of the "
                    f"teacher '{readers[k].model.name}' gives {shape}. Leave cache out, or give "
                    "the model inputs of a fixed shape."
                )
        # Where positions are padded: masks, too, must come out of the cache.
        self._masked = [n for n, (k, s) in enumerate(self._keys) if s in readers[k].masks]
        for n in self._masked:
            k, source = self._keys[n]
            self._shapes.append(self._shapes[n][: readers[k].masks[source]])
        self._cache = TeacherCache(None if where == "memory" else where)
        self._open = False

    def __call__(self, x: Any) -> list[Tensors]:
        """What each teacher gives for a batch."""
        inputs = [t for t in tree.flatten(x) if t is not None]
        dtypes = ["float32"] * len(self._shapes)
        hit, *rows = call_on_host(
            self._look_up, inputs, [(), *((None, *s[1:]) for s in self._shapes)], ["bool", *dtypes]
        )

        def compute():
            read = self._run(x)
            tensors = [read[k][source] for k, source in self._keys]
            tensors += [ops.cast(mask_of(tensors[n]), "float32") for n in self._masked]
            # What is stored must be waited for, or it might be left out.
            (count,) = call_on_host(self._store, [*inputs, *tensors], [()], ["int32"])
            return [tensor + 0 * ops.cast(count, tensor.dtype) for tensor in tensors]

        found = ops.cond(hit, lambda: list(rows), compute)
        results: list[Tensors] = [{} for _ in self.readers]
        count = len(self._keys)
        for n, mask in zip(self._masked, found[count:], strict=True):
            keep_mask(found[n], ops.cast(mask, "bool"))
        for (k, source), tensor in zip(self._keys, found[:count], strict=True):
            results[k][source] = tensor
        return results

    def _run(self, x: Any) -> list[Tensors]:
        return [frozen(reader(x, training=False)[1]) for reader in self.readers]

    def _look_up(self, *inputs):
        if not self._open:  # `train_on_batch`, say
            batch = len(inputs[0])
            return [np.False_, *(np.zeros((batch, *s[1:]), "float32") for s in self._shapes)]
        hit, rows = self._cache.lookup([np.asarray(array) for array in inputs])
        return [np.bool_(hit), *rows]

    def _store(self, *arrays):
        count = len(arrays) - len(self._shapes)
        if self._open:
            self._cache.store(list(arrays[:count]), list(arrays[count:]))
        return [np.int32(0)]

    def fit(self, fit: Any, args: tuple, kwargs: dict[str, Any]) -> keras.callbacks.History:
        """Runs `Model.fit` with the cache open."""
        given = inspect.signature(fit).bind(*args, **kwargs)
        callbacks = given.arguments.get("callbacks") or []
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = callbacks.callbacks
        own = list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks]
        given.arguments["callbacks"] = [*own, _EndEpochs(self._cache)]
        specs = [(shape[1:], "float32") for shape in self._shapes]
        whole = given.arguments.get("steps_per_epoch") is None or fit.__self__.whole_epochs
        self._cache.begin(
            self._fingerprint(), specs, whole_epochs=whole, replicas=replicas(fit.__self__)
        )
        self._open = True
        try:
            return fit(*given.args, **given.kwargs)
        except Exception:
            if self._cache.error is not None:  # which reached us through the backend, mangled
                raise self._cache.error from None
            raise
        finally:
            self._open = False
            self._cache.close()

    def _fingerprint(self) -> str:
        """Equal for teachers that give the same, also if other models were made before them."""
        digest = hashlib.sha256()
        for k, source in self._keys:
            place = _place(self.readers[k].model, source.operation)
            told = [k, source.output, place, source.given, source.logits_of]
            digest.update(json.dumps(told).encode())
        for reader in self.readers:
            for variable in reader.model.weights:  # without the states of random generators
                value = np.ascontiguousarray(ops.convert_to_numpy(variable))
                digest.update(f"{value.dtype}{value.shape}".encode())
                digest.update(value.tobytes())
            for layer in reader.model._flatten_layers():
                digest.update(_settings(layer).encode())
                if getattr(layer, "_outputs_struct", None) is not None:
                    digest.update(_arguments(layer).encode())
        return digest.hexdigest()


class _EndEpochs(keras.callbacks.Callback):
    """Tells the cache where epochs end."""

    def __init__(self, cache: TeacherCache):
        super().__init__()
        self.cache = cache
        self.cut_short = False

    def on_train_batch_end(self, batch, logs=None):
        # Not read at the end of the epoch, where EarlyStopping sets it after a whole one.
        self.cut_short = bool(self.model.stop_training)

    def on_epoch_end(self, epoch, logs=None):
        self.cache.end_epoch(cut_short=self.cut_short)


def _place(model: keras.Model, operation: Any) -> int | None:
    """Which of the operations of a model it is: names count what was made before."""
    return next((k for k, (_, o) in enumerate(operations(model)) if o is operation), None)


def _arguments(model: keras.Model) -> str:
    """What the operations of a Functional model are called with besides tensors."""
    told = []
    for node in Graph.of(model).nodes:
        given = [x for x in tree.flatten((node.args, node.kwargs)) if not isinstance(x, _TENSORS)]
        told.append([type(node.operation).__name__, [str(x) for x in given]])
    return json.dumps(told)


def _settings(layer: keras.Layer) -> str:
    """The class of a layer, and what it was made with."""
    name = type(layer).__name__
    if getattr(layer, "_outputs_struct", None) is not None or isinstance(layer, keras.Sequential):
        return name  # of models the layers and their calls are told one by one
    try:
        config = layer.get_config()
    except NotImplementedError:
        return name
    plain = json.dumps(_lasting(config), default=lambda x: type(x).__name__, sort_keys=True)
    return name + plain


def _lasting(config: Any) -> Any:
    """A config without what changes from one making of a model to the next, and tells nothing."""
    if isinstance(config, dict):
        kept = {str(k): v for k, v in config.items() if k not in _CHANGING}
        return {k: _lasting(v) for k, v in kept.items() if not k.endswith("_initializer")}
    return [_lasting(x) for x in config] if isinstance(config, list | tuple) else config


def call_on_host(
    function: Callable[..., Sequence[np.ndarray]],
    tensors: Sequence[Any],
    shapes: Sequence[tuple],
    dtypes: Sequence[str],
) -> list[Any]:
    """Calls a function of NumPy arrays when the step runs, for its results and what it does.

    Args:
        function: gives as many arrays as there are shapes; called once each time the step runs.
        shapes, dtypes: of its results; None for an unknown size.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        return _tensorflow(function, tensors, shapes, dtypes)
    if backend == "jax":
        return _jax(function, tensors, shapes, dtypes)
    arrays = function(*(keras.ops.convert_to_numpy(tensor) for tensor in tensors))
    return [keras.ops.convert_to_tensor(array) for array in arrays]


def _tensorflow(function, tensors, shapes, dtypes):
    import tensorflow as tf

    results = tf.numpy_function(function, list(tensors), [tf.as_dtype(d) for d in dtypes])
    results = tf.nest.flatten(results)  # eagerly, one result alone comes without a list
    for result, shape in zip(results, shapes, strict=True):
        result.set_shape(shape)
    return results


def _jax(function, tensors, shapes, dtypes):
    import jax
    from jax.experimental import io_callback

    batch = tensors[0].shape[0]
    results = [
        jax.ShapeDtypeStruct(tuple(batch if size is None else size for size in shape), dtype)
        for shape, dtype in zip(shapes, dtypes, strict=True)
    ]

    def on_arrays(*arrays):
        return [np.asarray(array) for array in function(*map(np.asarray, arrays))]

    return list(io_callback(on_arrays, results, *tensors))
