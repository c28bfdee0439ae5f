"""A search from its files to its folder: what trials share, and what they are judged by."""

from __future__ import annotations

import functools
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfcompress.files import models
from tfcompress.files.arrays import load_labelled
from tfcompress.files.processes import Failed, run_apart
from tfcompress.fine_tuning import data as datasets
from tfcompress.fine_tuning.data import Arrays
from tfcompress.fine_tuning.options import Options, Settings, digest_of, saved_settings
from tfcompress.graph.flatten import flatten
from tfcompress.graph.inputs import require_model
from tfcompress.graph.pixels import normalization_in_front
from tfcompress.pilot import ledger as ledgers
from tfcompress.pilot.asked import Asked
from tfcompress.pilot.budget import QUALITY, Goal
from tfcompress.pilot.deriving import derive
from tfcompress.pilot.finding import Finding, usual_training
from tfcompress.pilot.job import FILE, MODEL, OUTPUTS, Job
from tfcompress.pilot.judging import Judge
from tfcompress.pilot.ledger import Ledger, Record
from tfcompress.pilot.result import AutoResult
from tfcompress.pilot.search import FLOAT, Deadline, Search
from tfcompress.pilot.space import Space
from tfcompress.pilot.trial import judged_data
from tfcompress.pilot.workers import Workers
from tfcompress.results import say
from tfcompress.version import VERSION

Progress = Callable[[str, int, int | None], Any]

# Seconds that what comes before the first trial may take at most.
_BEFORE = 900.0
_HELD_OUT = 0.2
_COMPILED = ("loss", "from_logits", "optimizer", "learning_rate")


class Pilot:
    """One call of `auto`."""

    def __init__(self, given: Asked, workers: Workers, start: float, tell: Progress):
        self.given, self.workers, self.start, self.tell = given, workers, start, tell
        folder = given.folder
        if given.overwrite:  # It was looked at, and is a search.
            shutil.rmtree(folder, ignore_errors=True)
        tell("read the data", 0, None)
        self.model, self.data = self._files(folder)
        self.training = self._trained()
        tell("load the model", 0, None)
        self.flat = flatten(_float_model(self.model))
        self.settings = Settings(
            saved_settings(self.model),
            *(self.training[name] for name in _COMPILED),
        )
        probe = self._job(None, folder, (), False)
        every = Arrays(datasets.read(self.data), self.flat, self.data).match()
        judged = judged_data(probe, self.flat, every)
        for part in (every, judged):
            datasets.check_labels(self.flat, self.settings.arguments()["loss"], part)
            datasets.check_probabilities(self.flat, self.settings, part)
        self.judge = Judge(self.flat, self.settings, judged, given.metric)
        self.judge.check()
        trained = len(every) - (len(judged) if self.training["validation_split"] else 0)
        self.turns = given.turns(math.ceil(trained / self.training["batch_size"]))

    def run(self, keep_files: bool, report: bool) -> AutoResult:
        """Searches, and writes what was found."""
        given = self.given
        ledgers.check_settings(given.folder, self._fingerprint(), given.resume)
        space = self._space()
        deadline = Deadline(given.seconds, given.trials, self.start)
        objectives = 1 + max(1, len(given.budget.costs)) if given.engine == "nsga2" else 1
        seed = self.training["seed"]
        goal = given.budget.text
        with Ledger(
            given.folder, given.storage, given.engine, space, goal, seed, objectives
        ) as found:
            search = Search(
                ledger=found,
                space=space,
                turns=self.turns,
                job=self._job,
                workers=self.workers,
                deadline=deadline,
                judge=self._judged,
                goal_of=self._goal,
                objectives=functools.partial(_objectives, objectives),
                tell=self.tell,
            )
            search.run()
            finding = Finding(given, search, space, self.model, self.data, self.judge, self._job)
            return finding.written(self.start, keep_files, report)

    def _files(self, folder: Path) -> tuple[str, str]:
        """Model and data as files: what was given in memory is kept in the folder."""
        model, data = self.given.model, self.given.data
        if not isinstance(model, (str, os.PathLike)):
            require_model(model)
            model = self._kept(folder / MODEL, model)
        if isinstance(data, (str, os.PathLike)) and os.path.isdir(data):
            data = self._images(os.fspath(model), data)
        if not isinstance(data, (str, os.PathLike)):
            if not (isinstance(data, tuple) and len(data) == 2):
                raise TypeError(
                    "data must be (x, y) or a .npz file with the arrays x and y; received "
                    f"{type(data).__name__}. Labels are needed, by which files are judged."
                )
            data = self._kept(folder / "data.npz", data)
        return os.fspath(model), os.fspath(data)

    def _kept(self, path: Path, given: Any) -> Path:
        """A file in the folder of what was given in memory; raises if it is of something else."""
        is_model = isinstance(given, keras.Model)
        if not self.given.resume:
            path.parent.mkdir(parents=True, exist_ok=True)
            if is_model:
                given.save(path)
            else:
                np.savez(path, x=given[0], y=given[1])
            return path
        if is_model:
            now, kept = given.get_weights(), _float_model(os.fspath(path)).get_weights()
        else:
            with np.load(path) as file:
                now, kept = [np.asarray(array) for array in given], [file["x"], file["y"]]
        if len(now) != len(kept) or not all(map(np.array_equal, now, kept)):
            raise ValueError(
                f"the search in '{path.parent}' is one of another {path.stem}: a search is "
                "resumed with what it began with. Give the same, or begin anew with --overwrite."
            )
        return path

    def _images(self, model: str, folder: Any) -> tuple[np.ndarray, np.ndarray]:
        """Images and their classes, scaled as was asked or as the model tells."""
        loaded = _float_model(model)
        scaling = self.given.scaling or normalization_in_front(loaded)
        shapes = [tuple(tensor.shape) for tensor in loaded.inputs]
        return load_labelled(folder, shapes, scaling=scaling)

    def _trained(self) -> dict[str, Any]:
        """The arguments of `fine_tune` that all trainings share, checked as it checks them."""
        found = usual_training() | dict(self.given.training)
        if not found["validation_split"] and found["validation_data"] is None:
            found["validation_split"] = _HELD_OUT
        path = found["validation_data"]
        found["validation_data"] = None if path is None else os.fspath(path)
        Options(self.model, "int8", self.data, self.given.output, 1, io_dtype=self.given.io_dtype,
                target=self.given.target, **found)  # fmt: skip
        return found

    def _fingerprint(self) -> dict[str, Any]:
        """What a search must share with one to resume it."""
        metric = self.given.metric
        return {
            "version": VERSION,
            "model": digest_of(self.model),
            "data": digest_of(self.data),
            "target": self.given.target,
            "io_dtype": self.given.io_dtype,
            "metric": getattr(metric, "__name__", metric),
            "epochs": list(self.turns),
            "accelerator": self.given.accelerator,
            "measured": [n for n in self.given.budget.costs if n in ("latency", "cycles")],
            "ram": self._job(None, Path(), (), False).ram,
            "training": {
                name: value if name != "validation_data" or value is None else digest_of(value)
                for name, value in self.training.items()
            },
        }

    def _space(self) -> Space:
        """The space: the user's, or one from the model, which is kept to be read and edited."""
        given, path = self.given, self.given.folder / "space.yaml"
        if isinstance(given.space, Space):
            given.space.check("the space")
            given.space.save(path)
            return given.space
        if given.space is not None:
            found = Space.load(given.space)
            found.save(path)
            return found
        if path.exists():
            return Space.load(path)
        self.tell("look at the layers", 0, None)
        arguments = self.model, self.data, given.target, self.training
        try:
            derived = run_apart(derive, *arguments, seconds=_BEFORE)
        except Failed as error:
            raise ValueError(f"no space of recipes can be made for the model: {error}") from None
        derived.space.save(path)
        for change in derived.left_out:
            say(f"Left out: {change.layer} ({change.detail})")
        return derived.space

    def _job(
        self, record: Record | None, folder: Path, epochs: tuple[int, ...], resume: bool
    ) -> Job:
        """The job of a trial."""
        given, own = self.given, {} if record is None else dict(record.training)
        training = {**self.training, **{k: v for k, v in own.items() if k != "rate"}}
        if own.get("rate", 1.0) != 1.0:
            training["learning_rate"] = float(f"{own['rate'] * self._rate:.6g}")
        base = given.folder / "trials" / FLOAT / "0" / FILE
        ram = given.budget.limits.get("ram")
        return Job(
            folder=os.fspath(folder),
            model=self.model,
            data=self.data,
            recipe="" if record is None else record.recipe,
            epochs=epochs,
            training=training,
            target=given.target,
            io_dtype=given.io_dtype,
            costs=tuple(given.budget.costs),
            ram=int(ram.value) if ram is not None and ram.kind == "absolute" else None,
            accelerator=given.accelerator,
            base=os.fspath(base) if base.exists() else None,
            resume=resume,
        )

    @functools.cached_property
    def _rate(self) -> float:
        """The learning rate that trainings begin with."""
        optimizer = self.settings.arguments()["optimizer"]
        rate = getattr(optimizer, "inner_optimizer", optimizer).get_config()["learning_rate"]
        if isinstance(rate, Mapping):  # a schedule
            rate = rate["config"].get("initial_learning_rate", 1e-3)
        return float(rate)

    def _judged(self, folder: Path) -> dict[str, Any]:
        """Figures of the outputs that a trial left: the measures, and the quality."""
        with np.load(folder / OUTPUTS) as file:
            outputs = dict(file)
        measures = self.judge.measures(outputs)
        name, _ = self.judge.chosen(measures)
        return {"measures": measures, QUALITY: measures[name], "parts": self.judge.parts(outputs)}

    def _goal(self, base: Record) -> Goal:
        _, up = self.judge.chosen(base.figures["measures"])
        figures = {"cycles": math.nan, **base.figures, "latency": 1.0}
        return Goal(self.given.budget.bounds(figures, up), figures, up)


def _float_model(path: str) -> keras.Model:
    loaded = models.load_model(path)
    require_model(loaded)
    return loaded


def _objectives(count: int, goal: Goal, figures: Mapping[str, Any]) -> list[float]:
    """What an engine is told: how good a file is for its budgets, or each figure by itself."""
    if count == 1:
        return [goal(figures)]
    sign = -1.0 if goal.up else 1.0
    costs = [n for n in goal.bounds if n != QUALITY] or ["flash"]
    return [sign * figures[QUALITY], *(float(figures[name]) for name in costs)]
