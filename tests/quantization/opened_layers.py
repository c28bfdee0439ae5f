"""Opening layers into primitives, with checks that these compute the same."""

import math
import os

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.graph.layers import Parameter
from tfcompress.graph.nodes import Graph
from tfcompress.layers.integer_lstm import IntegerLSTM
from tfcompress.quantization.openers import Rsqrt, opener

PRIMITIVE = (
    *(layers.Dense, layers.Conv1D, layers.Conv2D, layers.DepthwiseConv1D, layers.DepthwiseConv2D),
    *(layers.Activation, layers.Multiply, layers.ReLU, layers.Softmax, layers.Dropout),
    *(layers.InputLayer, layers.Conv2DTranspose, layers.LeakyReLU, Parameter, Rsqrt, IntegerLSTM),
)


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def open_and_compare(layer, *data, tmp_path=None, technique=None, **settings):
    """The opened layer as a model, after checks that it computes what the layer does."""
    inputs = [keras.Input(x.shape[1:], dtype=str(x.dtype)) for x in data]
    original = keras.Model(inputs, layer(*inputs, **settings))
    rng = np.random.default_rng(1)
    for v in layer.weights:
        v.assign(rng.uniform(-0.9, 0.9, v.shape))
    opened = keras.Model(inputs, opener(layer, (), technique)(layer, *inputs, **settings))
    assert layer not in opened.layers
    foreign = [x for x in opened.layers if not isinstance(x, PRIMITIVE)]
    assert not foreign
    wanted = original(list(data))
    assert np.any(np.abs(wanted) > 1e-3)
    np.testing.assert_allclose(opened(list(data)), wanted, atol=1e-5, rtol=1e-5)
    ranges = sum(math.prod(v.shape) for v in opened.weights if v.name == "range")
    assert opened.count_params() - ranges == original.count_params()
    if tmp_path is not None:
        path = os.path.join(tmp_path, "opened.keras")
        opened.save(path)
        again = keras.saving.load_model(path)
        np.testing.assert_allclose(again(list(data)), wanted, atol=1e-5, rtol=1e-5)
    return opened


def kinds(model):
    graph = Graph.of(model)
    return [type(node.operation).__name__ for node in graph.nodes if not node.is_input]
