"""Codebook in training: with Prune and Quantize, saved, finalized, converted, and on JAX."""

import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from cluster_models import X, fit, kernels, make, state_of, wrapped
from keras import layers
from pruning_models import in_layers

import tfcompress as tfc
from tfcompress import Codebook, Quantize, schedules
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.flatbuffer import tensor_values


def test_finalize_leaves_the_values():
    model = fit(make(Codebook("4"), run_eagerly=False), 8)
    conv, dense = kernels(model)
    factors = [np.ravel(wrapped(model)[i].bound[0].states[0]["factor"]) for i in (0, 1)]
    assert [f.size for f in factors] == [8, 1]  # a scale a channel where kernels have them
    assert all((f != 1).all() for f in factors)
    for column in [*conv.reshape(-1, 8).T, dense]:
        codes = np.unique(column) / np.abs(column).max() * 3
        np.testing.assert_allclose(codes, np.rint(codes), atol=1e-5)
        assert {*np.rint(codes)} <= {-3, -1, 1, 3}
    np.testing.assert_array_equal(tfc.finalize(model)(X), model(X))


def test_zeros_of_pruning_stay():
    prune = in_layers(schedules.linear(0.0, 0.5, end=6, frequency=2))
    model = fit(make(prune, Codebook("binary")), 16)
    for wrapper, kernel in zip(wrapped(model), kernels(model), strict=True):
        bound = wrapper.bound[0]
        assert bound.techniques[-1].begins() == 6
        assert bound.techniques[-1].codes == (-1, 0, 1)
        assert (kernel[np.array(bound.states[0]["mask"]) == 0] == 0).all()
        assert (kernel == 0).sum() >= kernel.size // 2


def test_save_and_continue(tmp_path):
    model = fit(make(Codebook("ternary", begin=2)), 4)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(X), model(X))
    assert float(state_of(loaded, Codebook)["active"]) == 1
    np.testing.assert_array_equal(fit(loaded, 1)(X), fit(model, 1)(X))


def test_refusals():
    with pytest.raises(ValueError, match="27 weights in each channel, fewer than the 31 values"):
        make(Codebook("additive_power_of_two", bits=5, per_channel=True))
    layer = layers.DepthwiseConv2D(3, name="deep")
    layer.build((None, 6, 6, 3))
    assert "depthwise=True" in Codebook("binary").refuses(layer, layer.kernel)
    assert Codebook("binary", depthwise=True).refuses(layer, layer.kernel) is None


CHAINS = {
    "4": ([Codebook("4"), Quantize(bits=3)], 4),
    "8": ([Codebook("8"), Quantize(bits=4)], 8),
    "binary": ([Codebook("binary"), Quantize(bits=2)], 2),
    "ternary": ([Codebook("ternary"), Quantize()], 3),
    "one scale": ([in_layers(0.5), Codebook("ternary", symmetric=True), Quantize(bits=2)], 3),
    "sums": ([in_layers(0.5), Codebook("additive_power_of_two", bits=4), Quantize()], 15),
    "log": ([Codebook("log", bits=4), Quantize()], 15),
    "numbers": ([Codebook([-2.0, 0.0, 1.0, 5.0]), Quantize()], 4),
}
QUICK = ("8",)


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in CHAINS if n not in QUICK)]
)
def test_a_file_holds_the_values(name, tmp_path):
    """Also where a BatchNormalization was folded into them, and where a channel lacks the ends."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, use_bias=False, name="first")(inputs)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.Conv2D(6, 3, activation="relu", name="second")(x)
    plain = keras.Model(inputs, layers.Dense(4, name="third")(layers.Flatten()(x)))
    techniques, most = CHAINS[name]
    model = tfc.compress(plain, [tfc.Rule("*", techniques)])
    model.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=False)
    x = np.random.default_rng(0).normal(size=(64, 8, 8, 3)).astype("float32")
    model.fit(x, x[:, 0, :4, 0], epochs=2, verbose=0, callbacks=[tfc.UpdateCompression()])
    path, bits = tmp_path / "model.tflite", techniques[-1].bits
    tfc.convert(model, path)
    found = {}
    buffer = flatbuffer.read(path)
    for tensor in buffer.subgraphs[0].tensors:
        codes = tensor_values(buffer, tensor)
        if codes is not None and codes.ndim >= 2 and codes.dtype != np.int32:
            found[codes.size] = codes
    assert {*found} == {216, 432, 384}
    for codes in found.values():
        assert 2 <= len(np.unique(codes)) <= most
        assert np.abs(codes).max() < 2 ** (bits - 1)
    final = tfc.finalize(model)
    np.testing.assert_array_equal(final(x), model(x))
    result = tfc.verify(final, path, x)
    assert result.passed, result.rule
    limit = 1.01 if bits == 8 else 2.01
    assert max(output.keras.max_lsb for output in result.outputs) <= limit


@pytest.mark.slow
def test_jax_gives_the_same(tmp_path):
    code = """
        import sys, keras, numpy as np, tfcompress as tfc
        keras.utils.set_random_seed(0)
        x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
        found = {}
        for values in ("4", "ternary", "log"):
            inputs = keras.Input((6,))
            start = np.random.default_rng(1).normal(size=(6, 8)).astype("float32")
            layer = keras.layers.Dense(8, name="dense", use_bias=False)
            model = keras.Model(inputs, layer(inputs))
            layer.kernel.assign(start)
            book = tfc.Codebook(values, bits=3 if values == "log" else None, begin=2)
            model = tfc.compress(model, [tfc.Rule("*", [book])])
            model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
            settings = {"epochs": 2, "batch_size": 8, "shuffle": False, "verbose": 0}
            model.fit(x, x @ start, callbacks=[tfc.UpdateCompression()], **settings)
            found[values] = np.array(tfc.finalize(model).get_layer("dense").kernel)
            found[values + " behind"] = np.array(model.get_layer("dense").layer.kernel)
        np.savez(sys.argv[1], **found)
    """
    for backend in ("jax", "tensorflow"):
        arguments = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / backend)]
        env = {**os.environ, "KERAS_BACKEND": backend}
        subprocess.run(arguments, env=env, check=True, timeout=300)
    ours, theirs = (np.load(tmp_path / f"{name}.npz") for name in ("jax", "tensorflow"))
    for name in ours.files:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5, err_msg=name)
