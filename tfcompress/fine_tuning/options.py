"""What a fine-tuning is asked for."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from tfcompress.conversion.settings import Settings as SettledFile
from tfcompress.conversion.settings import settle
from tfcompress.distillation.distiller import Distillation
from tfcompress.errors import is_whole, named_in_keras
from tfcompress.files import configs, models, writing
from tfcompress.files.models import reason_of
from tfcompress.fine_tuning.rates import decaying, with_rate
from tfcompress.surgery.shrink import Shrink
from tfcompress.version import VERSION

PathLike = str | os.PathLike[str]
Steps = int | Sequence[int] | None


@dataclasses.dataclass(frozen=True)
class Options:
    """The arguments of `fine_tune`, `distill` and `shrink`, which describe them.

    Args:
        told: what `distill` was told about the distillation, which goes before its recipe; None
            for `fine_tune`.
        shrink: surgery before the training, by a recipe or a command; it may come alone, with 0
            epochs and without data.
    """

    model: PathLike
    recipe: PathLike | None
    data: PathLike | None
    output: PathLike
    epochs: int | Sequence[int]
    batch_size: int = 32
    loss: str | None = None
    from_logits: bool = False
    optimizer: str | None = None
    learning_rate: float | None = None
    constant_rate: bool = False
    validation_data: PathLike | None = None
    validation_split: float = 0.0
    seed: int = 0
    precision: str | None = None
    io_dtype: str | None = None
    target: PathLike | None = None
    resume: bool = False
    overwrite: bool = False
    keep_checkpoint: bool = False
    keep: PathLike | None = None
    compressed_weights: bool = False
    ram: int | None = None
    teacher: PathLike | None = None
    told: Mapping[str, Any] | None = None
    shrink: Shrink | None = None

    def __post_init__(self):
        self._check_epochs()
        for name, least in (("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(
                    f"{name} must be a whole number of at least {least}; received {value!r}."
                )
        if not 0 <= self.validation_split < 1:
            raise ValueError(
                f"validation_split must be in [0, 1); received {self.validation_split!r}. "
                "0.2 judges with a fifth of the data."
            )
        if self.validation_split and self.validation_data is not None:
            raise ValueError(
                "give validation_data or validation_split, not both; received both. "
                "Leave one of them out."
            )
        if self.resume and self.overwrite:
            raise ValueError(
                "resume goes on and overwrite begins anew; received both. Choose one of them."
            )
        self._check_output()

    def _check_epochs(self) -> None:
        given = self.epochs
        # What a recipe needs `asked_by` knows.
        untrained = self.told is None if self.recipe is not None else self.shrink is not None
        least = 0 if untrained else 1
        if isinstance(given, list | tuple):
            holds = bool(given) and all(is_whole(each) for each in given)
        else:
            holds = is_whole(given, least)
        if not holds:
            raise ValueError(
                f"epochs must be a whole number of at least {least}, or those of several turns, "
                f"each of at least 1, such as (3, 9); received {given!r}."
            )

    def _check_output(self) -> None:
        suffix = Path(self.output).suffix
        if suffix not in (".keras", ".tflite"):
            raise ValueError(
                f"the output must end in .keras or .tflite; received '{self.output}'. Rename it."
            )
        names = ("keep", "compressed_weights", "ram", "precision", "io_dtype", "target")
        if suffix == ".keras" and any(getattr(self, name) for name in names):
            raise ValueError(
                f"{', '.join(names[:-1])} and {names[-1]} are for .tflite files; received one with "
                f"'{self.output}'. Leave it out, or write a .tflite file."
            )
        if self.keep is not None and Path(self.keep).suffix != ".keras":
            raise ValueError(
                "keep must end in .keras, as it is the model that the output is made from; "
                f"received '{self.keep}'. Rename it."
            )
        if self.precision is not None or self.target is not None or self.in_codes:
            self.settled(self.precision)
        for name, path in self.written.items():
            writing.check_writable(path)
            for source in self._sources():
                if writing.is_same(path, source):
                    raise ValueError(
                        f"{name} is one of the files that are read, '{source}'. Name another file."
                    )

    @property
    def in_codes(self) -> bool:
        """Whether TFLite Micro is to decode weights."""
        return self.compressed_weights or self.ram is not None

    @property
    def written(self) -> dict[str, PathLike]:
        """The files that are written, by what messages call them."""
        kept = {} if self.keep is None else {"keep": self.keep}
        return {"the output": self.output, **kept}

    def settled(self, precision: str | Mapping[Any, str] | None) -> SettledFile:
        """What the settings of a file come to with a precision, or with those of layers."""
        return settle(
            precision,
            self.io_dtype,
            target=self.target,
            compressed_weights=self.compressed_weights or None,
            ram=self.ram,
        )

    def check_layers(self, precision: Mapping[Any, str]) -> None:
        """Raises unless the file can have the precisions by layer of a recipe."""
        if Path(self.output).suffix == ".keras" or self.precision is not None:
            raise ValueError(
                "the section precision of a recipe is for the layers of a .tflite file; received "
                f"'{self.precision or self.output}' beside it. Take the section out, or write a "
                ".tflite file without another precision."
            )
        self.settled(precision)

    def _sources(self) -> list[PathLike]:
        """The files that are read."""
        named = (self.model, self.recipe, self.data, self.validation_data, self.teacher)
        return [path for path in named if path is not None]

    def distillation(self, found: Distillation | None) -> Distillation | None:
        """How the model learns from a teacher, if it does."""
        if self.told is not None:
            found = dataclasses.replace(found or Distillation(), **self.told)
        if found is None and self.teacher is not None:
            raise ValueError(
                f"the recipe '{self.recipe}' must have a section distill for the teacher "
                f"'{self.teacher}' to teach; received none. Pass --distill, or add 'distill: {{}}' "
                "to the recipe."
            )
        if found is not None and found.cache not in (None, "memory"):
            for other in (*self.written.values(), *self._sources()):
                if writing.is_same(found.cache, other):
                    raise ValueError(
                        f"the cache is another one of the files, '{other}'. Name a file of its own."
                    )
            writing.check_writable(found.cache)
        return found and found.settled

    @property
    def turns(self) -> tuple[int, ...]:
        """Epochs of each turn under the techniques; none where nothing is trained."""
        epochs = self.epochs if isinstance(self.epochs, Sequence) else (self.epochs,)
        return tuple(int(epoch) for epoch in epochs if epoch)

    @property
    def epochs_before(self) -> int:
        """Epochs in float, between surgery and the techniques."""
        return 0 if self.shrink is None else self.shrink.epochs

    @property
    def all_epochs(self) -> int:
        """Epochs of the whole training."""
        return self.epochs_before + sum(self.turns)

    @property
    def folder(self) -> str:
        """Where the checkpoint is kept."""
        return f"{os.fspath(self.output)}.checkpoint"

    def fingerprint(
        self, recipe: bytes | None, distillation: Distillation | None
    ) -> dict[str, Any]:
        """All that a training depends on, as JSON: what it must share with one to resume."""
        read = {
            name: getattr(self, name) for name in ("model", "data", "validation_data", "teacher")
        }
        plain = (
            "batch_size loss from_logits optimizer learning_rate constant_rate "
            "validation_split seed"
        ).split()
        # Of the losses the recipe tells; where outputs are kept changes nothing.
        taught = ("alpha", "temperature", "start_from_teacher", "dropout")
        return {
            "tfcompress": VERSION,
            **{name: None if path is None else digest_of(path) for name, path in read.items()},
            "recipe": recipe and hashlib.sha256(recipe).hexdigest(),
            "shrink": self.shrink and repr(self.shrink),
            "epochs_before": self.epochs_before,
            "epochs": self.turns[0] if len(self.turns) == 1 else list(self.turns),
            **{name: getattr(self, name) for name in plain},
            **{name: getattr(distillation, name, None) for name in taught},
        }


def digest_of(path: PathLike) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


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

    def arguments(self, steps: Steps = None) -> dict[str, Any]:
        """New arguments for `compile`; an optimizer serves one model only.

        Args:
            steps: of a training, or of each of its turns, over which the rate falls; None keeps it.
        """
        found: dict[str, Any] = {}
        if self.saved is not None:
            try:
                configs.check_keras(self.saved, "the model")
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
            found["optimizer"] = with_rate(found["optimizer"], self.learning_rate)
        if steps is not None:
            turns = [steps] if isinstance(steps, int) else steps
            found["optimizer"] = decaying(found["optimizer"], turns)
        return {**found, **_compilation(found)}

    @property
    def loss_is_known(self) -> bool:
        """Whether the model can be judged by labels."""
        return self.saved is not None or self.loss is not None

    def without_labels(self, steps: Steps = None) -> dict[str, Any]:
        """As `arguments`, for a training that has no labels."""
        by_labels = ("loss", "metrics", "loss_weights", "weighted_metrics")
        return {k: v for k, v in self.arguments(steps).items() if k not in by_labels}

    def without_optimizer(self) -> dict[str, Any]:
        """Arguments for a model that is only evaluated."""
        return {k: v for k, v in self.arguments().items() if k != "optimizer"}


def saved_settings(path) -> dict[str, Any] | None:
    """The serialized compile settings in a .keras or .h5 file; None if it has none."""
    if Path(path).suffix == ".keras":
        config = models.read_config(Path(path)).get("compile_config")
    else:
        try:
            configs.check_keras(models.read_config(Path(path), "training_config"), path)
            model = keras.saving.load_model(path, compile=True, safe_mode=True)
            config = model.get_compile_config() if model.compiled else None
        except Exception:  # A loss of one's own, say; without compiling the file was loaded.
            return None
    usable = isinstance(config, dict) and config.get("loss") and config.get("optimizer")
    return config if usable else None


def is_kind(loss: Any, kind: str) -> bool:
    """Whether a loss, given by name, as a function or an object, is of a kind."""
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


def _compilation(found: dict[str, Any]) -> dict[str, Any]:
    import tensorflow as tf

    # On CPUs XLA makes depthwise convolutions several times slower.
    jit = found.get("jit_compile", "auto") if tf.config.list_physical_devices("GPU") else False
    return {"jit_compile": jit}
