"""Recurrent nets, cells of a user's own, and what their files are compared by."""

import keras
import numpy as np
from keras import layers, ops

import tfcompress as tfc
from tfcompress.layers.step_rnn import StepRNN


@keras.saving.register_keras_serializable("tests")
class Own(layers.Layer):
    """A cell that is written in operations, and gives something else than its state."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = self.output_size = units

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], self.units), name="kernel")
        self.turn = self.add_weight(shape=(self.units, self.units), name="recurrent_kernel")

    def call(self, x, states):
        h = ops.tanh(ops.matmul(x, self.kernel) + ops.matmul(states[0], self.turn))
        return 0.5 * h, [h]

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable("tests")
class Made(layers.Layer):
    """A cell that is made of layers."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units, self.state_size = units, [units, units]
        self.first, self.second = layers.Dense(units, "tanh"), layers.Dense(units)

    def build(self, shape):
        self.first.build(shape)
        self.second.build((None, self.units))

    def call(self, x, states):
        h, g = states
        new = self.first(x) + 0.5 * h
        return new, [new, 0.5 * g + self.second(new)]

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def net(*parts, shape=(5, 4)):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input(shape), *parts])


def loops(model):
    return [x for x in model._flatten_layers() if isinstance(x, StepRNN)]


def trained(model, data, epochs=2, **settings):
    """A quantization-aware copy that was fitted to noise."""
    keras.utils.set_random_seed(0)
    qat = tfc.quantize_aware(model, **settings)
    qat.compile("adam", "mse", jit_compile=False)
    qat.fit(data, normal(len(data), *model.output_shape[1:]), epochs=epochs, verbose=0)
    return qat


def steps_off(model, path, data):
    """By how many steps of its output a file is off what a model gives, on the reference."""
    return distance(model, path, data).max_lsb


def distance(model, path, data):
    """How far a file's output is from what a model gives, on the reference."""
    return tfc.verify(model, path, data).outputs[0].keras
