"""add_branches and fold_branches: convolutions that train as several and run as one."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers as keras_layers

from tfcompress.errors import check
from tfcompress.graph.copying import copy_operation, copy_trainable, copy_weights
from tfcompress.graph.folding import (
    Values,
    after_outputs,
    pads,
    scale_and_offset,
    values_of,
    with_values,
)
from tfcompress.graph.nodes import Graph, Node, exchanged
from tfcompress.kinds import DEPTHWISE, channel_place, has_plain_weights, is_exactly, is_of
from tfcompress.post_training.hessians import zeros_around
from tfcompress.surgery.base import Change, Wanted, opened, reported, rules_of
from tfcompress.surgery.factors.layers import bare, closing
from tfcompress.surgery.macs import count
from tfcompress.surgery.shapes import Specs, specs_of

_KINDS = frozenset(("Conv1D", "Conv2D", "DepthwiseConv1D", "DepthwiseConv2D"))
_CROPPING = {1: keras_layers.Cropping1D, 2: keras_layers.Cropping2D}


def add_branches(
    model: keras.Model, layers: Wanted | Sequence[Wanted] | None = None, *, scale: float = 0.0
) -> keras.Model:
    """A copy of a model whose convolutions train with branches beside them (RepVGG).

    To what a convolution and its BatchNormalization give is added what a 1 x 1 convolution at the
    centre of the same window gives, and the input itself where its channels and places are those
    of the output, each with a BatchNormalization of its own. Such a model trains to more, as
    ResNets do; `fold_branches` then makes one convolution of all (Ding et al. 2021,
    arXiv:2101.03697; depthwise ones as in MobileOne, arXiv:2206.04040).

    Args:
        model: any built Keras 3 model, trained or not; it is left untouched.
        layers: which Conv1D, Conv2D, DepthwiseConv1D and DepthwiseConv2D: a name or shell pattern,
            a type, a predicate `f(layer) -> bool`, or a list of these. By default all that cover
            more than one place.
        scale: what the scales of the new BatchNormalizations start with. With 0 the new model
            gives what the old one gave; with 1 branches count from the first step on, which is
            better for a model that is not trained yet.

    Returns:
        A flat Functional `keras.Model` of Keras layers, not compiled. Its `surgery_report` names
        the branches, and which layers stay and why.

    Raises:
        TypeError: the model is not a Keras 3 model.
        ValueError: it is not built, cannot be flattened or comes from `compress`, no layer can
            have branches, or `scale` is no finite number.

    Example:
        >>> branched = add_branches(model, scale=1.0)  # doctest: +SKIP
        >>> branched.compile("adam", "mse")  # doctest: +SKIP
        >>> branched.fit(x, y)  # doctest: +SKIP
        >>> model = fold_branches(branched)  # doctest: +SKIP
    """
    number = isinstance(scale, int | float) and not isinstance(scale, bool)
    check(number and math.isfinite(scale), "scale", "a finite number, such as 0 or 1", scale)
    flat = opened(model)
    before, graph = count(flat), Graph.of(flat)
    planned, kept = _planned(graph, layers)
    if not planned:
        listed = "; ".join(f"'{each.layer}': {each.detail}" for each in kept[:3])
        raise ValueError(
            f"no layer can have branches: expected {', '.join(sorted(_KINDS))} larger than one "
            f"place; received model '{flat.name}'"
            + (f" and layers={layers!r}" if layers is not None else "")
            + (f", where none can ({listed})" if listed else ", which has none")
            + ". Choose other layers."
        )
    new = _with_branches(graph, planned, float(scale))
    changes = [Change(plan.layer.name, plan.text) for plan in planned]
    return reported(new, "add_branches", changes, kept, before)


def fold_branches(model: keras.Model) -> keras.Model:
    """A copy of a model in which convolutions side by side are one: their sum, exactly.

    Wherever outputs of convolutions that read the same tensor are added, each with or without a
    BatchNormalization, cropped or not, and that tensor itself, too, this becomes the largest of the
    convolutions with another kernel and bias. In inference outputs are the same up to rounding
    (Ding et al. 2021, arXiv:2101.03697), also of blocks that `add_branches` did not make.

    Args:
        model: any built Keras 3 model; it is left untouched.

    Returns:
        A flat Functional `keras.Model`, not compiled. Its `surgery_report` tells what went into
        which convolution, and which sums of one tensor's convolutions stay and why.

    Raises:
        TypeError: the model is not a Keras 3 model.
        ValueError: it is not built, cannot be flattened or comes from `compress`.

    Example:
        >>> folded = fold_branches(branched)  # doctest: +SKIP
        >>> print(folded.surgery_report)  # doctest: +SKIP
        conv1  takes in conv1_pointwise and its input
        ...
    """
    flat = opened(model)
    before, graph = count(flat), Graph.of(flat)
    values: dict[int, Values] = {}
    gone: dict[int, int] = {}
    changes, kept = [], []
    for branches, node in _Terms.of(graph).sums():
        base = max(branches, key=lambda branch: branch.size)
        refusal = _refusal(base, branches)
        if refusal is not None:
            kept.append(Change(node.name, refusal))
            continue
        values[id(base.layer)] = _summed(base, branches)
        gone[id(node)] = branches.index(base)
        if base.norm is not None:
            gone[id(base.norm)] = 0
        others = [branch.text for branch in branches if branch is not base]
        changes.append(Change(base.layer.name, f"takes in {' and '.join(others)}"))
    return reported(with_values(graph, values, gone), "fold_branches", changes, kept, before)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What branches a convolution gets.

    `crop` has for each axis how many places are left out before and after for them; `end` is the
    node whose output they are added to.
    """

    node: Node
    end: Node
    crop: tuple[tuple[int, int], ...]
    pointwise: bool
    identity: bool

    @property
    def layer(self) -> Any:
        return self.node.operation

    @property
    def text(self) -> str:
        names = ["a pointwise convolution"] * self.pointwise + ["its input"] * self.identity
        return f"beside it {' and '.join(names)}"


def _planned(graph: Graph, wanted: Any) -> tuple[list[_Plan], list[Change]]:
    """The layers that get branches, and those that could be meant but stay."""
    specs, rules = specs_of(graph), None if wanted is None else rules_of(wanted)
    calls = Counter(id(node.operation) for node in graph.nodes)
    plans, kept = [], []
    for node in graph.nodes:
        layer = node.operation
        if rules is not None and not any(rule.matches(layer) for rule in rules):
            continue
        if not is_exactly(layer, _KINDS):
            if rules is not None:
                kept.append(Change(node.name, f"is no convolution ({type(layer).__name__})"))
            continue
        single = math.prod(layer.kernel_size) == 1
        if single and rules is None:
            continue
        found = _plan(graph, node, specs, calls)
        if isinstance(found, str):
            kept.append(Change(node.name, found))
        else:
            plans.append(found)
    return plans, kept


def _plan(graph: Graph, node: Node, specs: Specs, calls: Counter) -> _Plan | str:
    """The branches of a convolution, or why it gets none."""
    layer = node.operation
    if calls[id(layer)] > 1:
        return f"is called {calls[id(layer)]} times"
    if not has_plain_weights(layer):
        return "has no plain weights (LoRA or quantized)"
    crop = _crop_for(layer, tuple(specs[id(node.inputs[0])].shape))
    if isinstance(crop, str):
        return crop
    channels = [tensor.shape[channel_place(layer)] for tensor in (*node.inputs, *node.outputs)]
    pointwise = math.prod(layer.kernel_size) > 1
    identity = channels[0] == channels[1] and set(layer.strides) == {1}
    if not pointwise and not identity:
        return "is pointwise, and its output is of another shape than its input"
    return _Plan(node, _end(graph, node, calls), crop, pointwise, identity)


def _end(graph: Graph, node: Node, calls: Counter) -> Node:
    """The node after which branches are added: a BatchNormalization, or the convolution."""
    reader = graph.only_consumer(node.outputs[0])
    if reader is None or not _is_learned_norm(reader) or bare(node.operation) is not node.operation:
        return node
    once = calls[id(reader.operation)] == 1
    return reader if once and _normalizes_channels(reader, node.operation) else node


def _crop_for(layer, shape: tuple[int | None, ...]) -> tuple[tuple[int, int], ...] | str:
    """What to leave out on each axis so that single places are the centres of the windows."""
    crop = []
    for axis, zeros in enumerate(_zeros_before(layer, shape)):
        size, step = layer.kernel_size[axis], layer.dilation_rate[axis]
        if zeros is None:
            return "its strides leave out places that depend on the size of its input, not known"
        place = (size - 1 if layer.padding == "causal" else (size - 1) // 2) * step
        after = (size - 1) * step - place if layer.padding == "valid" else 0
        if place < zeros:
            return "its windows have no weight at their centre"
        crop.append((place - zeros, after))
    return tuple(crop)


def _zeros_before(layer, shape: Sequence[int | None]) -> list[int | None]:
    """The zeros before each axis of a convolution's input; None where they are not known."""
    first = 2 if channel_place(layer) == 1 else 1
    found: list[int | None] = []
    for axis, size in enumerate(layer.kernel_size):
        length, stride = shape[first + axis], layer.strides[axis]
        reach = (size - 1) * layer.dilation_rate[axis] + 1
        if length is None and stride > 1 and layer.padding == "same":
            found.append(None)
        else:  # with strides of 1 the length does not count
            found.append(zeros_around(length or 1, reach, stride, layer.padding)[0])
    return found


def _with_branches(graph: Graph, plans: Sequence[_Plan], scale: float) -> keras.Model:
    """A new model with the branches, of the graph of a copy that is used up."""
    starts, ends = ({id(getattr(plan, at)): plan for plan in plans} for at in ("node", "end"))
    inputs: dict[int, Any] = {}
    bared = {id(plan.node): bare(plan.layer) for plan in plans if plan.end is plan.node}

    def call(node: Node, *args, **kwargs):
        if id(node) in starts:
            inputs[id(node)] = args[0] if args else kwargs["inputs"]
        y = bared.get(id(node), node.operation)(*args, **kwargs)
        if id(node) not in ends:
            return y
        plan = ends[id(node)]
        every = [y, *_branches(plan, inputs[id(plan.node)], scale)]
        y = keras_layers.Add(name=f"{plan.layer.name}_sum")(every)
        own = plan.layer
        if id(node) in bared and bared[id(node)] is not own:
            y = closing(own, f"{own.name}_activation")(y)
        return y

    new = exchanged(graph, call)
    copy_weights((plan.layer, bared[id(plan.node)]) for plan in plans if id(plan.node) in bared)
    return new


def _branches(plan: _Plan, x: Any, scale: float) -> Iterator[Any]:
    layer = plan.layer
    if any(map(any, plan.crop)):
        kind = _CROPPING[len(plan.crop)]
        crop = plan.crop if len(plan.crop) > 1 else plan.crop[0]
        settings = {} if len(plan.crop) == 1 else {"data_format": layer.data_format}
        x = kind(crop, name=f"{layer.name}_centres", dtype=layer.dtype_policy, **settings)(x)
    if plan.pointwise:
        ones = (1,) * len(layer.kernel_size)
        changes: dict[str, Any] = {"kernel_size": ones, "dilation_rate": ones, "padding": "valid"}
        changes |= {"use_bias": False, "activation": None, "activity_regularizer": None}
        single = copy_operation(layer, changes)
        single.name = f"{layer.name}_pointwise"
        y = single(x)
        copy_trainable(layer, single)
        yield _norm(plan, single.name, scale)(y)
    if plan.identity:
        yield _norm(plan, f"{layer.name}_identity", scale)(x)


def _norm(plan: _Plan, name: str, scale: float) -> Any:
    """A BatchNormalization with the settings of that of the convolution, if it has one."""
    own, axis = plan.end.operation, channel_place(plan.layer)
    normalizes = isinstance(own, keras_layers.BatchNormalization)
    settings = {"momentum": own.momentum, "epsilon": own.epsilon} if normalizes else {}
    return keras_layers.BatchNormalization(
        axis=axis,
        gamma_initializer=keras.initializers.Constant(scale),
        name=f"{name}_norm",
        dtype=plan.layer.dtype_policy,
        trainable=plan.layer.trainable,
        **settings,
    )


def _is_learned_norm(node: Node) -> bool:
    """Whether a node is a BatchNormalization that is trained, and then used as it is."""
    return type(node.operation) is keras_layers.BatchNormalization and not node.kwargs.get(
        "training"
    )


def _normalizes_channels(node: Node, layer) -> bool:
    """Whether a BatchNormalization has statistics of the channels of a convolution."""
    rank = len(node.outputs[0].shape)
    return node.operation.axis % rank == channel_place(layer) % rank


@dataclasses.dataclass(eq=False)
class _Branch:
    """One of the terms of a sum: cropped, convolved, then normalized, each or not.

    `zeros` has those before each axis that the convolution puts there, less what is left out.
    """

    root: Any
    crop: Node | None = None
    convolution: Node | None = None
    norm: Node | None = None
    zeros: tuple[int | None, ...] = ()

    @property
    def layer(self) -> Any:
        return None if self.convolution is None else self.convolution.operation

    @property
    def size(self) -> int:
        return 0 if self.layer is None else math.prod(self.layer.kernel_size)

    @property
    def text(self) -> str:
        return "its input" if self.layer is None else self.layer.name


@dataclasses.dataclass(frozen=True)
class _Terms:
    """Reads the terms of the sums of a graph."""

    graph: Graph
    specs: Specs
    calls: Counter

    @classmethod
    def of(cls, graph: Graph) -> _Terms:
        """Those of a graph."""
        return cls(graph, specs_of(graph), Counter(id(node.operation) for node in graph.nodes))

    def sums(self) -> Iterator[tuple[list[_Branch], Node]]:
        """The sums of terms that all read one tensor, at least one of them by a convolution."""
        for node in self.graph.nodes:
            given = node.inputs
            shapes = {tuple(tensor.shape) for tensor in given}
            if not is_exactly(node.operation, {"Add"}) or len(shapes) != 1:
                continue
            if len({id(tensor) for tensor in given}) < max(len(given), 2):
                continue
            branches = [self.branch(tensor) for tensor in given]
            one_root = len({id(branch.root) for branch in branches}) == 1
            if one_root and any(branch.size for branch in branches):
                yield branches, node

    def branch(self, tensor: Any) -> _Branch:
        """The term of a sum that a tensor is."""
        found = _Branch(tensor)
        node = self._maker(found)
        if node is not None and _is_learned_norm(node):
            found.norm, found.root = node, node.inputs[0]
            node = self._maker(found)
        if node is not None and _is_plain_convolution(node):
            found.convolution, found.root = node, node.inputs[0]
        node = self.graph.producer(found.root)  # which several branches may share
        if node is not None and is_exactly(node.operation, {"Cropping1D", "Cropping2D"}):
            found.crop, found.root = node, node.inputs[0]
        self._place(found)
        return found

    def _maker(self, branch: _Branch) -> Node | None:
        """What computes the root of a branch, if nothing else reads that."""
        node = self.graph.producer(branch.root)
        if node is None or self.graph.only_consumer(branch.root) is None:
            return None
        return node if self.calls[id(node.operation)] == 1 else None

    def _place(self, branch: _Branch) -> None:
        """Sets where the windows of a branch begin."""
        zeros: list[int | None] = [0] * (len(branch.root.shape) - 2)
        if branch.convolution is not None:
            read = self.specs[id(branch.convolution.inputs[0])]
            zeros = _zeros_before(branch.layer, tuple(read.shape))
        left = [0] * len(zeros)
        if branch.crop is not None:
            left = np.reshape(branch.crop.operation.cropping, (-1, 2))[:, 0].tolist()
        branch.zeros = tuple(
            None if before is None else before - first
            for before, first in zip(zeros, left, strict=True)
        )


def _is_plain_convolution(node: Node) -> bool:
    layer = node.operation
    return (
        is_exactly(layer, _KINDS)
        and layer.activation is keras.activations.linear
        and layer.activity_regularizer is None
        and has_plain_weights(layer)
    )


def _refusal(base: _Branch, branches: Sequence[_Branch]) -> str | None:
    """Why branches are no single convolution; None if they are."""
    for branch in branches:
        layer = branch.layer
        strides = (1,) * len(base.layer.strides) if layer is None else layer.strides
        if tuple(strides) != tuple(base.layer.strides):
            return f"{branch.text} and '{base.text}' have other strides"
        if branch.norm is not None and not _normalizes_channels(branch.norm, base.layer):
            return f"'{branch.norm.name}' does not normalize the channels of '{base.text}'"
        if layer is None:
            continue
        if type(layer) is not type(base.layer):
            return f"'{branch.text}' and '{base.text}' are of unlike classes"
        if getattr(layer, "groups", 1) != getattr(base.layer, "groups", 1):
            return f"'{branch.text}' and '{base.text}' have other groups"
        if layer.data_format != base.layer.data_format:
            return f"'{branch.text}' and '{base.text}' have other data formats"
        if branch.crop is not None and pads(layer):
            return f"'{branch.text}' puts zeros where others see values"
    uncovered = [branch.text for branch in branches if _taps(base, branch) is None]
    if uncovered:
        return f"the windows of '{base.text}' do not cover those of {' and '.join(uncovered)}"
    return None


def _taps(base: _Branch, branch: _Branch) -> tuple[slice, ...] | None:
    """Where in the kernel of `base` that of a branch lies; None if not all of it does."""
    layer, found = branch.layer, []
    for axis, (whole, step) in enumerate(
        zip(base.layer.kernel_size, base.layer.dilation_rate, strict=True)
    ):
        size = 1 if layer is None else layer.kernel_size[axis]
        own_step = step if layer is None else layer.dilation_rate[axis]
        ours, theirs = base.zeros[axis], branch.zeros[axis]
        if ours is None or theirs is None:
            return None
        first, rest = divmod(ours - theirs, step)
        unlike = size > 1 and own_step != step
        if rest or unlike or first < 0 or first + size > whole:
            return None
        found.append(slice(first, first + size))
    return tuple(found)


def _summed(base: _Branch, branches: Sequence[_Branch]) -> Values:
    """The kernel and bias of the convolution that gives what branches give together."""
    kernel, bias = np.zeros(base.layer.kernel.shape), np.zeros(1)
    for branch in branches:
        same = branch.layer is None
        values = {"kernel": _identity(base.layer), "bias": np.zeros(1)} if same else None
        values = values or values_of(branch.layer)
        if branch.norm is not None:
            values = after_outputs(
                branch.layer or base.layer, values, *scale_and_offset(branch.norm.operation)
            )
        taps = _taps(base, branch)
        assert taps is not None  # see `_refusal`
        kernel[taps] += values["kernel"]
        bias = bias + values["bias"]
    return {"kernel": kernel, "bias": bias}


def _identity(layer) -> np.ndarray:
    """The kernel of one place by which a convolution gives its input."""
    *places, inputs, outputs = layer.kernel.shape
    ones = (1,) * len(places)
    if is_of(layer, DEPTHWISE):
        return np.ones((*ones, inputs, outputs))
    return np.eye(inputs)[:, np.arange(outputs) % inputs].reshape(*ones, inputs, outputs)
