"""What runs in processes of their own: data, float models, and one method each."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfcompress.bench.methods import METHODS, cost
from tfcompress.bench.methods.run import Run, train_float
from tfcompress.bench.tasks import TASKS
from tfcompress.bench.tasks.task import NotThere
from tfcompress.files import models, temporary
from tfcompress.tflite import flatbuffer, machine
from tfcompress.tflite.predictor import predictor
from tfcompress.tflite.run import ports
from tfcompress.tools.environments import Unavailable, cache_folder
from tfcompress.version import VERSION

if TYPE_CHECKING:
    from tfcompress.bench.methods.run import Run
    from tfcompress.bench.tasks import Data, Task

Predict = Callable[[np.ndarray], np.ndarray]

# A method's file in its folder.
FILE = "model.tflite"


@dataclasses.dataclass(frozen=True)
class Job:
    """One method on one task with one seed.

    Attributes:
        task, method: by their names.
        seed: of all that is random.
        form: of the benchmark, whose trainings there are.
        data_dir: with real data sets; None for generated data.
        folder: for the file, which ends as `FILE` in it.
        checkpoint: of the float model, from `train`.
        layers: measure each layer.
    """

    task: str
    method: str
    seed: int
    form: str
    data_dir: Path | None
    folder: Path
    checkpoint: Path
    layers: bool = False


def load(task: Task, data_dir: Path | None) -> Data:
    """The real data of a task if there is a folder of it, else the generated data."""
    if data_dir is None or task.read is None:
        return task.generate()
    return task.read(data_dir)


def prepare(name: str, data_dir: Path | None) -> dict[str, str]:
    """Makes or reads the data of a task, so that they are in the cache.

    Returns {"source", "digest"}; or {"missing": what to install}, or {"unreadable": why}, or
    {"absent": what was looked for} if the folder has nothing of its data set.
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


def train(name: str, seed: int, form: str, data_dir: Path | None) -> Path:
    """Trains the float model of a task, unless the cache has it."""
    _use_cpu()
    import keras

    task = TASKS[name]
    data = load(task, data_dir)
    training, _ = task.trainings(form)
    built = task.build(keras, data.classes).to_json()
    said = [VERSION, keras.__version__, built, data.digest, dataclasses.asdict(training)]
    digest = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:10]
    path = cache_folder() / "bench" / "float" / f"{name}-{seed}-{digest}.keras"
    if not _loads(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        model = train_float(task, data, training, seed)
        with temporary.folder(path.parent) as scratch:
            model.save(Path(scratch, path.name))
            os.replace(Path(scratch, path.name), path)
    return path


def _loads(path: Path) -> bool:
    """Whether a whole model is there: a machine may have stopped while it was written."""
    try:
        models.load_model(path)
    except ValueError:
        return False
    return True


def measure(job: Job) -> dict[str, Any]:
    """Carries a method out and measures what it gives."""
    _use_cpu()
    import keras

    start = time.perf_counter()
    task, method = TASKS[job.task], METHODS[job.method]
    data = load(task, job.data_dir)
    shutil.rmtree(job.folder, ignore_errors=True)
    job.folder.mkdir(parents=True)
    keras.utils.set_random_seed(job.seed)
    _, tuning = task.trainings(job.form)
    with temporary.folder(job.folder) as scratch:
        run = Run(
            task=task,
            data=data,
            seed=job.seed,
            tuning=tuning,
            checkpoint=job.checkpoint,
            folder=Path(scratch),
            # Other seeds take the same steps.
            metered=job.form != "long" and job.seed == 0,
        )
        before = _forget_peak()
        method.make(run)
        peak = machine.status_mb("VmHWM")
        found: dict[str, Any] = {
            **sizes(run.path),
            **counts(run.kept, run.model),
            "checkpoint": _digest(run.model),
            "flash": run.flash,
            "convert_s": run.convert_seconds,
            **dict.fromkeys(cost.FIGURES),
            **(run.cost or {}),
            "peak_mb": None if before is None or peak is None else peak - before,
            "quality_keras": keras_quality(task, data, run.kept),
            "quality": file_quality(task, data, run.path),
        }
        found |= _extras(job, run, data)
        # Last, so that a file in its place is a whole one.
        os.replace(run.path, job.folder / FILE)
    return found | {"seconds": time.perf_counter() - start}


def _extras(job: Job, run: Run, data: Data) -> dict[str, Any]:
    """What the layers tell; a note instead where that fails, as the method did not."""
    from tfcompress.report.layers import layer_figures

    found: dict[str, Any] = {"layers": None, "notes": []}
    if job.layers:
        try:
            samples = _samples(run.kept, data.calibration(64))
            found["layers"] = layer_figures(run.path, keras_model=run.kept, data=samples)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1].name
            found["notes"].append(f"layers: {type(error).__name__} in {place}: {error}"[:300])
    return found


def _samples(model: Any, windows: np.ndarray) -> Any:
    """What a model takes of windows: these, or of a step model frames of the first, and states."""
    if len(model.inputs) == 1:
        return windows
    from tfcompress.surgery.streams.stream import Stream

    calls = [*Stream(model).samples(windows[:2])]
    return {name: np.concatenate([call[name] for call in calls]) for name in calls[0]}


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


def sizes(path: str | os.PathLike[str]) -> dict[str, int]:
    """Bytes of a file, and of a zip file with it."""
    content = Path(path).read_bytes()
    return {"bytes": len(content), "zipped": flatbuffer.zipped_size(content)}


def counts(model: Any, plain: Any) -> dict[str, int | None]:
    """Parameters and MACs of the layers that a model has.

    Returns {"params", "macs"}, None where they cannot be told.
    """
    import keras

    from tfcompress.compression.finalize import finalize
    from tfcompress.surgery.profile import profile

    try:
        found = profile(finalize(model) if isinstance(model, keras.Model) else plain)
    except (ValueError, TypeError):
        return {"params": None, "macs": None}
    unknown = any(row.macs is None for row in found.rows)
    # Ranges of activations are none of the model's own parameters.
    params = sum(row.params for row in found.rows if row.kind != "FakeQuant")
    return {"params": params, "macs": None if unknown else found.macs}


def keras_quality(task: Task, data: Data, model: Any) -> float:
    """The quality of a Keras 3 or tf_keras model."""
    import tensorflow as tf

    if len(model.inputs) > 1:
        return task.score(streamed(model, data), data)
    # Not `predict`: beside a GPU, even a hidden one, Keras compiles it with XLA, which makes
    # depthwise convolutions several times slower on a CPU.
    shape = (None, *data.x_train.shape[1:])
    call = tf.function(
        lambda x: model(x, training=False), input_signature=[tf.TensorSpec(shape, tf.float32)]
    )
    return task.score(lambda x: np.asarray(call(tf.constant(x)), np.float32), data)


def file_quality(task: Task, data: Data, path: str | os.PathLike[str]) -> float:
    """The quality of a .tflite file on LiteRT's default kernels, XNNPACK where they can."""
    content = Path(path).read_bytes()
    inputs, outputs = ports(flatbuffer.read(content))
    if len(inputs) > 1:
        return task.score(streamed(os.fspath(path), data), data)
    (taken,), (given,) = inputs, outputs
    predict = predictor(content, {taken.name: data.test_inputs(0, 4)})
    return task.score(lambda x: predict({taken.name: x})[given.name], data)


def streamed(model: Any, data: Data) -> Predict:
    """A step model, or the path of its file, as a function on windows that follow one another.

    Args:
        data: whose streams have as many windows as are given, or a multiple.
    """
    from tfcompress.surgery.streams.stream import Stream

    each = data.x_test.shape[1]
    made = functools.cache(lambda count: Stream(model, count))

    def outputs(frames: np.ndarray) -> np.ndarray:
        stream = made(len(frames))
        stream.reset()
        return np.stack([*stream.run(frames)][-each:], 1)

    def predict(x: np.ndarray) -> np.ndarray:
        windows = x.reshape(-1, each, *x.shape[1:])
        frames = np.concatenate([windows[:, 0], windows[:, 1:, -1]], axis=1)
        # A file takes one stream at a time.
        parts = np.split(frames, len(frames)) if isinstance(model, str) else [frames]
        return np.concatenate([*map(outputs, parts)]).reshape(len(x), -1)

    return predict
