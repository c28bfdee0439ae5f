"""What factorize refuses, before any work."""

import keras
import numpy as np
import pytest
from factor_models import normal, of_layer, small_cnn
from keras import layers

import tfcompress as tfc
from tfcompress.surgery.factors import maths
from tfcompress.surgery.factors.factorize import factorize


@pytest.fixture(autouse=True)
def no_work(monkeypatch):
    """Errors come before anything is taken apart."""

    def fail(*_, **__):
        raise AssertionError("work has begun")

    for name in ("energies", "svd", "weighted_svd", "tucker_energies", "tucker2"):
        monkeypatch.setattr(maths, name, fail)


@pytest.fixture(scope="module")
def model():
    return small_cnn()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"method": "tuker"}, "unknown method 'tuker'; expected one of .* Did you mean 'tucker'?"),
        ({"rank": 2, "energy": 0.9}, "expected one of rank, energy, macs and params; received"),
        ({"rank": 0}, "rank must be 1 or more; received 0"),
        ({"rank": {"hidden": 0}}, "rank must be 1 or more"),
        ({"rank": "evmbf"}, "rank must be .* received 'evmbf'. Did you mean 'evbmf'?"),
        ({"rank": "evbmf", "method": "cp"}, "rank='evbmf' is for ranks of matrices"),
        ({"rank": 65}, "at most the full rank of some layer; received 65. .* 'hidden', 64"),
        ({"rank": {"hidden": 65}}, "rank of layer 'hidden' must be at most 64, .* received 65"),
        ({"rank": {"hiden": 5}}, "layers must match .* 'hiden', .* Did you mean 'hidden'?"),
        ({"rank": {"hidden": 5}, "layers": "kind"}, "rank must name layers .* 'hidden' is none"),
        (
            {"rank": {"hidden": 5, "kind": 2}, "method": "tucker"},
            "no layer that method='tucker' can take apart: .*'hidden': method='tucker' does not",
        ),
        ({"rank": {"stem": (17, 3)}, "method": "tucker"}, r"at most \(16, 3\), .* \(17, 3\)"),
        ({"rank": 64, "method": "tucker"}, "at most the full rank .* 'wide', \\(32, 24\\)"),
        ({"rank": {"hidden": 5}, "method": "block_diagonal"}, "must be a divisor of 64"),
        ({"energy": 0}, r"energy must be a number in \(0, 1\]; received 0"),
        ({"energy": 95}, "received 95. Did you mean 0.95?"),
        ({"energy": float("nan")}, "energy must be"),
        ({"energy": True}, "energy must be"),
        ({"macs": 50}, r"in \(0, 1\); received 50. Did you mean 0.5?"),
        ({"macs": 1}, r"macs must be a number in \(0, 1\)"),
        ({"params": -0.5}, "params must be"),
        ({"params": "half"}, "params must be"),
        ({"macs": 0.001}, "macs must be 0.0[0-9]* or more, which the least rank in all 5 layers"),
        ({"params": 0.5, "layers": "stem"}, "params must be 0.99[0-9]* or more"),
        ({"layers": "conv*"}, "layers must match layers of model 'cnn'; received 'conv\\*'"),
        ({"layers": "re_lu*"}, "no layer that method='svd' can take apart: expected Dense"),
        ({"method": "kronecker", "layers": layers.Conv2D}, "does not take Conv2D apart"),
        ({"data": normal(3, 12, 12, 3), "method": "cp"}, "data weights .* method='svd'"),
        ({"data": normal(3, 12, 12, 4)}, "received shape .*12, 12, 4.*expected"),
        ({"data": np.full((2, 12, 12, 3), np.nan)}, "NaN or infinite"),
        ({"data": normal(3, 12, 12, 3), "samples": 0}, "samples must be an integer of 1 or more"),
    ],
)
def test_wrong_arguments(model, settings, text):
    with pytest.raises(ValueError, match=text):
        factorize(model, **settings)


@pytest.mark.parametrize(
    "settings", [{"rank": 2.5}, {"rank": (2, 3)}, {"rank": True}, {"layers": 3}, {"rank": [1, "a"]}]
)
def test_wrong_types(model, settings):
    with pytest.raises(TypeError, match="must be"):
        factorize(model, **settings)


def test_models_that_cannot():
    with pytest.raises(TypeError, match=r"must be a keras.Model"):
        factorize("model.keras", rank=2)
    with pytest.raises(ValueError, match="not built"):
        factorize(keras.Sequential([layers.Dense(3)]), rank=2)
    model = small_cnn()
    wrapped = tfc.compress(model, tfc.Recipe([tfc.Rule("*", [tfc.Prune(0.5)])]))
    with pytest.raises(ValueError, match="Finalize it first"):
        factorize(wrapped, rank=2)
    none = keras.Sequential([keras.Input((4,)), layers.ReLU()])
    with pytest.raises(ValueError, match=r"no layer .* has none"):
        factorize(none, rank=2)


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize`")
def test_kernels_that_cannot():
    class Mine(layers.Dense):
        pass

    broken = of_layer(layers.Dense(8, name="broken"), 8)
    broken.layers[1].kernel.assign(np.full((8, 8), np.inf))
    quantized = of_layer(layers.Dense(8, name="quantized"), 8)
    quantized.quantize("int8")
    lora = of_layer(layers.Dense(8, name="lora"), 8)
    lora.layers[1].enable_lora(2)
    prime = of_layer(layers.Dense(7, name="prime"), 11)
    in_time = of_layer(layers.Dense(8, name="in_time"), None, 8)
    batched = of_layer(layers.EinsumDense("abc,bcd->abd", (4, 3), name="batched"), 4, 5)
    cases = [
        (broken, "svd", "NaN or infinite"),
        (quantized, "svd", "one that Keras quantized: layer 'quantized' is int8"),
        (lora, "svd", "LoRA"),
        (of_layer(Mine(8, name="mine"), 8), "svd", "Mine is a class of its own"),
        (prime, "kronecker", "its 11x7 kernel has no sizes to split"),
        (prime, "block_diagonal", "no divisor in common"),
        (in_time, "kronecker", "no fixed length"),
        (of_layer(layers.Conv2D(8, 1), 4, 4, 8), "tucker", "use method='svd'"),
        (of_layer(layers.Conv2D(8, (3, 1)), 4, 4, 8), "spatial_svd", "single row or column"),
        (of_layer(layers.Conv1D(8, 3, padding="causal"), 4, 8), "cp", "no causal depthwise"),
        (of_layer(layers.Conv2D(8, 3, (1, 2)), 4, 4, 8), "cp", "same stride"),
    ]
    for model, method, text in cases:
        with pytest.raises(ValueError, match=text):
            factorize(model, method, rank=1, layers="*")
    with pytest.raises(ValueError, match="one matrix for each place"):
        factorize(batched, rank=1)


def test_a_budget_that_no_layer_here_helps_with():
    x = keras.Input((5,), dtype="int32")
    y = layers.Dense(2, name="d")(layers.Embedding(50, 8, name="tokens")(x))
    with pytest.raises(ValueError, match="no layer here has fewer macs"):
        factorize(keras.Model(x, y), macs=0.9, layers="tokens")
