"""What a teacher is worth to students of the benchmark's nets: the table of docs/distillation.md.

    PYTHONPATH=tests python -m measurements distillation_quality --seeds 3

Alone and taught, a student has the same data in the same order, steps, learning rate, and no
dropout: without it short trainings gain most, and that is no merit of a teacher.
"""

import dataclasses
import math
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np

import tfcompress as tfc
from measurements import parser_of, show, tell
from tfcompress import schedules
from tfcompress.bench.models import compile_for
from tfcompress.bench.running import child
from tfcompress.bench.tasks import TASKS, Task
from tfcompress.bench.tasks.task import Data

FORMS = ("full", "long")
STUDENTS = ("quantized", "pruned", "masked", "cut", "tiny")
# Zeros, shares of the MACs, and of the steps in which weights go.
SPARSITY, CUT, TINY, PRUNING = 0.8, 0.5, 0.25, 0.3
# Weights pruned after training move but little: the share of the rate for them.
NEAR = 0.3
# What differs from the defaults of `Distiller`, by the name of a way to train.
WAYS: dict[str, dict[str, Any] | None] = {
    "alone": None,
    "taught": {},
    "alpha 0.1, temperature 4": {"alpha": 0.1, "temperature": 4.0},
    "alpha 0, temperature 1": {"alpha": 0.0, "temperature": 1.0},
    "alpha 0, temperature 4": {"alpha": 0.0, "temperature": 4.0},
}


def student_of(kind: str, model: keras.Model, data: Data, seed: int, steps: int) -> keras.Model:
    """What is to learn: the float model under techniques, cut, or a smaller one of new weights."""
    if kind == "masked":
        model = masked(model, data)
    if kind in ("cut", "tiny"):
        model = tfc.prune_channels(model, macs=CUT if kind == "cut" else TINY, score="l2")
    if kind == "tiny":
        keras.utils.set_random_seed(seed + 100)
        model = keras.models.clone_model(model)
    techniques: list[Any] = [tfc.Quantize(momentum=0.95)]
    if kind == "pruned":
        end, frequency = max(1, round(PRUNING * steps)), max(1, steps // 50)
        curve = schedules.polynomial(0.0, SPARSITY, end=end, frequency=frequency)
        techniques.insert(0, tfc.Prune(curve, scope="global", score="taylor"))
    if kind == "masked":
        techniques.insert(0, tfc.Prune(preserve=True))
    return tfc.compress(model, [tfc.Rule("*", techniques)])


def masked(model: keras.Model, data: Data) -> keras.Model:
    """Pruned before training, by what layers are given."""
    x = data.x_train[:: max(1, len(data.x_train) // 1000)][:300]
    x = x.astype("float32") * np.float32(data.scale)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of outputs that differ much
        return tfc.post_training.prune_after_training(model, x, SPARSITY, samples=None)


def quality(task: Task, data: Data, kind: str, form: str, way: str, seed: int) -> float:
    """Accuracy or AUC of the int8 file, in percent."""
    path = child.train(task.name, seed, form, None)
    keras.utils.set_random_seed(seed)
    model, teacher = (keras.models.load_model(path, compile=False) for _ in range(2))
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    training, tuning = task.trainings(form)
    if kind == "tiny":
        tuning = dataclasses.replace(tuning, rate=training.rate)
    if kind == "masked":
        tuning = dataclasses.replace(tuning, rate=NEAR * tuning.rate)
    student = fitted = student_of(kind, model, data, seed, tuning.steps)
    settings = WAYS[way]
    if settings is not None:
        fitted = tfc.Distiller(student, teacher, "mse" if task.loss == "mse" else None, **settings)
    compile_for(fitted, tuning.steps, tuning.rate, task.loss)
    fitted.fit(
        data.batches(tuning.batch, seed),
        steps_per_epoch=tuning.steps,
        verbose=0,
        callbacks=[tfc.UpdateCompression()] if kind in ("pruned", "masked") else [],
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.tflite")
        tfc.convert(tfc.finalize(student), file, io_dtype="int8", precision="int8")
        return 100 * child.file_quality(task, data, file)


def error_of(values: list[float]) -> float | None:
    """The standard error of a mean; None of a single value."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def distillation_quality(arguments: list[str] | None = None) -> int:
    """What a teacher is worth to students that are quantized, pruned, cut, or small and new."""
    parser = parser_of(distillation_quality, {"seeds": (3, "trainings of each kind")})
    for name, known, default in (
        ("tasks", TASKS, list(TASKS)),
        ("students", STUDENTS, STUDENTS),
        ("forms", FORMS, FORMS),
        ("ways", WAYS, ("alone", "taught")),
    ):
        parser.add_argument(f"--{name}", nargs="+", choices=list(known), default=list(default))
    options = parser.parse_args(arguments)
    rows, plain = [], []
    for name in options.tasks:
        task = TASKS[name]
        data = task.generate()
        for kind in options.students:
            for form in options.forms:
                found: dict[str, list[float]] = {}
                for way in options.ways:
                    given = task, data, kind, form, way
                    found[way] = [quality(*given, seed) for seed in range(options.seeds)]
                    tell(f"{name}, {kind}, {form}, {way}: {found[way]}")
                plain.append({"task": name, "student": kind, "form": form, **found})
                alone = found.get("alone")
                for way, values in found.items():
                    pairs = zip(values, alone or values, strict=True)
                    gains = [taught - without for taught, without in pairs]
                    told = statistics.mean(values), statistics.mean(gains), error_of(gains)
                    rows.append((name, kind, form, way, *told))
    columns = {"task": "", "student": "", "form": "", "way": ""}
    columns |= {"quality": ".2f", "gain": "+.2f", "standard error": ".2f"}
    show(options, plain, "With and without a teacher", columns, rows)
    return 0
