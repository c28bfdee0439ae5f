"""A small model to prune and cluster, its training, and what is read from it."""

import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
from keras import layers

import tfcompress as tfc
from tfcompress import Prune, schedules
from tfcompress.techniques.masks import Pattern

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(64, 8, 8, 2)).astype("float32")
Y = RANDOM.integers(0, 2, 64)
GROWING = schedules.linear(0.0, 0.6, begin=2, end=13, frequency=4)
SCORES = ("magnitude", "taylor", "movement", "random")


def in_layers(sparsity=None, *args, **kwargs):
    """`Prune` of each layer by itself and by magnitude; a number is its sparsity from the start."""
    if sparsity is None and ":" in kwargs.get("pattern", ""):
        sparsity = Pattern.parse(kwargs["pattern"]).sparsity
    number = isinstance(sparsity, float)
    kwargs = {"scope": "layer", "score": "magnitude", **kwargs}
    return Prune(schedules.constant(sparsity) if number else sparsity, *args, **kwargs)


def make_float(**first):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(6, 3, use_bias=False, name="first", **first)(inputs)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.Conv2D(8, 3, activation="relu", name="second")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(2, dtype="float32", name="logits")(x))


def compiled(model, optimizer=None, **kwargs):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    settings = {"weighted_metrics": ["accuracy"], "jit_compile": False, **kwargs}
    model.compile(optimizer or keras.optimizers.Adam(0.01), loss, **settings)
    return model


def make(*techniques, optimizer=None, **kwargs):
    rules = [tfc.Rule("*", list(techniques or [in_layers(GROWING)]))]
    return compiled(tfc.compress(make_float(), rules), optimizer, **kwargs)


def fit(model, **kwargs):
    callbacks = [tfc.UpdateCompression(), *kwargs.pop("callbacks", [])]
    settings = {"batch_size": 4, "verbose": 0, "shuffle": False, "callbacks": callbacks}
    model.fit(kwargs.pop("x", X), kwargs.pop("y", Y), **{**settings, **kwargs})
    return model


def assert_same(a, b, atol=0.0):
    for v, w in zip(a.weights, b.weights, strict=True):  # Keras does not save seeds
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(v), keras.ops.convert_to_numpy(w), atol=atol, err_msg=v.path
        )


def kernels(model):
    """Baked kernels by layer."""
    final = tfc.finalize(model)
    found = [final.get_layer(name) for name in ("first", "second", "logits")]
    return [np.array(getattr(x, "layer", x).kernel) for x in found]


def zeros(kernels):
    return [int((kernel == 0).sum()) for kernel in kernels]


def wanted(kernels, sparsity):
    return [k.size - round(k.size * (1 - sparsity)) for k in kernels]


def assert_sparse(model, sparsity=0.6):
    found = kernels(model)
    assert zeros(found) == wanted(found, sparsity)
    assert not any(np.signbit(kernel[kernel == 0]).any() for kernel in found)
    np.testing.assert_allclose(tfc.finalize(model)(X), model(X), atol=1e-6)


def run_python(code, *arguments, fails=False):
    path = os.pathsep.join(map(os.path.abspath, sys.path))  # with the folders of tests
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=500
    )
    assert (done.returncode == 7) if fails else (done.returncode == 0), done.stderr[-3000:]
