"""The main job on real data: train a small CNN on handwritten digits, compress, convert, verify."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from tfcompress.bench.models import digits, fit
from tfcompress.compression.compress import quantize_aware
from tfcompress.conversion.convert import convert
from tfcompress.files import writing
from tfcompress.results import Result, print_table
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.benchmark import benchmark
from tfcompress.tflite.run import Runner
from tfcompress.verification.verify import verify

if TYPE_CHECKING:
    from rich.console import Console

SEED = 0
CALIBRATION_SAMPLES = 200
Progress = Callable[[str, int, int | None], Any]
Split = tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class DemoRow:
    """One file: accuracies as fractions of the test images, sizes in bytes.

    Attributes:
        method: how it was made.
        file: its name in the folder.
        keras_accuracy: of the Keras model that the file was made from.
        litert_accuracy: of the file, on LiteRT's default kernels.
        file_bytes, zipped_bytes: size of the file, plain and deflated.
        latency_ms: median of one image on one thread.
        latency: the latency divided by that of the first file, from paired runs.
        max_lsb: largest difference between Keras and LiteRT's reference kernels, see `verify`.
        verified: the verdict of `verify`.
    """

    method: str
    file: str
    keras_accuracy: float
    litert_accuracy: float
    file_bytes: int
    zipped_bytes: int
    latency_ms: float
    latency: float
    max_lsb: float
    verified: bool


@dataclasses.dataclass(frozen=True)
class DemoResult(Result):
    """What `demo` made: one row for each file, and the seconds that it took."""

    folder: str
    rows: tuple[DemoRow, ...]
    test_images: int
    seconds: float

    def _print(self, console: Console) -> None:
        rows: list[tuple[Any, ...]] = [
            (
                row.method,
                f"{row.keras_accuracy:.2%}",
                f"{row.litert_accuracy:.2%}",
                row.file_bytes,
                row.zipped_bytes,
                f"{row.latency_ms * 1000:.0f} ({row.latency:.2f}x)",
                f"{row.max_lsb:.2f}",
                "yes" if row.verified else "NO",
            )
            for row in self.rows
        ]
        columns = "method,Keras >,LiteRT >,bytes >,zipped >,latency µs >,max LSB >,verified"
        title = f"Handwritten digits: accuracy on {self.test_images} test images, and what it takes"
        print_table(console, title, columns, rows)
        console.print(
            f"{self.seconds:.0f} seconds. The files are in {self.folder}", highlight=False
        )


def demo(
    folder: str | os.PathLike[str] = "tfcompress_demo",
    *,
    epochs: int = 20,
    progress: Progress | None = None,
) -> DemoResult:
    """Trains a CNN on scikit-learn's handwritten digits and makes five .tflite files of it.

    Float32, float16, int8 by quantization-aware training, int8 by post-training quantization,
    and int4 weights with int8 activations, each verified against its Keras model.

    Args:
        folder: where the .tflite and .keras files and `demo.json` go; made if it is missing.
        epochs: of the float training; quantization-aware training takes half as many.
        progress: called as `progress(stage, done, total)`.

    Returns:
        A `DemoResult`.

    Raises:
        ImportError: scikit-learn is not installed.
        ValueError, OSError: epochs is not a positive whole number, the folder cannot be written.

    Example:
        >>> demo("digits").render()  # doctest: +SKIP
    """
    if not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"epochs must be a whole number of at least 1; received {epochs!r}.")
    start = time.perf_counter()
    report = progress or (lambda stage, done, total: None)
    train, test = load_digits()
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise ValueError(f"'{path}' is a file; expected a folder. Name another one.")
    path.mkdir(parents=True, exist_ok=True)
    for link in filter(Path.is_symlink, path.iterdir()):
        if link.suffix in (".keras", ".tflite", ".json"):  # else written where it leads
            link.unlink()
    writing.check_writable(path / "demo.json")
    models = _train(train, epochs, report)
    for name, model in models.items():
        model.save(path / f"{name}.keras")
    rows = _measure(path, models, _convert(path, models, train[0], report), test, report)
    result = DemoResult(str(path), rows, len(test[0]), round(time.perf_counter() - start, 1))
    writing.atomic_write(path / "demo.json", json.dumps(result.to_dict(), indent=2).encode())
    return result


def load_digits() -> Split:
    """The digits, a quarter of them for testing.

    Returns (images, labels) to train and to test with: float32 (n, 8, 8, 1) in [0, 1], int (n,).
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise ImportError(
            "the digits come with scikit-learn, which is not installed: "
            "pip install 'tfcompress[demo]'"
        ) from error
    images, labels = load(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    order = np.random.default_rng(SEED).permutation(len(images))
    kept, tested = order[len(order) // 4 :], order[: len(order) // 4]
    return (images[kept], labels[kept]), (images[tested], labels[tested])


def _train(train, epochs: int, report: Progress) -> dict[str, keras.Model]:
    """The float model, and models trained to compute with 8-bit and with 4-bit weights."""

    def told(stage: str, count: int) -> list[keras.callbacks.Callback]:
        report(stage, 0, count)
        end = lambda epoch, logs: report(stage, epoch + 1, count)  # noqa: E731
        return [keras.callbacks.LambdaCallback(on_epoch_end=end)]

    keras.utils.set_random_seed(SEED)
    model, half = digits(), max(1, epochs // 2)
    said = told("train the float model", epochs)
    fit(model, *train, epochs=epochs, rate=5e-3, callbacks=said)
    models = {"float": model}
    for bits in (8, 4):
        name = f"qat_int{bits}"
        models[name] = quantize_aware(model, bits=bits, momentum=0.95)
        said = told(f"train with {bits}-bit weights", half)
        fit(models[name], *train, epochs=half, rate=1e-3, callbacks=said)
    return models


# method, Keras model, file, arguments of `convert`
_METHODS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("float32", "float", "float32", {"precision": "float32"}),
    ("float16", "float", "float16", {"precision": "float16"}),
    ("int8, QAT", "qat_int8", "int8_qat", {"precision": "int8"}),
    ("int8, PTQ", "float", "int8_ptq", {"precision": "int8"}),
    ("int4 weights, QAT", "qat_int4", "int4_qat", {"precision": "int4"}),
)


def _convert(path: Path, models, images: np.ndarray, report: Progress) -> list[Path]:
    made = []
    for number, (_, source, name, settings) in enumerate(_METHODS):
        report("convert", number, len(_METHODS))
        if name.endswith("_ptq"):
            settings = {**settings, "calibration": images[:CALIBRATION_SAMPLES]}
        made.append(path / f"{name}.tflite")
        convert(models[source], made[-1], **settings)
    return made


def _measure(path: Path, models, made: list[Path], test, report: Progress) -> tuple[DemoRow, ...]:
    images, labels = test
    checks = []
    for number, (file, (_, source, _, _)) in enumerate(zip(made, _METHODS, strict=True)):
        report("verify", number, len(made))
        checks.append(verify(models[source], file, images))
    times = benchmark(made, progress=lambda done, total: report("benchmark", done, total))
    accuracies = {
        name: float(np.mean(model.predict(images, verbose=0).argmax(-1) == labels))
        for name, model in models.items()
    }
    return tuple(
        DemoRow(
            method=method,
            file=file.name,
            keras_accuracy=accuracies[source],
            litert_accuracy=accuracy(file, images, labels),
            file_bytes=timed.file_bytes,
            zipped_bytes=timed.zipped_bytes,
            latency_ms=timed.median_ms,
            latency=timed.ratio,
            max_lsb=max(output.keras.max_lsb for output in check.outputs),
            verified=check.passed,
        )
        for (method, source, _, _), file, check, timed in zip(
            _METHODS, made, checks, times.files, strict=True
        )
    )


def accuracy(file: Path, images: np.ndarray, labels: np.ndarray) -> float:
    """The share of images that a .tflite file classifies correctly, on LiteRT's default kernels."""
    content = flatbuffer.load(file)
    runner = Runner(flatbuffer.read(content), content, file.name, reference=False)
    (entry,) = runner.inputs
    found = [int(runner.run({entry.name: image[None]})[0].argmax()) for image in images]
    return float(np.mean(found == labels))
