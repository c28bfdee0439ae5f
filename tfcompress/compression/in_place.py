"""PruneCallback: pruning of a user's own model, in place, while it trains."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.backend import as_tensor
from tfcompress.compression.callbacks import (
    LateStart,
    averages_of,
    inner_optimizer,
    iterations,
    layers_of,
    models_of,
    next_due,
)
from tfcompress.graph.inputs import require_float
from tfcompress.layers.compressed import (
    Compressed,
    require_merged,
    target_variables,
    undeclared_weights,
    warn_undeclared,
)
from tfcompress.techniques.prune import Prune, as_mask, global_masks, taylor_scores
from tfcompress.techniques.regularize import Penalty, Regularize
from tfcompress.techniques.rules import Rule

# Scores that are 0 where a weight is 0.
OF_SIZE = ("magnitude", "l1", "l2", "max")


class MaskingCallback(LateStart):
    """A callback that masks weights of the user's own model on a schedule of optimizer steps.

    Subclasses say which weights (`find`), what their masks are at a step (`update`), when that
    changes (`next_step`), and what is still to come of the schedule (`unfinished`).
    """

    def __init__(self) -> None:
        super().__init__()
        self._weights: Sequence[Any] = []
        self._begun: Any = None  # the model that was pruned last
        self._last, self._due = -1, 0.0

    # Whether the schedule has shares of a training that has not begun.
    has_shares: bool

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
            self.forget()
        with _scope(self.model):
            self._weights = self.find()
        for weight in self._weights:
            weight.attach(self.model.optimizer)
        # The step may be compiled already, without the masks.
        _recompile(self.model)
        self.await_start()

    def forget(self) -> None:
        """Called before a model that is not the one of the `fit` before."""

    def begin_training(self, first: int, steps: int) -> None:
        """Makes steps of shares of the training, once for each model."""
        raise NotImplementedError

    def start(self) -> None:
        self.continue_from(self._last)
        if self.has_shares:
            # BackupAndRestore tells where it goes on by this attribute alone.
            resumed = bool(getattr(self.model, "_initial_epoch", None))
            self.begin_training(*self.training(resumed))
        self._update(self.step())

    def on_train_batch_end(self, batch, logs=None):
        step = self.step()
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
        rest = self.unfinished(self.step())
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

    def _update(self, step: int) -> None:
        self._due = next_due(self, step)
        self.update(step)
        self._hold()
        self._last = step

    def _hold(self) -> None:
        for weight in self._weights:
            weight.hold()


class PruneCallback(MaskingCallback):
    """Prunes the weights of any Keras model in place, while `fit` trains it.

    The model is the user's own and stays unwrapped: it needs not be flattened, and no `finalize`.
    After every optimizer step, pruned weights are set to zero, so that the model holds exactly the
    zeros of the schedule at any time; a weight that was pruned stays so. The step is
    `optimizer.iterations`: a run that is resumed by `BackupAndRestore` goes on as if it had not
    been interrupted, and with `steps_per_execution` masks are applied within it, too. With a new
    optimizer, whose steps count from 0, the same callback object goes on where it was. If `fit` is
    interrupted, weights stay pruned until the callback's next `fit` ends.

    Put it after `EarlyStopping(restore_best_weights=True)`, and let that `start_from_epoch` at the
    end of the schedule: an epoch before, which may be the best, is less sparse.

    Args:
        prune: a `Prune`. Shares of the training that its schedule has, as that of `Prune(0.8)`
            does, become steps when the first `fit` of a model begins. On JAX scores that come from
            gradients are not available.
        layers: which layers: a pattern, a type or a predicate, as of `Rule`.
        regularizer: a Keras regularizer for the weights while they are pruned, such as
            `GroupLasso(1e-4)`.

    Raises:
        TypeError: if `prune` is something else.
        ValueError: at the start of `fit`, if there is nothing to prune.

    Example:
        >>> from tfcompress import schedules
        >>> prune = Prune(schedules.polynomial(0.0, 0.8, end="60%"))
        >>> model.fit(x, y, callbacks=[PruneCallback(prune)])  # doctest: +SKIP
    """

    def __init__(
        self,
        prune: Prune,
        layers: str | type | Callable[[Any], bool] = "*",
        regularizer: Any = None,
    ):
        super().__init__()
        if not isinstance(prune, Prune):
            raise TypeError(
                f"prune must be a tfcompress.Prune; received {prune!r}. Other techniques need a "
                "model from tfcompress.compress and UpdateCompression."
            )
        self.prune, self._rule = prune, Rule(layers, [prune])
        self._followed = prune  # with steps for shares, once `fit` has begun
        self.regularizer = None if regularizer is None else keras.regularizers.get(regularizer)

    def on_train_begin(self, logs=None):
        if self.prune.score == "rigl":
            raise ValueError(
                "score='rigl' lets pruned weights come back, which those of a model that stays "
                "unwrapped cannot. Use tfcompress.compress with UpdateCompression, or "
                "score='taylor'."
            )
        if self.prune.learns_scores and keras.backend.backend() == "jax":
            raise ValueError(
                f"score={self.prune.score!r} needs gradients, which a callback does not see on "
                "JAX. Use tfcompress.compress with UpdateCompression, or another score."
            )
        super().on_train_begin(logs)
        if self._followed.learns_scores:
            _watch(inner_optimizer(self.model.optimizer), self._weights)

    def find(self) -> list[_Pruned]:
        found: list[_Pruned] = []
        reasons, unknown = {}, []
        for part in models_of(self.model):
            require_float(part)
        for layer in layers_of(self.model):
            if isinstance(layer, Compressed):
                raise ValueError(
                    f"PruneCallback prunes models that are not wrapped; layer '{layer.name}' comes "
                    "from tfcompress.compress. Put Prune into its recipe instead."
                )
            if self._rule.matches(layer):
                unknown += undeclared_weights(layer)
            # Each layer for itself: the layers inside it have their own turn.
            for owner, variable in target_variables(layer):
                if owner is layer and self._rule.matches(layer):
                    reasons[f"{layer.name}/{variable.name}"] = reason = self.prune.refuses(
                        layer, variable
                    )
                    if reason is None and not any(x.variable is variable for x in found):
                        found.append(_Pruned(layer, variable, self._followed, self.regularizer))
        if not found:
            listed = "; ".join(f"{name} is {reason}" for name, reason in list(reasons.items())[:4])
            raise ValueError(
                f"PruneCallback finds nothing to prune in model '{self.model.name}' with "
                f"layers={self._rule.layers!r}: received {listed or 'no layer with a kernel'}. "
                "Mend the pattern, or build the model before fit."
            )
        warn_undeclared(unknown, self.prune)
        return found

    def on_train_end(self, logs=None):
        super().on_train_end(logs)
        inner_optimizer(self.model.optimizer).__dict__.pop("apply", None)

    @property
    def has_shares(self) -> bool:  # type: ignore[override]
        return self._followed.has_shares

    def forget(self) -> None:
        averaged = inner_optimizer(self.model.optimizer).use_ema
        self._followed = self.prune.scored(keras.backend.backend() != "jax" and not averaged)

    def begin_training(self, first: int, steps: int) -> None:
        self._followed = self._followed.over(first, steps)
        for weight in self._weights:
            weight.prune = weight.prune.over(first, steps)

    def next_step(self, step: int) -> int | None:
        return self._followed.next_step(step)

    def unfinished(self, step: int) -> str | None:
        return self._followed.unfinished(step)

    def update(self, step: int) -> None:
        if step < self._followed.begins():
            return
        arrays = [weight.arrays() for weight in self._weights]
        bound = [weight.prune for weight in self._weights]
        if self.prune.together:
            masks = global_masks(bound, arrays, step)
        else:
            masks = [p.mask(*each, step) for p, each in zip(bound, arrays, strict=True)]
        for weight, mask in zip(self._weights, masks, strict=True):
            weight.mask.assign(as_mask(mask))


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

    def attach(self, optimizer) -> None:
        """Lets the optimizer mask the weight after each step, and the average it keeps of it."""
        self._optimizer = optimizer
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
        self._hold_average()
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
        self._hold_average()

    def _hold_average(self) -> None:
        average = averages_of(self._optimizer).get(id(self.variable))
        if average is not None:
            average.assign(self.masked(as_tensor(average)) + 0.0)

    def came_back(self) -> bool:
        """Whether something else than training wrote into what is masked."""
        if self.written:
            return False
        gone = as_tensor(self.mask) == 0
        return bool(ops.any(ops.logical_and(gone, as_tensor(self.variable) != 0)))


class _Pruned(MaskedWeight):
    """A weight that is pruned, and the scores that it learns."""

    def __init__(self, layer, variable, prune: Prune, regularizer):
        require_merged(layer)
        penalty = None
        if regularizer is not None:
            penalty = Regularize(regularizer).bind(layer, variable.name).penalty
        super().__init__(variable, penalty)
        self.prune = prune.bind(layer, variable.name)
        self.scores: Any = self.beside("scores", "zeros") if prune.learns_scores else None

    def arrays(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The weight and its scores, of which those of groups that were pruned are the least."""
        weight = ops.convert_to_numpy(as_tensor(self.variable))
        if self.prune.score is None or self.prune.score in OF_SIZE:
            return weight, None  # where zeros come first anyway
        learned = None if self.scores is None else ops.convert_to_numpy(as_tensor(self.scores))
        scores = self.prune.scores(weight, learned)
        groups = self.prune.groups(weight.shape)
        alive = groups.expand(groups.reduce(np.abs(weight), largest=True) > 0)
        return weight, np.where(alive, scores, -np.inf)

    def watch(self, gradient) -> None:
        """Updates learned scores by the gradient of the weight."""
        product = ops.convert_to_tensor(gradient) * as_tensor(self.variable)
        product, old = ops.cast(product, "float32"), as_tensor(self.scores)
        if self.prune.score == "movement":
            self.scores.assign(old - product)
        else:
            self.scores.assign(taylor_scores(old, product))


def _watch(optimizer, weights: list[_Pruned]) -> None:
    """Shows the weights their gradients whenever the optimizer applies them."""
    optimizer.__dict__.pop("apply", None)  # left there if a `fit` was interrupted
    apply, by_id = optimizer.apply, {id(weight.variable): weight for weight in weights}

    def watch_and_apply(grads, trainable_variables=None):
        variables = trainable_variables
        variables = optimizer._trainable_variables if variables is None else list(variables)
        for gradient, variable in zip(grads, variables, strict=True):
            if gradient is not None and id(variable) in by_id:
                by_id[id(variable)].watch(gradient)
        return apply(grads, trainable_variables)

    optimizer.apply = watch_and_apply


class _Mask(keras.constraints.Constraint):
    """What lets the optimizer mask a weight after each step."""

    def __init__(self, weight: MaskedWeight):
        self.weight = weight

    def __call__(self, w):
        return self.weight.constrain(w)


def _recompile(model) -> None:
    """Lets a running `fit` go on with a training step that is compiled anew."""
    model.make_train_function(force=True)


def _scope(model):
    """Where variables of a distributed model are made."""
    strategy = getattr(model, "distribute_strategy", None)
    return contextlib.nullcontext() if strategy is None else strategy.scope()
