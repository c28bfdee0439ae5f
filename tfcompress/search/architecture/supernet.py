"""One training for all: a supernet, whose parts are the candidates and share its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.errors import check, is_whole
from tfcompress.search.architecture.kernels import cut_kernel
from tfcompress.search.architecture.space import ArchitectureSpace
from tfcompress.search.architecture.training import Training
from tfcompress.search.choices import Chooser
from tfcompress.search.prices import require_tensorflow

DIMENSIONS = ("depth", "width", "kernel")
# As in BigNAS: the largest, the smallest and two of those between.
_BETWEEN = 2

Picks = Mapping[str, int]


def train_supernet(
    model: keras.Model, training: Training, epochs: int
) -> Callable[[Chooser], keras.Model]:
    """A space of trained candidates: depth, widths and kernel sizes of one network.

    Each step trains the whole network, its smallest part and two random ones at once, by the
    sandwich rule (Yu & Huang 2019, arXiv:1903.05134; BigNAS, arXiv:2003.11142); that parts keep
    the weights that they share follows Guo et al. 2020 (SPOS, arXiv:1904.00420). What a part lacks
    is 0 meanwhile, so that it computes what the smaller network does. Of depth only residual
    blocks are chosen. BatchNormalization gets its statistics anew in each candidate, once
    `Training.train` judges it.

    Args:
        model: any built Keras 3 model that `flatten` takes, trained or not; it is left untouched.
        training: the data, and how to compile.
        epochs: of the supernet.

    Returns:
        A space `build(choose) -> keras.Model`, whose models need no training to be compared.

    Raises:
        RuntimeError: Keras runs on another backend than TensorFlow.
        ValueError: `epochs` is out of its range, or there is nothing to choose.
    """
    masks = Masks.to_train(model, epochs)
    training.begin()
    _fit(masks, training, epochs)
    return as_space(masks)


def as_space(masks: Masks) -> Callable[[Chooser], keras.Model]:
    """The parts of a network that was trained."""
    trained = masks.parts()
    return lambda choose: trained(masks.without_fixed(choose))


@dataclasses.dataclass(frozen=True)
class Masks:
    """Which weights of a network the parts of a space have.

    Attributes:
        space: of the network, of depth, widths and kernels.
        model: the network.
        choices: {name: options} of what the parts differ in.
        scores: {group: array of shape (channels,)}, by which channels stay.
    """

    space: ArchitectureSpace
    model: keras.Model
    choices: Mapping[str, Sequence[Any]]
    scores: Mapping[str, np.ndarray]

    @classmethod
    def to_train(cls, model: keras.Model, epochs: int) -> Masks:
        """Of the parts of a model that are to share a training."""
        check(is_whole(epochs), "supernet_epochs", "a whole number, 1 or more", epochs)
        require_tensorflow("Or take the engine 'evolution'.")
        return cls.of(ArchitectureSpace.of(model, dimensions=DIMENSIONS))

    @classmethod
    def of(cls, space: ArchitectureSpace) -> Masks:
        whole = space.shallow(tuple(len(stage) for stage in space.stages))
        choices = {n: x for n, x in space.choices().items() if n not in _fixed(space)}
        scores = {name: np.array(values) for name, values in whole.scores.items()}
        return cls(space, whole.structure.model, choices, scores)

    def parts(self) -> ArchitectureSpace:
        """The space of the network as it is now, of the channels that masks leave."""
        # Scores of now, or of fewer blocks, might order channels in another way.
        return ArchitectureSpace(
            self.model, dimensions=DIMENSIONS, score=lambda group: self.scores[group.name]
        )

    def without_fixed(self, choose: Chooser) -> Chooser:
        """A chooser that takes all of the blocks that cannot be masked."""
        fixed = _fixed(self.space)
        return lambda name, options: options[-1] if name in fixed else choose(name, options)

    def of_part(self, picks: Picks) -> list[np.ndarray]:
        """A mask of 0 and 1 for each trainable weight of the network."""
        masks = {id(w): np.ones(w.shape, "float32") for w in self.model.trainable_variables}
        chosen = {name: self.choices[name][index] for name, index in picks.items()}
        whole = self.space.shallow(tuple(len(stage) for stage in self.space.stages))
        for name, group in whole.groups.items():
            size = chosen.get(f"width:{name}", group.size)
            gone = np.argsort(-self.scores[name], kind="stable")[size:]
            for member in group.members:
                if id(member.variable) in masks:
                    moved = np.moveaxis(masks[id(member.variable)], member.axis, 0)
                    moved[member.index[gone]] = 0
        left_out = self._left_out(chosen)
        for layer in self.model.layers:
            if layer.name in left_out:
                for weight in layer.trainable_variables:
                    masks[id(weight)][:] = 0
            elif f"kernel:{layer.name}" in chosen and id(layer.kernel) in masks:
                edge, places = np.zeros(layer.kernel.shape, "float32"), len(layer.kernel_size)
                cut_kernel(edge, places, chosen[f"kernel:{layer.name}"])[:] = 1
                masks[id(layer.kernel)] *= edge
        return [masks[id(w)] for w in self.model.trainable_variables]

    def _left_out(self, chosen: Mapping[str, Any]) -> set[str]:
        """The names of the nodes in blocks that are left out."""
        names = set[str]()
        for stage in self.space.stages:
            count = chosen.get(f"depth:{stage[0].end}", len(stage))
            names |= {name for block in stage[count:] for name in block.inside}
        return names

    def sandwich(self, random: np.random.Generator) -> list[Picks]:
        """The largest part, the smallest and some between."""
        counts = {name: len(options) for name, options in self.choices.items()}
        between = [
            {name: int(random.integers(count)) for name, count in counts.items()}
            for _ in range(_BETWEEN)
        ]
        largest = {name: count - 1 for name, count in counts.items()}
        return [largest, dict.fromkeys(counts, 0), *between]


def _fixed(space: ArchitectureSpace) -> set[str]:
    """The choices of depth of blocks that are not added to what they read."""
    return {
        f"depth:{stage[0].end}"
        for stage in space.stages
        if not all(block.residual for block in stage)
    }


def _fit(masks: Masks, training: Training, epochs: int) -> None:
    """Trains the network in place, as its parts."""
    training.compiled(masks.model)
    step, random = _step_of(masks.model), np.random.default_rng(training.seed)
    x, y = training.train_data
    for _ in range(epochs):
        order = random.permutation(len(x))
        for first in range(0, len(x), training.batch_size):
            rows = order[first : first + training.batch_size]
            step(x[rows], y[rows], [masks.of_part(p) for p in masks.sandwich(random)])


def _step_of(model: keras.Model) -> Callable[[Any, Any, Any], None]:
    """A step of training on the mean loss of several parts."""
    import tensorflow as tf

    weights, others = model.trainable_variables, model.non_trainable_variables
    model.optimizer.build(weights)

    @tf.function(reduce_retracing=True)
    def step(x, y, masks):
        with tf.GradientTape() as tape:
            losses = []
            for part in masks:
                values = [w.value * mask for w, mask in zip(weights, part, strict=True)]
                fixed = [v.value for v in others]
                predicted, _ = model.stateless_call(values, fixed, x, training=True)
                losses.append(model.compute_loss(x=x, y=y, y_pred=predicted))
            loss = tf.add_n(losses) / len(losses)
        gradients = tape.gradient(loss, [w.value for w in weights], unconnected_gradients="zero")
        model.optimizer.apply(gradients, weights)

    def run(x, y, masks) -> None:
        step(tf.constant(x), tf.constant(y), [[tf.constant(m) for m in part] for part in masks])

    return run
