"""Which layer of a .tflite file the error comes from."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from typing import Any

import keras
import numpy as np

from tfcompress.conversion.float_files import float_file
from tfcompress.conversion.layer_names import LayerNames
from tfcompress.conversion.ranges import Range
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.run import INTEGERS, Runner, port
from tfcompress.verification.differences import sqnr_db
from tfcompress.verification.operator_steps import as_named, operator_steps, simulation_of

_EDGES = ("QUANTIZE", "DEQUANTIZE")


@dataclasses.dataclass(frozen=True)
class LayerError:
    """How far the output of one operation is from that of the float model.

    Attributes:
        layer: the Keras layer where the tensor's name tells it, else ''.
        op: the operation in LiteRT.
        tensor: the name of its output in the file.
        sqnr_db: of that tensor; errors from layers before are in it.
        input_sqnr_db: the worst of the tensors that the operation reads; where `sqnr_db` lies far
            below, the operation itself adds the error. Infinite at the model's inputs.
        steps: how many steps (LSB) the operation alone is off at most, if it is given the integers
            that the model simulates (a model that simulates none: its values, rounded); None if
            there are none to compare with, as of what only moves integers.
        share: of the values that are off.
    """

    layer: str
    op: str
    tensor: str
    sqnr_db: float
    input_sqnr_db: float
    steps: float | None = None
    share: float | None = None


def layer_errors(
    model: keras.Model | None, file: Any, content: bytes, batches: list[dict[str, np.ndarray]]
) -> tuple[LayerError, ...]:
    """Compares each operation's output with that of the float file of the same model.

    Args:
        content: the bytes of the file.
        batches: values by the file's input names, of the shapes of its inputs.
    """
    if model is None:
        raise ValueError(
            "the layers of a SavedModel are not known; expected a Keras model for layers=True. "
            "Name the .keras file that it was exported from."
        )
    exact, known = float_twin(model, file)
    pairs = _pairs(file, exact)
    ratios = _measure(file, content, exact, pairs, batches) if pairs else {}
    if not ratios:
        raise ValueError(
            "no tensor of the file has the name of one of the float model's; expected a file that "
            "tfcompress.convert made from this model. Verify it without layers."
        )
    try:
        steps = operator_steps(file, simulation_of(model, file, exact, known, pairs), batches)
    except (RuntimeError, TypeError, ValueError):  # it keeps states, or has branches of its own
        steps = {}
    names, tensors = LayerNames(model), file.subgraphs[0].tensors
    found = []
    for op in file.subgraphs[0].operators:
        kind = flatbuffer.op_name(file, op)
        if op.outputs and op.outputs[0] in ratios and kind not in _EDGES:
            index = op.outputs[0]
            worst = min((ratios.get(i, math.inf) for i in op.inputs), default=math.inf)
            name = flatbuffer.text(tensors[index].name)
            alone = steps.get(index, (None, None))
            found.append(LayerError(names.of(name), kind, name, ratios[index], worst, *alone))
    # NaN is worse than anything.
    return tuple(sorted(found, key=lambda e: -math.inf if math.isnan(e.sqnr_db) else e.sqnr_db))


def float_twin(model: keras.Model, file: Any) -> tuple[Any, dict[int, Range]]:
    """The float file of a model whose operations have the forms that they have in a file.

    Returns (its `ModelT`, the ranges that the model has for its tensors).
    """
    tensors = file.subgraphs[0].tensors
    is_integer = any(
        flatbuffer.dtype_name(t) in INTEGERS and not flatbuffer.is_constant(file, t)
        for t in tensors
    )
    batch_size = int(tensors[file.subgraphs[0].inputs[0]].shape[0])
    return float_file(model, batch_size=batch_size, integer=is_integer, select_tf_ops=True)[:2]


def tensor_errors(
    file: Any, content: bytes, exact: Any, batches: list[dict[str, np.ndarray]]
) -> dict[int, float]:
    """Compares the activations of two files that have the same name."""
    pairs = _pairs(file, exact)
    return _measure(file, content, exact, pairs, batches) if pairs else {}


def _pairs(file: Any, exact: Any) -> dict[int, int]:
    """Index of an activation in the file -> index of the float tensor of the same name."""
    activations = [
        (index, tensor)
        for index, tensor in enumerate(exact.subgraphs[0].tensors)
        if not flatbuffer.is_constant(exact, tensor)
    ]
    # The converter's own modes number some tensors anew.
    counts = Counter(_last(tensor) for _, tensor in activations)
    by_name = {n: index for index, tensor in activations if counts[n := _last(tensor)] == 1}
    by_name.update((_unnumbered(tensor), index) for index, tensor in activations)
    by_name.update((flatbuffer.text(tensor.name), index) for index, tensor in activations)
    pairs = {}
    graph = file.subgraphs[0]
    # Quantization leaves tensors that no operation makes, whose values cannot be read.
    for index in sorted({*graph.inputs, *(i for op in graph.operators for i in op.outputs)}):
        tensor = graph.tensors[index]
        name = flatbuffer.text(tensor.name)
        names = (name, _unnumbered(tensor), name.removesuffix("_quantized"), _last(tensor))
        other = next((by_name[n] for n in names if n in by_name), None)
        if other is None or tensor.isVariable or flatbuffer.is_constant(file, tensor):
            continue
        if list(exact.subgraphs[0].tensors[other].shape) == list(tensor.shape):
            pairs[index] = other
    for op in graph.operators:
        if flatbuffer.op_name(file, op) == "QUANTIZE" and op.inputs[0] in pairs:
            pairs.setdefault(op.outputs[0], pairs[op.inputs[0]])
    return pairs


def _unnumbered(tensor: Any) -> str:
    return re.sub(r"[\d_]+$", "", flatbuffer.text(tensor.name))


def _last(tensor: Any) -> str:
    """The last of the operations that were fused into the one that makes a tensor."""
    # Where a kernel has 4 bits, the names of the others differ, and parts are counted anew.
    last = flatbuffer.text(tensor.name).split(";")[0]
    return re.sub(r"[\d_]+$|(?<=/part_)\d+(?=/)", "", last)


def _measure(file, content, exact, pairs, batches) -> dict[int, float]:
    """SQNR in dB by tensor index."""
    ours = Runner(file, content, "the file", reference=True, keep=True)
    theirs = Runner(exact, flatbuffer.write(exact), "the float file", reference=True, keep=True)
    signal, noise = dict.fromkeys(pairs, 0.0), dict.fromkeys(pairs, 0.0)
    for batch in batches:
        ours.run(batch)
        theirs.run(as_named([e.name for e in theirs.inputs], batch, ours.inputs))
        for index, other in pairs.items():
            wanted = theirs.tensor(port(exact, other)).astype(np.float64)
            got = ours.tensor(port(file, index)).astype(np.float64)
            signal[index] += float(np.square(wanted).sum())
            noise[index] += float(np.square(wanted - got).sum())
    return {index: sqnr_db(signal[index], noise[index]) for index in pairs}
