"""NumPy functions called from inside of a training step, on any backend."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np


def call_on_host(
    function: Callable[..., Sequence[np.ndarray]],
    tensors: Sequence[Any],
    shapes: Sequence[tuple],
    dtypes: Sequence[str],
) -> list[Any]:
    """Calls a function of NumPy arrays when the step runs, for its results and what it does.

    Args:
        function: gives as many arrays as there are shapes; called once each time the step runs.
        tensors: what it is called with.
        shapes, dtypes: of its results; None for an unknown size.

    Returns:
        A list of tensors.
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
