"""Models to flatten, and checks that their flat copies equal them."""

import os

import keras
import numpy as np
import pytest
from keras import layers, ops

from tfcompress.graph.flatten import flatten
from tfcompress.graph.tracing import is_composite

register = keras.saving.register_keras_serializable("test_graph")


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def shake(model):
    """Gives every float weight a value that is not the initial one."""
    rng = np.random.default_rng(1)
    for v in model.weights:
        if "float" in v.dtype:
            v.assign(rng.uniform(0.2, 1.0, v.shape))
    return model


def difference(a, b) -> float:
    pairs = zip(keras.tree.flatten(a), keras.tree.flatten(b), strict=True)
    return max(
        float(np.max(np.abs(np.asarray(x, "float64") - np.asarray(y, "float64")))) for x, y in pairs
    )


def names(model):
    return [op.name for op in model.operations if not isinstance(op, layers.InputLayer)]


def flat_and_equal(model, x, tmp_path=None, **settings):
    """The flat copy, after checks that it equals the model, which is left as it was."""
    wanted = model(x, training=False)
    before = [v.numpy() for v in model.variables]
    nodes = [len(layer._inbound_nodes) for layer in model._flatten_layers()]
    flat = flatten(model, **settings)
    assert difference(wanted, flat(x, training=False)) == 0.0
    assert difference(wanted, model(x, training=False)) == 0.0
    assert all(np.array_equal(v, old) for v, old in zip(model.variables, before, strict=True))
    assert nodes == [len(layer._inbound_nodes) for layer in model._flatten_layers()]
    assert not any(is_composite(op) for op in flat.operations)
    if tmp_path is not None:
        path = os.path.join(tmp_path, "flat.keras")
        flat.save(path)
        assert difference(wanted, keras.saving.load_model(path)(x, training=False)) == 0.0
    return flat


@register
class Block(layers.Layer):
    """Own weights on both sides of an operator, a constant, and dropout that obeys training."""

    def __init__(self, units=6, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.dense = layers.Dense(units, name="dense")
        self.norm = layers.BatchNormalization(name="norm")
        self.drop = layers.Dropout(0.5, name="drop")

    def build(self, input_shape):
        self.bias = self.add_weight(shape=(self.units,), initializer="normal", name="bias")
        self.dense.build(input_shape)
        self.norm.build((None, self.units))

    def call(self, x, training=None):
        y = self.bias + self.norm(self.dense(x), training=training)
        y = ops.relu(y) * np.float32([2.0]) - self.bias.value
        return self.drop(y, training=training)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def sequential(*parts, size=8, **kwargs):
    return keras.Sequential([keras.Input((size,)), *parts], **kwargs)


def subclassed(call, parts, x, **kwargs):
    """A built subclassed model whose `call(self, x, training)` is given."""

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__(**kwargs)
            for name, part in parts.items():
                setattr(self, name, part)

        def call(self, x, training=None):
            return call(self, x, training)

    model = Subclassed()
    model(x)
    return model
