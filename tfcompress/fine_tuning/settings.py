"""How a model is compiled: as it was saved, or with a given loss and optimizer."""

import dataclasses
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import keras

from tfcompress.files import reason_of
from tfcompress.suggestions import named_in_keras


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `compile` is called with.

    Args:
        saved: the serialized compile settings of a file; None if it has none.
        loss: name of a Keras loss, instead of the saved one.
        from_logits: whether that loss takes logits.
        optimizer: name of a Keras optimizer, instead of the saved one.
        learning_rate: instead of the optimizer's own.
        needs_loss: whether there must be a loss: not to learn from a teacher alone.

    Raises:
        ValueError: a name is not known, or neither saved nor given.
    """

    saved: dict[str, Any] | None = None
    loss: str | None = None
    from_logits: bool = False
    optimizer: str | None = None
    learning_rate: float | None = None
    needs_loss: bool = True

    def __post_init__(self):
        needed = ("loss", "optimizer") if self.needs_loss else ("optimizer",)
        missing = [name for name in needed if getattr(self, name) is None]
        if self.saved is None and missing:
            loss = "--loss, such as sparse_categorical_crossentropy, and " * self.needs_loss
            raise ValueError(
                "the model was saved without the settings of compile; received no "
                f"{' and no '.join(missing)}. Pass {loss}--optimizer, such as adam."
            )
        if self.from_logits and self.loss is None:
            raise ValueError(
                "from_logits belongs to a loss that is given by name; received none. Pass --loss."
            )
        rate = self.learning_rate
        if rate is not None and not 0 < rate < math.inf:
            raise ValueError(
                f"learning_rate must be a number greater than 0; received {rate!r}. 1e-3 to 1e-5 "
                "is usual."
            )
        self.arguments()

    def arguments(self, steps: int | None = None) -> dict[str, Any]:
        """New arguments for `compile`; an optimizer serves one model only.

        Args:
            steps: over which a constant learning rate falls to 0 along a cosine; None keeps it.
        """
        found: dict[str, Any] = {}
        if self.saved is not None:
            try:
                found = keras.saving.deserialize_keras_object(self.saved)
            except Exception as error:
                raise ValueError(
                    "the settings of compile that were saved with the model cannot be read: "
                    f"{reason_of(error)}. Pass --loss and --optimizer."
                ) from error
        if self.loss is not None:
            found["loss"] = _loss(self.loss, self.from_logits)
            found["metrics"] = ["accuracy"] if "crossentropy" in self.loss.lower() else None
            found["loss_weights"] = found["weighted_metrics"] = None
        if self.optimizer is not None:
            found["optimizer"] = named_in_keras("optimizer", self.optimizer)
        if self.learning_rate is not None:
            found["optimizer"] = _with_rate(found["optimizer"], self.learning_rate)
        if steps is not None:
            found["optimizer"] = _decaying(found["optimizer"], steps)
        return {**found, **_compilation(found)}

    @property
    def loss_is_known(self) -> bool:
        """Whether the model can be judged by labels."""
        return self.saved is not None or self.loss is not None

    def without_labels(self, steps: int | None = None) -> dict[str, Any]:
        """As `arguments`, for a training that has no labels."""
        by_labels = ("loss", "metrics", "loss_weights", "weighted_metrics")
        return {k: v for k, v in self.arguments(steps).items() if k not in by_labels}

    def without_optimizer(self) -> dict[str, Any]:
        """Arguments for a model that is only evaluated."""
        return {k: v for k, v in self.arguments().items() if k != "optimizer"}


def saved_settings(path) -> dict[str, Any] | None:
    """The serialized compile settings in a .keras or .h5 file; None if it has none.

    Args:
        path: a model file that can be loaded.
    """
    if Path(path).suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json")).get("compile_config")
    else:
        try:
            model = keras.saving.load_model(path, compile=True, safe_mode=True)
            config = model.get_compile_config() if model.compiled else None
        except Exception:  # A loss of one's own, say; without compiling the file was loaded.
            return None
    usable = isinstance(config, dict) and config.get("loss") and config.get("optimizer")
    return config if usable else None


def is_kind(loss: Any, kind: str) -> bool:
    """Whether a loss, given by name, as a function or an object, is of a kind.

    Example:
        >>> is_kind("sparse_categorical_crossentropy", "SparseCategoricalCrossentropy")
        True
    """
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
    return name.lower().replace("_", "") == kind.lower()


def _loss(name: str, from_logits: bool) -> Any:
    loss = named_in_keras("loss", name)
    if not from_logits:
        return name
    for cls in ("BinaryCrossentropy", "CategoricalCrossentropy", "SparseCategoricalCrossentropy"):
        if is_kind(loss, cls):
            return getattr(keras.losses, cls)(from_logits=True)
    raise ValueError(
        f"from_logits is for crossentropies; received the loss {name!r}. Leave it out."
    )


def _decaying(optimizer: Any, steps: int) -> Any:
    rate = getattr(optimizer, "inner_optimizer", optimizer).get_config()["learning_rate"]
    if not isinstance(rate, (int, float)):  # a schedule of its own
        return optimizer
    return _with_rate(optimizer, keras.optimizers.schedules.CosineDecay(rate, steps))


def _with_rate(optimizer: Any, rate: Any) -> Any:
    if hasattr(optimizer, "inner_optimizer"):  # LossScaleOptimizer
        optimizer.inner_optimizer = _with_rate(optimizer.inner_optimizer, rate)
        return optimizer
    return type(optimizer).from_config({**optimizer.get_config(), "learning_rate": rate})


def _compilation(found: dict[str, Any]) -> dict[str, Any]:
    import tensorflow as tf

    # On CPUs XLA makes depthwise convolutions several times slower.
    jit = found.get("jit_compile", "auto") if tf.config.list_physical_devices("GPU") else False
    return {"jit_compile": jit}
