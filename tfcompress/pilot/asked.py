"""What a search is asked for."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfcompress.errors import check, expected_one_of, is_whole
from tfcompress.files import writing
from tfcompress.files.quantities import parse_seconds
from tfcompress.pilot.budget import Budget
from tfcompress.pilot.engines import ENGINES
from tfcompress.pilot.ledger import check_folder, require_optuna
from tfcompress.targets.targets import load_target
from tfcompress.tools import vela

PathLike = str | os.PathLike[str]

# Steps of the first turn of a training, about; each turn makes it three times as long.
_STEPS = 150
_TURNS = (1, 2, 6)


@dataclasses.dataclass(frozen=True)
class Asked:
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
    scaling: str | None
    training: Mapping[str, Any]

    def __post_init__(self) -> None:
        require_optuna()
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
        if "cycles" in self.budget.limits and self.accelerator is None:
            raise ValueError(
                f"cycles are counted for an accelerator; received budget '{self.budget.text}' and "
                "none. Name one, such as ethos-u55-128."
            )
        if self.accelerator is not None:
            vela.check_accelerator(self.accelerator)
        if (
            self.metric is not None
            and not isinstance(self.metric, str)
            and not callable(self.metric)
        ):
            raise TypeError(
                f"metric must be a function f(labels, outputs) -> float or a name; received "
                f"{self.metric!r}."
            )
        unknown = [name for name in self.training if name not in TRAINING]
        if unknown:
            raise TypeError(
                f"auto takes no argument {unknown[0]!r}; {expected_one_of(unknown[0], TRAINING)}"
            )
        if self.epochs is not None:
            turns = self.turns(1)
            if not turns or not all(is_whole(n) for n in turns):
                raise ValueError(
                    "epochs must be whole numbers above 0, those of each turn, such as (2, 4, 12) "
                    f"or 2+4+12 on the command line; received {self.epochs!r}."
                )
        check_folder(self.folder, resume=self.resume, overwrite=self.overwrite)
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


TRAINING = (
    *("batch_size", "loss", "from_logits", "optimizer", "learning_rate", "constant_rate"),
    *("validation_data", "validation_split", "seed"),
)


def seconds_of(time: str | float | None) -> float | None:
    """Seconds out of a text such as "45m", or as they are."""
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
