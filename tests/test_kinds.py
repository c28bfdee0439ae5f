"""What is known of each kind of layer, against the layers of Keras themselves."""

import importlib
import pkgutil
import re

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress import kinds

OURS = {"AddLoss", "FakeQuant", "IntegerLSTM", "KeepMask", "Parameter", "RepeatBatch", "SetMask"}
OURS |= {"StepRNN"}
OTHERS = {"StochasticDepth"}  # of KerasHub


def test_names_are_those_of_classes():
    homes = pkgutil.iter_modules(importlib.import_module("keras.src.ops").__path__)
    names = [home.name for home in homes if not home.name.endswith("_test")]
    found = [importlib.import_module(f"keras.src.ops.{name}") for name in names]
    known = {name for home in (keras.layers, *found) for name in dir(home)}
    listed = [name for names in kinds._TABLE for name in names.split()]
    assert len(listed) == len(set(listed))
    assert set(listed) - known == OURS | OTHERS


@pytest.mark.parametrize(
    ("name", "make", "wanted"),
    [
        ("Dense", lambda: layers.Dense(5), (3, 5)),
        ("Embedding", lambda: layers.Embedding(7, 5), (7, 5)),
        *((f"Conv{n}D", None, (3, 5)) for n in (1, 2, 3)),
        *((f"Conv{n}DTranspose", None, (3, 5)) for n in (1, 2, 3)),
        *((f"DepthwiseConv{n}D", None, (1, 3 * 2)) for n in (1, 2)),
    ],
)
def test_axes_of_kernels(name, make, wanted):
    rank = int((re.findall(r"\d", name) or "0")[0])
    settings = {"depth_multiplier": 2} if "Depthwise" in name else {"filters": 5}
    layer = make() if make else getattr(layers, name)(kernel_size=2, **settings)
    layer.build((None, *(8,) * rank, 3))
    kernel = next(v for v in layer.weights if v.name in ("kernel", "embeddings"))
    found = kinds.weight_axes(layer, kernel.name)
    sizes = [int(np.prod([kernel.shape[axis] for axis in axes])) for axes in found]
    assert tuple(sizes) == wanted
    assert kinds.channel_axes(layer) == (() if name == "Embedding" else found[1])


def test_axes_of_an_einsum():
    layer = layers.EinsumDense("abc,cde->abde", output_shape=(None, 4, 5))
    layer.build((None, 6, 3))
    assert kinds.weight_axes(layer) == ((0,), (1, 2))
    assert kinds.equation_of(layer) == ("abc", "cde", "abde")


def test_a_users_class_is_of_the_kind_that_it_derives_from():
    class Mine(layers.Conv2D):
        pass

    class Conv2D(layers.Layer):
        """Of the same name, and something else."""

    assert kinds.is_of(Mine(2, 3), kinds.CONVOLUTIONS)
    assert not kinds.is_exactly(Mine(2, 3), kinds.CONVOLUTIONS)
    assert not kinds.is_of(Conv2D(), kinds.CONVOLUTIONS)
    frozen = tfc.flatten(keras.Sequential([keras.Input((4, 4, 1)), Mine(2, 3)])).layers[1]
    assert kinds.is_of(frozen, kinds.LINEAR)


def test_what_keeps_weights_plain():
    layer = layers.Dense(4)
    layer.build((None, 3))
    assert kinds.has_plain_weights(layer)
    layer.enable_lora(2)
    assert not kinds.has_plain_weights(layer)


def test_shares_lie_on_the_grid_of_their_range():
    """Steps of 1/252 for sixths: code 42 is one."""
    low, high = kinds.share_range(6)
    assert (low, high * 252) == (0.0, 255.0)
    assert kinds.share_range(255) == (0.0, 1.0)
    assert kinds.share_range(256) is None
