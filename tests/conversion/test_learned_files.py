"""Files of models trained with learned steps: the bits of the simulation."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.conversion.grids import find_grid
from tfcompress.tflite import flatbuffer


def model():
    keras.utils.set_random_seed(0)
    x = keras.Input((6, 6, 3))
    y = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(x)))
    y = layers.ReLU()(layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same")(y)))
    y = layers.GlobalAveragePooling2D()(layers.Conv2D(16, 3)(y))
    y = layers.BatchNormalization()(layers.Dense(8)(y))
    return keras.Model(x, layers.Dense(4)(y))


def moved(bits, granularity, data, random):
    """A model whose steps and limits are not where they began, as after training."""
    settings = {"dense": granularity, "convolution": granularity, "momentum": 0.5}
    qat = tfc.quantize_aware(
        model(), bits=bits, step="learned", activation_step="learned", **settings
    )
    for variable in qat.trainable_variables:
        if "factor" in variable.name:
            variable.assign(random.uniform(0.7, 1.4, variable.shape))
    for _ in range(2):
        qat(data, training=True)
    return qat


@pytest.mark.parametrize(
    ("bits", "granularity"),
    [
        (4, "per_tensor"),
        *(
            pytest.param(bits, granularity, marks=pytest.mark.slow)
            for bits in (2, 3, 4, 8)
            for granularity in ("per_tensor", "per_channel")
        ),
    ],
)
def test_the_file_gives_the_bits_of_the_simulation(bits, granularity, tmp_path):
    random = np.random.default_rng(0)
    data = random.normal(size=(48, 6, 6, 3)).astype("float32")
    qat, file = moved(bits, granularity, data, random), tmp_path / "model.tflite"
    precision = "int4" if bits <= 4 else "int8"
    assert tfc.convert(qat, file, precision=precision).float_ops == []
    assert tfc.verify(qat, file, data).outputs[0].keras.max_lsb < 1e-3
    assert tfc.verify(tfc.finalize(qat), file, data).outputs[0].keras.max_lsb < 1e-3
    if granularity == "per_tensor":  # a Dense without a normalization keeps its one scale
        content = flatbuffer.read(file.read_bytes())
        graph = content.subgraphs[0]
        products = [
            x for x in graph.operators if flatbuffer.op_name(content, x) == "FULLY_CONNECTED"
        ]
        assert len(flatbuffer.scales_of(graph.tensors[products[-1].inputs[1]])[0]) == 1


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_the_grid_of_one_scale_whose_top_code_is_not_used(bits):
    random = np.random.default_rng(0)
    codes = random.integers(-(2 ** (bits - 1) - 2), 2 ** (bits - 1) - 1, (6, 3, 3, 4))
    codes[0, 0, 0, :2] = 1, 2 ** (bits - 1) - 2
    weight = (codes * 0.037).astype("float32")
    grid = find_grid(weight, 0, [bits])
    assert grid[:2] == (bits, "t")
    assert not grid.widest
    np.testing.assert_allclose(grid.scale, np.full((1, 1, 1, 1), 0.037), rtol=1e-6)
