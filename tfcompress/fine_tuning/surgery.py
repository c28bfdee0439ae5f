"""Surgery on a model before it is trained, or instead."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from tfcompress.files import temporary
from tfcompress.fine_tuning.checkpoint import Checkpoint
from tfcompress.fine_tuning.data import Data
from tfcompress.fine_tuning.output import content_of
from tfcompress.fine_tuning.reading import load
from tfcompress.surgery.base import Change, SurgeryReport
from tfcompress.surgery.pruning.judging import Objective
from tfcompress.surgery.shrink import Shrink

# Of the training data, for scores and factors that depend on data.
SAMPLES = 512


@dataclasses.dataclass(frozen=True)
class Operated:
    """A model after surgery.

    Attributes:
        content: of its .keras file.
        report: what was done.
    """

    content: bytes
    report: SurgeryReport

    def model(self) -> keras.Model:
        """The model as its file has it, so that a resumed training begins with the same."""
        with temporary.folder() as folder:
            path = Path(folder, "model.keras")
            path.write_bytes(self.content)
            return load(path)

    def keep(self, checkpoint: Checkpoint) -> None:
        """Keeps it for a training that is resumed."""
        checkpoint.keep_model(self.content, dataclasses.asdict(self.report))

    @classmethod
    def kept(cls, checkpoint: Checkpoint) -> Operated | None:
        """What was kept; None if nothing was."""
        found = checkpoint.kept_model()
        if found is None:
            return None
        content, told = found
        changes, kept = (tuple(Change(**x) for x in told[name]) for name in ("changes", "kept"))
        macs, params = tuple(told["macs"]), tuple(told["params"])
        return cls(content, SurgeryReport(told["operation"], changes, kept, macs, params))


def operate(
    model: keras.Model,
    steps: Shrink,
    data: Data | None,
    compilation: Mapping[str, Any] | None,
    seed: int,
) -> Operated:
    """Carries out the surgery that was asked for."""
    found: Any = None
    if data is not None:
        found = data.drawn(steps.samples or SAMPLES, seed).take(slice(None))
        if not data.labels:
            found = list(found[0]) if isinstance(found[0], tuple) else found[0]
    loss = None
    if compilation and compilation.get("loss") is not None:
        loss = Objective(compilation["loss"], compilation.get("loss_weights"))
    small = steps.apply(model, found, loss, seed)
    content, _ = content_of(small, ".keras")
    return Operated(content, small.surgery_report)
