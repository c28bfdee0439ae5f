"""What every technique is: three pure functions on a weight and its state."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import keras

from tfcompress.errors import check
from tfcompress.kinds import CONVOLUTIONS, DEPTHWISE, TRANSPOSED, is_of
from tfcompress.schedules import Schedule, is_share, steps_of

# The bits of the widest table from which the runtime of a target decodes weights.
TABLE_BITS = {"microcontroller": 7}

# Fields that count optimizer steps, and may be shares of the whole training instead.
STEPS = ("begin", "frequency", "delay", "freeze")


class Technique:
    """Weight -> effective weight, while training. Subclasses are frozen dataclasses.

    All functions are pure. `apply` runs in the compiled training step and is written in
    `keras.ops`; `initial_state` and `update` run between steps, and may use NumPy. Register a
    subclass with `keras.saving.register_keras_serializable`, so that it is saved with the model.
    """

    # Techniques of a layer are applied by this order: what comes earlier must not undo the later.
    order: ClassVar[int] = 0
    # Names of states that train with the model, and of those whose gradient is their new value.
    trainable_states: ClassVar[tuple[str, ...]] = ()
    overwritten_states: ClassVar[tuple[str, ...]] = ()

    @property
    def scheduled(self) -> bool:
        """Whether the state changes with the training step (`UpdateCompression` is needed)."""
        return False

    @property
    def together(self) -> bool:
        """Whether all layers of the same technique are updated at once, by `update_together`."""
        return False

    @property
    def has_shares(self) -> bool:
        """Whether it names shares of a training that has not begun, see `over`."""
        return bool(self._shares())

    def _shares(self) -> dict[str, Any]:
        """The fields that are shares of the training."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        found = {field.name: getattr(self, field.name) for field in fields}
        return {
            name: value
            for name, value in found.items()
            if (isinstance(value, Schedule) and value.has_shares)
            or (name in STEPS and is_share(value))
        }

    def over(self, first: int, steps: int) -> Any:
        """This technique in a training of so many steps, of which `first` is the first."""
        changed = self._shares()
        for name, value in changed.items():
            if isinstance(value, Schedule):
                changed[name] = value.over(first, steps)
            else:
                # Of these 0 has a meaning of its own.
                least = 1 if name in ("frequency", "delay") else 0
                begin = 0 if name == "frequency" else first
                changed[name] = steps_of(value, begin, steps, least)
        return dataclasses.replace(self, **changed) if changed else self  # type: ignore[type-var]

    def next_step(self, step: int) -> int | None:
        """The next optimizer step, after `step`, at which `update` changes something."""
        return step + 1 if self.scheduled else None

    def begins(self) -> int:
        """The optimizer step from which the technique has an effect."""
        return 0

    def unfinished(self, step: int) -> str | None:
        """What is still to come of the schedule after `step`, in words; None if nothing."""
        return None

    def refuses(self, layer, variable) -> str | None:
        """Why a weight of a layer is not what the technique is meant for; None if it is."""
        return None

    def bind(self, layer, weight: str, before: Sequence["Technique"] = ()) -> "Technique":
        """This technique with what it must know of one weight filled in.

        Args:
            layer: the built layer that owns the weight.
            weight: its name.
            before: the bound techniques that are applied to it before this one.
        """
        return self

    def initial_state(self, weight) -> dict[str, Any]:
        """The state before the first step: name -> tensor, kept as weights of the wrapper."""
        return {}

    def update(self, weight, state: dict[str, Any], step: int) -> dict[str, Any]:
        """The state after `step` optimizer iterations."""
        return state

    @staticmethod
    def update_together(
        techniques: Sequence[Any], weights: list[Any], states: list[dict[str, Any]], step: int
    ) -> list[dict[str, Any]]:
        """The states of several weights, each with its bound technique, after `step` iterations."""
        every = zip(techniques, weights, states, strict=True)
        return [technique.update(weight, state, step) for technique, weight, state in every]

    def apply(self, weight, state: dict[str, Any]):
        """The effective weight, of the shape of `weight`."""
        return weight

    def penalty(self, weight):
        """A scalar to add to the loss; None if there is none."""
        return None

    def get_config(self) -> dict[str, Any]:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return {field.name: getattr(self, field.name) for field in fields}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Technique":
        load = keras.saving.deserialize_keras_object
        known = {k: load(v) if isinstance(v, dict) else v for k, v in config.items()}
        return cls(**known)


def first_step(steps: Iterable[int | None]) -> int | None:
    """The first of some steps, where None stands for never."""
    return min((step for step in steps if step is not None), default=None)


def is_due(technique: Technique, last: int, step: int) -> bool:
    """Whether a technique has an update after step `last` (-1: none yet) and up to `step`."""
    if last < 0:
        return technique.scheduled
    following = technique.next_step(last)
    return following is not None and following <= step


def check_table(target: str | None, name: str, values: int) -> None:
    """Raises unless a target decodes weights from tables, which hold so many values."""
    check(target is None or target in TABLE_BITS, "target", "None or 'microcontroller'", target)
    most = 2 ** TABLE_BITS[target] if target else values
    expected = f"{most} or fewer with target={target!r}, whose tables hold no more"
    check(values <= most, name, expected, values, f"Take {most}, or leave target out.")


def table_axes(target: str | None, layer, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The axes along which values may differ: where a target has tables, those of its scales."""
    own = target is None or is_of(layer, CONVOLUTIONS | TRANSPOSED | DEPTHWISE)
    return axes if own else ()
