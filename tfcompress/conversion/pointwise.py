"""Weights of few bits as kernels take them: convolutions of 1 x 1 are FULLY_CONNECTED by pixel.

XNNPACK has kernels of 4 bits for FULLY_CONNECTED alone; LiteRT's own CONV_2D widens such weights at
each run, which makes it two to four times slower than with 8 bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import keras
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.conversion import assignment, packing
from tfcompress.conversion.ranges import constant, drop_unused
from tfcompress.graph.nodes import scope_name
from tfcompress.layers.kernel_rounding import is_few_pointwise
from tfcompress.targets.check import judge, mapped
from tfcompress.targets.operators import operators
from tfcompress.targets.targets import Target
from tfcompress.tflite.flatbuffer import (
    add_buffer,
    changed,
    is_constant,
    op_code,
    op_name,
    packed,
)

_FULLY_CONNECTED = schema.BuiltinOperator.FULLY_CONNECTED
# The least with 4 bits a channel.
_VERSION = 12


def with_narrow_kernels(file: Any, model: Any, settings: Any, is_trained: bool) -> tuple[Any, list]:
    """A file as kernels of 4 bits take it, where its target has these, and what is to be told."""
    notes, target = [], settings.target
    found = as_dense(file, assignment.asked(file, model, settings.layers, "int4"))
    fits = found is not None and settings.dense != "per_tensor"
    if fits and (target is None or mapped(found, target) > mapped(file, target)):
        notes.append(
            "pointwise convolutions with int4 weights are FULLY_CONNECTED in the file, which "
            "XNNPACK runs in 4 bits; dense='per_tensor', as TFLite Micro needs, leaves them"
        )
        file = found
    # Where the rest runs elsewhere, few bits save flash there.
    elsewhere = target is not None and is_trained and target.partition != "each"
    if elsewhere and (widened := _widen(file, target)):
        notes.append(
            f"{widened} weights are stored in more bits than they need, as target "
            f"'{target.name}' takes them so"
        )
    packing.repeat_scales(file)
    drop_unused(file)
    return file, notes


def _widen(file: Any, target: Target) -> int:
    """Gives weights more bits where a target does not map their operators. Changes `file`.

    Returns how many got more.
    """
    widened = 0
    for number, op in enumerate(file.subgraphs[0].operators):

        def fits(number=number) -> bool:
            return judge(operators(file)[number], target).mapped

        weight = assignment.weight_of(file, op)
        if weight is not None and packing.bits_of(file, weight) < 8 and not fits():
            widened += packing.widen(file, weight, fits)
    return widened


def as_dense(file: Any, wide: Collection[int] = ()) -> Any | None:
    """A copy of a file in whose first graph they are rewritten; None if there is none.

    Args:
        wide: outputs of those that are to keep 4 bits where 2 hold their weights.
    """
    graph = file.subgraphs[0]
    pointwise = [op for op in graph.operators if _is_pointwise(file, op)]
    if not pointwise:
        return None
    tensors = list(graph.tensors)
    made = changed(file, operatorCodes=list(file.operatorCodes), buffers=list(file.buffers))
    code = op_code(made, _FULLY_CONNECTED, version=_VERSION)
    options_kind = schema.BuiltinOptions.FullyConnectedOptions
    new: dict[int, Any] = {}
    for op in pointwise:
        weight, options = tensors[op.inputs[1]], schema.FullyConnectedOptionsT()
        shape = [int(weight.shape[0]), int(weight.shape[3])]
        tensors[op.inputs[1]] = changed(weight, shape=shape)
        codes = constant(file, op.inputs[1])
        if np.abs(codes).max(initial=0) <= 1 and op.outputs[0] not in wide:
            kind, buffer = schema.TensorType.INT2, add_buffer(made, packed(codes, 2))
            tensors[op.inputs[1]] = changed(weight, shape=shape, type=kind, buffer=buffer)
        options.fusedActivationFunction = op.builtinOptions.fusedActivationFunction
        options.keepNumDims = True
        new[id(op)] = changed(
            op, opcodeIndex=code, builtinOptions=options, builtinOptionsType=options_kind
        )
    operators = [new.get(id(op), op) for op in graph.operators]
    made.subgraphs = [changed(graph, tensors=tensors, operators=operators), *file.subgraphs[1:]]
    return made


@contextlib.contextmanager
def as_in(file: Any, model: Any) -> Iterator[None]:
    """Lets pointwise convolutions of a trained model round as the operators of a file do."""
    layers = model._flatten_layers() if isinstance(model, keras.Model) else ()
    few = {scope_name(layer.name): layer for layer in layers if is_few_pointwise(layer)}
    if few:
        found = assignment.operators_by_layer(file, model)
        for name, layer in few.items():
            layer.as_dense = found.get(name) != "CONV_2D"
    try:
        yield
    finally:
        for layer in few.values():
            del layer.as_dense


def _is_pointwise(file: Any, op: Any) -> bool:
    """Whether an operator is such a convolution, of codes of 8 bits."""
    if op_name(file, op) != "CONV_2D":
        return False
    tensors, options = file.subgraphs[0].tensors, op.builtinOptions
    given, weight = tensors[op.inputs[0]], tensors[op.inputs[1]]
    return (
        weight.type == schema.TensorType.INT4
        and given.type == schema.TensorType.INT8
        and is_constant(file, weight)
        and list(weight.shape[1:3]) == [1, 1]
        and weight.shape[3] == given.shape[3]  # not in groups
        and (options.strideH, options.strideW) == (1, 1)
    )
