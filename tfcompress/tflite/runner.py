"""A .tflite file as a function from real numbers to real numbers, whatever types it takes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tfcompress.tflite import flatbuffer, kernels, lower

INTEGERS = ("int8", "uint8", "int16")


@dataclasses.dataclass(frozen=True)
class Port:
    """An input or output of a file: name in the signature, tensor index, type and grid.

    `scale` is None where the values stand for themselves.
    """

    name: str
    index: int
    shape: tuple[int, ...]
    dtype: str
    scale: float | None
    zero_point: int

    def quantize(self, values: np.ndarray) -> np.ndarray:
        """Real values as the codes that the file takes, rounded as fake-quantization rounds."""
        if self.scale is None:
            return values.astype(self.dtype)
        limits = np.iinfo(self.dtype)
        codes = np.floor(values.astype(np.float32) / np.float32(self.scale) + np.float32(0.5))
        return np.clip(codes + self.zero_point, limits.min, limits.max).astype(self.dtype)

    def dequantize(self, codes: np.ndarray) -> np.ndarray:
        """Codes that the file gave as real values; integers without a scale as they are."""
        if self.scale is None:
            return codes
        return (codes.astype(np.float32) - self.zero_point) * np.float32(self.scale)


def port(model: Any, index: int, name: str | None = None) -> Port:
    """Describes a tensor of a file's first graph.

    Args:
        model: a `ModelT`.
        index: of the tensor.
        name: what to call it; its own name if None.

    Returns:
        A `Port`.
    """
    tensor = model.subgraphs[0].tensors[index]
    dtype, quantization = flatbuffer.dtype_name(tensor), tensor.quantization
    scale, zero_point = None, 0
    scales: Any = None if quantization is None else quantization.scale
    if dtype in INTEGERS and scales is not None and len(scales) == 1:
        scale = float(scales[0])
        points = quantization.zeroPoint
        zero_point = 0 if points is None or len(points) == 0 else int(points[0])
    own = flatbuffer.text(tensor.name)
    return Port(own if name is None else name, index, tuple(tensor.shape), dtype, scale, zero_point)


def ports(model: Any) -> tuple[list[Port], list[Port]]:
    """The inputs and outputs of a file's first graph, by their names in its signature.

    Args:
        model: a `ModelT`, as from `flatbuffer.read`.

    Returns:
        (inputs, outputs); in the order of the signature, or of the graph if it has none.
    """
    graph = model.subgraphs[0]
    signature = next((s for s in model.signatureDefs if s.subgraphIndex == 0), None)
    if signature is None:
        return [port(model, i) for i in graph.inputs], [port(model, i) for i in graph.outputs]
    taken, given = (
        [port(model, entry.tensorIndex, flatbuffer.text(entry.name)) for entry in entries]
        for entries in (signature.inputs, signature.outputs)
    )
    return taken, given


class Runner:
    """A file loaded into LiteRT.

    Args:
        model: the `ModelT` of the file.
        content: its bytes.
        name: what error messages call it.
        reference: use the plain reference kernels, which give the same bits everywhere; else
            LiteRT's default, XNNPACK where it can.
        keep: keep intermediate tensors for `tensor`.

    Attributes:
        note: what is to be told if other kernels had to be taken, see `kernels.load`; else empty.
    """

    def __init__(
        self, model: Any, content: bytes, name: str, *, reference: bool, keep: bool = False
    ):
        self.name = name
        self.inputs, self.outputs = ports(model)
        kind = kernels.REFERENCE if reference else kernels.DEFAULT
        # LiteRT tells on standard error which delegate it made.
        with lower.quiet():
            try:
                self._interpreter, self.note = kernels.load(content, kind, keep=keep)
            except Exception as error:  # Damaged files fail in many ways.
                raise kernels.cannot_run(name, error) from error

    def run(self, values: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Runs one batch.

        Args:
            values: real values by input name, of the inputs' shapes.

        Returns:
            Real values of the outputs, in the order of `outputs`.
        """
        for entry in self.inputs:
            self._interpreter.set_tensor(entry.index, entry.quantize(values[entry.name]))
        try:
            self._interpreter.invoke()
        except Exception as error:  # As above.
            raise ValueError(
                f"LiteRT failed on {self.name}: {kernels.line(error)}. Expected inputs "
                "that the model takes; check the values of the data, indices above all."
            ) from error
        return [self.tensor(entry) for entry in self.outputs]

    def tensor(self, entry: Port) -> np.ndarray:
        """The real values of a tensor after the last run."""
        return entry.dequantize(self._interpreter.get_tensor(entry.index))
