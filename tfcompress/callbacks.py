"""Callbacks that advance compression while a model trains."""

import keras


class UpdateCompression(keras.callbacks.Callback):
    """Advances the schedules of a compressed model to the optimizer's step.

    It is needed where a technique changes with the step (`Quantize(delay=..., freeze=...)`,
    pruning, clustering) and harmless where none does. The step is `optimizer.iterations`, so that
    it stays right with `steps_per_execution`, after a reload and in a second `fit`.

    Raises:
        ValueError: at the start of `fit`, if the model is not compressed.

    Example:
        >>> qat.fit(x, y, callbacks=[UpdateCompression()])  # doctest: +SKIP
    """

    def on_train_begin(self, logs=None):
        layers = list(self.model._flatten_layers())
        if not any(hasattr(layer, "advance") for layer in layers):
            raise ValueError(
                f"UpdateCompression found nothing to update in model '{self.model.name}'. Train "
                "the model that tfcompress.compress or quantize_aware returned."
            )
        self._scheduled = [x for x in layers if getattr(x, "scheduled", False)]
        self._advance()

    def on_train_batch_end(self, batch, logs=None):
        self._advance()

    def _advance(self) -> None:
        if not self._scheduled:
            return
        step = int(self.model.optimizer.iterations)
        for layer in self._scheduled:
            layer.advance(step)
