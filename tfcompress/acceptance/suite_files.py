"""The files of the acceptance suite: each architecture, int8 by QAT and by PTQ."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import keras
import numpy as np

from tfcompress import files
from tfcompress.acceptance.models import ARCHITECTURES, Architecture, generated_data
from tfcompress.compression import quantize_aware
from tfcompress.suggestions import expected_one_of
from tfcompress.tflite.convert import convert
from tfcompress.tflite.metadata import Metadata, TensorMetadata, add_metadata

SAMPLES, BATCH = 640, 32
EPOCHS, QAT_EPOCHS = 6, 2
CALIBRATION_SAMPLES = 200
SEED = 0


@dataclasses.dataclass(frozen=True)
class MadeFile:
    """A file of the suite, and inputs that the model was not trained with; see `suite.Row`."""

    model: str
    method: str
    io_dtype: str
    parameters: int
    path: Path
    data: np.ndarray


def make_files(only: Iterable[str] | None, folder: Path) -> Iterator[MadeFile]:
    """Train, quantize and convert.

    Args:
        only: names of architectures, all if None.
        folder: where the files go; made if it is missing.

    Yields:
        The files, as they are made.

    Raises:
        ValueError: there is no architecture of a name.
    """
    names = list(ARCHITECTURES if only is None else only)
    for name in names:
        if name not in ARCHITECTURES:
            raise ValueError(f"unknown model {name!r}; {expected_one_of(name, ARCHITECTURES)}")
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        yield from _files(name, ARCHITECTURES[name], folder)


def _files(name: str, architecture: Architecture, folder: Path) -> Iterator[MadeFile]:
    keras.utils.set_random_seed(SEED)
    model = architecture.build()
    (x, y), test = _data(name, model)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9  # The training is too short for 0.99.
    _fit(model, x, y, architecture.loss, 2e-3, EPOCHS)
    qat = quantize_aware(model, momentum=0.9)
    _fit(qat, x, y, architecture.loss, 5e-4, QAT_EPOCHS)
    for method, source, io_dtype in (
        ("QAT", qat, "int8"),
        ("PTQ", model, "int8"),
        ("QAT", qat, "float32"),
    ):
        path = folder / f"{name}_{method.lower()}_{io_dtype}.tflite"
        calibration = x[:CALIBRATION_SAMPLES] if method == "PTQ" else None
        convert(source, path, precision="int8", io_dtype=io_dtype, calibration=calibration)
        if io_dtype == "float32":
            files.atomic_write(path, add_metadata(path.read_bytes(), _metadata(model)))
        yield MadeFile(name, method, io_dtype, model.count_params(), path, test)


def _metadata(model: keras.Model) -> Metadata:
    """What readers of metadata are tried on: texts, normalization, a range and labels."""
    # Names are those of the signature.
    low, high = (0.0,), (1.0,)
    taken = TensorMetadata("", "what it looks at", (0.0,), (255.0,), low, high)
    labels = tuple(f"{model.name} {number}" for number in range(model.output_shape[-1]))
    classes = TensorMetadata("", "how sure it is of each", labels=labels)
    if model.output_shape == model.input_shape:
        classes = TensorMetadata("", "what it has seen", minimum=low, maximum=high)
    text = "Trained for a moment, to be looked at by other tools"
    return Metadata(model.name, text, inputs=(taken,), outputs=(classes,))


def _data(name: str, model: keras.Model):
    """Data to train with, as (x, y), and inputs to test with."""
    if name == "digits":
        from tfcompress.demo import load_digits

        train, (images, _) = load_digits()
        return train, images
    return generated_data(model, SAMPLES), generated_data(model, 32, seed=1)[0]


def _fit(model: keras.Model, x, y, loss: str, rate: float, epochs: int) -> None:
    model.compile(keras.optimizers.Adam(rate), loss, jit_compile=False)
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0)
