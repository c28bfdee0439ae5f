"""What corrections of a trained model tell of themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import keras
import numpy as np

from tfcompress.results import Change, change_lines

# Name of a layer -> mean and standard deviation of what it gives before its activation, by channel.
Statistics = dict[str, tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class CorrectionReport:
    """What a correction did, as `model.correction_report` of the new model.

    Attributes:
        operation: "equalize", "correct_bias" and so on.
        changes: what was changed.
        kept: what might have been but stays as it was, and why.
        statistics: name of a layer -> mean and standard deviation of what it gives before its
            activation, float64 arrays of one number a channel, as far as BatchNormalization or
            data told them.
        drift: the largest share of the variance of an output by which it differs on the data from
            what it was; None where it was not measured.
    """

    operation: str
    changes: tuple[Change, ...]
    kept: tuple[Change, ...]
    statistics: Statistics
    drift: float | None = None

    def __str__(self) -> str:
        lines = [self.operation, *change_lines(self.changes, self.kept)]
        if self.drift is not None:
            lines.append(f"outputs differ by {self.drift:.1%} of their variance")
        return "\n".join(lines)


def reported(
    model: keras.Model,
    operation: str,
    changes: Mapping[str, str],
    kept: Mapping[str, str],
    statistics: Statistics | None = None,
    drift: float | None = None,
) -> keras.Model:
    """The new model, with a report as its attribute `correction_report`, which is not saved."""

    def rows(found: Mapping[str, str]) -> Iterable[Change]:
        return (Change(name, detail) for name, detail in found.items())

    rows_of_both = tuple(rows(changes)), tuple(rows(kept))
    report = CorrectionReport(operation, *rows_of_both, statistics or {}, drift)
    model.correction_report = report
    return model
