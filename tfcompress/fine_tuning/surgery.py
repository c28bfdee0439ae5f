"""Surgery on a model before it is trained, and its file without any training."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras

from tfcompress.files import writing
from tfcompress.fine_tuning import data as datasets
from tfcompress.fine_tuning.checkpoint import Checkpoint
from tfcompress.fine_tuning.data import Data
from tfcompress.fine_tuning.options import Options, Settings, saved_settings
from tfcompress.fine_tuning.reading import load
from tfcompress.fine_tuning.result import ShrunkFile
from tfcompress.fine_tuning.training import check_of, content_of, conversion, precision_of
from tfcompress.graph.flatten import flatten
from tfcompress.surgery.base import Change, SurgeryReport
from tfcompress.surgery.pruning.judging import Objective
from tfcompress.surgery.shrink import Shrink
from tfcompress.tflite.flatbuffer import zipped_size

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
        with tempfile.TemporaryDirectory() as folder:
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
    return Operated(content_of(small, ".keras"), small.surgery_report)


def _saved(options: Options) -> dict[str, Any] | None:
    """The arguments of compile that the model was saved with; None if they cannot be read."""
    saved = saved_settings(options.model)
    try:
        return saved and Settings(saved).arguments()
    except ValueError:  # A loss of one's own, say, which surgery need not know.
        return None


def operate_alone(
    options: Options, steps: Shrink, progress: Callable[[str, int, int | None], Any]
) -> ShrunkFile:
    """Surgery without training: a file in, a file out.

    Args:
        progress: called as `progress(stage, done, total)`.
    """
    start = time.perf_counter()
    arrays = None if options.data is None else datasets.read(options.data)
    progress("load the model", 0, None)
    original = flatten(load(options.model))
    precision = precision_of(original, options)
    compilation = _saved(options)
    judging = compilation
    if options.loss is not None:  # The optimizer is none that trains here.
        judging = Settings(None, options.loss, options.from_logits, "sgd").arguments()
    data = None
    if arrays is not None:
        labelled = datasets.has_labels(arrays, original)
        data = datasets.match(arrays, original, options.data, labelled=labelled)
    progress("shrink", 0, None)
    found = operate(original, steps, data, judging, options.seed)
    progress("write the file", 0, None)
    suffix = Path(options.output).suffix
    old = content_of(original, suffix, compilation)
    new = content_of(found.model(), suffix, compilation, **conversion(options, precision))
    writing.atomic_write(options.output, new)
    return ShrunkFile(
        model=os.fspath(options.model),
        output=os.fspath(options.output),
        precision=precision,
        report=found.report,
        before_bytes=len(old),
        before_zipped=zipped_size(old),
        bytes=len(new),
        zipped=zipped_size(new),
        seconds=round(time.perf_counter() - start, 1),
        check=check_of(new, options),
    )
