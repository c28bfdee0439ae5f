"""compress, quantize_aware and finalize: what they take, what they give, what they leave alone."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress import Quantize, Recipe, Rule
from tfcompress.layers.batch_norm import FusedBatchNorm
from tfcompress.layers.compressed import Compressed
from tfcompress.layers.fake_quant import FakeQuant


def small_model():
    x = inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, name="conv")(x)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
    x = layers.Dense(5, name="hidden")(layers.GlobalAveragePooling2D(name="pool")(x))
    return keras.Model(inputs, layers.Dense(3, name="head")(x), name="small")


def pixels(count=16, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 8, 8, 3)).astype("float32")


def weights_of(model):
    return [np.array(w) for w in model.get_weights()]


def bits_of(model) -> dict[str, int]:
    return {
        layer.name: layer.techniques[0].bits
        for layer in model.layers
        if isinstance(layer, Compressed)
    }


def test_the_users_model_is_left_alone():
    model = small_model()
    model.compile("adam", "mse", run_eagerly=True)
    model.fit(pixels(), np.zeros((16, 3)), verbose=0)
    weights, optimizer = weights_of(model), model.optimizer
    counts = [len(layer._outbound_nodes) for layer in model.layers]
    qat = tfc.quantize_aware(model)
    qat.compile("sgd", "mse", run_eagerly=True)
    qat.fit(pixels(), np.ones((16, 3)), verbose=0)
    tfc.finalize(qat)
    assert all(np.array_equal(a, b) for a, b in zip(weights, weights_of(model), strict=True))
    assert model.optimizer is optimizer
    assert model.compiled
    assert [len(layer._outbound_nodes) for layer in model.layers] == counts
    assert [layer.name for layer in model.layers][:3] == ["image", "conv", "norm"]
    assert not {id(v) for v in model.variables} & {id(v) for v in qat.variables}


def test_before_any_batch_only_weights_are_rounded():
    model = small_model()
    weights_only = tfc.quantize_aware(model, activation_bits=None)
    qat = tfc.quantize_aware(model)
    np.testing.assert_array_equal(qat(pixels()), weights_only(pixels()))
    kernel = np.asarray(model.get_layer("head").kernel)
    scale = np.abs(kernel).max() / 127
    effective = weights_only.get_layer("head").effective(
        weights_only.get_layer("head").layer.kernel
    )
    np.testing.assert_allclose(effective, np.rint(kernel / scale) * scale, rtol=1e-6)


def test_layers_take_the_bits_of_the_last_rule_that_matches():
    recipe = [
        Rule("*", [Quantize(bits=8)]),
        Rule("Dense", [Quantize(bits=6)]),
        Rule("h*d", [Quantize(bits=4)]),
        Rule(lambda layer: isinstance(layer, layers.Conv2D), [Quantize(bits=5)]),
    ]
    model = tfc.compress(small_model(), recipe)
    assert bits_of(model) == {"conv": 5, "hidden": 6, "head": 4}


def test_skip_leaves_layers_out():
    for skip in ("head", ["head"], ["he*"]):
        model = tfc.quantize_aware(small_model(), skip=skip)
        assert set(bits_of(model)) == {"conv", "hidden"}
        assert model.output_names == ["head"]


def test_a_rule_that_matches_nothing():
    with pytest.raises(
        ValueError, match=r"'haed' must match a layer of model 'small'.*image, conv"
    ):
        tfc.quantize_aware(small_model(), skip=["haed"])


def test_shared_layers_are_wrapped_once():
    x = inputs = keras.Input((4,))
    dense = layers.Dense(4, activation="relu", name="dense")
    model = tfc.quantize_aware(keras.Model(inputs, dense(dense(dense(x)))))
    wrapped = [layer for layer in model.layers if isinstance(layer, Compressed)]
    assert len(wrapped) == 1
    assert len(model.trainable_variables) == 2


def test_finalize_gives_the_same_outputs():
    for settings in ({}, {"bits": 4, "dense": "per_channel"}, {"freeze": 1}, {"delay": 1}):
        qat = tfc.quantize_aware(small_model(), **settings)
        qat.compile("sgd", "mse", run_eagerly=True)
        qat.fit(
            pixels(), np.ones((16, 3)), epochs=2, verbose=0, callbacks=[tfc.UpdateCompression()]
        )
        final = tfc.finalize(qat)
        np.testing.assert_array_equal(final(pixels(seed=1)), qat(pixels(seed=1)))
        assert not any(isinstance(layer, FusedBatchNorm) for layer in final.layers)
        assert final.name == qat.name


def test_finalize_of_a_schedule_that_never_ran_is_refused():
    with pytest.raises(ValueError, match=r"never advanced.*UpdateCompression\(\)"):
        tfc.finalize(tfc.quantize_aware(small_model(), delay=3))


def test_finalize_of_a_plain_model_is_the_model():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    x = np.ones((3, 4), "float32")
    np.testing.assert_array_equal(tfc.finalize(model)(x), model(x))


def test_a_compressed_model_is_not_compressed_again():
    qat = tfc.quantize_aware(small_model())
    for model in (qat, keras.models.clone_model(qat)):
        with pytest.raises(ValueError, match="'small' comes from compress already"):
            tfc.quantize_aware(model)


def test_names_of_outputs():
    x = inputs = keras.Input((4,), name="x")
    x = layers.Dense(4, activation="relu", name="body")(x)
    ends = [
        layers.Dense(2, activation="softmax", name="kind")(x),
        layers.Flatten(name="flat")(x),
        layers.Dense(1, name="size")(x),
    ]
    assert tfc.quantize_aware(keras.Model(inputs, ends)).output_names == ["kind", "flat", "size"]
    assert tfc.quantize_aware(keras.Model(inputs, ends[0])).output_names == ["kind__output"]
    by_key = tfc.quantize_aware(keras.Model(inputs, {"b": ends[0], "a": ends[2]}))
    assert set(by_key(np.ones((1, 4), "float32"))) == {"a", "b"}


def test_losses_by_name_of_several_outputs():
    x = inputs = keras.Input((4,), name="x")
    ends = [layers.Dense(2, name="one")(x), layers.Dense(1, name="two")(x)]
    model = tfc.quantize_aware(keras.Model(inputs, ends))
    model.compile("sgd", {"one": "mse", "two": "mae"}, run_eagerly=True)
    data = np.ones((8, 4), "float32")
    model.fit(data, {"one": data[:, :2], "two": data[:, :1]}, verbose=0)


class Halving(keras.Model):
    """A model of a user whose training step halves the loss."""

    def compute_loss(self, *args, **kwargs):
        return 0.5 * super().compute_loss(*args, **kwargs)


def test_a_class_with_its_own_training_is_kept():
    inputs = keras.Input((4,))
    model = Halving(inputs, layers.Dense(2)(inputs))
    qat = tfc.quantize_aware(model)
    assert type(qat) is Halving
    assert type(tfc.finalize(qat)) is Halving


def test_a_model_without_anything_to_quantize():
    inputs = keras.Input((4, 4, 2), name="x")
    model = keras.Model(inputs, layers.Flatten()(layers.MaxPooling2D()(inputs)))
    qat = tfc.quantize_aware(model)
    x = np.random.default_rng(0).normal(size=(4, 4, 4, 2)).astype("float32")
    np.testing.assert_array_equal(qat(x), model(x))
    assert [layer.name for layer in qat.layers if isinstance(layer, FakeQuant)] == ["x_range"]


def test_wrong_arguments():
    with pytest.raises(TypeError, match="Keras"):
        tfc.quantize_aware("model.keras")
    with pytest.raises(TypeError, match="rules must be a list of Rule"):
        tfc.compress(small_model(), [Quantize()])
    with pytest.raises(ValueError, match="bits must be 2 to 16; received 1"):
        tfc.quantize_aware(small_model(), bits=1)
    with pytest.raises(ValueError, match="at least one Rule"):
        tfc.compress(small_model(), Recipe([]))


def test_the_first_and_the_last_layers_by_rule():
    x = keras.Input((8, 8, 3))
    y = layers.Conv2D(4, 3, padding="same", name="stem")(layers.Rescaling(2.0)(x))
    z = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same", name="inner")(y))
    y = layers.Flatten()(layers.Add()([y, z]))
    heads = [layers.Dense(2, name="a")(y), layers.Softmax()(layers.Dense(3, name="b")(y))]
    rules = [Rule("*", [Quantize(bits=4)]), Rule("first_and_last", [Quantize(bits=8)])]
    small = tfc.compress(keras.Model(x, heads), rules)
    found = {name.partition("__")[0]: bits for name, bits in bits_of(small).items()}
    assert found == {"stem": 8, "inner": 4, "a": 8, "b": 8}


def test_a_rule_by_the_name_of_one_of_several_outputs():
    x = keras.Input((4,))
    heads = [layers.Dense(2, name="a")(x), layers.Dense(2, name="b")(x)]
    rules = [Rule("*", [Quantize(bits=4)]), Rule("b", [Quantize(bits=8)])]
    assert list(bits_of(tfc.compress(keras.Model(x, heads), rules)).values()) == [4, 8]
