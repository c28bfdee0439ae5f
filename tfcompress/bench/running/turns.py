"""What a benchmark has to do, and its turns: the float model, all methods, then latency."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfcompress.bench.methods import METHODS, Method
from tfcompress.bench.running import child, latency
from tfcompress.bench.running.child import FILE, Job
from tfcompress.bench.running.results import ResultsFile, Row, latest
from tfcompress.bench.tasks import TASKS, Task
from tfcompress.errors import did_you_mean
from tfcompress.files.processes import Failed, preload, run_apart
from tfcompress.tflite import machine
from tfcompress.tools.environments import Unavailable, cache_folder

# What all else is compared with.
REFERENCE = "float32"
SHORT_TASKS = ("digits",)

# Imported once, by the server that processes are forked from, and not by each of them. Nothing of
# it starts TensorFlow, whose threads no fork would have.
PRELOADED = (
    "tfcompress.files.tied",
    *("tensorflow", "keras", "tf_keras", "tensorflow_model_optimization", "sklearn.metrics"),
    *("ai_edge_litert.interpreter", "litert_quantizer", "tfcompress.cli.app"),
    *("tfcompress.bench.running.child", "tfcompress.bench.models", "tfcompress.report.layers"),
    *("tfcompress.compression.compress", "tfcompress.conversion.convert"),
    "tfcompress.surgery.profile",
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Tasks, methods and seeds 0, 1, ...

    Attributes:
        tasks, methods: by their names; float32 is always the first method.
        seeds: how many.
        form: of the benchmark, one of `FORMS`.
        named: whether the tasks were asked for by name.
    """

    tasks: dict[str, Task]
    methods: dict[str, Method]
    seeds: int
    form: str
    named: bool


def make_plan(
    tasks: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    seeds: int = 1,
    form: str = "full",
) -> Plan:
    """Checks the names that were asked for."""
    usual = [name for name, method in METHODS.items() if method.short or form != "short"]
    wanted = {REFERENCE, *(methods or usual)}
    _check("method", wanted, METHODS)
    chosen = set(tasks or (SHORT_TASKS if form == "short" else TASKS))
    _check("task", chosen, TASKS)
    _check_streams(methods or (), chosen)
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise ValueError(f"seeds must be a whole number of at least 1; received {seeds!r}. Try 3.")
    return Plan(_chosen(TASKS, chosen), _chosen(METHODS, wanted), seeds, form, bool(tasks))


def _check(what: str, names: Iterable[str], known: Mapping[str, Any]) -> None:
    for name in names:
        if name not in known:
            mend = did_you_mean(name, known, f"See `tfcompress bench --list` for all {what}s.")
            few = f"{', '.join(list(known)[:5])}{', ...' if len(known) > 5 else ''}"
            raise ValueError(f"unknown {what} {name!r}; expected one of {few}. {mend}")


def _check_streams(methods: Iterable[str], tasks: Iterable[str]) -> None:
    """Raises a ValueError for a method that is for none of the tasks."""
    for name in methods:
        if not any(METHODS[name].suits(TASKS[task]) for task in tasks):
            streams = ", ".join(task for task in TASKS if TASKS[task].streams)
            raise ValueError(
                f"method '{name}' is for tasks whose data are streams; received {', '.join(tasks)}."
                f" Add --task {streams}."
            )


def _chosen(known: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: known[name] for name in known if name in names}


Prepare = Callable[[str, "Path | None"], dict[str, str]]


@dataclasses.dataclass(frozen=True)
class Source:
    """The data of a task.

    Attributes:
        source, digest: see `Data`.
        data_dir: where the real data set lies; None for generated data.
    """

    source: str
    digest: str
    data_dir: Path | None

    def to_dict(self) -> dict[str, str]:
        """As a line of results has it."""
        return {"source": self.source, "digest": self.digest}


def check_data_dir(data_dir: Path | None) -> None:
    """Raises a ValueError unless a folder of real data sets is one."""
    if data_dir is not None and not data_dir.is_dir():
        what = "is a file" if data_dir.exists() else "is not there"
        raise ValueError(
            f"'{data_dir}' {what}; expected a folder of real data sets. Name it with --data-dir, "
            "or leave that out for generated data."
        )


def find_sources(
    plan: Plan, data_dir: Path | None, prepare: Prepare, progress: Callable[..., Any]
) -> dict[str, Source]:
    """Makes or reads the data of all tasks."""
    real = _real_sources(plan, data_dir, prepare, progress)
    found, missing = {}, {}
    for number, name in enumerate(plan.tasks):
        progress("data", number, len(plan.tasks))
        if name in real:
            found[name] = real[name]
            continue
        answer = prepare(name, None)
        reason = answer.get("missing") or answer.get("unreadable")
        if reason is None:
            found[name] = Source(answer["source"], answer["digest"], None)
            continue
        if plan.named:
            raise Unavailable(f"task '{name}' cannot run: {reason}")
        missing[name] = reason
    for name, reason in missing.items():
        if not found:
            raise Unavailable(f"no task can run: '{name}': {reason}")
        message = f"task '{name}' is left out: {reason}. These still run: {', '.join(found)}"
        warnings.warn(message, stacklevel=2)
    return found


def _real_sources(
    plan: Plan, data_dir: Path | None, prepare: Prepare, progress: Callable[..., Any]
) -> dict[str, Source]:
    if data_dir is None:
        return {}
    readers = [name for name, task in plan.tasks.items() if task.read is not None]
    found, reasons = {}, {}
    for number, name in enumerate(readers):
        progress(f"read '{data_dir}'", number, len(readers))
        answer = prepare(name, data_dir)
        if "absent" in answer:
            reasons[name] = answer["absent"]
        elif "digest" in answer:
            found[name] = Source(answer["source"], answer["digest"], data_dir)
        elif "missing" in answer:
            raise Unavailable(f"task '{name}' cannot run: {answer['missing']}")
        else:
            why = answer["unreadable"]
            raise ValueError(f"the data set of task '{name}' cannot be read: {why}")
    if not found:
        # One reason says all that there is to say about one task.
        if len(reasons) == 1:
            raise ValueError(next(iter(reasons.values())))
        told = _looked_for(plan, readers)
        raise ValueError(f"'{data_dir}' has no data set of these tasks: {told}")
    for name, reason in reasons.items():
        warnings.warn(f"task '{name}' takes generated data: {reason}", stacklevel=2)
    return found


def _looked_for(plan: Plan, readers: list[str]) -> str:
    if not readers:
        return f"{', '.join(plan.tasks)} takes none. Leave --data-dir out."
    sought = "; ".join(f"{name}: {plan.tasks[name].real}" for name in readers)
    return f"looked for {sought}. Name the folder that holds one, or leave --data-dir out."


Progress = Callable[[str, int, "int | None"], Any]


@dataclasses.dataclass(frozen=True)
class Work:
    """What is called, each in a process of its own, and how many seconds it may take.

    Attributes:
        prepare, train, measure: see `child`.
        latencies: see `latency`.
        vela: see `latency.vela_figures`.
        data_seconds, train_seconds, measure_seconds: after which a process is killed.
        preloaded: modules that processes need not import.
    """

    prepare: Callable[..., dict[str, str]] = child.prepare
    train: Callable[..., Path] = child.train
    measure: Callable[[Job], dict[str, Any]] = child.measure
    latencies: Callable[[Sequence[Path]], list[dict[str, Any]]] = latency.latencies
    vela: Callable[[Sequence[Path]], list[dict[str, Any] | None]] = latency.vela_figures
    data_seconds: float = 7200.0
    train_seconds: float = 3600.0
    measure_seconds: float = 1800.0
    preloaded: Sequence[str] = PRELOADED


class Running:
    """One run of a benchmark.

    Args:
        plan: what is to do.
        file: what is done already, and where results go.
        progress: called as `progress(stage, done, total)`.
        work: what is called.

    Attributes:
        failed: how many methods failed.
    """

    def __init__(self, plan: Plan, file: ResultsFile, progress: Progress, work: Work):
        self.plan, self.file, self.progress, self.work = plan, file, progress, work
        self.machine = machine.describe()
        self.failed = self.done = self.total = 0
        self.told = False
        name = hashlib.sha256(os.fsencode(file.path.resolve())).hexdigest()[:10]
        self.folder = cache_folder() / "bench" / "runs" / name / plan.form

    def run(self, data_dir: Path | None, vela: bool) -> None:
        """Does what is missing."""
        if vela:
            self.progress("install Vela", 0, None)
            latency.install()
        preload(self.work.preloaded)
        self.progress("load TensorFlow", 0, None)
        sources = find_sources(self.plan, data_dir, self._prepare, self.progress)
        turns = [(task, seed) for task in sources for seed in range(self.plan.seeds)]
        missing = {turn: self._missing(*turn, sources[turn[0]]) for turn in turns}
        self.total = sum(map(len, missing.values()))
        for (task, seed), names in missing.items():
            if names:
                self._run_turn(task, seed, names, sources[task])
            self._time_files(task, seed)
            if seed == 0 and latency.is_ready():
                self._ask_vela(task, seed)

    def _append(self, row: Row) -> None:
        if not self.told:
            self.file.append(self.machine)
        self.told = True
        self.file.append(row)

    def _prepare(self, task: str, data_dir: Path | None) -> dict[str, str]:
        try:
            return run_apart(self.work.prepare, task, data_dir, seconds=self.work.data_seconds)
        except Failed as error:
            return {"unreadable": str(error)}

    def _model(self, task: str, seed: int, method: str) -> Path:
        return self.folder / task / str(seed) / method / FILE

    def _settings(self, task: str, method: str, source: Source) -> dict[str, Any]:
        """What a result follows from: with other settings it is measured anew."""
        training, tuning = self.plan.tasks[task].trainings(self.plan.form)
        tuned = None if method == REFERENCE else dataclasses.asdict(tuning)
        return {
            "data": source.to_dict(),
            "training": dataclasses.asdict(training),
            "tuning": tuned,
        }

    def _missing(self, task: str, seed: int, source: Source) -> list[str]:
        """The methods that there is no result of, or no file any more to be timed."""
        known = {row["method"]: row for row in self._rows("run", task, seed)}
        versions = {row["id"]: row["versions"] for row in self.file.rows if "versions" in row}
        missing = []
        for method, made in self.plan.methods.items():
            if not made.suits(self.plan.tasks[task]):
                continue
            row = known.get(method, {})
            settings = self._settings(task, method, source)
            same = all(row.get(name) == value for name, value in settings.items())
            same = same and versions.get(row.get("machine")) == self.machine["versions"]
            is_there = self._model(task, seed, method).is_file()
            if not (same and row.get("status") == "ok" and is_there):
                missing.append(method)
        return missing

    def _run_turn(self, task: str, seed: int, names: list[str], source: Source) -> None:
        """Trains the float model of a task and seed, then carries the methods out."""
        where = f"{task}, seed {seed}"
        self.progress(f"{where}: train the float model", self.done, self.total)
        form = self.plan.form
        try:
            checkpoint = run_apart(
                self.work.train,
                task,
                seed,
                form,
                source.data_dir,
                seconds=self.work.train_seconds,
            )
        except Failed as error:
            self._fail(task, seed, names, source, f"the float model: {error}")
            return
        for method in names:
            self.progress(f"{where}: {method}", self.done, self.total)
            folder = self._model(task, seed, method).parent
            job = Job(task, method, seed, form, source.data_dir, folder, checkpoint, seed == 0)
            try:
                found = run_apart(self.work.measure, job, seconds=self.work.measure_seconds)
            except Failed as error:
                self._fail(task, seed, [method], source, str(error))
                continue
            self._keep(task, seed, method, source, found)

    def _row(self, task: str, seed: int, method: str, source: Source) -> Row:
        made = self.plan.methods[method]
        about = {"task": task, "seed": seed, "method": method, "form": self.plan.form}
        described = {"who": made.who, "family": made.family, "title": made.title}
        settings = self._settings(task, method, source)
        measure = self.plan.tasks[task].measure
        own = {"machine": self.machine["id"], "measure": measure}
        return {"kind": "run", **about, **described, **own, **settings}

    def _keep(self, task: str, seed: int, method: str, source: Source, found: Row) -> None:
        layers, notes = found.pop("layers", None), found.pop("notes", [])
        row = self._row(task, seed, method, source)
        self._append({**row, "status": "ok", "error": None, **found})
        if layers is not None:
            self._add("layers", task, seed, [(method, {"layers": layers})])
        for note in notes:
            warnings.warn(f"{task}, seed {seed}, {method}: {note}", stacklevel=2)
        self.done += 1

    def _fail(self, task: str, seed: int, names: list[str], source: Source, error: str) -> None:
        for method in names:
            self._append(
                {**self._row(task, seed, method, source), "status": "failed", "error": error}
            )
        warnings.warn(f"{task}, seed {seed}, {', '.join(names)} failed: {error}", stacklevel=2)
        self.failed += len(names)
        self.done += len(names)

    def _time_files(self, task: str, seed: int) -> None:
        """Times all files of a task and seed in turns, unless all have been timed together."""
        there, timed = self._made(task, seed), self._having("latency", task, seed)
        if REFERENCE not in there or timed.issuperset(there):
            return
        there.sort(key=lambda method: method != REFERENCE)
        self.progress(f"{task}, seed {seed}: latency", self.done, self.total)
        try:
            found = self.work.latencies([self._model(task, seed, method) for method in there])
        except Failed as error:
            warnings.warn(f"{task}, seed {seed}: {error}", stacklevel=2)
            return
        self._add("latency", task, seed, zip(there, found, strict=True))

    def _ask_vela(self, task: str, seed: int) -> None:
        """Has Vela compile the files that it has not yet been asked about."""
        known = self._having("vela", task, seed)
        asked = [method for method in self._made(task, seed) if method not in known]
        if not asked:
            return
        self.progress(f"{task}, seed {seed}: Vela", self.done, self.total)
        paths = [self._model(task, seed, method) for method in asked]
        try:
            found = run_apart(self.work.vela, paths, seconds=self.work.measure_seconds)
        except Failed as error:
            warnings.warn(f"{task}, seed {seed}, Vela: {error}", stacklevel=2)
            return
        told = ({"vela": each} for each in found)
        self._add("vela", task, seed, zip(asked, told, strict=True))

    def _add(self, kind: str, task: str, seed: int, found: Iterable[tuple[str, Row]]) -> None:
        """Appends what was measured of methods' files."""
        for method, values in found:
            about = {"form": self.plan.form, "task": task, "seed": seed, "method": method}
            self._append({"kind": kind, **about, "machine": self.machine["id"], **values})

    def _rows(self, kind: str, task: str, seed: int) -> list[Row]:
        wanted = kind, self.plan.form, task, seed
        return [
            row
            for row in latest(self.file.rows)
            if (row["kind"], row.get("form"), row.get("task"), row.get("seed")) == wanted
        ]

    def _having(self, kind: str, task: str, seed: int) -> set[str]:
        """The methods that there is a line of this kind of."""
        return {row["method"] for row in self._rows(kind, task, seed)}

    def _made(self, task: str, seed: int) -> list[str]:
        """The methods whose files are there."""
        return [
            row["method"]
            for row in self._rows("run", task, seed)
            if row["status"] == "ok" and self._model(task, seed, row["method"]).is_file()
        ]
