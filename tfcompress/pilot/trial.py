"""A trial: one recipe carried out and its file measured, in a process of its own."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from tfcompress.conversion.layer_names import namer
from tfcompress.export.microcontroller.c_array import measure_arena
from tfcompress.export.microcontroller.compressed_weights import compress_weights
from tfcompress.files import models, writing
from tfcompress.fine_tuning import data as datasets
from tfcompress.fine_tuning import fine_tune
from tfcompress.fine_tuning.data import VALIDATION, Arrays, Data
from tfcompress.graph.flatten import flatten
from tfcompress.pilot.job import CODED, FILE, LOG, MODEL, OUTPUTS, RECIPE, Job
from tfcompress.search.layer_latency import Clock
from tfcompress.surgery.profile import profile
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.arena import activation_bytes
from tfcompress.tflite.predictor import predictor
from tfcompress.tools.accept import accept
from tfcompress.tools.environments import Unavailable

MICRO = "microcontroller"


def run(job: Job) -> dict[str, Any]:
    """Carries a job out: leaves the model, the file and its outputs in the folder.

    Returns what the file costs: "bytes", "flash", "ram", "macs", "seconds", "train_seconds",
    "coded" (whether the weights in flash are in codes), and "latency" and "cycles" if asked for.
    """
    start, folder = time.perf_counter(), Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    _say_into(folder / LOG)
    made = _make(job, folder)
    trained = time.perf_counter()
    model = flatten(models.load_model(folder / MODEL))
    judged = judged_data(job, model)
    names = [tensor.name for tensor in datasets.tree.flatten(model._inputs_struct)]
    content = (folder / FILE).read_bytes()
    x = {name: array.astype(np.float32) for name, array in zip(names, judged.inputs, strict=True)}
    outputs = predictor(content, {name: array[:4] for name, array in x.items()})(x)
    kept: dict[str, Any] = dict(outputs)
    np.savez(folder / OUTPUTS, **kept)
    found = {"bytes": len(content), "macs": profile(model).macs, **_memory(job, folder, model)}
    found |= _times(job, folder)
    if job.accelerator is not None and job.recipe:
        found |= _by_vela(folder / FILE, job.accelerator)
    return {
        **found,
        **made,
        "train_seconds": round(trained - start, 2),
        "seconds": round(time.perf_counter() - start, 2),
    }


def _say_into(path: Path) -> None:
    """Has all that this process says stand in a file."""
    with open(path, "a") as stream:
        for number in (1, 2):
            os.dup2(stream.fileno(), number)


def judged_data(job: Job, model: Any, every: Data | None = None) -> Data:
    """The samples that files are judged on, with their labels; `every` if the data were read."""
    training, path = job.training, job.training.get("validation_data")
    if path is not None:
        return Arrays(datasets.read(path), model, path, VALIDATION).match()
    if every is None:
        every = Arrays(datasets.read(job.data), model, job.data).match()
    split = training.get("validation_split")
    return every.split(split, training["seed"])[1] if split else every


def _make(job: Job, folder: Path) -> dict[str, Any]:
    """The Keras model and its file."""
    if not job.recipe:
        return _float(job, folder)
    recipe = folder / RECIPE
    writing.atomic_write(recipe, job.recipe.encode())
    found = fine_tune(
        job.model,
        recipe,
        job.data,
        folder / FILE,
        epochs=job.epochs or 0,
        keep=folder / MODEL,
        keep_checkpoint=bool(job.epochs),
        resume=job.resume,
        overwrite=not job.resume,
        target=job.target,
        io_dtype=job.io_dtype,
        **job.training,
    )
    return {"precision": found.precision}


def _float(job: Job, folder: Path) -> dict[str, Any]:
    """The float model as it is, which all else is compared with."""
    from tfcompress.conversion.convert import convert

    model: Any = models.load_model(job.model)
    model.save(folder / MODEL)
    convert(model, folder / FILE, precision="float32")
    return {"precision": "float32"}


def _memory(job: Job, folder: Path, model: Any) -> dict[str, Any]:
    """Flash and RAM of the file; on a microcontroller also with weights in codes, if that helps."""
    content = (folder / FILE).read_bytes()
    parsed = flatbuffer.read(content)
    found = {"flash": len(content), "ram": activation_bytes(parsed), "coded": False}
    if job.target != MICRO:
        return found
    try:
        found["ram"], _ = measure_arena(content, "the file")
        if not job.recipe:
            return found
        _, data, told = compress_weights(parsed, ram=job.ram, name_of=namer(model))
    except (ValueError, Unavailable):  # No weight has so few values, or there is no TFLite Micro.
        return found
    if len(data) >= len(content):
        return found
    writing.atomic_write(folder / CODED, data)
    return {"flash": len(data), "ram": told.arena, "coded": True}


def _times(job: Job, folder: Path) -> dict[str, float]:
    """Latency by ratio to the float file, if it is asked for."""
    content, found = (folder / FILE).read_bytes(), {}
    if "latency" in job.costs:
        base = content if job.base is None else Path(job.base).read_bytes()
        _, (ratio,) = Clock().measured(folder, [base, content], whole=True)
        found["latency"] = ratio
    return found


def _by_vela(path: Path, accelerator: str) -> dict[str, float]:
    """What an Ethos-U takes, as Vela counts it."""
    result = accept(path, ["vela"], accelerator=accelerator).results[0]
    figures: dict[str, Any] = dict(result.figures)
    if "cycles" not in figures:
        raise ValueError(f"Vela counts nothing of this file: {result.reason}")
    told = {"cycles": figures["cycles"], "flash": 1024 * figures["flash KiB"]}
    return {**told, "ram": 1024 * figures["SRAM KiB"]}
