"""Random graphs: the int8 file computes what the Keras model computes."""

import warnings

import keras
import numpy as np
import pytest
from random_models import batches, random_model

import tfcompress as tfc
from tfcompress.layers.fake_quant import FakeQuant
from tfcompress.quantization.opening import output_names

QUICK = (3, 5, 7, 8, 13, 22)


def run_signature(path, x) -> dict[str, np.ndarray]:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path))
    runner.allocate_tensors()
    serve = runner.get_signature_runner("serve")
    (name,) = serve.get_input_details()
    results = [serve(**{name: sample[None]}) for sample in x]
    return {key: np.concatenate([r[key] for r in results]) for key in results[0]}


def check(seed: int, path, **settings):
    model = tfc.quantize_aware(random_model(seed), **settings)
    data = batches(seed)
    for batch in data * 2:
        model(batch, training=True)
    wide = settings.get("activation_bits") == 16
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="these activations were always 0")
        report = tfc.convert(model, path, precision="int16x8" if wide else "int8")
    assert [f.op for f in report.float_ops if not wide] == []
    results = run_signature(path, data[0])
    outputs = keras.tree.flatten(model(data[0], training=False))
    for name, expected, tensor in zip(output_names(model), outputs, model.outputs, strict=True):
        step = step_of(tensor, np.asarray(expected))
        # A step within may be several at the output.
        error = np.abs(results[name] - np.asarray(expected)) / step
        assert error.max() <= 5, name
        assert error.mean() <= 1, name


def step_of(tensor, values) -> float:
    """What one int8 code of an output is worth."""
    last = tensor._keras_history.operation
    low, high = last.limits() if isinstance(last, FakeQuant) else (values.min(), values.max())
    return (float(high) - float(low)) / 255


@pytest.mark.parametrize("seed", QUICK)
def test_int8_computes_what_keras_computes(seed, tmp_path):
    check(seed, tmp_path / "model.tflite")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 140))
def test_many(seed, tmp_path):
    check(seed, tmp_path / "model.tflite")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "settings", [{"bits": 4}, {"activation_bits": 16}, {"dense": "per_channel"}], ids=str
)
def test_other_settings(seed, settings, tmp_path):
    check(seed, tmp_path / "model.tflite", **settings)
