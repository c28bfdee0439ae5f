"""How candidates are trained and judged: all alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from tfcompress.errors import check, is_whole
from tfcompress.surgery.pruning.refitting import with_statistics

Arrays = tuple[np.ndarray, np.ndarray]
# How many samples a proxy looks at, and how many statistics are taken of.
_BATCH, _SAMPLES = 64, 512


@dataclasses.dataclass
class Training:
    """Short trainings.

    Attributes:
        train_data, held_out: (x, y) arrays.
        how: arguments of `compile`; None if candidates come compiled.
        evaluate: what judges instead of metrics.
        epochs: of each training; 0 of candidates that share the weights of a supernet.
        measure: what the score is, as soon as one was judged.
    """

    train_data: Arrays
    held_out: Arrays
    how: dict[str, Any] | None
    evaluate: Callable[[keras.Model], float] | None
    epochs: int
    batch_size: int
    seed: int
    measure: str = "score"

    @classmethod
    def of(
        cls, data: Any, validation: Any, how, evaluate, epochs: int, batch_size: int, seed: int
    ) -> Training:
        """The trainings on some data, once all arguments are found right.

        Args:
            validation: the share that is held out, (x, y) arrays, or None for nothing.
        """
        for name, value in (("epochs", epochs), ("batch_size", batch_size)):
            check(is_whole(value), name, "a whole number, 1 or more", value)
        check(is_whole(seed, 0), "seed", "a whole number, 0 or more", seed)
        if evaluate is not None and not callable(evaluate):
            raise TypeError(
                f"evaluate must be a function f(model) -> float; received {evaluate!r}."
            )
        whole = _arrays("data", data)
        if validation is None:
            train, held_out = whole, (whole[0][:0], whole[1][:0])
        elif isinstance(validation, tuple):
            train, held_out = whole, _arrays("validation", validation)
        else:
            number = isinstance(validation, float) and 0 < validation < 1
            check(number, "validation", "a fraction in (0, 1) or (x, y)", validation)
            train, held_out = _split(whole, validation, seed)
        return cls(train, held_out, how, evaluate, int(epochs), int(batch_size), int(seed))

    def settings(self) -> dict[str, Any]:
        """What scores depend on, as plain data."""
        sizes = {"samples": len(self.train_data[0]), "held_out": len(self.held_out[0])}
        return {"epochs": self.epochs, "batch_size": self.batch_size, "seed": self.seed, **sizes}

    def begin(self) -> None:
        """Lets all candidates start alike, so that equal picks give equal weights and scores."""
        keras.utils.set_random_seed(self.seed)

    def train(self, model: keras.Model) -> tuple[float, keras.Model]:
        """Trains a candidate; returns its score, higher = better, and the trained model."""
        self.begin()
        x, y = self.train_data
        if not self.epochs:  # What is normalized differs from network to network.
            model = with_statistics(model, [[x[:_SAMPLES]]])
        self.compiled(model)
        if self.epochs:
            model.fit(x, y, epochs=self.epochs, batch_size=self.batch_size, verbose=0)
        return self._score(model), model

    def compiled(self, model: keras.Model) -> None:
        """Compiles a candidate as all are, with an optimizer and metrics of its own."""
        if self.how is None:
            if not model.compiled:
                raise ValueError(
                    f"what build(choose) returns must be compiled; model '{model.name}' is not. "
                    "Compile it there, or pass compile={'optimizer': ..., 'loss': ...}."
                )
            return
        off = {"jit_compile": False} if self.how.get("jit_compile") in (None, "auto") else {}
        model.compile(**{**keras.tree.map_structure(_fresh, self.how), **off})

    def batch(self) -> Arrays:
        """Some samples for a proxy."""
        return self.train_data[0][:_BATCH], self.train_data[1][:_BATCH]

    def _score(self, model: keras.Model) -> float:
        if self.evaluate is not None:
            self.measure = "evaluate"
            return float(self.evaluate(model))
        found = model.evaluate(
            *self.held_out, batch_size=max(256, self.batch_size), verbose=0, return_dict=True
        )
        metrics = [name for name in found if name != "loss"]
        self.measure = metrics[0] if metrics else "-loss"
        return float(found[metrics[0]]) if metrics else -float(found["loss"])


def compile_settings(model: Any, settings: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The arguments of `compile`; None if a function that builds is to know them."""
    if settings is not None:
        if "loss" not in settings:
            raise ValueError(
                f"compile must have a loss; received {dict(settings)!r}. Add 'loss': '...'."
            )
        return dict(settings)
    if not isinstance(model, keras.Model):
        return None
    if not model.compiled:
        raise ValueError(
            f"model '{model.name}' must be compiled, as it is trained so; it is not. Call "
            "model.compile(...), or pass compile={'optimizer': ..., 'loss': ...}."
        )
    return dict(model._compile_config.config)


def _fresh(value: Any) -> Any:
    """An optimizer, loss or metric without what it has seen."""
    if isinstance(value, (keras.optimizers.Optimizer, keras.metrics.Metric)):
        return type(value).from_config(value.get_config())
    return value


def _arrays(name: str, given: Any) -> Arrays:
    pair = isinstance(given, (tuple, list)) and len(given) == 2
    if not pair or not all(hasattr(part, "shape") for part in given):
        raise TypeError(f"{name} must be (x, y) arrays; received {type(given).__name__}.")
    x, y = (np.asarray(part) for part in given)
    check(len(x) == len(y) > 0, name, "as many samples of x as of y", (len(x), len(y)))
    return x, y


def _split(whole: Arrays, share: float, seed: int) -> tuple[Arrays, Arrays]:
    """(to train on, held out), of samples in random order."""
    count = len(whole[0])
    held = round(count * share)
    check(0 < held < count, "validation", f"a share of {count} samples that leaves both", share)
    order = np.random.default_rng(seed).permutation(count)
    x, y = whole
    return (x[order[held:]], y[order[held:]]), (x[order[:held]], y[order[:held]])
