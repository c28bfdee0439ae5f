"""fold_batch_norm against the model it was made from and against weights folded by hand."""

import keras
import numpy as np
import pytest
from conftest import run_tflite
from graph_models import difference, normal, seeded, sequential, shake, subclassed
from keras import layers

import tfcompress as tfc
from tfcompress.graph.folding import fold
from tfcompress.surgery.folding import fold_batch_norm

__all__ = ["seeded"]
LAST, FIRST = {"axis": -1}, {"axis": 1}


def folded_and_equal(model, x, changed, kept=0):
    """The folded model, after checks that its outputs are the same and what it reports."""
    shake(model)
    before = [np.array(v) for v in model.weights]
    wanted = model(x, training=False)
    new = fold_batch_norm(model)
    scale = max(float(np.max(np.abs(y))) for y in keras.tree.flatten(wanted))
    assert difference(wanted, new(x, training=False)) <= 1e-5 * scale
    assert all(np.array_equal(a, b) for a, b in zip(before, model.weights, strict=True))
    report = new.surgery_report
    assert (len(report.changes), len(report.kept)) == (changed, kept)
    left = [x for x in new.layers if isinstance(x, layers.BatchNormalization)]
    assert len(left) == kept
    return new


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize(
    ("layer", "shape", "norm"),
    [
        (layers.Dense, (7,), LAST),
        (layers.Dense, (3, 7), {"axis": 2}),
        (lambda n, **k: layers.Conv1D(n, 3, padding="causal", **k), (8, 3), LAST),
        (
            lambda n, **k: layers.Conv2D(n, 3, strides=2, padding="same", **k),
            (8, 7, 3),
            {"axis": 3},
        ),
        (lambda n, **k: layers.Conv2D(n, 3, groups=2, **k), (8, 7, 4), LAST),
        (lambda n, **k: layers.Conv2D(n, 3, data_format="channels_first", **k), (3, 8, 7), FIRST),
        (lambda n, **k: layers.Conv3D(n, 2, **k), (4, 4, 4, 2), LAST),
        (lambda n, **k: layers.Conv1DTranspose(n, 3, strides=2, **k), (5, 3), LAST),
        (lambda n, **k: layers.Conv2DTranspose(n, 3, strides=2, **k), (5, 4, 3), LAST),
        (lambda n, **k: layers.DepthwiseConv1D(3, depth_multiplier=2, **k), (8, 3), LAST),
        (lambda n, **k: layers.DepthwiseConv2D(3, depth_multiplier=2, **k), (8, 7, 3), LAST),
        (lambda n, **k: layers.SeparableConv1D(n, 3, **k), (8, 3), LAST),
        (lambda n, **k: layers.SeparableConv2D(n, 3, depth_multiplier=2, **k), (8, 7, 3), LAST),
    ],
)
def test_after_a_layer(layer, shape, norm, use_bias):
    inputs = keras.Input(shape)
    y = layer(6, use_bias=use_bias, name="linear")(inputs)
    y = layers.ReLU()(layers.BatchNormalization(name="norm", **norm)(y))
    new = folded_and_equal(keras.Model(inputs, y), normal(2, *shape), 1)
    assert new.get_layer("linear").use_bias
    assert str(new.surgery_report.changes[0].detail) == "folded into 'linear'"


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize(
    ("layer", "shape", "norm"),
    [
        (layers.Dense, (2, 7), LAST),
        (lambda n, **k: layers.Conv1D(n, 3, **k), (8, 3), LAST),
        (lambda n, **k: layers.Conv2D(n, 3, strides=2, **k), (8, 7, 3), LAST),
        (lambda n, **k: layers.Conv2D(n, 1, padding="same", strides=2, **k), (8, 7, 3), LAST),
        (lambda n, **k: layers.Conv2D(n, 3, groups=2, **k), (8, 7, 4), LAST),
        (lambda n, **k: layers.Conv2D(n, 3, data_format="channels_first", **k), (3, 8, 7), FIRST),
        (lambda n, **k: layers.DepthwiseConv2D(3, depth_multiplier=2, **k), (8, 7, 3), LAST),
        (lambda n, **k: layers.SeparableConv2D(n, 3, depth_multiplier=2, **k), (8, 7, 3), LAST),
    ],
)
def test_before_a_layer(layer, shape, norm, use_bias):
    inputs = keras.Input(shape)
    y = layers.BatchNormalization(name="norm", **norm)(layers.ReLU()(inputs))
    y = layer(6, use_bias=use_bias, activation="tanh", name="linear")(y)
    folded_and_equal(keras.Model(inputs, y), normal(2, *shape), 1)


def test_values_by_hand():
    dense, norm = layers.Dense(2), layers.BatchNormalization(epsilon=1.0)
    model = sequential(dense, norm, size=1)
    dense.set_weights([np.float32([[1, 2]]), np.float32([3, 4])])
    # gamma, beta, moving mean, moving variance: scale = gamma / sqrt(variance + 1)
    norm.set_weights([np.float32(x) for x in ([6, 8], [1, -1], [5, 7], [3, 15])])
    new = fold_batch_norm(model).layers[-1]
    assert np.allclose(new.kernel, [[3, 4]])
    assert np.allclose(new.bias, [(3 - 5) * 3 + 1, (4 - 7) * 2 - 1])
    found = fold(tfc.flatten(model))
    assert (found.into, found.kept) == ({norm.name: dense.name}, {})
    mean, std = found.statistics[dense.name]
    assert np.allclose(mean, [1, -1])
    assert np.allclose(std, [6 * (3 / 4) ** 0.5, 8 * (15 / 16) ** 0.5])


def test_a_padded_layer_takes_in_what_adds_nothing():
    inputs = keras.Input((6, 6, 3))
    y = layers.BatchNormalization(center=False)(layers.ReLU()(inputs))
    model = keras.Model(inputs, layers.Conv2D(4, 3, padding="same")(y))
    shake(model)
    model.layers[2].moving_mean.assign(np.zeros(3))
    new = fold_batch_norm(model)
    x = normal(2, 6, 6, 3)
    assert len(new.surgery_report.changes) == 1
    assert difference(model(x, training=False), new(x)) < 1e-5


def test_two_in_a_row_and_one_on_each_side():
    norm = layers.BatchNormalization
    folded_and_equal(sequential(layers.Dense(5), norm(), norm(), layers.ReLU()), normal(2, 8), 2)
    model = sequential(norm(), layers.Dense(5, use_bias=False), norm(), layers.ReLU())
    folded_and_equal(model, normal(2, 8), 2)


def test_without_scale_and_center():
    norm = layers.BatchNormalization(scale=False, center=False)
    folded_and_equal(sequential(layers.Dense(5), norm), normal(2, 8), 1)


def kept_for(function):
    """Why the only BatchNormalization of a model of images stays."""
    inputs = keras.Input((6, 6, 3))
    new = folded_and_equal(keras.Model(inputs, function(inputs)), normal(2, 6, 6, 3), 0, 1)
    return new.surgery_report.kept[0].detail


def test_what_stays_is_named_with_the_reason():
    conv = lambda **k: layers.Conv2D(4, 3, name="conv", **k)  # noqa: E731
    norm = layers.BatchNormalization
    assert kept_for(lambda x: norm()(conv(activation="relu")(x))) == (
        "'conv' has an activation before it"
    )
    regularized = conv(activity_regularizer=keras.regularizers.L2(0.1))
    assert "activity regularizer" in kept_for(lambda x: norm()(regularized(x)))
    both = conv()
    assert "others read" in kept_for(lambda x: [norm()(y := both(x)), layers.ReLU()(y)])
    shared = conv()
    assert "'conv' is called 2 times" in kept_for(lambda a: norm()(shared(a)) + shared(a * 2.0))
    twice = norm()
    assert kept_for(lambda x: [twice(conv()(x)), twice(layers.Conv2D(4, 3)(x))]) == (
        "is called 2 times"
    )
    assert "normalizes axis 1" in kept_for(lambda x: norm(axis=1)(conv()(x)))
    padded = conv(padding="same")
    assert "'conv' pads with zeros" in kept_for(lambda x: padded(norm()(layers.ReLU()(x))))
    after = kept_for(lambda x: layers.ReLU(name="relu")(norm()(layers.Add(name="add")([x, x]))))
    assert after == "comes after 'add' (Add) and before 'relu' (ReLU): no weights to go into"


def test_statistics_of_the_batch_stay():
    inputs = keras.Input((8,))
    y = layers.BatchNormalization()(layers.Dense(5)(inputs), training=True)
    assert (
        fold_batch_norm(keras.Model(inputs, y)).surgery_report.kept[0].detail
        == "is called with training=True"
    )
    parts = {"a": layers.Dense(5), "b": layers.BatchNormalization()}
    frozen = subclassed(lambda m, x, t: m.b(m.a(x), training=False), parts, normal(2, 8))
    folded_and_equal(frozen, normal(2, 8), 1)


def test_a_user_class_with_its_own_call_stays():
    class Centred(layers.Dense):
        def call(self, x):
            return super().call(x - 1.0)

    model = sequential(Centred(5, name="mine"), layers.BatchNormalization())
    assert "Centred" in fold_batch_norm(model).surgery_report.kept[0].detail


@pytest.mark.slow
def test_trains_saves_and_converts(tmp_path, float_cnn, images):
    new = fold_batch_norm(float_cnn)
    x = images[0][:32]
    assert difference(float_cnn(x, training=False), new(x)) < 1e-5
    assert len(new.surgery_report.changes) == 2
    new.save(tmp_path / "folded.keras")
    loaded = keras.saving.load_model(tmp_path / "folded.keras")
    assert difference(new(x), loaded(x)) == 0.0
    tfc.convert(loaded, tmp_path / "folded.tflite", precision="float32")
    assert difference(new(x), run_tflite(tmp_path / "folded.tflite", x)) < 1e-5
    loaded.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    loaded.fit(x, images[1][:32], verbose=0)
    assert difference(new(x), loaded(x)) > 0
    before, after = new.surgery_report.params
    assert before - after == float_cnn.count_params() - new.count_params() == 8 * 4 * 2 - 8


def test_frozen_layers_stay_frozen():
    model = sequential(layers.Dense(5, trainable=False), layers.BatchNormalization())
    assert fold_batch_norm(model).trainable_weights == []


def test_bad_input(qat_cnn):
    with pytest.raises(ValueError, match=r"wrapped by compress.*Finalize it first"):
        fold_batch_norm(qat_cnn)
    with pytest.raises(TypeError, match=r"received builtins\.str"):
        fold_batch_norm("model.keras")
    with pytest.raises(ValueError, match="built"):
        fold_batch_norm(keras.Sequential([layers.Dense(3)]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kept"), [("MobileNetV2", 0), ("ResNet50", 0), ("DenseNet121", 62), ("ResNet50V2", 17)]
)
def test_architectures(name, kept):
    shape = (64, 64, 3)
    model = getattr(keras.applications, name)(weights=None, input_shape=shape, classes=10)
    rng = np.random.default_rng(1)
    for v in model.weights:
        low = 0.5 if v.name in ("gamma", "moving_variance") else -0.1
        if "kernel" not in v.name:
            v.assign(rng.uniform(low, low + 0.5, v.shape))
    new = fold_batch_norm(model)
    x = normal(2, *shape)
    wanted = np.array(model(x, training=False))
    assert difference(wanted, new(x, training=False)) <= 1e-5 * np.abs(wanted).max()
    assert len(new.surgery_report.kept) == kept
