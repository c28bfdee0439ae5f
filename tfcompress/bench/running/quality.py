"""How well a model does on a task's whole test set: in Keras, and as a file in LiteRT."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfcompress.tflite import flatbuffer, kernels
from tfcompress.tflite.runner import ports

if TYPE_CHECKING:
    from tfcompress.bench.tasks import Data, Task

Predict = Callable[[np.ndarray], np.ndarray]

# Samples that LiteRT takes at a time, where a file can.
_BATCH = 64


def keras_quality(task: Task, data: Data, model: Any) -> float:
    """The quality of a Keras 3 or tf_keras model."""
    import tensorflow as tf

    # Not `predict`: beside a GPU, even a hidden one, Keras compiles it with XLA, which makes
    # depthwise convolutions several times slower on a CPU.
    shape = (None, *data.x_train.shape[1:])
    call = tf.function(
        lambda x: model(x, training=False), input_signature=[tf.TensorSpec(shape, tf.float32)]
    )
    return task.score(lambda x: np.asarray(call(tf.constant(x)), np.float32), data)


def file_quality(task: Task, data: Data, path: str | os.PathLike[str]) -> float:
    """The quality of a .tflite file on LiteRT's default kernels, XNNPACK where they can."""
    return task.score(predictor(Path(path).read_bytes(), data.test_inputs(0, 4)), data)


def predictor(content: bytes, samples: np.ndarray) -> Predict:
    """A .tflite file of one input and one output as a function on batches of real numbers.

    Inputs are quantized and outputs dequantized by the file's own scales. The file takes batches if
    that gives what it gives sample by sample, which is several times slower for small models.

    Args:
        content: the bytes of the file.
        samples: float32 (a few, *input shape), to try that on.

    Returns:
        float32 (count, *input shape) -> float32 (count, *output shape).

    Raises:
        ValueError: LiteRT cannot run it, or it has several inputs or outputs.
    """
    model = flatbuffer.read(content)
    inputs, outputs = ports(model)
    if len(inputs) != 1 or len(outputs) != 1:
        raise ValueError(
            f"expected a file of one input and one output; it has {len(inputs)} and {len(outputs)}"
        )
    taken, given = inputs[0], outputs[0]

    def load(batch: int) -> Predict:
        interpreter, _ = kernels.load(content, kernels.DEFAULT)
        if batch != 1:
            interpreter.resize_tensor_input(taken.index, (batch, *taken.shape[1:]), strict=False)
            interpreter.allocate_tensors()

        def run(x: np.ndarray) -> np.ndarray:
            interpreter.set_tensor(taken.index, taken.quantize(x))
            interpreter.invoke()
            return given.dequantize(interpreter.get_tensor(given.index)).astype(np.float32)

        return run

    one = load(1)
    many = _batched(load, one, samples, given.scale)

    def predict(x: np.ndarray) -> np.ndarray:
        whole = len(x) // _BATCH * _BATCH if many else 0
        found = [many(x[i : i + _BATCH]) for i in range(0, whole, _BATCH)] if many else []
        found += [one(x[i : i + 1]) for i in range(whole, len(x))]
        return np.concatenate(found)

    return predict


def _batched(
    load: Callable[[int], Predict], one: Predict, samples: np.ndarray, scale: float | None
) -> Predict | None:
    """What runs a file on batches; None if it does not give what it gives sample by sample."""
    expected = np.concatenate([one(sample[None]) for sample in samples])
    x = np.resize(samples, (_BATCH, *samples.shape[1:]))
    try:
        many = load(_BATCH)
        found = many(x)
    except (RuntimeError, ValueError):  # A shape that is written into the file, say.
        return None
    if found.shape != (_BATCH, *expected.shape[1:]):
        return None
    # Kernels add in another order: as much as a step of the output's grid, or of float32.
    near = 1.01 * scale if scale else 1e-4 * max(1.0, float(np.abs(expected).max()))
    wanted = np.resize(expected, found.shape)
    return many if np.allclose(found, wanted, rtol=0, atol=near) else None
