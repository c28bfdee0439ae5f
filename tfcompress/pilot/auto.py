"""auto: the best file for a device within budgets, found by trying recipes."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import os
import shlex
import shutil
import time as clock
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfcompress.errors import check, expected_one_of, is_whole
from tfcompress.files import models, writing
from tfcompress.files.processes import Failed, run_apart
from tfcompress.files.quantities import as_time, parse_seconds
from tfcompress.fine_tuning import data as datasets
from tfcompress.fine_tuning.data import Arrays
from tfcompress.fine_tuning.options import Options, Settings, saved_settings
from tfcompress.graph.flatten import flatten
from tfcompress.graph.inputs import require_model
from tfcompress.pilot import ledger as ledgers
from tfcompress.pilot.budget import COSTS, QUALITY, Budget, Goal
from tfcompress.pilot.deriving import derive
from tfcompress.pilot.engines import ENGINES
from tfcompress.pilot.job import CODED, FILE, MODEL, OUTPUTS, Job
from tfcompress.pilot.judging import Judge, Metric
from tfcompress.pilot.ledger import DONE, FAILED, Ledger, Record
from tfcompress.pilot.page import write_search_report
from tfcompress.pilot.result import AutoResult, Tried, front_of, missed_words, worth_of
from tfcompress.pilot.search import FLOAT, Deadline, Search
from tfcompress.pilot.space import Space
from tfcompress.pilot.trial import judged_data, run
from tfcompress.pilot.workers import Here, OnRay, Workers, stopped
from tfcompress.results import say
from tfcompress.targets.targets import load_target
from tfcompress.version import VERSION

PathLike = str | os.PathLike[str]
Progress = Callable[[str, int, int | None], Any]

# Steps of the first turn of a training, about; each turn makes it three times as long.
_STEPS = 150
_TURNS = (1, 2, 6)
# Seconds that what comes before the first trial may take at most.
_BEFORE = 900.0
_HELD_OUT = 0.2
# Two measurements of one latency differ by as much.
_NOISE = 0.02


def auto(
    model: keras.Model | PathLike,
    data: Any,
    output: PathLike = "best.tflite",
    *,
    budget: str | Mapping[str, Any] | Budget,
    target: str | None = None,
    time: str | float | None = None,
    trials: int | None = None,
    space: PathLike | Space | None = None,
    metric: Metric | str | None = None,
    epochs: int | Sequence[int] | None = None,
    engine: str = "tpe",
    workers: int | None = None,
    ray: str | None = None,
    storage: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    keep_files: bool = False,
    memory: int | None = None,
    accelerator: str | None = None,
    io_dtype: str | None = None,
    report: bool = True,
    progress: Progress | None = None,
    **training: Any,
) -> AutoResult:
    """The best file for a device within budgets, found by trying recipes on a model.

    Files after training come first, then recipes with a short training; the best of these are
    trained for longer, and of these again the best (successive halving). Which recipes are tried is
    chosen by Optuna among all that the space holds. Every budget is checked on the file itself.

    Args:
        model: a float Keras 3 model, compiled, or its .keras or .h5 file.
        data: (x, y), or a .npz file of the arrays x and y, see `tfcompress compress`. A fifth is
            held out, on which files are judged, unless `validation_data` or `validation_split`
            are given.
        output: the .tflite file to write; beside it come the model (.keras), the recipe (.yaml) and
            a page on the search (.html).
        budget: what the file may cost and must reach, "flash=48k,quality=-0.5" or a mapping.
            flash: bytes of the file, on a microcontroller with weights in codes where that is
            smaller. ram: bytes of the arena as TFLite Micro measures it, or of LiteRT's tensors.
            latency: parts of the float file's time on this machine, "0.5x". cycles: as Vela counts
            them for `accelerator`. macs. quality: points below the float file (-0.5), percent of
            it (-1%), or a number to reach (0.9). Costs also as parts of the float file's, "0.25x".
            With quality the file that costs least is sought, without it the best one.
        target: a device, see `list_targets`.
        time: of the whole search, "2h" or seconds.
        trials: or how many trials, which are the same each time with one worker and one seed.
        space: a `Space` or its YAML file; None makes one from the model, see `space.yaml` in the
            folder of the search.
        metric: the quality: a function f(labels, outputs) -> float, higher is better, or the name
            of a metric that the model was compiled with; None: the first of these, accuracy for
            crossentropies, or the loss.
        epochs: of the turns of a training, such as (2, 4, 12), each of which begins where the one
            before ended. None: turns of some 150, 300 and 900 steps.
        engine: "tpe", "nsga2" (evolution for several objectives) or "random".
        workers: trials at a time, by Ray on this machine; None: one, without Ray.
        ray: the address of a Ray cluster, or "auto".
        storage: where Optuna keeps the trials, such as "sqlite:///trials.db"; None: a journal in
            the folder `<output>.auto`. Several processes may search on one storage and folder.
        resume: go on with the search in that folder: no trial that ended is lost.
        overwrite: begin anew although there is one.
        keep_files: keep the files of all trials in the folder, not of the best ones alone.
        memory: the most bytes of memory that a trial may take.
        accelerator: an Ethos-U for cycles, such as "ethos-u55-128".
        io_dtype: of the file, see `convert`.
        report: write the page.
        progress: called as `progress(stage, done, total)`.
        **training: of `tfcompress compress`: batch_size=32, loss, from_logits, optimizer,
            learning_rate, validation_data, validation_split, seed=0.

    Returns:
        An `AutoResult`: the file and its figures, all that was tried, the Pareto front, what each
        step was worth, and the commands that make the file again.

    Raises:
        ImportError: if Optuna, or Ray where it is asked for, is not installed.
        TypeError, ValueError: if an argument, the model or the data will not do, the time is too
            short for one trial, or nothing that was tried keeps the budgets; says the nearest.

    Example:
        >>> found = auto(model, (x, y), "best.tflite", target="microcontroller",
        ...              budget="flash=48k,ram=64k,quality=-0.5", time="30m")  # doctest: +SKIP
        >>> print(found)  # doctest: +SKIP

    References:
        Successive halving: Li et al. 2018, arXiv:1810.05934. TPE: Bergstra et al. 2011, "Algorithms
        for Hyper-Parameter Optimization". NSGA-II: Deb et al. 2002.
    """
    start = clock.monotonic()
    given = _Given(
        model=model,
        data=data,
        output=os.fspath(output),
        budget=Budget.parse(budget),
        target=target,
        seconds=_seconds(time),
        trials=trials,
        space=space,
        metric=metric,
        epochs=epochs,
        engine=engine,
        storage=storage,
        resume=resume,
        overwrite=overwrite,
        accelerator=accelerator,
        io_dtype=io_dtype,
        training=training,
    )
    made: Workers
    if workers is not None or ray is not None:
        check(workers is None or is_whole(workers), "workers", "1 or more", workers)
        made = OnRay(run, memory, ray, workers)
    else:
        made = Here(run, memory)
    with stopped(made):
        pilot = _Pilot(given, made, start, progress or (lambda stage, done, total: None))
        return pilot.run(keep_files, report)


def _seconds(time: str | float | None) -> float | None:
    if isinstance(time, str):
        try:
            return parse_seconds(time)
        except ValueError as error:
            raise ValueError(f"time: {error}") from None
    if time is not None:
        holds = (
            not isinstance(time, bool) and isinstance(time, (int, float)) and 0 < time < math.inf
        )
        check(holds, "time", "seconds above 0, or a text such as '45m'", time)
    return None if time is None else float(time)


@dataclasses.dataclass(frozen=True)
class _Given:
    """The arguments of `auto`, which describe them; checked before anything is done."""

    model: Any
    data: Any
    output: str
    budget: Budget
    target: str | None
    seconds: float | None
    trials: int | None
    space: Any
    metric: Any
    epochs: Any
    engine: str
    storage: str | None
    resume: bool
    overwrite: bool
    accelerator: str | None
    io_dtype: str | None
    training: Mapping[str, Any]

    def __post_init__(self) -> None:
        ledgers.require_optuna()
        if self.engine not in ENGINES:
            raise ValueError(
                f"unknown engine {self.engine!r}; {expected_one_of(self.engine, ENGINES)}"
            )
        if self.seconds is None and self.trials is None:
            raise ValueError(
                "a search ends after some time or trials; received neither. Give time='30m' "
                "(--time 30m) or trials=50 (--trials 50)."
            )
        check(self.trials is None or is_whole(self.trials), "trials", "1 or more", self.trials)
        if self.resume and self.overwrite:
            raise ValueError(
                "resume goes on and overwrite begins anew; received both. Choose one of them."
            )
        if Path(self.output).suffix != ".tflite":
            raise ValueError(
                f"the output must end in .tflite; received '{self.output}'. Rename it."
            )
        if self.target is not None:
            load_target(self.target)
        if ("cycles" in self.budget.limits) != (self.accelerator is not None):
            raise ValueError(
                f"cycles are counted for an accelerator; received budget '{self.budget.text}' and "
                f"accelerator {self.accelerator!r}. Give both, such as cycles=1.5M and "
                "ethos-u55-128, or none."
            )
        if (
            self.metric is not None
            and not isinstance(self.metric, str)
            and not callable(self.metric)
        ):
            raise TypeError(
                f"metric must be a function f(labels, outputs) -> float or a name; received "
                f"{self.metric!r}."
            )
        unknown = [name for name in self.training if name not in _TRAINING]
        if unknown:
            raise TypeError(
                f"auto takes no argument {unknown[0]!r}; {expected_one_of(unknown[0], _TRAINING)}"
            )
        if self.epochs is not None:
            turns = self.turns(1)
            if not turns or not all(is_whole(n) for n in turns):
                raise ValueError(
                    "epochs must be whole numbers above 0, those of each turn, such as (2, 4, 12) "
                    f"or 2+4+12 on the command line; received {self.epochs!r}."
                )
        for path in self.written:
            writing.check_writable(path)
            for source in self.sources:
                if writing.is_same(path, source):
                    raise ValueError(
                        f"'{path}' would be written, and is read: '{source}'. Name another output."
                    )

    @property
    def sources(self) -> list[PathLike]:
        """The files that are read."""
        named = (self.model, self.data, self.space, self.training.get("validation_data"))
        return [path for path in named if isinstance(path, (str, os.PathLike))]

    @property
    def written(self) -> list[str]:
        """The files that are written."""
        return [
            os.path.splitext(self.output)[0] + e for e in (".tflite", ".keras", ".yaml", ".html")
        ]

    @property
    def folder(self) -> Path:
        """Where the search is kept."""
        return Path(f"{self.output}.auto")

    def turns(self, batches: int) -> tuple[int, ...]:
        """Epochs of each turn; `batches` is how many an epoch has."""
        if self.epochs is None:
            first = max(1, round(_STEPS / batches))
            return tuple(first * times for times in _TURNS)
        return tuple(self.epochs) if isinstance(self.epochs, Sequence) else (self.epochs,)


_TRAINING = (
    *("batch_size", "loss", "from_logits", "optimizer", "learning_rate", "constant_rate"),
    *("validation_data", "validation_split", "seed"),
)


class _Pilot:
    """One call of `auto`."""

    def __init__(self, given: _Given, workers: Workers, start: float, tell: Progress):
        self.given, self.workers, self.start, self.tell = given, workers, start, tell
        folder = given.folder
        if given.overwrite:
            shutil.rmtree(folder, ignore_errors=True)
        tell("read the data", 0, None)
        self.model, self.data = self._files(folder)
        self.training = self._trained()
        tell("load the model", 0, None)
        self.flat = flatten(_float_model(self.model))
        self.settings = Settings(
            saved_settings(self.model),
            *(self.training[name] for name in ("loss", "from_logits", "optimizer")),
        )
        probe = self._job(None, folder, (), False)
        self.judged = judged_data(probe, self.flat)
        every = Arrays(datasets.read(self.data), self.flat, self.data).match()
        datasets.check_labels(self.flat, self.settings.arguments()["loss"], every)
        self.judge = Judge(self.flat, self.settings, given.metric)
        trained = len(every) - (len(self.judged) if self.training["validation_split"] else 0)
        self.turns = given.turns(math.ceil(trained / self.training["batch_size"]))
        self.up, self.measure = True, ""

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
            return self._finish(search, space, keep_files, report)

    def _files(self, folder: Path) -> tuple[str, str]:
        """Model and data as files: what was given in memory is kept in the folder."""
        model, data = self.given.model, self.given.data
        if not isinstance(model, (str, os.PathLike)):
            require_model(model)
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / MODEL).exists():
                model.save(folder / MODEL)
            model = folder / MODEL
        if not isinstance(data, (str, os.PathLike)):
            if not (isinstance(data, tuple) and len(data) == 2):
                raise TypeError(
                    "data must be (x, y) or a .npz file with the arrays x and y; received "
                    f"{type(data).__name__}. Labels are needed, by which files are judged."
                )
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "data.npz").exists():
                np.savez(folder / "data.npz", x=data[0], y=data[1])
            data = folder / "data.npz"
        return os.fspath(model), os.fspath(data)

    def _trained(self) -> dict[str, Any]:
        """The arguments of `fine_tune` that all trainings share, checked as it checks them."""
        usual = {"batch_size": 32, "loss": None, "from_logits": False, "optimizer": None,
                 "learning_rate": None, "constant_rate": False, "validation_data": None,
                 "validation_split": 0.0, "seed": 0}  # fmt: skip
        found = usual | dict(self.given.training)
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
            "model": _digest(self.model),
            "data": _digest(self.data),
            "target": self.given.target,
            "io_dtype": self.given.io_dtype,
            "metric": getattr(metric, "__name__", metric),
            "epochs": list(self.turns),
            "accelerator": self.given.accelerator,
            "training": {
                name: value if name != "validation_data" or value is None else _digest(value)
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
            training["learning_rate"] = own["rate"] * self._rate
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
        rate = self.training["learning_rate"]
        if rate is None:
            config = getattr(optimizer, "inner_optimizer", optimizer).get_config()
            rate = config["learning_rate"]
        if isinstance(rate, Mapping):  # a schedule
            rate = rate["config"].get("initial_learning_rate", 1e-3)
        return float(rate)

    def _judged(self, folder: Path) -> tuple[dict[str, float], float]:
        """The measures of the outputs that a trial left, and the quality."""
        with np.load(folder / OUTPUTS) as file:
            measures = self.judge.measures(dict(file), self.judged)
        self.measure, self.up = self.judge.chosen(measures)
        return measures, measures[self.measure]

    def _goal(self, base: Record) -> Goal:
        if not self.measure:
            self.measure, self.up = self.judge.chosen(base.figures["measures"])
        figures = {"latency": 1.0, "cycles": math.nan, **base.figures}
        return Goal(self.given.budget.bounds(figures, self.up), figures, self.up)

    def _finish(self, search: Search, space: Space, keep_files: bool, report: bool) -> AutoResult:
        """Writes the best file, and what is told of the search."""
        goal, base = search.goal, search.base()
        assert goal is not None
        assert base is not None
        records = [r for r in search.ledger.records() if r.key != FLOAT]
        tried = self._tried(records, goal)
        self._check_time(search, base)
        best = self._best(records, tried, goal)
        if best is None:
            nearest = missed_words(goal, tried, base.figures)
            raise ValueError(
                f"nothing that was tried keeps the budget {self.given.budget.text}: {nearest}. "
                "Raise what is missed, or go on with --resume and more --time."
            )
        record, chosen = best
        names = self.given.written
        place = self.given.folder / record.place
        coded = record.figures["coded"]
        commands = self._commands(record, names)
        contents = {
            names[0]: (place / (CODED if coded else FILE)).read_bytes(),
            names[1]: (place / MODEL).read_bytes(),
            names[2]: _headed(record.recipe, commands).encode(),
        }
        for path, content in contents.items():
            writing.atomic_write(path, content)
        if not keep_files:
            self._tidy(records, tried)
        first = {part: next(iter(options)) for part, options in space.parts.items()}
        found = AutoResult(
            model=self.model,
            output=names[0],
            keras=names[1],
            recipe=names[2],
            report=names[3] if report else None,
            commands=tuple(commands),
            target=self.given.target,
            budget=self.given.budget.text,
            bounds=dict(goal.bounds),
            measure=self.measure,
            up=self.up,
            judged_on=len(self.judged),
            error=self._error(chosen.quality),
            float_file={QUALITY: base.figures[QUALITY], **_costs(base.figures)},
            best=chosen,
            tried=tuple(tried),
            worth=tuple(worth_of(chosen, tried, first)),
            seconds=round(clock.monotonic() - self.start, 1),
            folder=os.fspath(self.given.folder),
        )
        if report:
            write_search_report(found, names[3])
        return found

    def _check_time(self, search: Search, base: Record) -> None:
        """Raises if there was no time for one trial."""
        given = self.given.seconds
        if given is None:
            return
        took = clock.monotonic() - self.start
        ended = [
            r for r in search.ledger.records() if r.status in (DONE, FAILED) and r.key != FLOAT
        ]
        if len(ended) <= 1 and took > given * 1.05:
            raise ValueError(
                f"time must be enough for one trial: with the float model, which took "
                f"{as_time(base.figures['seconds'])}, the first one ended after {as_time(took)}; "
                f"received {as_time(given)}. Give at least {as_time(3 * took)}, or go on from here "
                "with --resume."
            )

    def _tried(self, records: Sequence[Record], goal: Goal) -> list[Tried]:
        """What is told of each trial."""
        rows = [_figures(r, goal) if r.status == DONE else None for r in records]
        fronts = front_of(rows, self.up)
        found = []
        for record, row, front in zip(records, rows, fronts, strict=True):
            costs = _costs(record.figures) if row is not None else {}
            kept = (self.given.folder / record.place / MODEL).exists()
            found.append(
                Tried(
                    number=record.number,
                    picks=record.picks,
                    epochs=sum(self.turns[: record.turn]),
                    quality=record.figures.get(QUALITY),
                    costs=costs,
                    seconds=record.figures.get("seconds"),
                    front=front,
                    met=row is not None and not goal.missed(record.figures),
                    error=record.error if record.status == FAILED else None,
                    files=record.place if kept else None,
                )
            )
        return found

    def _best(
        self, records: Sequence[Record], tried: Sequence[Tried], goal: Goal
    ) -> tuple[Record, Tried] | None:
        """The best trial that keeps all budgets, also when its latency is measured alone."""
        pairs = [(r, t) for r, t in zip(records, tried, strict=True) if t.met and t.files]
        for record, each in sorted(pairs, key=lambda p: (goal(p[0].figures), p[0].number)):
            if "latency" not in goal.bounds or self._is_fast(record, goal.bounds["latency"]):
                return record, each
        return None

    def _is_fast(self, record: Record, bound: float) -> bool:
        """Whether a file keeps its latency while nothing else runs."""
        from tfcompress.search.layer_latency import Clock

        folder = self.given.folder
        contents = [
            (folder / "trials" / FLOAT / "0" / FILE).read_bytes(),
            (folder / record.place / FILE).read_bytes(),
        ]
        self.tell("measure latency", 0, None)
        _, (ratio,) = Clock().measured(folder, contents, whole=True)
        return ratio <= bound * (1 + _NOISE)

    def _error(self, quality: float | None) -> float | None:
        """Standard error of a share of right answers on as many samples."""
        if quality is None or "acc" not in self.measure or not 0 <= quality <= 1:
            return None
        return math.sqrt(quality * (1 - quality) / len(self.judged))

    def _tidy(self, records: Sequence[Record], tried: Sequence[Tried]) -> None:
        """Removes files of trials that nobody will ask for; recipes and figures stay."""
        for record, each in zip(records, tried, strict=True):
            if not each.front:
                shutil.rmtree(self.given.folder / record.place, ignore_errors=True)

    def _commands(self, record: Record, names: Sequence[str]) -> list[str]:
        """The command that makes the file again."""
        job = self._job(record, Path(), self.turns[: record.turn], False)
        told: dict[str, Any] = {"recipe": names[2], "data": self.data}
        told["epochs"] = "+".join(map(str, job.epochs)) or 0
        told["output"] = names[0]
        usual = {"batch_size": 32, "from_logits": False, "constant_rate": False, "seed": 0}
        told |= {
            k: v for k, v in job.training.items() if v not in (None, 0.0) and v != usual.get(k)
        }
        told |= {"target": job.target, "io_dtype": job.io_dtype}
        told |= {"compressed_weights": True} if record.figures["coded"] else {}
        words = ["tfcompress", "compress", self.model]
        for name, value in told.items():
            option = f"--{name.replace('_', '-')}"
            if value is True:
                words.append(option)
            elif value not in (None, False):
                words += [option, str(value)]
        words += ["--epochs", "0"] if told["epochs"] == 0 else []
        return [shlex.join(words)]


def _float_model(path: str) -> keras.Model:
    loaded = models.load_model(path)
    require_model(loaded)
    return loaded


def _digest(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _costs(figures: Mapping[str, Any]) -> dict[str, float]:
    return {name: figures[name] for name in COSTS if name in figures}


def _figures(record: Record, goal: Goal) -> dict[str, float]:
    """What decides of the front: the quality, and costs that have budgets, or flash, RAM, MACs."""
    costs = [n for n in goal.bounds if n != QUALITY] or ["flash", "ram", "macs"]
    return {name: record.figures[name] for name in (QUALITY, *costs)}


def _objectives(count: int, goal: Goal, figures: Mapping[str, Any]) -> list[float]:
    """What an engine is told: how good a file is for its budgets, or each figure by itself."""
    if count == 1:
        return [goal(figures)]
    sign = -1.0 if goal.up else 1.0
    costs = [n for n in goal.bounds if n != QUALITY] or ["flash"]
    return [sign * figures[QUALITY], *(float(figures[name]) for name in costs)]


def _headed(recipe: str, commands: Sequence[str]) -> str:
    head = "".join(f"# {line}\n" for line in ("Found by tfcompress auto; made again by", *commands))
    return head + recipe
