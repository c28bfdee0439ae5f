"""The learning rate of a training: it falls once, or anew in each of several turns."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops


class Restarting(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule for each turn of a training (Loshchilov & Hutter 2016, arXiv:1608.03983).

    Args:
        schedules: one for each turn, which count its steps from 0.
        turns: how many steps each has.
    """

    def __init__(self, schedules: Sequence[Any], turns: Sequence[int]):
        self.schedules, self.turns = list(schedules), list(turns)

    def __call__(self, step):
        # As it is: the first turn of several is to give the bits of one that is alone.
        rate = self.schedules[0](step)
        begins = itertools.accumulate(self.turns[:-1])
        for begin, schedule in zip(begins, self.schedules[1:], strict=True):
            later = schedule(ops.maximum(step - begin, 0))
            rate = ops.where(step < begin, rate, later)
        return rate

    def get_config(self) -> dict[str, Any]:
        save = keras.saving.serialize_keras_object
        return {"schedules": [save(each) for each in self.schedules], "turns": self.turns}


def decaying(optimizer: Any, turns: Sequence[int]) -> Any:
    """The optimizer with a rate that falls in each turn of so many steps.

    A schedule that ends begins anew, as long as the turn: weights that go on from where a
    training ended recover best at its rates (Renda et al. 2020, arXiv:2003.02389).
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    found = [_falling(inner, steps) for steps in turns]
    if None in found:  # one that knows no end has none to move
        return optimizer
    return with_rate(optimizer, found[0] if len(found) == 1 else Restarting(found, turns))


def _falling(optimizer: Any, steps: int) -> Any:
    """A schedule over so many steps from the rate of an optimizer; None if its own has no end."""
    rate = optimizer.get_config()["learning_rate"]
    if isinstance(rate, (int, float)):
        return keras.optimizers.schedules.CosineDecay(rate, steps)
    schedule = optimizer._learning_rate
    config = schedule.get_config()
    ends = type(schedule).__name__ in ("CosineDecay", "PolynomialDecay") and not config.get("cycle")
    if not ends:
        return None
    warmup = config.get("warmup_steps", 0)
    before = round(steps * warmup / (warmup + config["decay_steps"]))
    config |= {"decay_steps": max(1, steps - before)}
    config |= {"warmup_steps": before} if warmup else {}
    return type(schedule).from_config(config)


def with_rate(optimizer: Any, rate: Any) -> Any:
    """The optimizer with another learning rate, or schedule of it."""
    if hasattr(optimizer, "inner_optimizer"):  # LossScaleOptimizer
        optimizer.inner_optimizer = with_rate(optimizer.inner_optimizer, rate)
        return optimizer
    return type(optimizer).from_config({**optimizer.get_config(), "learning_rate": rate})
