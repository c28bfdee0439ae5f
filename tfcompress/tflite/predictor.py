"""What a file gives for many samples: in batches where it takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from tfcompress.tflite import flatbuffer, run
from tfcompress.tflite.run import Port, ports

# By the names of inputs or outputs.
Arrays = Mapping[str, np.ndarray]
Predict = Callable[[Arrays], dict[str, np.ndarray]]

_BATCH = 64


def predictor(content: bytes, samples: Arrays) -> Predict:
    """A .tflite file as a function on batches of real numbers, run in this process.

    Inputs are quantized and outputs dequantized by the file's own scales. The file takes batches if
    that gives what it gives sample by sample, which is several times slower for small models.

    Args:
        content: the bytes of the file.
        samples: float32 (a few, *input shape) by input, to try that on.

    Returns a function of arrays (count, *input shape) by input, that gives float32 arrays
    (count, *output shape) by output.
    """
    inputs, outputs = ports(flatbuffer.read(content))

    def load(batch: int) -> Predict:
        return _loaded(content, inputs, outputs, batch)

    one = load(1)
    many = _batched(load, one, samples, outputs)

    def predict(x: Arrays) -> dict[str, np.ndarray]:
        count = _count(x)
        whole = count // _BATCH * _BATCH if many else 0
        found = [many(_rows(x, i, _BATCH)) for i in range(0, whole, _BATCH)] if many else []
        found += [one(_rows(x, i, 1)) for i in range(whole, count)]
        return _joined(found)

    return predict


def _count(x: Arrays) -> int:
    return len(next(iter(x.values())))


def _rows(x: Arrays, first: int, count: int) -> dict[str, np.ndarray]:
    return {name: array[first : first + count] for name, array in x.items()}


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _loaded(content: bytes, inputs: list[Port], outputs: list[Port], batch: int) -> Predict:
    """The file in an interpreter that takes so many samples at once."""
    interpreter, _ = run.load(content, run.DEFAULT)
    if batch != 1:
        for port in inputs:
            interpreter.resize_tensor_input(port.index, (batch, *port.shape[1:]), strict=False)
        interpreter.allocate_tensors()

    def predict(x: Arrays) -> dict[str, np.ndarray]:
        for port in inputs:
            interpreter.set_tensor(port.index, port.quantize(x[port.name]))
        interpreter.invoke()
        found = {p.name: p.dequantize(interpreter.get_tensor(p.index)) for p in outputs}
        return {name: values.astype(np.float32) for name, values in found.items()}

    return predict


def _batched(
    load: Callable[[int], Predict], one: Predict, samples: Arrays, outputs: list[Port]
) -> Predict | None:
    """What runs a file on batches; None if it does not give what it gives sample by sample."""
    expected = _joined([one(_rows(samples, i, 1)) for i in range(_count(samples))])
    x = {name: np.resize(a, (_BATCH, *a.shape[1:])) for name, a in samples.items()}
    try:
        many = load(_BATCH)
        found = many(x)
    except (RuntimeError, ValueError):  # A shape that is written into the file, say.
        return None
    same = all(_same(port, expected[port.name], found[port.name]) for port in outputs)
    return many if same else None


def _same(port: Port, expected: np.ndarray, found: np.ndarray) -> bool:
    """Whether a batch of the samples, again and again, gave what they give one by one."""
    if found.shape != (_BATCH, *expected.shape[1:]):
        return False
    # Kernels add in another order: as much as a step of the output's grid, or of float32.
    near = 1.01 * port.scale if port.scale else 1e-4 * max(1.0, float(np.abs(expected).max()))
    return np.allclose(found, np.resize(expected, found.shape), rtol=0, atol=near)
