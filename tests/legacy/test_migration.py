"""Files of tf_keras, plain and under TFMOT's wrappers, become Keras 3 files of equal outputs."""

import json
import zipfile

import h5py
import keras
import numpy as np
import pytest

from tfcompress.legacy import import_tf_keras, import_tfmot
from tfcompress.legacy.migration import migrate

k, tfmot = import_tf_keras(), import_tfmot()
L = k.layers
FORMATS = [".h5", ".keras", ""]

pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5")


def make_net():
    x = inputs = k.Input((8, 8, 3), name="image")
    x = L.Conv2D(4, 3, padding="same", use_bias=False, name="conv")(x)
    x = skip = L.ReLU(6.0, name="relu")(L.BatchNormalization(name="bn")(x))
    x = L.Conv2D(4, 1, activation="relu", name="point")(x)
    x = L.GlobalAveragePooling2D(name="pool")(L.Add(name="add")([x, skip]))
    return k.Model(inputs, L.Dense(3, activation="softmax", name="head")(x), name="net")


def scatter(model):
    """Random values in all weights, so that no two of one shape could be mixed up unseen."""
    random = np.random.default_rng(0)
    for weight in model.weights:
        value = random.normal(0.1, 0.3, weight.shape)
        weight.assign(np.abs(value) if "variance" in weight.name else value)
    return model


def fit(model, callbacks=()):
    random = np.random.default_rng(1)
    x = random.random((16, 8, 8, 3), "float32")
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(x, np.arange(16) % 3, batch_size=8, verbose=0, callbacks=list(callbacks))
    return model


@pytest.fixture(scope="module")
def wrapped():
    """The same net under each kind of wrapper, trained for two steps."""
    sparsity, clustering = tfmot.sparsity.keras, tfmot.clustering.keras

    def cluster(layer):
        if layer.name not in ("conv", "point", "head"):
            return layer
        init = clustering.CentroidInitialization.LINEAR
        return clustering.cluster_weights(layer, 4, init)

    pruned = sparsity.prune_low_magnitude(
        scatter(make_net()), sparsity.ConstantSparsity(0.5, 0, frequency=1)
    )
    clustered = k.models.clone_model(scatter(make_net()), clone_function=cluster)
    return {
        "pruned": fit(pruned, [sparsity.UpdatePruningStep()]),
        "clustered": fit(clustered),
        "quantized": fit(tfmot.quantization.keras.quantize_model(scatter(make_net()))),
    }


def images(count=4):
    return np.random.default_rng(2).random((count, 8, 8, 3), "float32")


@pytest.mark.slow
@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("kind", ["pruned", "clustered"])
def test_stripped_models_compute_what_the_wrapped_ones_did(wrapped, tmp_path, kind, ending):
    source, target = tmp_path / f"old{ending}", tmp_path / "new.keras"
    wrapped[kind].save(source)
    report = migrate(source, target)
    new = keras.saving.load_model(target)
    assert [layer.name for layer in new.layers][1:4] == ["conv", "bn", "relu"]
    expected = wrapped[kind](images(), training=False)
    np.testing.assert_allclose(new(images()), expected, rtol=1e-5, atol=1e-6)
    assert getattr(report, kind) == ["conv", "point", "head"]
    assert [w.count for w in report.weights] == [108, 16, 12]
    for weight in report.weights:
        value = new.get_layer(weight.name.split("/")[0]).kernel.numpy()
        assert weight.sparsity == np.mean(value == 0) == (0.5 if kind == "pruned" else 0)
        assert weight.unique == len(np.unique(value))
        assert kind == "pruned" or weight.unique == 4


@pytest.mark.slow
@pytest.mark.parametrize("ending", FORMATS)
def test_quantized_models_give_their_float_weights(wrapped, tmp_path, ending):
    source, target = tmp_path / f"old{ending}", tmp_path / "new.keras"
    wrapped["quantized"].save(source)
    report = migrate(source, target)
    new = keras.saving.load_model(target)
    saved = {v.name.split("/")[-2]: v for v in wrapped["quantized"].weights if "kernel:" in v.name}
    names = ["conv", "point", "head"]
    for name in names:
        variable = next(v for key, v in saved.items() if key.endswith(name))
        np.testing.assert_array_equal(new.get_layer(name).kernel, variable)
    assert new.get_layer("point").activation is keras.activations.relu
    assert new.get_layer("conv").activation is keras.activations.linear
    # Rounding is gone, so that outputs are near but not the same.
    difference = np.abs(new(images()) - wrapped["quantized"](images(), training=False)).max()
    assert 0 < difference < 0.02
    assert set(report.quantized) >= set(names)
    assert "ranges" in report.notes[0]


def test_zeros_kept_by_clustering_survive_although_tfmot_forgets_them(tmp_path):
    model = scatter(k.Sequential([L.Input((16,)), L.Dense(12, name="d")]))
    kernel, bias = model.get_weights()
    zeros = np.abs(kernel) < 0.2
    model.set_weights([np.where(zeros, 0, kernel), bias])
    from tensorflow_model_optimization.python.core.clustering.keras.experimental import cluster

    clustered = cluster.cluster_weights(model, 4, preserve_sparsity=True)
    x = np.random.default_rng(3).normal(size=(4, 16)).astype("float32")
    expected = clustered(x).numpy()
    clustered.save(tmp_path / "old.h5")
    report = migrate(tmp_path / "old.h5", tmp_path / "new.keras")
    new = keras.saving.load_model(tmp_path / "new.keras")
    np.testing.assert_allclose(new(x), expected, rtol=1e-5, atol=1e-6)
    assert zeros.mean() > 0.2
    assert not new.get_layer("d").kernel.numpy()[zeros].any()
    assert report.weights[0].unique == 4


def functional(shape, *layers, dtype=None):
    x = inputs = k.Input(shape, dtype=dtype)
    for layer in layers:
        x = layer(x)
    return k.Model(inputs, x)


def attention():
    x = k.Input((6, 8))
    y = L.LayerNormalization()(L.Add()([x, L.MultiHeadAttention(2, 4)(x, x)]))
    return k.Model(x, L.Dense(2)(L.Flatten()(y)))


def nested():
    x = k.Input((8, 8, 3))
    inner = k.Sequential([L.InputLayer((8, 8, 3)), L.Conv2D(4, 3), L.BatchNormalization()])
    y = k.Input((6, 6, 4))
    outer = k.Model(y, L.Conv2D(2, 3)(y))
    outer.trainable = False
    features = L.Flatten()(outer(inner(x)))
    return k.Model(x, [L.Dense(3, name="a")(features), L.Dense(1, name="b")(features)])


def shared():
    a, b, dense = k.Input((5,)), k.Input((5,)), L.Dense(4, activation="gelu")
    return k.Model([a, b], L.Concatenate()([dense(a), dense(b)]))


def arithmetic():
    x = k.Input((4,))
    return k.Model(x, L.Dense(2, name="multiply")((k.activations.relu(x) * 2.0 - 1.0) / 3.0))


PLAIN = {
    "activations": lambda: functional(
        (16,), L.Dense(4, "swish"), L.LeakyReLU(0.2), L.PReLU(), L.ELU(0.5), L.Softmax()
    ),
    "recurrent": lambda: functional(
        (5, 3), L.Bidirectional(L.LSTM(4, return_sequences=True)), L.GRU(3), L.Dropout(0.5)
    ),
    "cells": lambda: functional(
        (5, 3), L.TimeDistributed(L.Dense(2)), L.RNN([L.LSTMCell(2), L.GRUCell(3)])
    ),
    "words": lambda: functional((7,), L.Embedding(10, 4, mask_zero=True), L.LSTM(3), dtype="int32"),
    "images": lambda: functional(
        (8, 8, 3),
        L.Rescaling(1 / 255.0),
        L.SeparableConv2D(6, 3),
        L.BatchNormalization(name="block/bn"),
        L.Conv2DTranspose(4, 2, 2),
        L.DepthwiseConv2D(3),
        L.UpSampling2D(2),
        L.SpatialDropout2D(0.1),
        L.GlobalAveragePooling2D(keepdims=True),
    ),
    "attention": attention,
    "nested": nested,
    "shared": shared,
    "arithmetic": arithmetic,
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_models_become_equal_keras_3_models(tmp_path, name):
    old = scatter(PLAIN[name]())
    old.save(tmp_path / "old.h5")
    migrate(tmp_path / "old.h5", tmp_path / "new.keras")
    new = keras.saving.load_model(tmp_path / "new.keras")
    random = np.random.default_rng(4)
    x = [random.integers(0, 9, (2, *t.shape[1:])).astype(t.dtype.name) for t in old.inputs]
    x = x if len(x) > 1 else x[0]
    pairs = zip(keras.tree.flatten(new(x)), _flat(old(x)), strict=True)
    for received, expected in pairs:
        np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-5)
    assert len(new.trainable_weights) == len(old.trainable_weights)


def _flat(value):
    return list(value) if isinstance(value, (list, tuple)) else [value]


def test_sequential_models_stay_sequential(tmp_path):
    scatter(k.Sequential([L.Dense(3, input_shape=(4,)), L.Dense(2)])).save(tmp_path / "old.keras")
    report = migrate(tmp_path / "old.keras", tmp_path / "new.keras")
    new = keras.saving.load_model(tmp_path / "new.keras")
    assert isinstance(new, keras.Sequential)
    assert report.parameters == new.count_params() == 4 * 3 + 3 + 3 * 2 + 2
    assert json.loads(json.dumps(report.to_dict()))["max_difference"] == report.max_difference


def test_a_lambda_is_refused_before_it_is_loaded(tmp_path):
    # The marker file would appear if the function ran, even only while the graph is made.
    marker = tmp_path / "ran"
    x = k.Input((4,))
    model = k.Model(x, L.Lambda(lambda t, path=str(marker): (open(path, "w").close(), t)[1])(x))
    marker.unlink()
    for ending in FORMATS:
        source = tmp_path / f"old{ending}"
        model.save(source)
        marker.unlink(missing_ok=True)
        with pytest.raises(ValueError, match=r"Python code \(a Lambda layer\), which is not run"):
            migrate(source, tmp_path / "new.keras")
        assert not marker.exists()
    assert not (tmp_path / "new.keras").exists()


def test_modules_named_in_a_file_are_not_imported(tmp_path):
    source = tmp_path / "old.keras"
    functional((4,), L.Dense(2, name="d")).save(source)
    with zipfile.ZipFile(source) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["config.json"] = parts["config.json"].replace(
        b'"module": "keras.layers", "class_name": "Dense"',
        b'"module": "antigravity", "class_name": "X"',
    )
    with zipfile.ZipFile(source, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    with pytest.raises(ValueError, match="class 'X' of the module 'antigravity', which is not"):
        migrate(source, tmp_path / "new.keras")


def test_other_files_get_errors_that_say_what_they_are(tmp_path):
    new = tmp_path / "new.keras"
    three = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    three.save(tmp_path / "three.keras")
    with pytest.raises(ValueError, match="there is nothing to migrate"):
        migrate(tmp_path / "three.keras", new)
    with pytest.raises(ValueError, match="no file at"):
        migrate(tmp_path / "missing.h5", new)
    (tmp_path / "text.h5").write_text("no model")
    with pytest.raises(ValueError, match="damaged or not a Keras file"):
        migrate(tmp_path / "text.h5", new)
    source = tmp_path / "old.h5"
    functional((2,), L.Dense(1)).save(source)
    with pytest.raises(ValueError, match=r"must end in \.keras"):
        migrate(source, tmp_path / "new.h5")
    (tmp_path / "cut.h5").write_bytes(source.read_bytes()[:5000])
    with pytest.raises(ValueError, match="damaged or cut off"):
        migrate(tmp_path / "cut.h5", new)
    with h5py.File(source, "a") as file:
        file.attrs["model_config"] = "{"
    with pytest.raises(ValueError, match="its configuration cannot be read"):
        migrate(source, new)
    functional((2,), L.Dense(1)).save(tmp_path / "same.keras")
    with pytest.raises(ValueError, match="is the old model itself"):
        migrate(tmp_path / "same.keras", tmp_path / "same.keras")
    assert not new.exists()


def test_layers_that_keras_3_lacks_are_named(tmp_path):
    class Own(L.Layer):
        def call(self, x):
            return x

    functional((2,), Own(name="mine")).save(tmp_path / "own.h5")
    with pytest.raises(ValueError, match="'Own'"):
        migrate(tmp_path / "own.h5", tmp_path / "new.keras")
    functional((4, 2), L.LocallyConnected1D(2, 3, name="local")).save(tmp_path / "local.h5")
    with pytest.raises(ValueError, match="layer 'local' is a LocallyConnected1D"):
        migrate(tmp_path / "local.h5", tmp_path / "new.keras")


def test_a_model_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    from tfcompress.legacy import migration

    scatter(functional((4,), L.Dense(2, "relu"))).save(tmp_path / "old.h5")
    (tmp_path / "new.keras").write_text("before")
    make = migration.layer_of

    def without_activation(layer):
        new = make(layer)
        new.activation = keras.activations.linear
        return new

    monkeypatch.setattr(migration, "layer_of", without_activation)
    with pytest.raises(ValueError, match="its outputs differ by"):
        migrate(tmp_path / "old.h5", tmp_path / "new.keras")
    assert (tmp_path / "new.keras").read_text() == "before"
