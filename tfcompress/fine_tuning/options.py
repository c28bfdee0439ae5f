"""What a fine-tuning is asked for."""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

from tfcompress import __version__, files
from tfcompress.tflite.convert import check_arguments

PathLike = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class Options:
    """The arguments of `fine_tune`, which describes them.

    Raises:
        ValueError, OSError: if one is out of its range, or the output cannot be written.
    """

    model: PathLike
    recipe: PathLike
    data: PathLike
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
    io_dtype: str = "float32"
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self):
        for name, least in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
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
        given = self.precision is not None or self.io_dtype != "float32"
        if given and suffix == ".keras":
            raise ValueError(
                "precision and io_dtype are for .tflite files; received them with "
                f"'{self.output}'. Leave them out, or write a .tflite file."
            )
        if self.precision is not None:
            check_arguments(self.precision, self.io_dtype)
        files.check_writable(self.output)
        for source in (self.model, self.recipe, self.data, self.validation_data):
            if source is None or not (Path(source).exists() and Path(self.output).exists()):
                continue
            if Path(self.output).samefile(source):
                raise ValueError(
                    f"the output is one of the files that are read, '{source}'. Name another file."
                )

    @property
    def folder(self) -> str:
        """Where the checkpoint is kept."""
        return f"{os.fspath(self.output)}.checkpoint"

    def fingerprint(self, recipe: bytes) -> dict[str, Any]:
        """All that a training depends on, as JSON: what it must share with one to resume.

        Args:
            recipe: the content of its file.
        """
        read = {name: getattr(self, name) for name in ("model", "data", "validation_data")}
        plain = (
            "epochs batch_size loss from_logits optimizer learning_rate constant_rate "
            "validation_split seed"
        ).split()
        return {
            "tfcompress": __version__,
            **{name: None if path is None else _hash(path) for name, path in read.items()},
            "recipe": hashlib.sha256(recipe).hexdigest(),
            **{name: getattr(self, name) for name in plain},
        }


def _hash(path: PathLike) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
