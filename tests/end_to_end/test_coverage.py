"""Every architecture of keras.applications, and every kind of model, becomes an int8 file.

Both ways: from a quantization-aware model and by post-training quantization. Weights are random;
what stays float is printed and must be nothing. `ARCHITECTURES=VGG16,NASNetLarge` picks some.
"""

import gc
import inspect as python_inspect
import os
import warnings

import keras
import numpy as np
import pytest
from models import BUILDERS

import tfcompress as tfc

# The smallest input that builds; 32 where it is not said.
SMALLEST = {"InceptionV3": 75, "InceptionResNetV2": 75, "Xception": 71, "NASNetLarge": 32}
# The converter takes out means of one pixel, whose range is rounded to all the same.
SMALLEST |= dict.fromkeys(("MobileNet", "MobileNetV3Large", "MobileNetV3Small"), 64)
QUICK = ("subclassed", "two_inputs_two_outputs", "unet", "squeeze_and_excite")


def architectures() -> list[str]:
    """The model functions of keras.applications."""
    names = [
        name
        for name, value in vars(keras.applications).items()
        if name[0].isupper() and python_inspect.isfunction(value)
    ]
    chosen = os.environ.get("ARCHITECTURES")
    return chosen.split(",") if chosen else sorted(names)


def samples_of(model, count: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [
        random.normal(size=(count, *t.shape[1:])).astype("float32")
        if "float" in t.dtype
        else random.integers(0, 40, (count, *t.shape[1:])).astype(t.dtype)
        for t in model.inputs
    ]


def packed(values: list[np.ndarray]):
    return values if len(values) > 1 else values[0]


def check(model, tmp_path) -> None:
    """Converts a model both ways; nothing may stay float, and no warning may be given."""
    path = tmp_path / "model.tflite"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*stay float.*")
        qat = tfc.quantize_aware(model)
    for seed in range(3):
        qat(packed(samples_of(qat, 2 + seed)), training=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*always 0 while training.*")
        by_qat = tfc.convert(qat, path, precision="int8")
    calibration = packed(samples_of(qat, 4))
    by_ptq = tfc.convert(model, path, precision="int8", calibration=calibration)
    for way, report in (("QAT", by_qat), ("PTQ", by_ptq)):
        print(f"{model.name} {way}: {report.file_bytes:,} bytes, left float: {report.float_ops}")
        assert report.float_ops == []
    edges = [count for op, _, count in by_qat.ops if op in ("QUANTIZE", "DEQUANTIZE")]
    assert sum(edges) <= len(model.outputs) + len(qat.inputs)
    gc.collect()


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in BUILDERS]
)
def test_kinds_of_models(name, tmp_path):
    keras.utils.set_random_seed(0)
    model = BUILDERS[name]()
    if not hasattr(model, "outputs"):
        model = tfc.flatten(model)
    check(model, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", architectures())
def test_architectures(name, tmp_path):
    size = SMALLEST.get(name, 32)
    build = getattr(keras.applications, name)
    model = build(weights=None, input_shape=(size, size, 3), classes=10)
    check(model, tmp_path)
