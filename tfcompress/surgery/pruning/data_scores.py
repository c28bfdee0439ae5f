"""How important channels are, from data: Taylor, Fisher and the share of zeros.

All three look at channels where layers read them, as that is where a removed channel is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import KerasTensor, ops

from tfcompress.channels.axes import places
from tfcompress.nodes import Node, unique
from tfcompress.surgery.pruning.groups import ChannelGroup, Member, Structure
from tfcompress.surgery.pruning.judging import Batch, Objective, judge
from tfcompress.techniques.technique import check

Scores = dict[str, np.ndarray]
# A weight and one of its axes.
Place = tuple[Any, int]


def deciding(group: ChannelGroup) -> list[Member]:
    """The slices that a group's channels act through: once they are 0, it is as if removed.

    They are those that read the channels; where none does, as where two tensors are multiplied,
    all others.
    """
    reading = [member for member in group.members if member.role == "reads"]
    return reading or list(group.members)


def taylor(
    structure: Structure,
    groups: Mapping[str, ChannelGroup],
    data: Iterable[Batch],
    objective: Objective,
) -> Scores:
    """First-order Taylor importance (Molchanov et al. 2019, https://arxiv.org/abs/1906.10771).

    A factor of 1 on a channel, where it is read, has the gradient g = sum of weight * gradient over
    the weights that read it, so that the loss changes by -g, to first order, once it is removed.
    The score is the root of the mean, over batches, of the g^2 of a batch's mean loss.

    Args:
        structure: of a flat model.
        groups: those to score.
        data: batches with labels.
        objective: the loss.

    Returns:
        {name of a group: array of shape (channels,)}.
    """
    return _root_mean_squares(structure, groups, data, objective)


def fisher(
    structure: Structure,
    groups: Mapping[str, ChannelGroup],
    data: Iterable[Batch],
    objective: Objective,
) -> Scores:
    """Fisher importance (Theis et al. 2018, https://arxiv.org/abs/1801.05787).

    The mean, over single samples, of the square of the g of `taylor`; summed over all layers that
    read a channel before it is squared, as Liu et al. 2021 (https://arxiv.org/abs/2108.00708) do
    for channels that several layers share. The score is its root, which compares the layers of a
    model better. Every sample takes a gradient of its own.

    Args and returns: see `taylor`.
    """
    singles = (batch.cut(slice(i, i + 1)) for batch in data for i in range(len(batch)))
    return _root_mean_squares(structure, groups, singles, objective)


def apoz(structure: Structure, groups: Mapping[str, ChannelGroup], data: Iterable[Batch]) -> Scores:
    """1 - the average percentage of zeros (Hu et al. 2016, https://arxiv.org/abs/1607.03250).

    Zeros are counted over samples and positions of all tensors that the layers which read a group
    are called with. Channels that no layer reads from a tensor, as heads inside of an attention
    layer, have a score of 1.

    Args and returns: see `taylor`; the data needs no labels.
    """
    counted = list(_read_tensors(structure, groups))
    outputs = [_zeros(tensor, axis) for tensor, axis, _ in counted]
    sums = [np.zeros((2, 1)) for _ in counted]
    if counted:
        counter = keras.Model(structure.model._inputs_struct, outputs)
        for batch in data:
            found = keras.tree.flatten(counter.predict_on_batch(batch.x))
            sums = [
                total + np.asarray(new, "float64") for total, new in zip(sums, found, strict=True)
            ]
    scores = {}
    for name, group in groups.items():
        zeros = np.zeros((2, group.size))
        for (_, _, mine), total in zip(counted, sums, strict=True):
            if name in mine:
                zeros += total[:, mine[name]].sum(-1)
        scores[name] = 1 - zeros[0] / np.maximum(zeros[1], 1)
    return scores


def _read_tensors(
    structure: Structure, groups: Mapping[str, ChannelGroup]
) -> Iterator[tuple[KerasTensor, int, dict[str, np.ndarray]]]:
    """(tensor, axis, {group: places of its channels there}) of what the layers read."""
    names = {structure.numbers[name]: name for name in groups}
    reading = {
        name: {m.layer for m in deciding(g) if m.role == "reads"} for name, g in groups.items()
    }
    for tensor in unique(t for node in structure.graph.nodes for t in node.inputs):
        readers = set().union(*map(_names(structure), structure.graph.consumers(tensor)))
        for axis, term in enumerate(structure.axes_of(tensor)):
            found = {} if term is None else places(term)
            mine = {names[n]: index for n, index in found.items() if n in names}
            mine = {name: index for name, index in mine.items() if reading[name] & readers}
            if mine:
                yield tensor, axis, mine


def _names(structure: Structure) -> Callable[[Node], set[str]]:
    """Of a node: its name and those of the nodes inside of it."""

    def names(node: Node) -> set[str]:
        inner = structure.follower.opened.get(id(node))
        return {node.name} | ({part.name for part in inner.nodes} if inner else set())

    return names


def _zeros(tensor: KerasTensor, axis: int) -> KerasTensor:
    """Zeros and values of each channel, of shape (2, channels)."""
    others = tuple(i for i in range(len(tensor.shape)) if i != axis)
    zero = ops.cast(ops.equal(tensor, 0), "float32")
    return ops.stack([ops.sum(x, axis=others) for x in (zero, ops.ones_like(zero))])


def _root_mean_squares(
    structure: Structure,
    groups: Mapping[str, ChannelGroup],
    data: Iterable[Batch],
    objective: Objective,
) -> Scores:
    """The root mean square over batches, by their samples, of sums of weight * gradient."""
    members = {name: deciding(group) for name, group in groups.items()}
    every = [(m.variable, m.axis) for each in members.values() for m in each]
    index = {(id(variable), axis): i for i, (variable, axis) in enumerate(_unique(every))}
    products = _products(structure, _unique(every), objective)
    sums = {name: np.zeros(group.size) for name, group in groups.items()}
    count = 0
    for batch in data:
        found = [np.asarray(ops.convert_to_numpy(x), "float64") for x in products(batch)]
        check(
            all(np.isfinite(x).all() for x in found), "the gradients", "finite", "NaN or infinity"
        )
        for name, each in members.items():
            gates = sum(found[index[id(m.variable), m.axis]][m.index].sum(1) for m in each)
            sums[name] += len(batch) * np.square(gates)
        count += len(batch)
    return {name: np.sqrt(total / count) for name, total in sums.items()}


def _unique(every: Sequence[Place]) -> list[Place]:
    return list({(id(variable), axis): (variable, axis) for variable, axis in every}.values())


def _products(
    structure: Structure, wanted: list[Place], objective: Objective
) -> Callable[[Batch], list]:
    """Batch -> for each weight and axis, weight * gradient summed over the other axes."""
    twin = judge(structure.model, objective)
    variables = list({id(variable): variable for variable, _ in wanted}.values())
    order = {id(variable): i for i, variable in enumerate(variables)}

    def loss(batch: Batch) -> Any:
        y_pred = twin(batch.x, training=False)
        return twin.compute_loss(batch.x, batch.y, y_pred, batch.sample_weight, training=False)

    def sums(gradients: Sequence[Any]) -> list:
        found = []
        for variable, axis in wanted:
            product = gradients[order[id(variable)]] * ops.convert_to_tensor(variable)
            others = tuple(i for i in range(len(variable.shape)) if i != axis)
            found.append(ops.sum(product, axis=others))
        return found

    return _BACKENDS[keras.backend.backend()](loss, variables, sums)


def _tensorflow(loss, variables: list, sums) -> Callable[[Batch], list]:
    import tensorflow as tf

    weights = [variable.value for variable in variables]

    @tf.function(reduce_retracing=True)
    def run(batch: Batch) -> list:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            value = loss(batch)
        gradients = tape.gradient(value, weights, unconnected_gradients="zero")
        return sums([tf.convert_to_tensor(gradient) for gradient in gradients])

    return lambda batch: run(_tensors(batch))


def _jax(loss, variables: list, sums) -> Callable[[Batch], list]:
    import jax

    def loss_of(values: list, batch: Batch) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return loss(batch)

    gradients = jax.jit(jax.grad(loss_of))
    return lambda batch: sums(gradients([v.value for v in variables], _tensors(batch)))


def _torch(loss, variables: list, sums) -> Callable[[Batch], list]:
    import torch

    def run(batch: Batch) -> list:
        frozen = [v for v in variables if not v.value.requires_grad]
        for variable in frozen:
            variable.value.requires_grad_(True)
        weights = [v.value for v in variables]
        found = torch.autograd.grad(loss(_tensors(batch)), weights, allow_unused=True)
        for variable in frozen:
            variable.value.requires_grad_(False)
        pairs = zip(found, weights, strict=True)
        return sums([torch.zeros_like(w) if g is None else g for g, w in pairs])

    return run


def _tensors(batch: Batch) -> Batch:
    parts = tuple(batch)
    return Batch(
        *keras.tree.map_structure(lambda a: None if a is None else ops.convert_to_tensor(a), parts)
    )


_BACKENDS = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}
