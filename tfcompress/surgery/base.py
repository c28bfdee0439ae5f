"""What every surgery starts from: a flat copy of the user's model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import keras

from tfcompress.graph.flatten import flatten
from tfcompress.graph.inputs import require_model
from tfcompress.layers.compressed import require_plain
from tfcompress.results import Change, change_lines
from tfcompress.surgery.macs import count
from tfcompress.techniques.rules import Rule

# How a user says which layers are meant, see `Rule`.
Wanted = str | type | Callable[[Any], bool]


def opened(model: keras.Model) -> keras.Model:
    """A flat Functional copy of a model, with weights of its own, see `tfcompress.flatten`."""
    require_model(model)
    require_plain(model)
    return flatten(model)


def rules_of(layers: Any) -> list[Rule]:
    """Rules that match what a user wants: a `Wanted`, or several of them."""
    one = isinstance(layers, str) or callable(layers) or not isinstance(layers, Iterable)
    return [Rule(each) for each in ([layers] if one else layers)]


@dataclasses.dataclass(frozen=True)
class SurgeryReport:
    """What surgery did, as `model.surgery_report` of the new model.

    Attributes:
        operation: "prune_channels", "factorize" and so on.
        changes: what was changed.
        kept: what was wanted but stays as it was, and why.
        macs: multiply-accumulate operations of one sample, before and after.
        params: numbers in all weights, before and after.
    """

    operation: str
    changes: tuple[Change, ...]
    kept: tuple[Change, ...]
    macs: tuple[int, int]
    params: tuple[int, int]

    def __str__(self) -> str:
        lines = change_lines(self.changes, self.kept)
        for name, (before, after) in (("MACs", self.macs), ("params", self.params)):
            share = f" ({after / before:.1%})" if before else ""
            lines.append(f"{name}: {before:,} -> {after:,}{share}")
        return "\n".join(lines)


def reported(
    model: keras.Model,
    operation: str,
    changes: Iterable[Change],
    kept: Iterable[Change],
    before: tuple[int, int],
) -> keras.Model:
    """The new model, with a report."""
    macs, params = zip(before, count(model), strict=True)
    report = SurgeryReport(operation, tuple(changes), tuple(kept), macs, params)
    return with_report(model, report)


def with_report(model: keras.Model, report: SurgeryReport) -> keras.Model:
    """The model, with the report as its attribute `surgery_report`, which is not saved."""
    model.surgery_report = report
    return model


def report_of(before: keras.Model, after: keras.Model) -> SurgeryReport:
    """What was done to a model, by surgery or by a correction after training."""
    if hasattr(after, "surgery_report"):
        return after.surgery_report
    found = after.correction_report
    macs, params = zip(count(opened(before)), count(after), strict=True)
    return SurgeryReport(found.operation, found.changes, found.kept, macs, params)
