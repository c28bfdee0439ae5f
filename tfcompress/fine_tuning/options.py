"""What a fine-tuning is asked for."""

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfcompress import __version__, files
from tfcompress.distillation.settings import Distillation
from tfcompress.surgery.settings import Shrink
from tfcompress.tflite.settings import settle

PathLike = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class Options:
    """The arguments of `fine_tune`, `distill` and `shrink`, which describe them.

    Args:
        told: what `distill` was told about the distillation, which goes before its recipe; None
            for `fine_tune`.
        shrink: surgery before the training, by a recipe or a command; it may come alone, with 0
            epochs and without data.

    Raises:
        ValueError, OSError: if one is out of its range, or the output cannot be written.
    """

    model: PathLike
    recipe: PathLike | None
    data: PathLike | None
    output: PathLike
    epochs: int
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
    teacher: PathLike | None = None
    told: Mapping[str, Any] | None = None
    shrink: Shrink | None = None

    def __post_init__(self):
        alone = self.shrink is not None and self.recipe is None
        for name, least in (("epochs", 0 if alone else 1), ("batch_size", 1), ("seed", 0)):
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

    def _check_output(self) -> None:
        suffix = Path(self.output).suffix
        if suffix not in (".keras", ".tflite"):
            raise ValueError(
                f"the output must end in .keras or .tflite; received '{self.output}'. Rename it."
            )
        given = [self.precision, self.io_dtype, self.target] != [None] * 3
        if given and suffix == ".keras":
            raise ValueError(
                "precision, io_dtype and target are for .tflite files; received one with "
                f"'{self.output}'. Leave it out, or write a .tflite file."
            )
        if self.precision is not None or self.target is not None:
            settle(self.precision, self.io_dtype, target=self.target)
        files.check_writable(self.output)
        for source in self._sources():
            if files.is_same(self.output, source):
                raise ValueError(
                    f"the output is one of the files that are read, '{source}'. Name another file."
                )

    def _sources(self) -> list[PathLike]:
        """The files that are read."""
        named = (self.model, self.recipe, self.data, self.validation_data, self.teacher)
        return [path for path in named if path is not None]

    def distillation(self, found: Distillation | None) -> Distillation | None:
        """How the model learns from a teacher, if it does.

        Args:
            found: what the recipe says about it.

        Raises:
            ValueError: there is a teacher, but nothing says that it is to teach; or the cache would
                overwrite another file.
        """
        if self.told is not None:
            found = dataclasses.replace(found or Distillation(), **self.told)
        if found is None and self.teacher is not None:
            raise ValueError(
                f"the recipe '{self.recipe}' must have a section distill for the teacher "
                f"'{self.teacher}' to teach; received none. Add 'distill: {{alpha: 0.1, "
                "temperature: 4}', pass --recipe distill-int8, or use the command tfcompress "
                "distill."
            )
        if found is not None and found.cache not in (None, "memory"):
            for other in (self.output, *self._sources()):
                if files.is_same(found.cache, other):
                    raise ValueError(
                        f"the cache is another one of the files, '{other}'. Name a file of its own."
                    )
            files.check_writable(found.cache)
        return found

    @property
    def epochs_before(self) -> int:
        """Epochs in float, between surgery and the techniques."""
        return 0 if self.shrink is None else self.shrink.epochs

    @property
    def all_epochs(self) -> int:
        """Epochs of the whole training."""
        return self.epochs_before + self.epochs

    @property
    def folder(self) -> str:
        """Where the checkpoint is kept."""
        return f"{os.fspath(self.output)}.checkpoint"

    def fingerprint(
        self, recipe: bytes | None, distillation: Distillation | None
    ) -> dict[str, Any]:
        """All that a training depends on, as JSON: what it must share with one to resume.

        Args:
            recipe: the content of its file.
            distillation: how the model learns from a teacher.
        """
        read = {
            name: getattr(self, name) for name in ("model", "data", "validation_data", "teacher")
        }
        plain = (
            "epochs batch_size loss from_logits optimizer learning_rate constant_rate "
            "validation_split seed"
        ).split()
        # Of the losses the recipe tells; where outputs are kept changes nothing.
        taught = ("alpha", "temperature", "start_from_teacher")
        return {
            "tfcompress": __version__,
            **{name: None if path is None else _hash(path) for name, path in read.items()},
            "recipe": recipe and hashlib.sha256(recipe).hexdigest(),
            "shrink": self.shrink and repr(self.shrink),
            "epochs_before": self.epochs_before,
            **{name: getattr(self, name) for name in plain},
            **{name: getattr(distillation, name, None) for name in taught},
        }


def _hash(path: PathLike) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
