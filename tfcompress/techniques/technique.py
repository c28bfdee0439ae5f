"""What every technique is: three pure functions on a weight and its state."""

import dataclasses
from collections.abc import Iterable
from typing import Any


class Technique:
    """Weight -> effective weight, while training. Subclasses are frozen dataclasses.

    All three functions are pure, written in `keras.ops`, and take and return tensors, so that they
    run on TensorFlow, JAX and torch, compiled or not. Register a subclass with
    `keras.saving.register_keras_serializable`, so that it is saved with the model.
    """

    @property
    def scheduled(self) -> bool:
        """Whether the state changes with the training step (`UpdateCompression` is needed)."""
        return False

    def next_step(self, step: int) -> int | None:
        """The next optimizer step, after `step`, at which `update` changes something."""
        return step + 1 if self.scheduled else None

    def bind(self, layer, weight: str) -> "Technique":
        """This technique with what it must know of one layer filled in, such as its axes."""
        return self

    def init(self, weight) -> dict[str, Any]:
        """The state before the first step: name -> tensor, kept as weights of the wrapper."""
        return {}

    def update(self, weight, state: dict[str, Any], step) -> dict[str, Any]:
        """The state after `step` optimizer iterations."""
        return state

    def apply(self, weight, state: dict[str, Any]):
        """The effective weight, of the shape of `weight`."""
        return weight

    def get_config(self) -> dict[str, Any]:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return {field.name: getattr(self, field.name) for field in fields}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Technique":
        return cls(**config)


def first_step(steps: Iterable[int | None]) -> int | None:
    """The first of some steps, where None stands for never."""
    return min((step for step in steps if step is not None), default=None)
