"""The layers that tensors of a file come from, and ranges that a user fixes by them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import tree

from tfcompress.conversion.ranges import SAME_SCALE, Range
from tfcompress.errors import did_you_mean
from tfcompress.graph.flatten import as_flat
from tfcompress.graph.nodes import Graph, scope_name
from tfcompress.kinds import FIXED_RANGES, FOLDING, is_kernel, is_of
from tfcompress.layers.fake_quant import FakeQuant
from tfcompress.quantization.kernels import inner_layer
from tfcompress.quantization.opening import output_names
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.flatbuffer import op_name
from tfcompress.tflite.signature import first_signature

# As `scopes` gives it.
_SCOPE = re.compile(r"([^/]+)_1/part_\d+")


_SHORT = 40

# What goes into a linear layer before it.
MERGED = {"BatchNormalization", "ReLU", "Relu", "Relu6"}


class LayerNames:
    """Finds the Keras layer in a tensor's name: 'functional_1/r1_1/Relu;functional_1/c1_1/...'.

    Args:
        model: whose layers there are.
    """

    def __init__(self, model: keras.Model):
        flat = as_flat(model)
        layers = [layer for m in (model, flat) for layer in m._flatten_layers()]
        others = (FakeQuant, keras.Model)
        every = [x for x in flat.operations if not isinstance(x, others)]
        self.known = {scope_name(x.name): inner_layer(x) for x in every}
        self.weighted = {
            scope_name(layer.name)
            for layer in layers
            if not layer._layers and any(is_kernel(layer, v) for v in layer.variables)
        }
        graph = Graph.of(flat)
        made = [_maker(graph, tensor) for tensor in tree.flatten(graph.outputs)]
        self.outputs = dict(zip(output_names(flat), map(scope_name, made), strict=True))

    def of(self, tensor: str) -> str:
        """The name of the layer that a tensor comes from; '' if its name does not tell."""
        if self.outputs.get(tensor) in self.known:
            return self.outputs[tensor]
        told: list[str] = []
        for part in tensor.split(";"):
            scope = _SCOPE.search(part)  # which tells more than the name of what is inside
            told += self.named(part) if scope is None else [scope[1]]
        found = [name for name in told if name in self.known]
        return next((name for name in found if name in self.weighted), found[0] if found else "")

    @staticmethod
    def named(tensor: str) -> list[str]:
        """What may be names of layers in that of a tensor, the outermost first."""
        parts = [part.rstrip("_") for part in re.split("[/;]", tensor) if part]
        # The exported copy of a layer has a number behind its name.
        names = [n for part in parts for n in (re.sub(r"_\d+$", "", part), part)]
        return names + [n.removesuffix("_range") for n in names if n.endswith("_range")]


def namer(model: Any) -> Callable[[str], str]:
    """A function that gives tensors short names: of their layers, where that can be told."""
    try:
        names = LayerNames(model) if isinstance(model, keras.Model) else None
    except Exception:  # What users' layers raise is of any kind.
        names = None

    def name(tensor: str) -> str:
        if names is not None and (layer := names.of(tensor)):
            return layer
        parts = tensor.split(";")[0].split("/")
        return (parts[1] if len(parts) > 2 else parts[0])[:_SHORT]

    return name


def shorten_names(file: Any, model: Any) -> None:
    """Gives tensors names of their layers that `LayerNames` reads: "conv2d_9_1/3", in place.

    Inputs and outputs keep theirs. The converter joins the names of all that it merged.
    """
    if not isinstance(model, keras.Model):
        return
    names = LayerNames(model)
    for graph in file.subgraphs:
        kept = {*graph.inputs, *graph.outputs}
        for index, tensor in enumerate(graph.tensors):
            old = flatbuffer.text(tensor.name)
            layer = names.of(old)
            short = f"{layer}_1/{index}" if layer else str(index)
            if index not in kept and len(short) < len(old) and names.of(short) == layer:
                tensor.name = short.encode()


def _maker(graph: Graph, tensor: Any) -> str:
    """The name of the layer whose operator gives an output: the one that those after it go into."""
    node = first = graph.producer(tensor)
    while node is not None and is_of(node.operation, MERGED) and node.inputs:
        node = graph.producer(node.inputs[0])
        if node is not None and is_of(node.operation, FOLDING):
            return node.name
    return "" if first is None else first.name


def fix_ranges(
    file: Any,
    model: Any,
    known: dict[int, Range],
    wanted: Mapping[str, tuple[float, float]],
) -> None:
    """Gives tensors the ranges that a user names inputs, outputs or layers for. Changes `known`."""
    named = _tensors(file, model) if wanted else {}
    makers = {index: op for op in file.subgraphs[0].operators for index in op.outputs}
    for name, (low, high) in wanted.items():
        if name not in named:
            raise ValueError(
                f"ranges must name inputs, outputs or layers; received '{name}', from which no "
                f"tensor of the file comes. {did_you_mean(name, list(named), _MERGED)}"
            )
        index = named[name]
        if index not in known:
            raise ValueError(
                f"ranges can be of float tensors that become integers; received '{name}', which "
                "stays as it is. Leave it out."
            )
        if index in makers and op_name(file, makers[index]) in FIXED_RANGES:
            raise ValueError(
                f"LiteRT fixes the range of '{name}' ({op_name(file, makers[index])}) itself; "
                f"received ({low}, {high}) for it. Leave it out."
            )
        pending = [index]
        while pending:  # what moves codes about has the scale of what it reads
            index = pending.pop()
            known[index] = Range(float(low), float(high))
            if index in makers and op_name(file, makers[index]) in SAME_SCALE:
                pending += [i for i in makers[index].inputs if i in known]


_MERGED = "It may have been merged into another layer: name that one."


def _tensors(file: Any, model: Any) -> dict[str, int]:
    """The tensor of each input, output and layer, of the latter the last one."""
    found: dict[str, int] = {}
    if isinstance(model, keras.Model):
        names = LayerNames(model)
        for op in file.subgraphs[0].operators:
            for index in op.outputs:
                found[names.of(flatbuffer.text(file.subgraphs[0].tensors[index].name))] = index
    signature = first_signature(file)
    for entry in (*signature.outputs, *signature.inputs):
        found[flatbuffer.text(entry.name)] = int(entry.tensorIndex)
    found.pop("", None)
    return found


def require_none(skip: Sequence[str], model: Any, calibrated: bool) -> None:
    """Raises if layers are to be left out of a model that is not quantized after training."""
    if skip and not (calibrated and isinstance(model, keras.Model)):
        raise ValueError(
            f"skip is for Keras models that calibration data quantize; received skip={list(skip)} "
            "with another. Pass calibration, or skip to quantize_aware."
        )


def skipped(file: Any, model: Any, skip: Sequence[str]) -> set[int]:
    """The tensors that layers give which are to stay float, by names or shell patterns."""
    if not skip:
        return set()
    names, graph = LayerNames(model), file.subgraphs[0]
    outputs = [i for op in graph.operators for i in op.outputs]
    makers = {i: names.of(flatbuffer.text(graph.tensors[i].name)) for i in outputs}
    found: set[int] = set()
    for pattern in skip:
        mine = {i for i, name in makers.items() if name and fnmatch.fnmatchcase(name, pattern)}
        if not mine:
            known = sorted({name for name in makers.values() if name})
            raise ValueError(
                f"skip must name layers; received '{pattern}', from which no operation of the "
                f"file comes. {did_you_mean(pattern, known, _MERGED)}"
            )
        found |= mine
    return found
