"""The file that tools are asked about, with sample inputs and what LiteRT makes of them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfcompress.files.samples import batches
from tfcompress.tflite import flatbuffer, run
from tfcompress.tflite.inspect import inspect
from tfcompress.tflite.plain_weights import has_codes, with_plain_weights
from tfcompress.tflite.signature import Input, io_names

RANDOM_SAMPLES = 8
SAMPLES = 32  # at most, of data that is given
SEED = 0
_FLOATS = ("float32", "float16", "float64")
_CODES = ("int8", "uint8", "int16")
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Subject:
    """A .tflite file and what LiteRT's reference kernels compute with it.

    Attributes:
        path: of the file; "model.tflite" if only its bytes are known.
        data: its bytes.
        inputs: a few samples, each a dict of arrays by input name, in the order and in the types
            of the file's own inputs.
        expected: for each sample, the outputs of LiteRT's `BUILTIN_REF` kernels by name, in the
            order of the file's outputs.
        units: for each output what one step of its integer grid is in the output's own numbers:
            1 if the output is an integer, the scale if it is made real by a last DEQUANTIZE, None
            if it is computed in float.
        zeros: for each output the number that stands for the real 0.
        step: how many steps of the grids count as one: 256 if activations are int16, whose last
            bits tools that compute in float do not follow.
        relative: by how much of the largest value outputs computed in float may differ: 1e-4, as
            kernels add in different orders; 0.05 if activations are quantized at run time, which
            each runtime does in its own way or not at all.
        options: of the tools, by name.
        note: what is to be told if other kernels had to be taken, see `run.load`; else empty.
    """

    path: Path
    data: bytes
    inputs: list[Arrays]
    expected: list[Arrays]
    units: dict[str, float | None]
    zeros: dict[str, int]
    step: int
    relative: float
    options: Mapping[str, Any]
    note: str = ""


def read_subject(
    source: str | os.PathLike[str] | bytes, options: Mapping[str, Any], data: Any = None
) -> Subject:
    """Read a .tflite file and run LiteRT's reference kernels on samples.

    Args:
        source: its path, or its bytes.
    """
    content, where = flatbuffer.load(source), flatbuffer.describe(source)
    model = flatbuffer.read(content, name=where)
    graph = model.subgraphs[0]
    taken, given = io_names(model)
    if not given:
        raise ValueError(f"{where} has no outputs; expected at least one, to be compared.")
    if data is None:
        inputs = drawn_inputs(model, where)
    else:
        tensors = (graph.tensors[index] for index in graph.inputs)
        inputs = _given(dict(zip(taken, tensors, strict=True)), data)
    units = [unit_of(model, index) for index in graph.outputs]
    kinds = {op.dtype for op in inspect(content).operators}
    expected, note = _by_reference(content, inputs, given, where)
    return Subject(
        Path("model.tflite" if isinstance(source, bytes) else source),
        content,
        inputs,
        expected,
        dict(zip(given, units, strict=True)),
        dict(zip(given, (zero(graph.tensors[index]) for index in graph.outputs), strict=True)),
        256 if "int16" in kinds else 1,
        0.05 if any(kind.startswith("dynamic") for kind in kinds) else 1e-4,
        dict(options),
        note,
    )


def run_reference(data: bytes, inputs: list[Arrays], outputs: list[str], name: str) -> list[Arrays]:
    """Run LiteRT's reference kernels on samples in the file's own types."""
    return _by_reference(data, inputs, outputs, name)[0]


def _by_reference(
    data: bytes, inputs: list[Arrays], outputs: list[str], name: str
) -> tuple[list[Arrays], str]:
    """What the reference kernels give, and a note if other ones had to be taken."""
    indices = _outputs(data)
    try:
        loaded = run.Loaded(_decoded(data), run.REFERENCE, keep=True)
        found = _run(loaded, inputs, indices)
    except Exception as error:  # Damaged files fail in many ways.
        raise run.cannot_run(name, error) from error
    values = ([sample[index] for index in indices] for sample in found)
    return [dict(zip(outputs, sample, strict=True)) for sample in values], loaded.note


def with_other_kernels(file: Subject) -> dict[str, Subject]:
    """The file with what LiteRT's other kernels give, which round otherwise than its reference."""
    found = {}
    for name, kind in run.OTHERS.items():
        with contextlib.suppress(Exception):  # Damaged files fail in many ways.
            samples = outputs_of(file.data, file.inputs, kind)
            expected = [dict(zip(file.units, sample, strict=True)) for sample in samples]
            found[name] = dataclasses.replace(file, expected=expected)
    return found


def outputs_of(
    data: bytes, inputs: list[Arrays], kind: str = run.REFERENCE
) -> list[list[np.ndarray]]:
    """Run LiteRT and return the outputs of each sample."""
    indices = _outputs(data)
    found = tensors_of(data, inputs, indices, kind)
    return [[sample[index] for index in indices] for sample in found]


def _outputs(data: bytes) -> list[int]:
    return [int(index) for index in flatbuffer.read(data).subgraphs[0].outputs]


def tensors_of(
    data: bytes, inputs: list[Arrays], indices: Sequence[int], kind: str = run.REFERENCE
) -> list[dict[int, np.ndarray]]:
    """Run LiteRT and return tensors."""
    return _run(run.Loaded(_decoded(data), kind, keep=kind == run.REFERENCE), inputs, indices)


def _decoded(data: bytes) -> bytes:
    """A file as LiteRT runs it: codes of weights are TFLite Micro's alone. Indices are the same."""
    model = flatbuffer.read(data)
    return flatbuffer.write(with_plain_weights(model)[0]) if has_codes(model) else data


def _run(
    loaded: run.Loaded, inputs: list[Arrays], indices: Sequence[int]
) -> list[dict[int, np.ndarray]]:
    found = []
    for sample in inputs:
        values = dict(zip(loaded.inputs, sample.values(), strict=True))
        found.append(dict(zip(indices, loaded.run(values, indices), strict=True)))
    return found


def drawn_inputs(model: Any, where: str) -> list[Arrays]:
    """Draw samples of a file's inputs, always the same; see `read_subject`."""
    random, graph = np.random.default_rng(SEED), model.subgraphs[0]
    tensors = [graph.tensors[index] for index in graph.inputs]
    named = list(zip(io_names(model)[0], tensors, strict=True))
    return [
        {name: _draw(random, tensor, number, where) for name, tensor in named}
        for number in range(RANDOM_SAMPLES)
    ]


def _draw(random: np.random.Generator, tensor: Any, number: int, where: str) -> np.ndarray:
    dtype, shape = flatbuffer.dtype_name(tensor), tuple(tensor.shape)
    if dtype in _FLOATS:
        return random.uniform(-(number % 2), 1, shape).astype(dtype)
    if grid_of(tensor) is not None:
        limits = np.iinfo(dtype)
        return random.integers(limits.min, limits.max + 1, shape).astype(dtype)
    if dtype in ("bool", "int8", "uint8", "int16", "int32", "int64", "uint32", "uint64"):
        # These stand for indices, and any table has a row 0; most have a row 1.
        return random.integers(0, 2, shape).astype(dtype)
    raise ValueError(
        f"{where} takes an input of type {dtype}; expected floats, integers or booleans. "
        "Convert the model with numeric inputs."
    )


def _given(tensors: Mapping[str, Any], data: Any) -> list[Arrays]:
    wanted = []
    for name, tensor in tensors.items():
        real = "float32" if grid_of(tensor) is not None else flatbuffer.dtype_name(tensor)
        wanted.append(Input(name, (None, *map(int, tensor.shape[1:])), real))
    return [
        {name: _encode(tensor, sample[name]) for name, tensor in tensors.items()}
        for sample in batches(data, wanted, SAMPLES)
    ]


def _encode(tensor: Any, values: np.ndarray) -> np.ndarray:
    """Real values of one sample in the tensor's type, as often as its batch asks for."""
    dtype, grid = flatbuffer.dtype_name(tensor), grid_of(tensor)
    if grid is not None:
        limits = np.iinfo(dtype)
        codes = np.floor(values / np.float32(grid[0]) + np.float32(0.5)) + grid[1]
        values = np.clip(codes, limits.min, limits.max)
    return np.repeat(values, tensor.shape[0], axis=0).astype(dtype)


def zero(tensor: Any) -> int:
    """The number in a tensor that stands for the real 0, see `Subject.zeros`."""
    grid = grid_of(tensor)
    return 0 if grid is None else grid[1]


def grid_of(tensor: Any) -> tuple[float, int] | None:
    """Scale and zero point of an integer tensor that stands for real numbers."""
    scales = getattr(tensor.quantization, "scale", None)
    if flatbuffer.dtype_name(tensor) not in _CODES or scales is None or len(scales) != 1:
        return None
    points = tensor.quantization.zeroPoint
    return float(scales[0]), 0 if points is None or len(points) == 0 else int(points[0])


def unit_of(model: Any, index: int) -> float | None:
    """What one step of a tensor's integer grid is in its own numbers, see `Subject.units`."""
    graph = model.subgraphs[0]
    if flatbuffer.dtype_name(graph.tensors[index]) not in _FLOATS:
        return 1.0
    makers = [op for op in graph.operators if index in list(op.outputs)]
    if not makers or flatbuffer.op_name(model, makers[0]) != "DEQUANTIZE":
        return None
    grid = grid_of(graph.tensors[makers[0].inputs[0]])
    return None if grid is None else grid[0]
