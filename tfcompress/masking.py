"""Weights of a user's own model of which a part is held at zero, in place, while it trains."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from tfcompress.callbacks import LateStart, inner_optimizer, iterations
from tfcompress.techniques.quantize import as_tensor
from tfcompress.techniques.regularize import Penalty


class MaskedWeight:
    """A weight of the user's model, its mask, and what is changed on it during `fit`.

    Args:
        variable: the user's `keras.Variable`.
        penalty: a function of the weight to add to the loss; None for none.
        written: whether layers write it themselves while they train, as they do averages.

    Attributes:
        mask: 1 where the weight is kept, 0 where it is held at zero.
    """

    def __init__(
        self, variable, penalty: Callable[[Any], Any] | None = None, written: bool = False
    ):
        self.variable, self.penalty, self.written = variable, penalty, written
        self.mask = self.beside("mask", "ones")

    def beside(self, name: str, initializer: str):
        """A new variable of the shape of the weight, which does not train."""
        return keras.Variable(
            keras.initializers.get(initializer),
            self.variable.shape,
            "float32",
            name=f"{self.variable.name}_prune_{name}",
            trainable=False,
            aggregation="mean",
        )

    def attach(self) -> None:
        """Lets the optimizer mask the weight after each step."""
        if isinstance(self.variable.constraint, _Mask):  # left if a `fit` was interrupted
            self.variable.constraint.weight.detach()
        self._own = (self.variable.constraint, self.variable.regularizer)
        if keras.backend.backend() != "jax":
            self.variable.constraint = _Mask(self)
        if self.penalty is not None:
            self.variable.regularizer = Penalty(self._regularize)

    def detach(self) -> None:
        """Gives the weight back as it was."""
        self.variable.constraint, self.variable.regularizer = self._own

    def constrain(self, weight):
        """The weight under its own constraint, masked."""
        own = self._own[0]
        return self.masked(as_tensor(weight) if own is None else own(weight))

    def _regularize(self, weight):
        own, added = self._own[1], self.penalty(weight)
        return added if own is None else own(weight) + added

    def masked(self, weight):
        """The weight, masked; a product would make -0.0 of negative ones."""
        return ops.where(as_tensor(self.mask) > 0, weight, ops.zeros_like(weight))

    def hold(self) -> None:
        """Sets to zero what is masked."""
        # Adding zero makes 0.0 of -0.0, which would zip as another value.
        self.variable.assign(self.masked(as_tensor(self.variable)) + 0.0)

    def came_back(self) -> bool:
        """Whether something else than training wrote into what is masked."""
        if self.written:
            return False
        gone = as_tensor(self.mask) == 0
        return bool(ops.any(ops.logical_and(gone, as_tensor(self.variable) != 0)))


class _Mask(keras.constraints.Constraint):
    """What lets the optimizer mask a weight after each step."""

    def __init__(self, weight: MaskedWeight):
        self.weight = weight

    def __call__(self, w):
        return self.weight.constrain(w)


class MaskingCallback(LateStart):
    """A callback that masks weights of the user's own model on a schedule of optimizer steps.

    Subclasses say which weights (`find`), what their masks are at a step (`update`), when that
    changes (`next_step`), and what is still to come of the schedule (`unfinished`).
    """

    def __init__(self) -> None:
        super().__init__()
        self._weights: Sequence[Any] = []
        self._begun: Any = None  # the model that was pruned last
        self._last, self._offset, self._due = -1, 0, 0.0

    def find(self) -> Sequence[MaskedWeight]:
        """The weights to mask; called at the start of each `fit`."""
        raise NotImplementedError

    def update(self, step: int) -> None:
        """Sets the masks of a step; they depend on the weights and the step alone."""
        raise NotImplementedError

    def next_step(self, step: int) -> int | None:
        """The next step, after `step`, at which masks change."""
        raise NotImplementedError

    def unfinished(self, step: int) -> str | None:
        """What is still to come of the schedule after `step`, in words; None if nothing."""
        raise NotImplementedError

    def on_train_begin(self, logs=None):
        iterations(self.model)
        if self.model is not self._begun:
            self._begun, self._last = self.model, -1
        with _scope(self.model):
            self._weights = self.find()
        for weight in self._weights:
            weight.attach()
        # The step may be compiled already, without the masks.
        _recompile(self.model)
        self.await_start()

    def start(self) -> None:
        self._offset = max(0, self._last - iterations(self.model))
        self._update(self._step())

    def on_train_batch_end(self, batch, logs=None):
        step = self._step()
        if step >= self._due:
            self._update(step)
        elif keras.backend.backend() == "jax":  # which compiles no masks into the step
            self._hold()
        self._last = step

    def on_train_end(self, logs=None):
        averaged = inner_optimizer(self.model.optimizer).use_ema  # which come after the last step
        if not averaged and any(weight.came_back() for weight in self._weights):
            warnings.warn(
                "weights that were pruned have been put back, as EarlyStopping("
                "restore_best_weights=True) does with a less sparse epoch; they are pruned again, "
                "and the model is not the one of that epoch. Let EarlyStopping start_from_epoch "
                "at the end of the schedule, or train further.",
                stacklevel=2,
            )
        rest = self.unfinished(self._step())
        if rest:
            warnings.warn(
                f"training ended before the schedule of {type(self).__name__} did: {rest}. Go on "
                "with the same callback, or let the schedule end earlier.",
                stacklevel=2,
            )
        self._hold()
        for weight in self._weights:
            weight.detach()
        _recompile(self.model)

    def _step(self) -> int:
        return self._offset + iterations(self.model)

    def _update(self, step: int) -> None:
        following = self.next_step(step)
        self._due = float("inf") if following is None else following
        self.update(step)
        self._hold()
        self._last = step

    def _hold(self) -> None:
        for weight in self._weights:
            weight.hold()


def _recompile(model) -> None:
    """Lets a running `fit` go on with a training step that is compiled anew."""
    model.make_train_function(force=True)


def _scope(model):
    """Where variables of a distributed model are made."""
    strategy = getattr(model, "distribute_strategy", None)
    return contextlib.nullcontext() if strategy is None else strategy.scope()
