"""Callbacks that advance compression while a model trains."""

from typing import Any

import keras

from tfcompress.techniques.quantize import as_tensor


class UpdateCompression(keras.callbacks.Callback):
    """Advances the schedules of a compressed model to the optimizer's step.

    It is needed where a technique changes with the step (`Quantize(delay=..., freeze=...)`,
    pruning, clustering) and harmless where none does. The step is `optimizer.iterations`, so that
    it stays right with `steps_per_execution` and after a reload. It never goes back: a model that
    is compiled anew, whose optimizer counts from 0, continues from the last step it was told.

    Raises:
        ValueError: at the start of `fit`, if the model is not compressed.

    Example:
        >>> qat.fit(x, y, callbacks=[UpdateCompression()])  # doctest: +SKIP
    """

    def __init__(self):
        super().__init__()
        self._offset = 0
        # The first step at which some layer changes, and for each scheduled layer its own.
        self._due: float = float("inf")
        self._dues: list[float] = []

    def on_train_begin(self, logs=None):
        found = _layers(self.model)
        if not any(hasattr(layer, "advance") for layer in found):
            raise ValueError(
                f"UpdateCompression found nothing to update in model '{self.model.name}'. Train "
                "the model that tfcompress.compress or quantize_aware returned."
            )
        scheduled = _scheduled(self.model)
        told = max((_int(layer.last_step) for layer in scheduled), default=0)
        self._offset = max(0, told - self._iterations()) if scheduled else 0
        self._due, self._dues = 0 if scheduled else float("inf"), [0] * len(scheduled)
        self._advance()

    def on_train_batch_end(self, batch, logs=None):
        self._advance()

    def on_epoch_end(self, epoch, logs=None):
        self._remember()

    def on_train_end(self, logs=None):
        self._remember()

    def _iterations(self) -> int:
        optimizer = getattr(self.model, "optimizer", None)
        if optimizer is None:
            raise ValueError(
                f"UpdateCompression needs the step of an optimizer; model '{self.model.name}' has "
                "none. Compile it: model.compile(optimizer, loss)."
            )
        return _int(optimizer.iterations)

    def _advance(self) -> None:
        if self._due == float("inf"):  # nothing changes any more: not even the step is read
            return
        step = self._offset + self._iterations()
        if step < self._due:
            return
        for index, layer in enumerate(_scheduled(self.model)):
            if step >= self._dues[index]:
                layer.advance(step)
                following = layer.next_step(step)
                self._dues[index] = float("inf") if following is None else following
        self._due = min(self._dues)

    def _remember(self) -> None:
        """Writes the step into the layers, so that a saved model knows how far it was."""
        scheduled = _scheduled(self.model)
        if scheduled:
            step = self._offset + self._iterations()
            for layer in scheduled:
                layer.last_step.assign(step)


def _int(variable: Any) -> int:
    return int(as_tensor(variable))  # `int` alone fails on the variables of a MirroredStrategy


def _layers(model: Any) -> list[Any]:
    return list(model._flatten_layers())


def _scheduled(model: Any) -> list[Any]:
    return [layer for layer in _layers(model) if getattr(layer, "scheduled", False)]
