"""to_separable: convolutions split into a depthwise and a pointwise one."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable

import keras
import numpy as np
from keras import layers as keras_layers

from tfcompress.errors import did_you_mean
from tfcompress.graph.copying import copy_operation, copy_trainable
from tfcompress.graph.nodes import Graph, has_own_call
from tfcompress.kinds import has_plain_weights
from tfcompress.surgery.base import Change, Wanted, opened, reported, rules_of
from tfcompress.surgery.factors.layers import Part, array_of, bias_of, with_parts
from tfcompress.surgery.macs import count
from tfcompress.techniques.rules import Rule

_DEPTHWISE = {
    keras_layers.Conv1D: keras_layers.DepthwiseConv1D,
    keras_layers.Conv2D: keras_layers.DepthwiseConv2D,
}


def to_separable(
    model: keras.Model,
    layers: Wanted | Iterable[Wanted] | None = None,
    *,
    depth_multiplier: int = 1,
) -> keras.Model:
    """A copy of a model whose convolutions are split into a depthwise and a pointwise one.

    A k x k convolution of n channels into o becomes m filters of k x k for each channel and a
    1 x 1 convolution of the n * m results (Sifre 2014; Howard et al. 2017, arXiv:1704.04861). It
    starts from the best approximation of rank m of the kernel of every input channel, by SVD, and
    is exact from m = min(k * k, o) on. With less, train it afterwards, best by distillation from
    the original. The pointwise convolution keeps the name, bias, activation, regularizers and
    constraints; the depthwise one is called "<name>_depthwise".

    Args:
        model: any built Keras 3 model; it is left untouched.
        layers: which Conv1D and Conv2D to split: a name or shell pattern, a type, a predicate
            `f(layer) -> bool`, or a list of these. By default all that take fewer MACs then.
        depth_multiplier: m; in a layer of which less is exact, that is taken.

    Returns:
        A flat Functional `keras.Model`, not compiled. Its `surgery_report` tells what part of the
        weights' energy (sum of squares) each layer keeps, and which layers stay and why.

    Raises:
        TypeError: the model is not a Keras 3 model, or an argument is of another type.
        ValueError: the model is not built, cannot be flattened or comes from `compress`,
            `layers` names none that can be split, or `depth_multiplier` is below 1.

    Example:
        >>> small = to_separable(model, "block3_*")  # doctest: +SKIP
        >>> print(small.surgery_report)  # doctest: +SKIP
        block3_conv1  depthwise (rank 1 of 9) and pointwise, 81.4% of the energy
        ...
    """
    if isinstance(depth_multiplier, bool) or not isinstance(depth_multiplier, int):
        raise TypeError(f"depth_multiplier must be an integer; received {depth_multiplier!r}.")
    if depth_multiplier < 1:
        raise ValueError(
            f"depth_multiplier must be at least 1; received {depth_multiplier}. Take 1, 2 or 3."
        )
    flat = opened(model)
    before, graph = count(flat), Graph.of(flat)
    rules = None if layers is None else rules_of(layers)
    splits, kept = _choose(graph, rules, depth_multiplier)
    new = with_parts(graph, {key: split.parts for key, split in splits.items()})
    changes = [split.change for split in splits.values()]
    return reported(new, "to_separable", changes, kept, before)


@dataclasses.dataclass(frozen=True)
class _Split:
    """A convolution as a depthwise and a pointwise one, and what the report tells of it."""

    parts: list[Part]
    change: Change


def _split(layer, depth_multiplier: int) -> _Split:
    kernel, places = array_of(layer), len(layer.kernel_size)
    full = full_rank(kernel)
    rank = min(depth_multiplier, full)
    depthwise_kernel, pointwise_kernel, energy = separate(kernel, rank)
    same = {"data_format": layer.data_format, "dtype": layer.dtype_policy}
    padding, pad = layer.padding, []
    if padding == "causal":  # which depthwise convolutions do not have
        reach = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
        name = f"{layer.name}_padding"
        pad = [Part(keras_layers.ZeroPadding1D((reach, 0), name=name, **same))]
        padding = "valid"
    depthwise = _DEPTHWISE[_kind(layer)](
        layer.kernel_size,
        strides=layer.strides,
        padding=padding,
        dilation_rate=layer.dilation_rate,
        depth_multiplier=rank,
        use_bias=False,
        trainable=layer.trainable,
        name=f"{layer.name}_depthwise",
        **same,
    )
    ones = (1,) * places
    changes = {"kernel_size": ones, "strides": ones, "dilation_rate": ones, "padding": "valid"}
    pointwise = copy_operation(layer, changes)
    copy_trainable(layer, pointwise)
    parts = [
        *pad,
        Part(depthwise, {"kernel": depthwise_kernel}),
        Part(pointwise, {"kernel": pointwise_kernel, **bias_of(layer)}),
    ]
    told = f"depthwise (rank {rank} of {full}) and pointwise, {100 * energy:.1f}% of the energy"
    return _Split(parts, Change(layer.name, told))


def full_rank(kernel: np.ndarray) -> int:
    """From which depth multiplier on a kernel of shape (*places, inputs, outputs) is exact."""
    return min(math.prod(kernel.shape[:-2]), kernel.shape[-1])


def separate(kernel: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray, float]:
    """The best approximation of a convolution by a depthwise and a pointwise one.

    Returns (depthwise kernel of shape (*places, inputs, m), pointwise kernel of shape (*ones,
    inputs * m, outputs), fraction of the sum of squares that they keep).
    """
    *places, inputs, outputs = kernel.shape
    matrices = np.moveaxis(kernel.reshape(-1, inputs, outputs), 1, 0)
    left, values, right = np.linalg.svd(matrices, full_matrices=False)
    # Both sides get the root, so that their gradients are of one size.
    roots = np.sqrt(values[:, :rank])
    depthwise = np.moveaxis(left[:, :, :rank] * roots[:, None, :], 0, 1)
    pointwise = right[:, :rank] * roots[:, :, None]
    whole = np.square(values).sum()
    energy = float(np.square(values[:, :rank]).sum() / whole) if whole else 1.0
    ones = (1,) * len(places)
    return (
        depthwise.reshape(*places, inputs, rank),
        pointwise.reshape(*ones, inputs * rank, outputs),
        energy,
    )


def _choose(
    graph: Graph, rules: list[Rule] | None, depth_multiplier: int
) -> tuple[dict[int, _Split], list[Change]]:
    """What is split, by the identity of the layers; and what was asked for but stays."""
    found = {id(node.operation): node.operation for node in graph.nodes if not node.is_input}
    operations = [x for x in found.values() if isinstance(x, keras.Layer)]
    _require_matches(operations, rules)
    splits, kept = {}, []
    for layer in operations:
        asked = rules is not None and any(rule.matches(layer) for rule in rules)
        if _kind(layer) is None or not (asked or rules is None):
            continue
        if math.prod(layer.kernel_size) == 1:
            if asked:
                kept.append(Change(layer.name, "is pointwise already"))
            continue
        refusal = _refusal(layer)
        if refusal is None and rules is None and not _gets_smaller(layer, depth_multiplier):
            refusal = "would not take fewer MACs"
        if refusal is not None:
            kept.append(Change(layer.name, refusal))
        else:
            splits[id(layer)] = _split(layer, depth_multiplier)
    return splits, kept


def _require_matches(operations: list, rules: list[Rule] | None) -> None:
    for rule in rules or ():
        matched = [layer for layer in operations if rule.matches(layer)]
        if any(_kind(layer) is not None for layer in matched):
            continue
        known = [layer.name for layer in operations if _kind(layer) is not None]
        what = f"'{rule.layers}'" if isinstance(rule.layers, str) else str(rule.layers)
        if matched:
            kinds = ", ".join(Counter(type(layer).__name__ for layer in matched))
            mend = f"it matches {kinds}, which cannot be split"
        else:
            name = rule.layers if isinstance(rule.layers, str) else ""
            mend = f"it matches no layer. {did_you_mean(name, known)}".strip()
        raise ValueError(
            f"layers must match Conv1D or Conv2D layers, of which the model has "
            f"{', '.join(known) or 'none'}; received {what}: {mend}"
        )


def _kind(layer) -> type | None:
    """Conv1D or Conv2D, if the layer is one."""
    return next((kind for kind in _DEPTHWISE if isinstance(layer, kind)), None)


def _refusal(layer) -> str | None:
    """Why a convolution cannot be split; None if it can."""
    if has_own_call(type(layer)):
        return f"computes what {type(layer).__name__}.call says"
    if layer.groups > 1:
        return f"has {layer.groups} groups"
    if not has_plain_weights(layer):
        return "has no plain weights (LoRA or quantized)"
    if len(set(layer.strides)) > 1:
        return f"strides {layer.strides} differ, which depthwise kernels do not take"
    return None


def _gets_smaller(layer, depth_multiplier: int) -> bool:
    """Both forms are applied at the same places, so that their weights alone count."""
    *places, inputs, outputs = layer.kernel.shape
    rank = min(depth_multiplier, math.prod(places), outputs)
    split = inputs * rank * (math.prod(places) + outputs)
    return split < math.prod(places) * inputs * outputs
