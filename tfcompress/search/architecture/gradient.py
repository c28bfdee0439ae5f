"""A differentiable choice: how likely each option is, is learned along with the weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial

from tfcompress.search.architecture.found import costs_of
from tfcompress.search.architecture.supernet import Masks, as_space
from tfcompress.search.architecture.training import Training
from tfcompress.search.choices import Chooser
from tfcompress.search.prices import Prices
from tfcompress.search.samplers import RandomChoices, count_of, value_of

# Temperatures of the relaxed choice, from the first epoch to the last, as of FBNet.
_WARM, _COLD = 5.0, 0.5
_LEARNING_RATE = 0.1

Odds = dict[str, np.ndarray]


class LearnedChoices(RandomChoices):
    """Picks by odds that are known: the likeliest options first, then random ones.

    Args:
        odds: {name of a choice: probabilities of its options}.
        seed: of all random numbers.
    """

    def __init__(self, odds: Odds, seed: int = 0):
        super().__init__(seed)
        self.odds = odds

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        count = count_of(param_name, param_distribution)
        odds = self.odds.get(param_name)
        if odds is None or len(odds) != count:
            return super().sample_independent(study, trial, param_name, param_distribution)
        likeliest = int(np.argmax(odds))
        drawn = int(self._random(trial, param_name).choice(count, p=odds))
        return value_of(param_distribution, drawn if trial.number else likeliest)


def learn_choices(
    model: keras.Model, training: Training, epochs: int, limits: Mapping[str, float]
) -> tuple[Callable[[Chooser], keras.Model], Odds]:
    """A space of trained candidates, and how likely each option of it is to be the best.

    The choices of a supernet are relaxed by Gumbel-softmax (Wu et al. 2018, FBNet,
    arXiv:1812.03443): masks are mixed by their odds, which learn on samples of their own, in turns
    with the weights, from the loss and from what the network costs beyond a budget, of which the
    price rises until it is met. The cost is the product of what each choice alone leaves of it.

    Args:
        model, training, epochs: see `train_supernet`.
        limits: the budget.

    Returns:
        (a space `build(choose) -> keras.Model`, {name of a choice: probabilities of its options}).
    """
    masks = Masks.to_train(model, epochs)
    training.begin()
    training.compiled(masks.model)
    step = _Step.of(masks, limits)
    (x, y), count = training.train_data, len(training.train_data[0])
    random = np.random.default_rng(training.seed)
    for epoch in range(epochs):
        heat = _WARM * (_COLD / _WARM) ** (epoch / max(1, epochs - 1))
        order, size = random.permutation(count), training.batch_size
        for first in range(0, count, 2 * size):
            weights, odds = order[first : first + size], order[first + size : first + 2 * size]
            step.train(x[weights], y[weights], heat)
            if len(odds):
                step.learn(x[odds], y[odds], heat)
    return as_space(masks), step.odds()


@dataclasses.dataclass
class _Step:
    """Steps of training, of the weights and of the odds in turns.

    Attributes:
        names: of the choices.
        factors: for each choice: the masks of its options, by the place of a weight, stacked.
        shares: for each budget: its logarithm over the cost of the whole network, and for each
            choice what its options alone leave of the cost.
    """

    model: keras.Model
    names: list[str]
    factors: list[dict[int, np.ndarray]]
    shares: dict[str, tuple[float, list[np.ndarray]]]

    def __post_init__(self):
        import tensorflow as tf

        sizes = [len(next(iter(each.values()))) if each else 1 for each in self.factors]
        self.logits = [keras.Variable(np.zeros(n, "float32")) for n in sizes]
        self.optimizer = keras.optimizers.Adam(_LEARNING_RATE)
        self.prices = Prices(self.shares)
        self.model.optimizer.build(self.model.trainable_variables)
        self.optimizer.build(self.logits)
        self._train = tf.function(self._train_step, reduce_retracing=True)
        self._learn = tf.function(self._learn_step, reduce_retracing=True)

    @classmethod
    def of(cls, masks: Masks, limits: Mapping[str, float]) -> _Step:
        names, factors = list(masks.choices), []
        parts, costs = masks.parts(), []
        for name in names:
            options = range(len(masks.choices[name]))
            every = [masks.of_part({name: i}) for i in options]
            stacked = {k: np.stack(each) for k, each in enumerate(zip(*every, strict=True))}
            factors.append({k: m for k, m in stacked.items() if not m.all()})
            costs.append([costs_of(parts(_only(masks, name, i))) for i in options])
        whole = costs_of(parts(lambda name, options: options[-1]))
        shares = {}
        for limit, most in limits.items():
            full = getattr(whole, limit)
            left = [np.array([getattr(c, limit) / full for c in each], "float32") for each in costs]
            shares[limit] = math.log(most / full), left
        return cls(masks.model, names, factors, shares)

    def odds(self) -> Odds:
        """{name of a choice: probabilities of its options}."""
        found = {}
        for name, logits in zip(self.names, self.logits, strict=True):
            values = np.exp(np.asarray(logits, "float64") - np.max(np.asarray(logits)))
            found[name] = values / values.sum()
        return found

    def train(self, x, y, heat: float) -> None:
        """A step of the weights."""
        self._train(*_tensors(x, y, heat))

    def learn(self, x, y, heat: float) -> None:
        """A step of the odds, and of the prices of what is over the budget."""
        self._learn(*_tensors(x, y, heat))

    def _train_step(self, x, y, heat):
        import tensorflow as tf

        weights = self.model.trainable_variables
        with tf.GradientTape() as tape:
            loss = self._loss(x, y, heat)
        self.model.optimizer.apply(_by(tape, loss, weights), weights)

    def _learn_step(self, x, y, heat):
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = self._loss(x, y, heat)
            loss += self.prices.charged({name: self._excess(name) for name in self.shares})
        self.optimizer.apply(_by(tape, loss, self.logits), self.logits)

    def _loss(self, x, y, heat):
        """The loss of the network with relaxed choices."""
        import tensorflow as tf

        values = [weight.value for weight in self.model.trainable_variables]
        for logits, factors in zip(self.logits, self.factors, strict=True):
            noise = -tf.math.log(-tf.math.log(tf.random.uniform(logits.shape, 1e-6, 1 - 1e-6)))
            odds = tf.nn.softmax((logits.value + noise) / heat)
            for place, stacked in factors.items():
                values[place] = values[place] * tf.tensordot(odds, tf.constant(stacked), 1)
        fixed = [v.value for v in self.model.non_trainable_variables]
        predicted, _ = self.model.stateless_call(values, fixed, x, training=True)
        return self.model.compute_loss(x=x, y=y, y_pred=predicted)

    def _excess(self, name: str):
        """The logarithm of the expected cost over its budget."""
        import tensorflow as tf

        budget, shares = self.shares[name]
        found = -budget
        for logits, left in zip(self.logits, shares, strict=True):
            found += tf.math.log(tf.reduce_sum(tf.nn.softmax(logits.value) * left))
        return found


def _only(masks: Masks, wanted: str, index: int) -> Chooser:
    """The chooser of the whole network but for one choice."""
    return masks.without_fixed(
        lambda name, options: options[index] if name == wanted else options[-1]
    )


def _by(tape, loss, variables: list) -> list:
    values = [variable.value for variable in variables]
    return tape.gradient(loss, values, unconnected_gradients="zero")


def _tensors(x, y, heat: float) -> tuple:
    import tensorflow as tf

    return tf.constant(x), tf.constant(y), tf.constant(heat, "float32")
