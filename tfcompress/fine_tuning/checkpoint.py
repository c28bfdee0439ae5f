"""Where an interrupted training goes on: one file after each epoch, complete or not there."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from tfcompress.files import models, writing
from tfcompress.results import say

_SETTINGS = "run.json"
_MODEL, _TOLD = "model.keras", "model.json"
_ENDING = ".weights.h5"


class Checkpoint:
    """A folder with the settings of a training and its state after the last whole epoch.

    Args:
        folder: its path; made when training begins.
    """

    def __init__(self, folder):
        self.folder = Path(folder)

    def epoch(self) -> int:
        """How many epochs are done; 0 if there is no checkpoint."""
        return max((int(path.name.split(".")[0]) for path in self._states()), default=0)

    def total(self) -> int | None:
        """How many epochs the training has; None if that was not kept."""
        try:
            settings = json.loads((self.folder / _SETTINGS).read_bytes())
            return sum(_turns(settings["epochs"])) + settings["epochs_before"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def check(self, settings: dict[str, Any], *, resume: bool, overwrite: bool) -> int:
        """Whether a training can begin or go on; changes nothing."""
        if resume:
            self._require_same(settings)
            return self.epoch()
        done = self.epoch()
        if done and not overwrite:
            raise ValueError(
                f"an interrupted training is kept in '{self.folder}' ({_epochs(done)} done). "
                "Go on with --resume, or begin anew with --overwrite."
            )
        return 0

    def begin(self, settings: dict[str, Any]) -> None:
        """Makes the folder anew."""
        self.remove()
        try:
            self.folder.mkdir()
        except OSError as error:
            raise OSError(f"cannot make the folder '{self.folder}': {error.strerror}.") from error
        self.go_on(settings)

    def go_on(self, settings: dict[str, Any]) -> None:
        """Keeps the settings of a training, which may have got more turns."""
        writing.atomic_write(self.folder / _SETTINGS, json.dumps(settings, indent=2).encode())

    def keep_model(self, content: bytes, told: dict[str, Any]) -> None:
        """Keeps the model that is trained, where no other file holds it."""
        writing.atomic_write(self.folder / _TOLD, json.dumps(told, indent=2).encode())
        writing.atomic_write(self.folder / _MODEL, content)

    def kept_model(self) -> tuple[bytes, dict[str, Any]] | None:
        """What `keep_model` kept; None if the training was interrupted before."""
        if not (self.folder / _MODEL).is_file():
            return None
        try:
            told = json.loads((self.folder / _TOLD).read_bytes())
        except (OSError, ValueError) as error:
            raise ValueError(
                f"'{self.folder / _TOLD}' is damaged. Begin anew with --overwrite."
            ) from error
        return (self.folder / _MODEL).read_bytes(), told

    def save(self, model: keras.Model, epoch: int) -> None:
        """Keeps the state of a model and its optimizer after an epoch, and no older one."""
        old = self._states()
        unfinished = self.folder / f"unfinished{_ENDING}"
        _kept(model).save_weights(unfinished, overwrite=True)
        with open(unfinished, "rb") as stream:
            os.fsync(stream.fileno())
        unfinished.replace(self.folder / f"{epoch}{_ENDING}")
        for path in old:
            path.unlink()

    def restore(self, model: keras.Model) -> None:
        """Gives a compiled model the state that was kept."""
        model.optimizer.build(model.trainable_variables)
        path = self.folder / f"{self.epoch()}{_ENDING}"
        try:
            _kept(model).load_weights(path)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"the checkpoint '{path}' cannot be read: {models.reason_of(error)}. Begin anew "
                "with --overwrite."
            ) from error

    def remove(self) -> None:
        """Removes the folder and what was written into it, nothing else."""
        if self.folder.is_dir():
            own = (_SETTINGS, _MODEL, _TOLD, f"unfinished{_ENDING}")
            expected = {*self._states(), *(self.folder / name for name in own)}
            others = set(self.folder.iterdir()) - expected
            if others:
                raise ValueError(
                    f"'{self.folder}' must be a folder of checkpoints; it also holds "
                    f"'{min(others).name}'. Name another output, or remove the folder."
                )
            shutil.rmtree(self.folder)

    def _states(self) -> list[Path]:
        found = self.folder.glob(f"*{_ENDING}") if self.folder.is_dir() else []
        return [path for path in found if path.name.split(".")[0].isdigit()]

    def _require_same(self, settings: dict[str, Any]) -> None:
        file = self.folder / _SETTINGS
        if not file.is_file():
            raise ValueError(
                f"there is no interrupted training to resume: no '{file}'. Leave --resume out, or "
                "name the same --output as before."
            )
        try:
            before = json.loads(file.read_bytes())
        except ValueError as error:
            raise ValueError(f"'{file}' is damaged. Begin anew with --overwrite.") from error
        differing = [name for name in settings if before.get(name) != settings[name]]
        if "epochs" in differing and _goes_on(before.get("epochs"), settings["epochs"]):
            differing.remove("epochs")
        if differing:
            listed = "; ".join(_change(n, before.get(n), settings[n]) for n in differing)
            raise ValueError(
                f"a training is resumed with the settings that it began with; received others: "
                f"{listed}. Give the same, or begin anew with --overwrite."
            )


@contextlib.contextmanager
def told_when_interrupted(output: str | os.PathLike[str]) -> Iterator[None]:
    """Says how to go on with a training that is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        checkpoint = Checkpoint(f"{os.fspath(output)}.checkpoint")
        done, total = checkpoint.epoch(), checkpoint.total()
        if done:
            kept = f"{done} of {total} epochs are" if total else _epochs(done)
            say(f"{kept} kept: go on with --resume added.")
        raise


class SaveCheckpoint(keras.callbacks.Callback):
    """Keeps the state after each epoch; the last of the callbacks, so that it sees their work.

    Args:
        checkpoint: where.
    """

    def __init__(self, checkpoint: Checkpoint):
        super().__init__()
        self.checkpoint = checkpoint

    def on_epoch_end(self, epoch, logs=None):
        self.checkpoint.save(self.model, epoch + 1)


class _Learned(keras.Model):
    """What a model that distills has learned, without the teachers, which do not change."""

    def __init__(self, distiller: Any):
        super().__init__()
        self.student, self.adapters = distiller.student, distiller.adapters
        self.optimizer = distiller.optimizer
        self.built = True


def _kept(model: keras.Model) -> keras.Model:
    """The model whose weights and optimizer are written."""
    return _Learned(model) if getattr(model, "frozen_models", None) else model


def _turns(epochs: Any) -> list[int]:
    """The epochs of each turn, of which one alone is a number."""
    return epochs if isinstance(epochs, list) else [epochs]


def _goes_on(before: Any, now: Any) -> bool:
    """Whether turns are those of before and more."""
    return _turns(now)[: len(_turns(before))] == _turns(before)


def _epochs(count: int) -> str:
    return "1 epoch is" if count == 1 else f"{count} epochs are"


def _change(name: str, before: Any, now: Any) -> str:
    if isinstance(now, str) and len(now) == 64:  # a hash, which tells nobody anything
        return f"another content of {name}"
    return f"{name} was {before!r}, now {now!r}"
