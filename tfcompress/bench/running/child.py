"""What runs in processes of their own: data, float models, and one method each."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfcompress import __version__, files
from tfcompress.bench.methods import METHODS, cost
from tfcompress.bench.running import machine
from tfcompress.bench.tasks import TASKS
from tfcompress.bench.tasks.real import NotThere
from tfcompress.environments import Unavailable, cache_folder

if TYPE_CHECKING:
    from tfcompress.bench.methods.run import Run
    from tfcompress.bench.tasks import Data, Task, Training

# A method's file in its folder.
FILE = "model.tflite"


@dataclasses.dataclass(frozen=True)
class Job:
    """One method on one task with one seed.

    Attributes:
        task, method: by their names.
        seed: of all that is random.
        short: with the trainings of the short form.
        data_dir: with real data sets; None for generated data.
        folder: for the file, which ends as `FILE` in it.
        checkpoint: of the float model, from `train`.
        layers: measure each layer.
    """

    task: str
    method: str
    seed: int
    short: bool
    data_dir: Path | None
    folder: Path
    checkpoint: Path
    layers: bool = False


def trainings(task: Task, short: bool) -> tuple[Training, Training]:
    """Of the float model, and of what every method gets."""
    return task.short if short else (task.training, task.tuning)


def load(task: Task, data_dir: Path | None) -> Data:
    """The real data of a task if there is a folder of it, else the generated data."""
    if data_dir is None or task.read is None:
        return task.generate()
    return task.read(data_dir)


def prepare(name: str, data_dir: Path | None) -> dict[str, str]:
    """Makes or reads the data of a task, so that they are in the cache.

    Returns:
        {"source", "digest"}; or {"missing": what to install}, or {"unreadable": why}, or {"absent":
        what was looked for} if the folder has nothing of its data set.
    """
    try:
        data = load(TASKS[name], data_dir)
    except Unavailable as error:
        return {"missing": str(error)}
    except NotThere as error:
        return {"absent": str(error)}
    except (ValueError, ImportError, OSError) as error:
        return {"unreadable": str(error) or type(error).__name__}
    return {"source": data.source, "digest": data.digest}


def train(name: str, seed: int, short: bool, data_dir: Path | None) -> Path:
    """Trains the float model of a task, unless the cache has it.

    Returns:
        Its .keras file.
    """
    _use_cpu()
    import keras

    from tfcompress.bench.methods.run import train_float

    task = TASKS[name]
    data = load(task, data_dir)
    training, _ = trainings(task, short)
    built = task.build(keras, data.classes).to_json()
    said = [__version__, keras.__version__, built, data.digest, dataclasses.asdict(training)]
    digest = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:10]
    path = cache_folder() / "bench" / "float" / f"{name}-{seed}-{digest}.keras"
    if not _loads(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        model = train_float(task, data, training, seed)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            model.save(Path(scratch, path.name))
            os.replace(Path(scratch, path.name), path)
    return path


def _loads(path: Path) -> bool:
    """Whether a whole model is there: a machine may have stopped while it was written."""
    try:
        files.load_model(path)
    except ValueError:
        return False
    return True


def measure(job: Job) -> dict[str, Any]:
    """Carries a method out and measures what it gives.

    Returns:
        The figures of a line of results; with "layers", and with "notes" on what could not be
        measured.
    """
    _use_cpu()
    import keras

    from tfcompress.bench.methods.run import Run
    from tfcompress.bench.running import figures, quality

    start = time.perf_counter()
    task, method = TASKS[job.task], METHODS[job.method]
    data = load(task, job.data_dir)
    shutil.rmtree(job.folder, ignore_errors=True)
    job.folder.mkdir(parents=True)
    keras.utils.set_random_seed(job.seed)
    _, tuning = trainings(task, job.short)
    with tempfile.TemporaryDirectory(dir=job.folder) as scratch:
        run = Run(
            task=task,
            data=data,
            seed=job.seed,
            tuning=tuning,
            checkpoint=job.checkpoint,
            folder=Path(scratch),
        )
        before = _forget_peak()
        method.make(run)
        peak = machine.status_mb("VmHWM")
        found: dict[str, Any] = {
            **figures.sizes(run.path),
            **figures.counts(run.kept, run.model),
            "checkpoint": _digest(run.model),
            "convert_s": run.convert_seconds,
            **dict.fromkeys(cost.FIGURES),
            **(run.cost or {}),
            "peak_mb": None if before is None or peak is None else peak - before,
            "quality_keras": quality.keras_quality(task, data, run.kept),
            "quality": quality.file_quality(task, data, run.path),
        }
        found |= _extras(job, run, data)
        # Last, so that a file in its place is a whole one.
        os.replace(run.path, job.folder / FILE)
    return found | {"seconds": time.perf_counter() - start}


def _extras(job: Job, run: Run, data: Data) -> dict[str, Any]:
    """What the layers tell; a note instead where that fails, as the method did not."""
    from tfcompress.bench.running import figures

    found: dict[str, Any] = {"layers": None, "notes": []}
    if job.layers:
        try:
            found["layers"] = figures.layers(run.path, run.kept, data.calibration(64))
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1].name
            found["notes"].append(f"layers: {type(error).__name__} in {place}: {error}"[:300])
    return found


def _digest(model: Any) -> str:
    """Of the weights of a float model, for what was made of another one is not compared."""
    found = hashlib.sha256()
    for array in model.get_weights():
        found.update(array.tobytes())
    return found.hexdigest()[:12]


def _use_cpu() -> None:
    """Hides GPUs: latency and CPU time are what is measured."""
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")


def _forget_peak() -> float | None:
    """Begins to measure peak memory anew; gives what is taken now, in MiB."""
    with contextlib.suppress(OSError):  # Not every kernel does so: then it counts from the start.
        Path("/proc/self/clear_refs").write_text("5")
    return machine.status_mb("VmRSS")
