"""What surgery did to a model."""

from __future__ import annotations

import dataclasses

import keras


@dataclasses.dataclass(frozen=True)
class Change:
    """What became of one layer or group of channels, or why nothing did.

    Attributes:
        layer: its name in the flat model, see `tfcompress.flatten`.
        detail: "64 -> 32 channels", "rank 12 of 64", or the reason why it stays.
    """

    layer: str
    detail: str


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
        rows = [*self.changes, *(Change(x.layer, f"kept: {x.detail}") for x in self.kept)]
        width = max((len(row.layer) for row in rows), default=0)
        lines = [f"{row.layer.ljust(width)}  {row.detail}" for row in rows]
        for name, (before, after) in (("MACs", self.macs), ("params", self.params)):
            share = f" ({after / before:.1%})" if before else ""
            lines.append(f"{name}: {before:,} -> {after:,}{share}")
        return "\n".join(lines)


def with_report(model: keras.Model, report: SurgeryReport) -> keras.Model:
    """The model, with the report as its attribute `surgery_report`, which is not saved."""
    model.surgery_report = report
    return model
