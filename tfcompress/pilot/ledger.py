"""What was tried, kept by Optuna: trials of a search in its storage, which no kill can lose.

There are two studies. Each run of a trial is one trial of `records`, with what it was and what came
out; each candidate is one of `candidates`, by which a sampler chooses the next ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfcompress.files import writing
from tfcompress.pilot.engines import engine_of
from tfcompress.pilot.space import Candidate, Space
from tfcompress.results import plain

if TYPE_CHECKING:
    import optuna

RUNNING, DONE, FAILED = "running", "done", "failed"
_JOURNAL, _SETTINGS, _OWNERS, _LOCK = "journal.log", "settings.json", "owners", "lock"
# Seconds after which the lock of a process that was killed holding it counts as left behind.
_GRACE = 10


def require_optuna() -> None:
    """Raises an ImportError that tells what to install if Optuna is missing."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "the search needs optuna, which is not installed. Run: pip install 'tfcompress[auto]'"
        ) from error


@dataclasses.dataclass(frozen=True)
class Record:
    """One run of a trial.

    Attributes:
        number: in the order in which they began.
        key: of its candidate, see `Candidate`; "float" for the model as it is.
        turn: how many turns of training it has; 0 without any.
        picks, recipe, training: of its candidate.
        asked: the number that the sampler knows the candidate by; None if it asked for none.
        status: "running", "done" or "failed".
        figures: what the file costs and reaches.
        error: why it failed.
        owner: the process that began it.
        place: folder of its files, in that of the search.
    """

    number: int
    key: str
    turn: int
    picks: dict[str, str]
    recipe: str
    training: dict[str, Any]
    asked: int | None
    status: str
    figures: dict[str, Any]
    error: str | None
    owner: str

    @property
    def place(self) -> str:
        return f"trials/{self.key}/{self.turn}"

    @property
    def words(self) -> str:
        """The picks in a line."""
        return "; ".join(f"{part}: {option}" for part, option in self.picks.items()) or self.key


class Ledger:
    """The trials of a search, shared by the processes that search.

    Args:
        folder: of the search.
        storage: "sqlite:///FILE" or another address that Optuna knows; None: a journal in the
            folder.
        engine: see `sampler`.
        space: whose candidates are sampled.
        goal: the text of the budgets: candidates are judged by it.
        seed: of the sampler.
        objectives: how many numbers the engine is told, 1 or more.
    """

    def __init__(
        self,
        folder: Path,
        storage: str | None,
        engine: str,
        space: Space,
        goal: str,
        seed: int,
        objectives: int = 1,
    ):
        self.folder, self.space, self.seed = folder, space, seed
        self.owner = uuid.uuid4().hex[:12]
        self._stack = contextlib.ExitStack()
        self._held = self._own()
        store = _store(folder, storage)
        self._records = _study(store, "records", None, 1)
        # Optuna's own engines would draw the same again in a search that goes on.
        chooser = engine_of(engine, seed + len(self.records()))
        self._candidates = _study(store, f"candidates {engine} {goal}", chooser, objectives)

    def close(self) -> None:
        """Gives up what this process had begun."""
        self._stack.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *given: Any) -> None:
        self.close()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other processes from deciding meanwhile."""
        with open(self.folder / _LOCK, "w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def records(self) -> list[Record]:
        """All records, in the order in which they began."""
        return [_record(trial) for trial in self._records.get_trials(deepcopy=False)
                if "told" in trial.user_attrs]  # fmt: skip

    def begin(
        self, key: str, turn: int, candidate: Candidate | None = None, asked: int | None = None
    ) -> Record:
        """Writes down that a trial begins."""
        told = {"key": key, "turn": turn, "asked": asked, "picks": {}, "recipe": "", "training": {}}
        if candidate is not None:
            told |= {"picks": candidate.picks, "recipe": candidate.recipe}
            told |= {"training": candidate.training}
        trial = self._records.ask()
        trial.set_user_attr("told", {**told, "owner": self.owner})
        return next(r for r in reversed(self.records()) if r.number == trial.number)

    def end(self, record: Record, figures: Mapping[str, Any] | None, error: str | None) -> Record:
        """Writes down what came out of a trial."""
        import optuna

        status = FAILED if figures is None else DONE
        outcome = {"status": status, "figures": plain(dict(figures or {})), "error": error}
        storage, trial = self._records._storage, self._trial(record)
        storage.set_trial_user_attr(trial, "outcome", outcome)
        state = optuna.trial.TrialState.COMPLETE
        self._records.tell(record.number, 0.0 if figures is not None else 1.0, state=state)
        return dataclasses.replace(record, **outcome)

    def left_behind(self) -> list[Record]:
        """Running trials of processes that are no more; they count as failed from now on."""
        found = []
        for record in self.records():
            if record.status == RUNNING and record.owner != self.owner and self._is_dead(record):
                self.end(record, None, "its process ended")
                found.append(record)
        return found

    def ask(self) -> tuple[int, dict[str, str]]:
        """(the number of a new candidate, its picks)."""
        trial = self._candidates.ask()
        # By number, as options go from mild to strong.
        return trial.number, {
            part: list(options)[trial.suggest_int(part, 0, len(options) - 1)]
            for part, options in self.space.parts.items()
        }

    def known(self) -> int:
        """How many candidates the sampler was told of."""
        return len(self._candidates.get_trials(deepcopy=False))

    def tell(self, asked: int, values: Sequence[float] | None) -> None:
        """Tells the sampler what became of a candidate; None: it failed."""
        import optuna

        state = optuna.trial.TrialState
        if values is None:
            self._candidates.tell(asked, state=state.FAIL, skip_if_finished=True)
        else:
            self._candidates.tell(asked, list(values), skip_if_finished=True)

    def add(self, picks: Mapping[str, str], values: Sequence[float]) -> None:
        """Tells the sampler of a candidate that it did not ask for."""
        import optuna

        kinds, numbers = {}, {}
        for part, options in self.space.parts.items():
            kinds[part] = optuna.distributions.IntDistribution(0, len(options) - 1)
            names = list(options)
            numbers[part] = names.index(picks.get(part, names[0]))
        made = optuna.trial.create_trial(
            params=numbers, distributions=dict(kinds), values=list(values)
        )
        self._candidates.add_trial(made)

    def _trial(self, record: Record) -> int:
        return self._records.get_trials(deepcopy=False)[record.number]._trial_id

    def _own(self) -> Any:
        """Holds a file as long as this process lives, by which others see that it does."""
        (self.folder / _OWNERS).mkdir(parents=True, exist_ok=True)
        path = self.folder / _OWNERS / self.owner
        stream = self._stack.enter_context(open(path, "w"))  # noqa: SIM115
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._stack.callback(path.unlink, missing_ok=True)
        return stream

    def _is_dead(self, record: Record) -> bool:
        path = self.folder / _OWNERS / record.owner
        try:
            with open(path) as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return True
        except OSError:  # It is held.
            return False
        path.unlink(missing_ok=True)
        return True


def check_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Raises unless a folder is new or may begin anew, or has a search to resume."""
    kept = (folder / _SETTINGS).is_file()
    if resume and not kept:
        raise ValueError(
            f"there is no search to resume: no '{folder / _SETTINGS}'. Leave --resume out, or name "
            "the same --output as before."
        )
    if kept and not (resume or overwrite):
        raise ValueError(
            f"a search is kept in '{folder}'. Go on with --resume, or begin anew with --overwrite."
        )
    if not kept and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"'{folder}', where the search would be kept, is there, and is none. Name another "
            "--output, or move it away."
        )


def check_settings(folder: Path, settings: Mapping[str, Any], resume: bool) -> None:
    """Keeps the settings of a new search; raises unless one that is resumed has the same."""
    path, now = folder / _SETTINGS, plain(dict(settings))
    if not resume:
        folder.mkdir(parents=True, exist_ok=True)
        writing.atomic_write(path, json.dumps(now, indent=2).encode())
        return
    try:
        before = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"'{path}' is damaged. Begin anew with --overwrite.") from error
    differing = [name for name in now if before.get(name) != now[name]]
    if differing:
        raise ValueError(
            f"the search in '{folder}' is one of another {', '.join(differing)}: a search is "
            "resumed with what it began with. Give the same, or begin anew with --overwrite."
        )


def _store(folder: Path, storage: str | None) -> Any:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if storage is not None:
        try:
            return optuna.storages.get_storage(storage)
        except Exception as error:  # SQLAlchemy raises many kinds.
            raise ValueError(
                f"storage must be an address that Optuna can open, such as sqlite:///trials.db; "
                f"received {storage!r}: {' '.join(str(error).split())[:200]}."
            ) from error
    path = os.fspath(folder / _JOURNAL)
    lock = JournalFileSymlinkLock(path, grace_period=_GRACE)
    return JournalStorage(JournalFileBackend(path, lock_obj=lock))


def _study(store: Any, name: str, sampler: Any, objectives: int) -> optuna.Study:
    import optuna

    directions: Any = ["minimize"] * objectives
    return optuna.create_study(
        study_name=name, storage=store, sampler=sampler, directions=directions, load_if_exists=True
    )


def _record(trial: Any) -> Record:
    told = trial.user_attrs["told"]
    outcome = trial.user_attrs.get("outcome")
    outcome = outcome or {"status": RUNNING, "figures": {}, "error": None}
    return Record(number=trial.number, **told, **outcome)
