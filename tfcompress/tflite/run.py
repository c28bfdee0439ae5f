"""A .tflite file as a function from real numbers to real numbers, whatever types it takes."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.files import apart
from tfcompress.tflite import flatbuffer, work
from tfcompress.tflite.plain_weights import has_codes
from tfcompress.tflite.signature import first_signature
from tfcompress.tflite.weight_codes import OPERATOR

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
            return values if self.dtype == "string" else values.astype(self.dtype)
        limits = np.iinfo(self.dtype)
        codes = np.floor(values.astype(np.float32) / np.float32(self.scale) + np.float32(0.5))
        return np.clip(codes + self.zero_point, limits.min, limits.max).astype(self.dtype)

    def dequantize(self, codes: np.ndarray) -> np.ndarray:
        """Codes that the file gave as real values; integers without a scale as they are."""
        if self.scale is None:
            return codes
        return (codes.astype(np.float32) - self.zero_point) * np.float32(self.scale)


def port(model: Any, index: int, name: str | None = None) -> Port:
    """Describes a tensor of a file's first graph."""
    tensor = model.subgraphs[0].tensors[index]
    dtype, (scales, points) = flatbuffer.dtype_name(tensor), flatbuffer.scales_of(tensor)
    scale, zero_point = None, 0
    if dtype in INTEGERS and len(scales) == 1:
        scale, zero_point = scales[0], points[0] if points else 0
    own = flatbuffer.text(tensor.name)
    return Port(own if name is None else name, index, tuple(tensor.shape), dtype, scale, zero_point)


def ports(model: Any) -> tuple[list[Port], list[Port]]:
    """The inputs and outputs of a file's first graph, by their names in its signature.

    Returns (inputs, outputs); in the order of the signature, or of the graph if it has none.
    """
    graph, signature = model.subgraphs[0], first_signature(model)
    if signature is None:
        return [port(model, i) for i in graph.inputs], [port(model, i) for i in graph.outputs]
    taken, given = (
        [port(model, entry.tensorIndex, flatbuffer.text(entry.name)) for entry in entries]
        for entries in (signature.inputs, signature.outputs)
    )
    return taken, given


class Loaded:
    """A file loaded into LiteRT in a process of its own, see `apart`.

    Args:
        content: its bytes.
        kernels, keep: see `load`.

    Attributes:
        note: what is to be told if other kernels had to be taken; else empty.
        inputs: the indices of the tensors that it takes.
    """

    note: str
    inputs: list[int]

    def __init__(self, content: bytes, kernels: str, *, keep: bool = False):
        self._content, self._kernels, self._keep = content, kernels, keep
        self._load(kernels)

    def _load(self, kernels: str) -> None:
        self._there = apart.Kept(f"{__name__}:_load", self._content, kernels, self._keep)
        self.note, self.inputs = self._there.told

    def run(self, values: Mapping[int, np.ndarray], wanted: Sequence[int]) -> list[np.ndarray]:
        """Runs once; gives tensors by their indices.

        The reference kernels end the process on a few inputs that the others compute, such as a
        quantized softmax of more than 512 numbers that are nearly the same.
        """
        asked = (f"{__name__}:_run", dict(values), list(wanted))
        try:
            return self._there.ask(*asked)
        except apart.TooLong:
            raise
        except apart.Died:  # Perhaps over another file, or what one had left there.
            self._load(self._kernels)
        try:
            return self._there.ask(*asked)
        except apart.TooLong:
            raise
        except apart.Died as error:
            if self._kernels != REFERENCE:
                raise
            self._kernels = _OPTIMIZED
            self._load(_OPTIMIZED)
            self.note = f"LiteRT's reference kernels fail ({error}): its optimized ones instead"
        return self._there.ask(*asked)

    def tensor(self, index: int) -> np.ndarray:
        """A tensor after the last run."""
        return self._there.ask(f"{__name__}:_tensor", index)


# These three run in the other process.
def _load(content: bytes, kernels: str, keep: bool) -> tuple[int, str, list[int]]:
    seconds = work.seconds(content)
    apart.allow(seconds)
    interpreter, note = load(content, kernels, keep=keep)
    inputs = [int(entry["index"]) for entry in interpreter.get_input_details()]
    return apart.keep((interpreter, seconds)), note, inputs


def _run(number: int, values: dict[int, np.ndarray], wanted: list[int]) -> list[np.ndarray]:
    interpreter, seconds = apart.kept[number]
    apart.allow(seconds)
    for index, value in values.items():
        interpreter.set_tensor(index, value)
    interpreter.invoke()
    return [interpreter.get_tensor(index) for index in wanted]


def _tensor(number: int, index: int) -> np.ndarray:
    return apart.kept[number][0].get_tensor(index)


class Runner:
    """A file loaded into LiteRT, in a process of its own.

    Args:
        model: the `ModelT` of the file.
        content: its bytes.
        name: what error messages call it.
        reference: use the plain reference kernels, which give the same bits everywhere; else
            LiteRT's default, XNNPACK where it can.
        keep: keep intermediate tensors for `tensor`.

    Attributes:
        note: what is to be told if other kernels had to be taken, see `load`; else empty.
    """

    def __init__(
        self, model: Any, content: bytes, name: str, *, reference: bool, keep: bool = False
    ):
        self.name = name
        self.inputs, self.outputs = ports(model)
        kind = REFERENCE if reference else DEFAULT
        try:
            self._loaded = Loaded(content, kind, keep=keep)
        except (MemoryError, RuntimeError, TypeError, ValueError) as error:
            raise cannot_run(name, error) from error

    @property
    def note(self) -> str:
        return self._loaded.note

    def run(self, values: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Runs one batch.

        Args:
            values: real values by input name, of the inputs' shapes.
        """
        given = {entry.index: entry.quantize(values[entry.name]) for entry in self.inputs}
        try:
            found = self._loaded.run(given, [entry.index for entry in self.outputs])
        except apart.TooLong as error:
            raise cannot_run(self.name, error) from error
        except (MemoryError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"LiteRT failed on {self.name}: {line(error)}. Expected inputs "
                "that the model takes; check the values of the data, indices above all."
            ) from error
        return [port.dequantize(codes) for port, codes in zip(self.outputs, found, strict=True)]

    def tensor(self, entry: Port) -> np.ndarray:
        """The real values of a tensor after the last run."""
        return entry.dequantize(self._loaded.tensor(entry.index))


# Names of `OpResolverType`s.
REFERENCE = "BUILTIN_REF"
_OPTIMIZED = "BUILTIN_WITHOUT_DEFAULT_DELEGATES"
DEFAULT = "AUTO"

# By the names that people know; XNNPACK is what LiteRT takes if it is told nothing.
OTHERS = {"XNNPACK": DEFAULT, "optimized": _OPTIMIZED}
_LACKING = re.compile(r"Didn't find op for builtin opcode '(\w+)'")
NOT_BUILTIN = re.compile(r"unresolved custom op|(Select|Regular) TensorFlow op")


def load(content: bytes, kernels: str = REFERENCE, *, keep: bool = False) -> tuple[Any, str]:
    """Load a file into LiteRT.

    The reference kernels lack a few operators (ELU, CEIL, ROUND, SEGMENT_SUM and others) that the
    optimized ones have, and add quantized numbers wrongly: a file with one of these takes the
    optimized kernels, without XNNPACK.

    Returns (the interpreter with its tensors allocated, a note if it has not the kernels asked
    for).
    """
    require_no_codes(content)
    if kernels == REFERENCE and _sums_integers(content):
        note = "LiteRT's reference kernels sum integers wrongly (SUM): its optimized ones instead"
        return _interpreter(content, _OPTIMIZED, keep), note
    try:
        return _interpreter(content, kernels, keep), ""
    except ValueError as error:
        lacking = _LACKING.search(str(error))
        if lacking is None or kernels != REFERENCE:
            raise
    note = f"LiteRT's reference kernels lack {lacking[1]}: its optimized ones instead"
    return _interpreter(content, _OPTIMIZED, keep), note


def require_no_codes(content: bytes) -> None:
    """Raises a RuntimeError if a file has weights in codes, which only TFLite Micro decodes."""
    if OPERATOR.encode() in content and has_codes(flatbuffer.read(content)):
        raise RuntimeError(ONLY_MICRO)


def _sums_integers(content: bytes) -> bool:
    """Whether a file has a SUM of quantized numbers."""
    root = schema.Model.GetRootAs(content)
    codes = [root.OperatorCodes(i) for i in range(root.OperatorCodesLength())]
    known = [max(code.BuiltinCode(), code.DeprecatedBuiltinCode()) for code in codes]
    if schema.BuiltinOperator.SUM not in known:
        return False
    model = flatbuffer.read(content)
    return any(
        flatbuffer.op_name(model, op) == "SUM"
        and flatbuffer.dtype_name(graph.tensors[op.inputs[0]]) in INTEGERS
        for graph in model.subgraphs
        for op in graph.operators
    )


def _interpreter(content: bytes, kernels: str, keep: bool) -> Any:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of its own deprecation.
        interpreter = Interpreter(
            model_content=content,
            experimental_op_resolver_type=getattr(OpResolverType, kernels),
            experimental_preserve_all_tensors=keep,
        )
    interpreter.allocate_tensors()
    return interpreter


ONLY_MICRO = (
    f"its weights are in codes ({OPERATOR}), which TFLite Micro alone decodes. Convert again "
    "without compressed_weights for all others; `tfcompress c-array` makes what runs this one"
)


def line(error: Exception) -> str:
    """What LiteRT says, as one line without a full stop; the type if it says nothing."""
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__


def cannot_run(name: str, error: Exception) -> ValueError:
    """The error that tells that LiteRT cannot run a file, with what can be done."""
    said = line(error)
    if isinstance(error, apart.TooLong):
        return ValueError(f"LiteRT cannot run {name}: {said}.")
    lacking = _LACKING.search(said)
    if lacking is not None:
        advice = (
            f"This LiteRT has no kernel for {lacking[1]} in that version: replace the layer that "
            "it comes from, or install a newer ai-edge-litert."
        )
    elif OPERATOR in said:
        return ValueError(f"LiteRT cannot run {name}: {said}.")
    elif NOT_BUILTIN.search(said):
        advice = (
            "Expected built-in operators only; convert again without SELECT_TF_OPS and custom "
            "operators."
        )
    else:
        advice = "It is damaged, or was made wrong: expected a file that LiteRT runs; convert the "
        advice += "model again."
    return ValueError(f"LiteRT cannot run {name}: {said}. {advice}")


@contextlib.contextmanager
def quiet():
    """Keeps back what TensorFlow and LiteRT write to file descriptor 2, from Python and C++."""
    loggers = [logging.getLogger("tensorflow"), logging.getLogger("absl")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    saved = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
