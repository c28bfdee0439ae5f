"""Where trials run: in a process of their own on this machine, or on the machines of Ray."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from tfcompress.files.processes import Failed, preload, run_apart
from tfcompress.pilot.job import Job
from tfcompress.pilot.ledger import Record
from tfcompress.pilot.nodes import PRELOADED, Run, on_node, packed, unpack

# Seconds in which a cluster answers.
_ANSWER = 10.0

Outcome = tuple[Record, dict[str, Any] | None, str | None]


class Workers(Protocol):
    """What carries jobs out."""

    count: int

    @property
    def busy(self) -> int:
        """How many jobs are being carried out."""

    def begin(self, record: Record, job: Job, seconds: float) -> None:
        """Begins a job, which may take so long."""

    def ended(self) -> list[Outcome]:
        """Waits for jobs: (record, figures or None, why it failed)."""


class Here:
    """One process at a time on this machine.

    Args:
        run: carries out a job.
        memory: the most bytes of a trial; None: any.
        preloaded: modules that trials need not import.
    """

    count = 1

    def __init__(self, run: Run, memory: int | None = None, preloaded: Sequence[str] = PRELOADED):
        self._run, self._memory = run, memory
        self._next: tuple[Record, Job, float] | None = None
        preload(preloaded)

    @property
    def busy(self) -> int:
        return 0 if self._next is None else 1

    def begin(self, record: Record, job: Job, seconds: float) -> None:
        self._next = record, job, seconds

    def ended(self) -> list[Outcome]:
        assert self._next is not None
        (record, job, seconds), self._next = self._next, None
        return [_outcome(record, self._run, job, seconds, self._memory)]


def _outcome(record: Record, run: Run, job: Job, seconds: float, memory: int | None) -> Outcome:
    try:
        return record, run_apart(run, job, seconds=seconds, memory=memory), None
    except Failed as error:
        return record, None, str(error)


class OnRay:
    """Processes on the machines of Ray, to which models and data are sent.

    Args:
        run: carries out a job.
        memory: the most bytes of a trial; None: any.
        address: of a cluster; None: one on this machine, for the time of the search.
        count: how many trials at a time; None: as many as the cluster has CPUs for.
        cpus, gpus: of one trial.
        preloaded: modules that trials need not import.
    """

    def __init__(
        self,
        run: Run,
        memory: int | None,
        address: str | None = None,
        count: int | None = None,
        cpus: float = 1.0,
        gpus: float = 0.0,
        preloaded: Sequence[str] = PRELOADED,
    ):
        ray = require_ray()
        preload(preloaded)
        self._run, self._memory, self._preloaded = run, memory, preloaded
        if not ray.is_initialized():
            local: dict[str, Any] = {"num_cpus": count} if address is None and count else {}
            try:
                _reach(address)
                ray.init(address or "local", log_to_driver=False, logging_level="error",
                         include_dashboard=False, **local)  # fmt: skip
            except (OSError, RuntimeError, ValueError) as error:
                raise ValueError(
                    f"ray must be the address of a cluster that runs, such as 10.0.0.1:6379 or "
                    f"auto; received {address!r}: {' '.join(str(error).split())[:200]}. Begin one "
                    "with `ray start --head`."
                ) from error
        have = ray.cluster_resources().get("CPU", 1.0)
        self.count = count or max(1, int(have // cpus))
        # Work that a node takes with it is done again on another one.
        self._task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=3)(on_node)
        self._sent: dict[str, Any] = {}
        self._running: dict[Any, tuple[Record, Job]] = {}

    @property
    def busy(self) -> int:
        return len(self._running)

    def begin(self, record: Record, job: Job, seconds: float) -> None:
        files = [path for path in _read_by(job) if path is not None]
        for path in files:
            if path not in self._sent:
                self._sent[path] = require_ray().put(Path(path).read_bytes())
        sent = {path: self._sent[path] for path in files}
        before = packed(Path(job.folder))
        reference = self._task.remote(
            self._run,
            job,
            list(sent),
            before,
            seconds,
            self._memory,
            self._preloaded,
            *sent.values(),
        )
        self._running[reference] = record, job

    def ended(self) -> list[Outcome]:
        ray = require_ray()
        done, _ = ray.wait(list(self._running), num_returns=1)
        found: list[Outcome] = []
        for reference in done:
            record, job = self._running.pop(reference)
            try:
                figures, error, files = ray.get(reference)
            except Exception as failed:  # Ray raises many kinds; the node is no more, say.
                found.append((record, None, " ".join(str(failed).split())[:400]))
                continue
            unpack(Path(job.folder), files)
            found.append((record, figures, error))
        return found


def _reach(address: str | None) -> None:
    """Raises an OSError at once where nobody answers, which Ray tries for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=_ANSWER).close()


def require_ray() -> Any:
    """The module `ray`; an ImportError tells what to install if it is missing."""
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            "several workers need ray, which is not installed. Run: pip install 'tfcompress[ray]'"
        ) from error
    return ray


def _read_by(job: Job) -> list[str | None]:
    training = job.training
    return [job.model, job.data, job.base, training.get("validation_data")]


@contextlib.contextmanager
def stopped(workers: Workers) -> Iterator[Workers]:
    """Workers, whose cluster ends with the search if it was begun for it."""
    try:
        yield workers
    finally:
        if isinstance(workers, OnRay):
            require_ray().shutdown()
