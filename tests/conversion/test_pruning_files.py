"""Pruned and clustered models saved, resumed and converted: zeros and values are kept."""

import keras
import numpy as np
import pytest
from keras import layers
from pruning_models import (
    GROWING,
    X,
    Y,
    assert_same,
    compiled,
    fit,
    in_layers,
    kernels,
    make,
    run_python,
    wanted,
    zeros,
)

import tfcompress as tfc
from tfcompress import Cluster, Quantize, Regularize


@pytest.mark.slow
@pytest.mark.parametrize(
    "techniques",
    [
        [in_layers(GROWING, score="taylor"), Cluster(5, begin=9, frequency=3)],
        [in_layers(GROWING, score="movement", scope="global")],
        [in_layers(GROWING, score="random"), Quantize(delay=10)],
        [Regularize("l1"), in_layers(GROWING), Cluster(5, per_channel=True), Quantize(bits=8)],
    ],
)
def test_save_midway_and_continue(techniques, tmp_path):
    model = fit(make(*techniques), x=X[:40], y=Y[:40])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_same(loaded, model)
    np.testing.assert_array_equal(loaded(X), model(X))
    assert_same(fit(model), fit(loaded))
    whole = fit(fit(make(*techniques), x=X[:40], y=Y[:40]))
    assert_same(whole, loaded)


@pytest.mark.slow
def test_weights_file_and_clone(tmp_path):
    model = fit(make(in_layers(GROWING, score="taylor"), Cluster(5)))
    model.save_weights(tmp_path / "model.weights.h5")
    for other in (
        make(in_layers(GROWING, score="taylor"), Cluster(5)),
        keras.models.clone_model(model),
    ):
        other.load_weights(tmp_path / "model.weights.h5")
        assert_same(other, model)
        np.testing.assert_array_equal(other(X), model(X))


RESUME = """
    import os, sys
    import keras
    import tfcompress as tfc
    from tfcompress import Cluster, PruneCallback, schedules
    from pruning_models import X, Y, compiled, in_layers, make, make_float

    kind, first, save_freq, folder, kill = sys.argv[1:]
    save_freq = save_freq if save_freq == "epoch" else int(save_freq)

    class Kill(keras.callbacks.Callback):
        epoch = -1
        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch
        def on_train_batch_end(self, batch, logs=None):
            if kill == "kill" and self.epoch == 2 and batch == 2:
                os._exit(7)

    schedule = schedules.linear(0.1, 0.6, begin=1, end=15, frequency=3)
    if kind == "callback":
        model, ours = compiled(make_float()), PruneCallback(in_layers(schedule))
    else:
        prune = in_layers(schedule, score="taylor" if kind == "taylor" else "magnitude")
        model, ours = make(prune, Cluster(4, begin=9, frequency=2)), tfc.UpdateCompression()
    callbacks = [ours, keras.callbacks.BackupAndRestore(folder + "/backup", save_freq=save_freq)]
    if kill == "whole":
        callbacks = callbacks[:1]
    if first == "theirs":
        callbacks.reverse()
    model.fit(X[:16], Y[:16], batch_size=4, epochs=5, verbose=0, shuffle=False,
              callbacks=[*callbacks, Kill()])
    model.save(folder + "/" + kill + ".keras")
"""


@pytest.mark.slow
@pytest.mark.parametrize("first", ["ours", "theirs"])
@pytest.mark.parametrize("kind", ["callback", "magnitude", "taylor"])
@pytest.mark.parametrize("save_freq", ["epoch", 3])
def test_resume_after_a_kill(kind, first, save_freq, tmp_path):
    """A killed process resumed by BackupAndRestore equals one that was never killed."""
    arguments = (kind, first, save_freq, tmp_path)
    run_python(RESUME, *arguments, "kill", fails=True)
    run_python(RESUME, *arguments, "resumed")
    resumed = keras.models.load_model(tmp_path / "resumed.keras")
    if save_freq == "epoch":  # otherwise batches come anew after the restart
        run_python(RESUME, *arguments, "whole")
        whole = keras.models.load_model(tmp_path / "whole.keras")
        assert_same(resumed, whole)
        assert int(resumed.optimizer.iterations) == 20
    found = kernels(resumed)
    assert zeros(found) == wanted(found, 0.6)
    if kind != "callback":
        assert max(len(np.unique(kernel)) for kernel in found) <= 4


CHAIN = [Regularize("l2"), in_layers(GROWING), Cluster(8, frequency=3), Quantize(bits=8)]
CHAINS = {
    "int8": CHAIN,
    "per-channel": [in_layers(GROWING), Cluster(5, per_channel=True), Quantize(bits=8)],
    "int4": [in_layers(GROWING), Quantize(bits=4)],
    "2:4": [in_layers(pattern="2:4"), Cluster(8), Quantize(bits=8)],
}


@pytest.mark.parametrize(
    "name",
    ["int8", *(pytest.param(n, marks=pytest.mark.slow) for n in CHAINS if n != "int8")],
)
def test_a_file_keeps_zeros_and_values(name, tmp_path):
    from tfcompress.tflite import flatbuffer
    from tfcompress.tflite.flatbuffer import tensor_values

    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 4), name="image")
    x = layers.Conv2D(8, 3, use_bias=False, name="first")(inputs)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.Conv2D(12, 3, activation="relu", name="second")(x)
    x = layers.Dense(8, activation="relu", name="third")(layers.Flatten()(x))
    plain = keras.Model(inputs, layers.Dense(2, name="logits")(x))
    model = compiled(tfc.compress(plain, [tfc.Rule("*", CHAINS[name])]))
    images = np.concatenate([X, X], -1)
    fit(model, x=images, epochs=2)
    path = tmp_path / "model.tflite"
    tfc.convert(model, path, precision="int4" if name == "int4" else "int8")
    final, buffer = tfc.finalize(model), flatbuffer.read(path)
    kernels = {n: final.get_layer(n).layer.kernel for n in ("first", "second", "third", "logits")}
    found = {}
    for tensor in buffer.subgraphs[0].tensors:
        codes = tensor_values(buffer, tensor)
        if codes is not None and codes.ndim >= 2 and codes.dtype != np.int32:
            layer = next(n for n in kernels if np.array(kernels[n]).size == codes.size)
            found[layer] = np.moveaxis(codes, 0, -1)  # the outputs come first in a file
    assert set(found) == set(kernels)
    for layer, codes in found.items():
        kernel = np.array(kernels[layer])
        assert codes.dtype == np.int8
        assert codes.shape == kernel.shape
        sparsity = 0.5 if name == "2:4" else 0.6
        assert (kernel == 0).sum() == kernel.size - round(kernel.size * (1 - sparsity))
        np.testing.assert_array_equal(codes[kernel == 0], 0)
        columns = [a.reshape(-1, a.shape[-1]).T for a in (codes, kernel)]
        for stored, baked in zip(*columns, strict=True):
            assert len(np.unique(stored)) <= len(np.unique(baked))
        if name == "int4":
            assert np.abs(codes).max() <= 7
        elif name == "per-channel":
            assert max(len(np.unique(column)) for column in columns[0]) <= 5
        else:
            assert len(np.unique(kernel)) <= 8
    result = tfc.verify(model, path, images)
    assert result.passed, result.rule
    limit = 2.01 if name == "int4" else 1.01
    assert max(output.keras.max_lsb for output in result.outputs) <= limit


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_what_zeros_are_worth_is_told(precision, tmp_path):
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8)])
    x = np.random.default_rng(0).normal(size=(16, 8)).astype("float32")
    given = {"precision": precision} | ({"calibration": x} if precision == "int8" else {})
    for rows, told in ((3, False), (4, True)):
        kernel = np.ones((8, 8))
        kernel[:rows] = 0.0
        model.layers[0].set_weights([kernel, np.zeros(8)])
        notes = tfc.convert(model, tmp_path / "model.tflite", **given).notes
        found = [note for note in notes if note.startswith("50% of the weights are zeros")]
        assert bool(found) == told
        assert all(("Vela" in note) == (precision == "int8") for note in found)
