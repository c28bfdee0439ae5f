"""What is to be done in a trial; told without the seconds that what does it takes to import."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

# Files in the folder of a trial.
MODEL, FILE, CODED, RECIPE = "model.keras", "model.tflite", "coded.tflite", "recipe.yaml"
OUTPUTS, LOG = "outputs.npz", "log.txt"


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be done in a trial.

    Attributes:
        folder: of its files.
        model, data: the files of the search.
        recipe: the text of its recipe; empty for the float model as it is.
        epochs: turns of the training; none if there is nothing to train.
        training: of `fine_tune`: learning_rate, batch_size, loss, validation_split and so on.
        target, io_dtype: of the file.
        costs: what is measured beside flash, RAM and MACs: "latency", "cycles".
        ram: bytes of the arena that weights in codes must leave free; None: any.
        accelerator: an Ethos-U whose cycles are counted.
        base: the float file, for latency; None if this is the one that makes it.
        resume: whether the training goes on.
    """

    folder: str
    model: str
    data: str
    recipe: str
    epochs: tuple[int, ...]
    training: Mapping[str, Any]
    target: str | None = None
    io_dtype: str | None = None
    costs: tuple[str, ...] = ()
    ram: int | None = None
    accelerator: str | None = None
    base: str | None = None
    resume: bool = False
