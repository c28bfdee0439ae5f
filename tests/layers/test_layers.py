"""The wrapper layers, by what they compute, keep and save."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from tfcompress.layers.batch_norm import FusedBatchNorm
from tfcompress.layers.compressed import Compressed
from tfcompress.layers.fake_quant import FakeQuant
from tfcompress.techniques import Quantize, Technique
from tfcompress.techniques.quantize import quantize_weight

RANDOM = np.random.default_rng(0)
fake_quant = tf.quantization.fake_quant_with_min_max_vars


def normal(*shape):
    return RANDOM.normal(size=shape).astype("float32")


def clone(layer):
    config = keras.saving.serialize_keras_object(layer)
    return keras.saving.deserialize_keras_object(config)


class TestFakeQuant:
    def test_range_from_the_first_batch_on(self):
        layer = FakeQuant(momentum=0.9)
        x = np.array([[-1.0, 0.2, 3.0]], "float32")
        np.testing.assert_array_equal(layer(x), x)  # nothing seen yet: passes through
        y = layer(x, training=True)
        np.testing.assert_array_equal(layer.range, [[-1, 3]])
        np.testing.assert_array_equal(y, fake_quant(x, -1.0, 3.0))
        layer(2 * x, training=True)
        np.testing.assert_allclose(layer.range, [[-1.1, 3.3]], rtol=1e-6)
        before = np.array(layer.range)
        np.testing.assert_array_equal(layer(9 * x), fake_quant(9 * x, *before[0]))
        np.testing.assert_array_equal(layer.range, before)  # frozen in inference

    def test_range_always_holds_zero(self):
        layer = FakeQuant()
        layer(np.array([2.0, 3.0], "float32"), training=True)
        np.testing.assert_array_equal(layer.range, [[0, 3]])
        layer = FakeQuant()
        layer(np.array([-2.0, -3.0], "float32"), training=True)
        np.testing.assert_array_equal(layer.range, [[-3, 0]])

    @pytest.mark.parametrize(("name", "top"), [("relu", 7.0), ("relu6", 6.0)])
    def test_carries_out_a_relu(self, name, top):
        layer = FakeQuant(activation=name)
        x = tf.constant([-2.0, -0.001, 0.5, 5.0, 7.0])
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        np.testing.assert_array_equal(layer.range, [[0, top]])
        expected = fake_quant(keras.activations.get(name)(x), 0.0, top)
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(layer(x), expected)
        inside = (x > 0) & (x <= top)
        np.testing.assert_array_equal(tape.gradient(y, x), tf.cast(inside, "float32"))

    def test_shared_range_is_the_union(self):
        layer = FakeQuant(sources=2)
        a, b = np.array([-1.0, 2.0], "float32"), np.array([-0.5, 4.0], "float32")
        layer(a, source=0, training=True)
        y = layer(b, source=1, training=True)
        np.testing.assert_array_equal(layer.range, [[-1, 2], [-0.5, 4]])
        np.testing.assert_array_equal(ops.stack(layer.limits()), [-1, 4])
        np.testing.assert_array_equal(y, fake_quant(b, -1.0, 4.0))
        z = layer(9 * b, source=None, training=True)  # rounds by the range, is no source of it
        np.testing.assert_array_equal(z, fake_quant(9 * b, -1.0, 4.0))
        np.testing.assert_array_equal(layer.range, [[-1, 2], [-0.5, 4]])

    def test_fixed_range(self):
        layer = FakeQuant(fixed=(0.0, 255 / 256))
        x = RANDOM.random(20).astype("float32")
        for training in (True, False):
            found = layer(x, training=training)
            np.testing.assert_array_equal(found, fake_quant(x, 0.0, 255 / 256))
        assert layer.limits() == (0.0, 255 / 256)
        assert layer.weights == []

    def test_phases(self):
        layer = FakeQuant(delay=3, freeze=6, activation="relu", momentum=0.5)
        x = np.array([-1.0, 0.123, 1.0], "float32")
        relu = np.maximum(x, 0)
        np.testing.assert_array_equal(layer(x, training=True), relu)
        np.testing.assert_array_equal(layer(x), relu)
        np.testing.assert_array_equal(layer.range, [[0, 1]])  # observed meanwhile
        layer.advance(3)
        np.testing.assert_array_equal(layer(3 * x, training=True), fake_quant(3 * relu, 0.0, 2.0))
        np.testing.assert_array_equal(layer(x), fake_quant(relu, 0.0, 2.0))
        layer.advance(6)
        np.testing.assert_array_equal(layer(9 * x, training=True), fake_quant(9 * relu, 0.0, 2.0))
        np.testing.assert_array_equal(layer.range, [[0, 2]])
        assert [layer.next_step(step) for step in (-1, 0, 3, 6)] == [3, 3, 6, None]

    def test_dead_input_stays_finite(self):
        layer = FakeQuant(activation="relu")
        x = tf.constant([-1.0, -2.0])
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        np.testing.assert_array_equal(y, [0, 0])
        np.testing.assert_array_equal(tape.gradient(y, x), [0, 0])
        layer(tf.constant([1.0, 2.0]), training=True)
        np.testing.assert_array_equal(layer.range, [[0, 2]])

    def test_zeros_alone_are_held_from_0_to_1_until_more_is_seen(self):
        layer, x = FakeQuant(sources=2), np.array([0.3, 1.7], "float32")
        layer(np.zeros(2, "float32"), source=0, training=True)
        layer(np.zeros(2, "float32"), source=1, training=True)
        assert layer.only_zeros
        np.testing.assert_array_equal(ops.stack(layer.limits()), [0, 1])
        np.testing.assert_array_equal(layer(x), fake_quant(x, 0.0, 1.0))
        layer(0.01 * x, source=1, training=True)
        np.testing.assert_allclose(ops.stack(layer.limits()), [0, 0.017], rtol=1e-6)

    def test_observes_without_rounding(self):
        layer, x = FakeQuant(observes=True), np.array([-1.0, 0.123, 3.0], "float32")
        np.testing.assert_array_equal(layer(x, training=True), x)
        np.testing.assert_array_equal(layer(x), x)
        np.testing.assert_array_equal(ops.stack(layer.limits()), [-1, 3])

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
    def test_keeps_the_dtype_of_its_input(self, dtype):
        keras.config.set_dtype_policy("mixed_float16")
        try:
            layer = FakeQuant()
            x = tf.cast([-1.0, 0.3, 3.0], dtype)
            y = layer(x, training=True)
            symbolic = layer(keras.KerasTensor((None, 3), dtype))
        finally:
            keras.config.set_dtype_policy("float32")
        assert y.dtype == dtype == symbolic.dtype
        assert layer.range.dtype == "float32"
        np.testing.assert_array_equal(y, tf.cast(fake_quant(tf.cast(x, "float32"), -1, 3), dtype))

    def test_config(self):
        layer = FakeQuant(
            8, 0.9, "relu6", sources=2, delay=1, freeze=4, float_source=True, name="range_of_x"
        )
        assert clone(layer).get_config() == layer.get_config()


class TestCompressed:
    @pytest.mark.parametrize("bits", [8, 4])
    def test_computes_with_effective_weights(self, bits):
        layer = Compressed(layers.Conv2D(4, 3), [Quantize(bits=bits, axes=(3,))])
        x = normal(2, 6, 6, 3)
        y = layer(x)
        kernel = quantize_weight(layer.layer.kernel, bits, (3,))
        np.testing.assert_allclose(y, tf.nn.conv2d(x, kernel, 1, "VALID"), atol=1e-5)
        np.testing.assert_array_equal(layer.effective(layer.layer.kernel), kernel)

    def test_techniques_compose_in_order(self):
        layer = Compressed(layers.Dense(3), [Halve(), Quantize(bits=4)])
        layer.build((None, 5))
        kernel = layer.layer.kernel
        np.testing.assert_allclose(layer.effective(kernel), quantize_weight(kernel / 2, 4))
        np.testing.assert_allclose(layer.effective(kernel, stop=Quantize), kernel / 2)

    def test_state_is_advanced_saved_and_serialised(self, tmp_path):
        inputs = keras.Input((5,))
        layer = Compressed(layers.Dense(3), [Halve(every=10), Quantize(bits=4, delay=20)])
        model = keras.Model(inputs, layer(inputs))
        layer.advance(20)
        kernel = layer.layer.kernel
        np.testing.assert_allclose(layer.effective(kernel), quantize_weight(kernel * 0.25, 4))
        assert layer.next_step(20) == 30
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        x = normal(4, 5)
        np.testing.assert_array_equal(model(x), loaded(x))
        assert loaded.layers[1].techniques == layer.techniques
        assert int(loaded.layers[1].last_step) == 20

    def test_weights_are_held_once_and_freeze_with_the_layer(self):
        layer = Compressed(layers.Dense(3), [Quantize()])
        layer.build((None, 5))
        assert [v.name for v in layer.trainable_variables] == ["kernel", "bias"]
        assert layer._trainable_variables == []
        layer.layer.trainable = False
        assert layer.trainable_variables == []
        assert [target.variable.name for target in layer.bound] == ["kernel"]

    def test_keeps_losses_and_updates_of_the_wrapped_layer(self):
        layer = Compressed(Counting(3, kernel_regularizer="l2"), [Quantize()])
        layer(np.ones((2, 5), "float32"), training=True)
        layer(np.ones((2, 5), "float32"), training=True)
        assert float(layer.layer.calls) == 2
        kernel = np.array(layer.layer.kernel)
        expected = sorted([7.0, 0.01 * (kernel**2).sum()])
        np.testing.assert_allclose(sorted(layer.losses), expected, rtol=1e-5)

    def test_activity_regularizer_and_mask(self):
        layer = Compressed(layers.Dense(3, activity_regularizer="l1"), [Quantize()])
        x = np.ones((2, 5), "float32")
        y = layer(x)
        plain = layers.ActivityRegularization(l1=0.01)  # Keras 3.12 does not divide by the batch
        plain(y)
        np.testing.assert_allclose(layer.losses, plain.losses, rtol=1e-5)
        embedding = Compressed(layers.Embedding(5, 2, mask_zero=True), [Quantize()])
        y = embedding(np.array([[1, 0]]))
        np.testing.assert_array_equal(y._keras_mask, [[True, False]])

    def test_no_target(self):
        with pytest.raises(ValueError, match=r"layer 'plain'.*must have one of the weights kernel"):
            Compressed(layers.BatchNormalization(name="plain"), [Quantize()]).build((None, 4))


class TestFusedBatchNorm:
    @pytest.mark.parametrize("shape", [(8, 5, 6, 4), (8, 4), (1, 1, 1, 4)])
    @pytest.mark.parametrize("settings", [{}, {"scale": False, "center": False, "momentum": 0.5}])
    def test_equals_keras(self, shape, settings):
        x = 3 * normal(*shape) + 1
        expected = layers.BatchNormalization(**settings)
        found = FusedBatchNorm(layers.BatchNormalization(**settings))
        found.build(shape)
        for layer in (expected, found.layer):
            layer.build(shape) if not layer.built else None
            for index, variable in enumerate(layer.trainable_variables):
                variable.assign(np.linspace(0.5, 1 + index, 4))
        upstream = normal(*shape)

        def run(layer):
            inputs = tf.constant(x)
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                y = layer(inputs, training=True)
                loss = tf.reduce_sum(y * upstream)
            wanted = [inputs, *(v.value for v in layer.trainable_variables)]
            return [y, *tape.gradient(loss, wanted)]

        for a, b in zip(run(found), run(expected), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)
        for a, b in zip(found.variables, expected.variables, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found(x), expected(x), atol=1e-5)

    def test_statistics_stop(self):
        x = normal(8, 5, 6, 4)
        layer = FusedBatchNorm(layers.BatchNormalization(), freeze=3)
        layer(x, training=True)
        moved = np.array(layer.layer.moving_mean)
        assert np.abs(moved).max() > 0
        layer.advance(3)
        y = layer(5 + x, training=True)
        np.testing.assert_array_equal(layer.layer.moving_mean, moved)
        np.testing.assert_allclose(y, layer(5 + x), atol=1e-6)
        assert [layer.next_step(step) for step in (0, 3)] == [3, None]

    def test_frozen_layer_and_mask(self):
        layer = FusedBatchNorm(layers.BatchNormalization(trainable=False))
        x = normal(8, 4)
        np.testing.assert_allclose(layer(x, training=True), layer(x))
        np.testing.assert_array_equal(layer.layer.moving_mean, np.zeros(4))
        layer, plain = FusedBatchNorm(layers.BatchNormalization()), layers.BatchNormalization()
        mask = np.arange(8) < 5
        np.testing.assert_allclose(
            layer(x, training=True, mask=mask), plain(x, training=True, mask=mask), atol=1e-6
        )

    def test_half_precision(self):
        layer = FusedBatchNorm(layers.BatchNormalization(dtype="mixed_float16"))
        y = layer(tf.cast(normal(4, 5, 5, 3), "float16"), training=True)
        assert y.dtype == "float16"
        assert layer(keras.KerasTensor((None, 5, 5, 3), "float16")).dtype == "float16"

    def test_config(self):
        layer = clone(FusedBatchNorm(layers.BatchNormalization(momentum=0.7), freeze=3))
        assert (layer.layer.momentum, layer.freeze) == (0.7, 3)


@keras.saving.register_keras_serializable("tests")
class Halve(Technique):
    """Halves the weight, once more every so many steps."""

    def __init__(self, every: int = 0):
        self.every = every

    def __eq__(self, other):
        return isinstance(other, Halve) and self.every == other.every

    __hash__ = None

    @property
    def scheduled(self):
        return self.every > 0

    def next_step(self, step):
        return (step // self.every + 1) * self.every if self.every else None

    def initial_state(self, weight):
        return {"factor": ops.array(0.5)} if self.every else {}

    def update(self, weight, state, step):
        return {"factor": ops.array(0.5) ** (step // self.every)} if self.every else {}

    def apply(self, weight, state):
        return weight * state.get("factor", 0.5)

    def get_config(self):
        return {"every": self.every}


class Counting(layers.Dense):
    """A layer that keeps a count and adds a loss when it is called."""

    def build(self, input_shape):
        super().build(input_shape)
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")

    def call(self, inputs, training=None):
        self.calls.assign(self.calls + (1.0 if training else 0.0))
        self.add_loss(ops.array(7.0))
        return super().call(inputs)
