"""The part of a model in front of its weights that makes features of sound."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import layers, tree

from tfcompress.graph.nodes import Graph, Node, has_own_call
from tfcompress.kinds import LINEAR, is_of

_SPECTRA = {"FFT", "FFT2", "RFFT", "STFT", "MelSpectrogram", "STFTSpectrogram"}
_LOGARITHMS = {"Log", "Log10", "Log1p", "Log2"}
_ENERGIES = {"Square", "Abs", "Absolute", "Power", "Sqrt"}
# Layers with weights that no training changes, or that begin as spectra.
_HELD = (layers.Normalization, layers.STFTSpectrogram)
# Operations of TensorFlow in which users write spectra.
_TYPES = {"RFFT", "RFFT2D", "FFT", "FFT2D", "BatchFFT"}

WHY = "8 bits do not hold the range of a spectrum of sound before its logarithm"


@dataclasses.dataclass(frozen=True)
class FrontEnd:
    """What makes features of sound: nodes, and the tensors of theirs that the rest reads."""

    nodes: tuple[Node, ...]
    ends: tuple[Any, ...]

    @property
    def names(self) -> set[str]:
        """The names of its operations."""
        return {node.name for node in self.nodes}

    @property
    def words(self) -> str:
        """What it is called in messages."""
        made = [n.name for n in self.nodes for t in n.outputs if any(t is end for end in self.ends)]
        first = next((n for n in self.nodes if _kind(n) in _SPECTRA), self.nodes[0]).name
        return f"'{first}'" if made[-1] == first else f"'{first}' to '{made[-1]}'"


def front_end(graph: Graph) -> FrontEnd | None:
    """The operations from the inputs of a flat graph that make a spectrum, or the logarithm of
    energies, up to the first weights; None if there are none, or nothing comes after them.
    """
    plain = _plain(graph)
    seeds = {id(n) for n in graph.nodes if id(n) in plain and _is_spectral(n)}
    chosen = _around(graph, seeds, plain)
    for node in graph.nodes:
        if _kind(node) in _LOGARITHMS and id(node) not in chosen:
            before = list(_before(graph, node))
            if _is_filter_bank(graph, before, plain):
                chosen |= _after(graph, {id(x) for x in before}, {id(x) for x in before} | plain)
    given = {"InputLayer", "FakeQuant"}
    nodes = tuple(n for n in graph.nodes if id(n) in chosen and _kind(n) not in given)
    ends = tuple(
        tensor
        for node in nodes
        for tensor in node.outputs
        if any(id(reader) not in chosen for reader in graph.consumers(tensor))
    )
    return FrontEnd(nodes, ends) if ends else None


def _kind(node: Node) -> str:
    return type(node.operation).__name__


def _plain(graph: Graph) -> set[int]:
    """Nodes that compute from inputs alone, without weights that train."""
    found: set[int] = set()
    for node in graph.nodes:
        makers = [graph.producer(t) for t in node.inputs]
        known = all(x is not None and id(x) in found for x in makers)
        if node.is_input or (makers and known and _is_plain(node, makers)):
            found.add(id(node))
    return found


def _is_plain(node: Node, makers: list) -> bool:
    operation = node.operation
    if not isinstance(operation, keras.Layer):
        return True
    if _kind(node) == "FakeQuant":  # which observes what only floats read
        return bool(makers[0].is_input)
    if _kind(node) == "Parameter":
        return not operation.trainable
    return not operation.weights or isinstance(operation, _HELD)


def _is_spectral(node: Node) -> bool:
    operation = node.operation
    if _kind(node) in _SPECTRA:
        return True
    own = isinstance(operation, keras.Layer) and has_own_call(type(operation))
    if node.is_input or not (own or isinstance(operation, layers.Lambda)):
        return False
    try:
        return bool(types_in(node) & _TYPES)
    except Exception:  # What users' code raises is of any kind.
        return False


def types_in(node: Node) -> set[str]:
    """The types of the operations of TensorFlow that a node is made of."""
    import tensorflow as tf

    def call(*values):
        given = {id(t): v for t, v in zip(node.inputs, values, strict=True)}
        args, kwargs = tree.map_structure(lambda x: given.get(id(x), x), (node.args, node.kwargs))
        return node.operation(*args, **kwargs)

    specs = [tf.TensorSpec(t.shape, t.dtype) for t in node.inputs]
    function = tf.function(call, input_signature=specs, autograph=False)
    definition = function.get_concrete_function().graph.as_graph_def()
    functions = [f.node_def for f in definition.library.function]
    return {entry.op for nodes in (definition.node, *functions) for entry in nodes}


def _around(graph: Graph, seeds: set[int], plain: set[int]) -> set[int]:
    """Some nodes, those that they depend on, and the plain ones that depend on them."""
    found = {id(x) for node in graph.nodes if id(node) in seeds for x in _before(graph, node)}
    return _after(graph, found | seeds, plain) if seeds else set()


def _after(graph: Graph, found: set[int], plain: set[int]) -> set[int]:
    """Nodes, and the plain ones that read what they give."""
    found = set(found)
    for node in graph.nodes:
        makers = (graph.producer(t) for t in node.inputs)
        reads = any(x is not None and id(x) in found and not x.is_input for x in makers)
        known = all(
            (x := graph.producer(t)) is not None and (id(x) in found or id(x) in plain)
            for t in node.inputs
        )
        if reads and known and not _is_weighted(node):
            found.add(id(node))
    return found


def _is_weighted(node: Node) -> bool:
    operation = node.operation
    held = isinstance(operation, _HELD) or _kind(node) == "Parameter"
    return isinstance(operation, keras.Layer) and bool(operation.weights) and not held


def _before(graph: Graph, node: Node) -> Iterator[Node]:
    """A node and all that it depends on."""
    seen, stack = {id(node)}, [node]
    while stack:
        node = stack.pop()
        yield node
        for maker in (graph.producer(t) for t in node.inputs):
            if maker is not None and id(maker) not in seen:
                seen.add(id(maker))
                stack.append(maker)


def _is_filter_bank(graph: Graph, before: list[Node], plain: set[int]) -> bool:
    """Whether what a logarithm is taken of is the energy of linear filters of the inputs.

    Filters of what other filters gave are a net, whose weights are to become integers.
    """
    linear = [n for n in before if id(n) not in plain and is_of(n.operation, LINEAR)]
    free = all(
        id(n) in plain
        or getattr(n.operation, "activation", None) is keras.activations.linear
        or not getattr(n.operation, "weights", ())
        for n in before
    )
    first = all(id(graph.producer(t)) in plain for n in linear for t in n.inputs)
    squares = any(_kind(n) in _ENERGIES or _is_square(n) for n in before)
    return bool(linear) and free and first and squares


def _is_square(node: Node) -> bool:
    return _kind(node) == "Multiply" and len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]


def settings_of(front: FrontEnd) -> dict[str, Any]:
    """What is known of frames, bands and logarithm, in the order in which they are computed."""
    found: dict[str, Any] = {}
    for node in front.nodes:
        operation, kind = node.operation, _kind(node)
        if kind in ("STFT", "MelSpectrogram"):
            found["frame"] = operation.sequence_length
            found["step"] = operation.sequence_stride
            found["fft"] = operation.fft_length
            if kind == "MelSpectrogram" or operation.center:
                found["ends reflected by half of it"] = True
            if operation.sequence_length < operation.fft_length:
                found["zeros on both sides of a frame"] = True
            window = operation.window
            found["window"] = window if isinstance(window, str | None) else "its own"
        if kind == "MelSpectrogram":
            found["power"] = operation.mag_exp
            found["mel bands"] = operation.num_mel_bins
            found["from"], found["to"] = operation.min_freq, operation.max_freq
            found["rate"] = operation.sampling_rate
            if operation.power_to_db:
                found["decibels"] = True
                found["floor"] = operation.min_power
        if kind == "STFTSpectrogram":
            found["frame"], found["step"] = operation.frame_length, operation._frame_step
            found["fft"], found["window"] = operation._fft_length, operation.window
        if kind == "RFFT" and (operation.fft_length or node.inputs[0].shape[-1]):
            found["fft"] = operation.fft_length or node.inputs[0].shape[-1]
        if kind == "ExtractSequences":
            found["frame"], found["step"] = operation.sequence_length, operation.sequence_stride
        found |= _of_matrix(node, found) if kind == "Matmul" else {}
        if kind in _LOGARITHMS or (kind == "STFTSpectrogram" and operation.mode == "log"):
            found["logarithm"] = {"Log10": "of base 10", "Log2": "of base 2"}.get(kind, "natural")
        if kind in ("Add", "Maximum") and "logarithm" not in found:
            values = [x for x in node.args if not isinstance(x, keras.KerasTensor)]
            small = [float(x) for x in values if np.size(x) == 1 and 0 < float(x) <= 1]
            found |= {"offset" if kind == "Add" else "floor": x for x in small}
    return found


def _of_matrix(node: Node, found: dict[str, Any]) -> dict[str, Any]:
    """What a product with a fixed matrix is: bands of a spectrum, or cosines of bands."""
    matrix = next((np.asarray(x) for x in node.args if not isinstance(x, keras.KerasTensor)), None)
    if matrix is None or matrix.ndim != 2:
        return {}
    rows, columns = matrix.shape
    if rows == found.get("fft", 0) // 2 + 1:
        used = np.flatnonzero(matrix.any(axis=1))
        ends = {"first bin": int(used[0]), "last bin": int(used[-1])} if used.size else {}
        return {"mel bands" if (matrix >= 0).all() else "columns": columns, **ends}
    angles = math.pi / rows * np.outer(np.arange(rows) + 0.5, np.arange(columns))
    scale = (matrix * np.cos(angles)).sum(axis=0) / (np.cos(angles) ** 2).sum(axis=0)
    if "mel bands" in found and np.allclose(matrix, np.cos(angles) * scale, atol=1e-4):
        return {"DCT-II coefficients": columns}
    return {}


def hint_of(front: FrontEnd) -> str:
    """Which functions on a device compute a front-end, with what is known of it."""
    settings = settings_of(front)
    told = ", ".join(k if value is True else f"{k} {value}" for k, value in settings.items())
    size = settings.get("fft")
    if not isinstance(size, int):
        fits = "compute them as the model did"
    elif size & (size - 1) or not 32 <= size <= 4096:
        fits = f"CMSIS-DSP has no FFT of {size} values: take the next power of 2 when you train"
    else:
        fits = f"with CMSIS-DSP: {_steps(size, settings)}"
    return (
        f"features of sound{': ' * bool(told)}{told}. In C {fits}; the signal library of TFLite "
        "Micro computes the like in integers, but other numbers: train with these. On Android: the "
        "first half as a float32 file of its own, run by an interpreter before this one"
    )


def _steps(size: int, settings: dict[str, Any]) -> str:
    """Functions of CMSIS-DSP in the order in which they are called for a frame."""
    steps = ["arm_mult_f32 by the window"] if settings.get("window") else []
    steps += [f"arm_rfft_fast_f32 of {size} values"]
    steps += ["arm_cmplx_mag_squared_f32 or arm_cmplx_mag_f32"]
    steps += ["arm_mat_vec_mult_f32 by the bands"] if "mel bands" in settings else []
    steps += ["arm_vlog_f32"] if "logarithm" in settings or "decibels" in settings else []
    steps += ["arm_mat_vec_mult_f32 by the cosines"] if "DCT-II coefficients" in settings else []
    return ", ".join(steps)
