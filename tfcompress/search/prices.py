"""Budgets in a loss: what is over them costs ever more, until they are met."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import keras

# By how much the price of what is over a budget grows with each step, for each e-fold.
_GROWS = 0.1


class Prices:
    """Prices of what a network is expected to cost beyond its budgets; on TensorFlow.

    Args:
        names: of the budgets.
    """

    def __init__(self, names: Iterable[str]):
        import tensorflow as tf

        self._prices = {name: tf.Variable(0.0) for name in names}

    def charged(self, excesses: Mapping[str, Any]) -> Any:
        """What is added to the loss of a step, after which prices rise.

        Args:
            excesses: {budget: the logarithm of the expected cost over it}.
        """
        loss: Any = 0.0
        for name, price in self._prices.items():
            excess = keras.ops.relu(excesses[name])
            loss += (price + 1.0) * excess
            price.assign_add(_GROWS * excess)
        return loss


def require_tensorflow(mend: str) -> None:
    """Raises a RuntimeError unless Keras runs on TensorFlow."""
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"expected Keras on TensorFlow; it runs on {keras.backend.backend()}. Set "
            f"KERAS_BACKEND=tensorflow. {mend}"
        )
