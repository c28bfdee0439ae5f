"""Callbacks that advance compression while a model trains."""

from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.backend import as_tensor
from tfcompress.dispatch import is_legacy, legacy
from tfcompress.layers.compressed import assign, tensors
from tfcompress.techniques.technique import is_due


class LateStart(keras.callbacks.Callback):
    """A callback that looks at the weights once all others have begun.

    `BackupAndRestore` may come later in the list, and restores them in its `on_train_begin`.
    Subclasses call `await_start` in theirs, and begin in `start`.
    """

    _started = True
    # Steps before those that the optimizer counts: a model may be compiled anew.
    _offset = 0
    _epoch = 0

    def step(self) -> int:
        """The optimizer's step, counted on from what was known at the start."""
        return self._offset + iterations(self.model)

    def continue_from(self, last: int) -> None:
        """Lets the steps never go back behind one."""
        self._offset = max(0, last - iterations(self.model))

    def training(self, resumed: bool) -> tuple[int, int]:
        """The first step of a training and how many it has, of which schedules have shares.

        Args:
            resumed: whether this `fit` goes on with a training; else it begins here.
        """
        steps, epochs = ((self.params or {}).get(name) for name in ("steps", "epochs"))
        if steps is None or epochs is None:
            raise ValueError(
                "the steps of the training must be known for shares of it, such as end='50%', "
                "which a plain number as in Prune(0.8) has, too; received data of unknown length. "
                "Pass steps_per_epoch to fit, or write whole numbers of steps, as in "
                "tfcompress.schedules.polynomial(0.0, 0.8, end=1000). In a loop of your own call "
                "set_params({'epochs': 10, 'steps': 500}) on the callback before it begins."
            )
        optimizer = inner_optimizer(self.model.optimizer)
        counted = getattr(optimizer, "gradient_accumulation_steps", None) or 1
        if not resumed:
            return self.step(), steps * (epochs - self._epoch) // counted
        done = steps * self._epoch // counted
        return max(0, self.step() - done), steps * epochs // counted

    def await_start(self) -> None:
        """Lets `start` be called before the first epoch or batch."""
        self._started = False

    def start(self) -> None:
        """Called once in each `fit`, after all `on_train_begin`."""

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        self._start_once()

    def on_train_batch_begin(self, batch, logs=None):
        self._start_once()

    def _start_once(self) -> None:
        if not self._started:
            self._started = True
            self.start()


class UpdateCompression(LateStart):
    """Advances the schedules of a compressed model to the optimizer's step.

    It is needed where a technique changes with the step (`Quantize(delay=..., freeze=...)`,
    pruning, clustering) and harmless where none does. The step is `optimizer.iterations`, so that
    it stays right with `steps_per_execution` and after a reload. It never goes back: a model that
    is compiled anew, whose optimizer counts from 0, continues from the last step it was told.

    Shares of the training, such as `end="60%"`, and the schedule of `Prune(0.8)` become steps when
    the first `fit` begins, of its epochs times its batches, and are kept in the saved model.

    Where it is needed and missing, the first step of `fit` raises. In a loop of your own, which no
    one watches, call it yourself as below; the model is compiled or has its optimizer as
    `model.optimizer`.

    Let `EarlyStopping(restore_best_weights=True)` `start_from_epoch` at the end of the schedules:
    an epoch before, which may be the best, is less compressed; `finalize` then warns.

    Raises:
        ValueError: at the start of `fit`, if the model is not compressed.

    Example:
        >>> qat.fit(x, y, callbacks=[UpdateCompression()])  # doctest: +SKIP

        >>> update = UpdateCompression()  # doctest: +SKIP
        >>> update.set_model(qat)  # doctest: +SKIP
        >>> update.set_params({"epochs": 1, "steps": len(batches)})  # doctest: +SKIP
        >>> update.on_train_begin()  # doctest: +SKIP
        >>> for step, (x, y) in enumerate(batches):  # doctest: +SKIP
        ...     update.on_train_batch_begin(step)
        ...     qat.train_on_batch(x, y)
        ...     update.on_train_batch_end(step)
        >>> update.on_epoch_end(0)  # doctest: +SKIP
    """

    def __init__(self):
        super().__init__()
        # The first step at which some layer changes, and for each scheduled layer its own.
        self._due: float = float("inf")
        self._dues: list[float] = []

    def set_model(self, model):
        super().set_model(model)
        if is_legacy(model):
            legacy("hand_over")(self, model)

    def on_train_begin(self, logs=None):
        if not any(hasattr(layer, "advance") for layer in layers_of(self.model)):
            raise ValueError(
                f"UpdateCompression found nothing to update in model '{self.model.name}'. Train "
                "the model that tfcompress.compress or quantize_aware returned; one that is not "
                "wrapped is pruned with tfcompress.PruneCallback."
            )
        iterations(self.model)
        _check_averages(self.model)
        self.await_start()

    def start(self) -> None:
        layers = _scheduled(self.model)
        lasts = [_int(layer.last_step) for layer in layers]
        self.continue_from(max(lasts, default=0))
        unbound = [layer for layer in layers if layer.has_shares]
        if unbound:
            training = self.training(resumed=max(lasts) >= 0)
            for layer in unbound:
                layer.begin_training(*training)
        # What the weights remember is done already, so that resuming changes nothing.
        self._dues = [0 if n < 0 else next_due(x, n) for x, n in zip(layers, lasts, strict=True)]
        self._due = min(self._dues, default=float("inf"))
        self._advance()

    def on_train_batch_end(self, batch, logs=None):
        self._advance()

    def on_epoch_end(self, epoch, logs=None):
        # Not at the end of training, when EarlyStopping may have put an earlier epoch back.
        self._remember()

    def _advance(self) -> None:
        if self._due == float("inf"):  # nothing changes any more: not even the step is read
            return
        step = self.step()
        if step < self._due:
            return
        layers = _scheduled(self.model)
        due = [x for x, first in zip(layers, self._dues, strict=True) if step >= first]
        update_together(due, step)
        for index, layer in enumerate(layers):
            if step >= self._dues[index]:
                _advance(layer, step, self.model.optimizer)
                self._dues[index] = next_due(layer, step)
        self._due = min(self._dues)

    def _remember(self) -> None:
        """Writes the step into the layers, so that a saved model knows how far it was."""
        scheduled = _scheduled(self.model)
        if scheduled:
            step = self.step()
            for layer in scheduled:
                layer.last_step.assign(step)


def update_together(layers: list[Any], step: int) -> None:
    """Updates the states that layers share, such as the masks of global pruning."""
    groups: dict[Any, list[tuple[Any, Any, dict[str, Any]]]] = {}
    for layer in layers:
        last = _int(layer.last_step)
        for target in getattr(layer, "bound", ()):
            if not any(technique.together for technique in target.techniques):
                continue
            weight = as_tensor(target.variable)
            for technique, state in zip(target.techniques, target.states, strict=True):
                if technique.together and is_due(technique, last, step):
                    key = next(t for t in layer.techniques if type(t) is type(technique))
                    groups.setdefault(key, []).append((technique, weight, state))
                weight = technique.apply(weight, tensors(state))
    for members in groups.values():
        techniques, weights, states = zip(*members, strict=True)
        values = [tensors(state) for state in states]
        new = techniques[0].update_together(techniques, list(weights), values, step)
        for state, value in zip(states, new, strict=True):
            assign(state, value)


def iterations(model: Any) -> int:
    """The step of a model's optimizer."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        raise ValueError(
            f"schedules need the step of an optimizer; model '{model.name}' has none. "
            "Compile it: model.compile(optimizer, loss)."
        )
    return _int(optimizer.iterations)


def _check_averages(model: Any) -> None:
    """Raises where Keras would fail after training: for averages of states that are overwritten."""
    if not inner_optimizer(model.optimizer).use_ema:
        return
    for layer in layers_of(model):
        for target in getattr(layer, "bound", ()):
            for technique in target.techniques:
                if technique.overwritten_states:
                    raise ValueError(
                        f"{type(technique).__name__} of layer '{layer.name}' keeps an average of "
                        "scores by itself; received an optimizer with use_ema=True, which Keras "
                        "cannot combine with it. Use another optimizer, or score='magnitude'."
                    )


def _advance(layer: Any, step: int, optimizer: Any) -> None:
    """Advances a layer; the averages (use_ema) of what it sets anew, centroids say, begin there."""
    averages = averages_of(optimizer)
    states = [s for t in getattr(layer, "bound", ()) for each in t.states for s in each.values()]
    before = [(s, ops.convert_to_numpy(as_tensor(s))) for s in states if id(s) in averages]
    layer.advance(step)
    for state, old in before:
        if np.any(ops.convert_to_numpy(as_tensor(state)) != old):
            averages[id(state)].assign(as_tensor(state))


def averages_of(optimizer: Any) -> dict[int, Any]:
    """The average (use_ema) that an optimizer keeps of each variable, by its identity."""
    optimizer = inner_optimizer(optimizer)
    found: dict[int, Any] = {}
    for each in getattr(optimizer, "optimizers", None) or [optimizer]:
        if each.use_ema and each.built:
            kept = each._model_variables_moving_average
            for variable, average in zip(each._trainable_variables, kept, strict=True):
                if average is not None:
                    found[id(variable)] = average
    return found


def inner_optimizer(optimizer: Any) -> Any:
    """The optimizer that sees gradients as they are: not scaled, and finite."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def next_due(changing: Any, step: int) -> float:
    """The step after `step` at which a layer or callback changes something; infinite if none."""
    following = changing.next_step(step)
    return float("inf") if following is None else following


def _int(variable: Any) -> int:
    return int(as_tensor(variable))  # `int` alone fails on the variables of a MirroredStrategy


def models_of(model: Any) -> list[Any]:
    """The models that callbacks are meant for: of one that distills, its students."""
    return model.students if hasattr(model, "frozen_models") else [model]


def layers_of(model: Any) -> list[Any]:
    """All layers of the models that callbacks are meant for."""
    return [layer for part in models_of(model) for layer in part._flatten_layers()]


def _scheduled(model: Any) -> list[Any]:
    return [layer for layer in layers_of(model) if getattr(layer, "scheduled", False)]
