"""Recipes on tf_keras models, carried out by TFMOT: values, not wrappers."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tfcompress import UpdateCompression, compress, convert, finalize, schedules
from tfcompress.dispatch import is_legacy
from tfcompress.legacy import import_tf_keras
from tfcompress.recipe.recipe import Recipe
from tfcompress.techniques import Quantize
from tfcompress.techniques.cluster import Cluster
from tfcompress.techniques.prune import Prune
from tfcompress.techniques.regularize import Regularize
from tfcompress.techniques.rules import Rule

k = import_tf_keras()
L = k.layers

SETTINGS = {
    "precision": "float32",
    "io_dtype": "float32",
    "batch_size": 1,
    "strict": False,
    "select_tf_ops": False,
    "progress": None,
}


def make_net():
    k.utils.set_random_seed(0)
    x = inputs = k.Input((8, 8, 4), name="image")
    x = L.Conv2D(8, 3, padding="same", name="conv")(x)
    x = L.ReLU(6.0, name="relu")(L.BatchNormalization(name="bn")(x))
    x = L.DepthwiseConv2D(3, name="depthwise")(x)
    x = L.GlobalAveragePooling2D(name="pool")(x)
    return k.Model(inputs, L.Dense(4, activation="softmax", name="head")(x), name="net")


def data(count=32):
    random = np.random.default_rng(0)
    return random.normal(2, 1, (count, 8, 8, 4)).astype("float32"), np.arange(count) % 4


def fit(model, epochs=1):
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(*data(), batch_size=8, epochs=epochs, verbose=0, callbacks=[UpdateCompression()])
    return model


def everywhere(*techniques):
    return Recipe([Rule("*", techniques)])


@pytest.fixture(scope="module")
def net():
    return make_net()


@pytest.fixture(scope="module")
def sparse(net):
    """The net after pruning to 50%."""
    return finalize(fit(compress(net, everywhere(Prune(0.5)))))


@pytest.fixture(scope="module")
def clustered(net):
    return fit(compress(net, everywhere(Cluster(4, init="linear"))))


@pytest.fixture(scope="module")
def quantized(net):
    return fit(compress(net, everywhere(Quantize())), epochs=2)


def kernels(model):
    return {name: model.get_layer(name).kernel.numpy() for name in ("conv", "head")}


def count_values(kernel):
    """Different values: of a convolution in each channel, as TFMOT preserves those."""
    channels = np.moveaxis(kernel, -1, 0) if kernel.ndim == 4 else [kernel]
    return max(len(np.unique(channel)) for channel in channels)


def test_models_are_told_apart(net):
    import keras

    assert is_legacy(net)
    assert not is_legacy(keras.Sequential())


# Without tf_keras a model of it cannot be there, and nothing of TFMOT is needed.
WITHOUT = """
import os, sys
from tfcompress.dispatch import is_legacy
from tfcompress.legacy import import_tfmot
assert not is_legacy(1)
assert not {"tf_keras", "tensorflow"} & {*sys.modules}

import keras
import tfcompress as tfc
model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
small = tfc.compress(model, tfc.Recipe([tfc.Rule("*", [tfc.Prune(0.5)])]))
small.compile("sgd", "mse")
zeros = keras.ops.zeros
small.fit(zeros((4, 8)), zeros((4, 4)), verbose=0, callbacks=[tfc.UpdateCompression()])
tfc.convert(tfc.finalize(small), sys.argv[1], precision="float32")
assert not {"tf_keras", "tensorflow_model_optimization"} & {*sys.modules}

import_tfmot()
assert "tf_keras" in sys.modules
assert "TF_USE_LEGACY_KERAS" not in os.environ
"""


@pytest.mark.slow
def test_tf_keras_and_tfmot_are_imported_only_for_their_models(tmp_path):
    # Another test may have imported TFMOT by itself, which sets the variable for good.
    clean = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
    command = [sys.executable, "-c", WITHOUT, str(tmp_path / "m.tflite")]
    subprocess.run(command, check=True, env=clean)


def test_pruning_reaches_the_sparsity_and_leaves_the_rest(net, sparse):
    for name, kernel in kernels(sparse).items():
        assert np.mean(kernel == 0) == 0.5
        assert kernels(net)[name].all()  # the user's model is as it was
    assert sparse.get_layer("depthwise").depthwise_kernel.numpy().all()
    assert [type(layer).__name__ for layer in sparse.layers][1:3] == [
        "Conv2D",
        "BatchNormalization",
    ]


@pytest.mark.slow
def test_a_polynomial_schedule_has_its_values_at_its_steps(net):
    # By hand, with 4 batches each epoch: 0.8 + (0.2 - 0.8) * (1 - 4 / 8) ** 3 = 0.725.
    schedule = schedules.polynomial(0.2, 0.8, end=8, frequency=4)
    recipe = [Rule("*", [Prune(0.5)]), Rule("*", []), Rule("conv", [Prune(schedule)])]
    model = fit(compress(net, recipe))
    size = net.get_layer("conv").kernel.shape.num_elements()
    kernel = finalize(model).get_layer("conv").kernel.numpy()
    assert np.count_nonzero(kernel) == round(size * (1 - 0.725))
    fit(model)
    kernel = finalize(model).get_layer("conv").kernel.numpy()
    assert np.count_nonzero(kernel) == round(size * 0.2)


@pytest.mark.slow
def test_patterns_keep_what_they_name(net):
    recipe = [Rule("conv", [Prune(pattern="1:4")]), Rule("head", [Prune(0.5, pattern="4x2")])]
    model = finalize(fit(compress(net, recipe)))
    groups = np.moveaxis(model.get_layer("conv").kernel.numpy(), 2, -1)  # inputs last
    np.testing.assert_array_equal(np.count_nonzero(groups, axis=-1), 1)
    blocks = model.get_layer("head").kernel.numpy().reshape(2, 4, 2, 2)
    counts = np.count_nonzero(blocks, axis=(1, 3))
    assert sorted(counts.ravel()) == [0, 0, 8, 8]


def test_training_without_the_callback_is_an_error():
    net = make_net()
    model = compress(net, everywhere(Prune(0.5)))
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(Exception, match="requires the UpdatePruningStep callback"):
        model.fit(*data(8), verbose=0)
    with pytest.raises(ValueError, match="nothing was pruned yet"):
        finalize(model)
    net.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="found nothing to update in model 'net'"):
        net.fit(*data(8), verbose=0, callbacks=[UpdateCompression()])


def test_clustering_shares_values_and_trains_batch_norm(net, clustered):
    final = finalize(clustered)
    for kernel in kernels(final).values():
        assert len(np.unique(kernel)) == 4
    x = data()[0]
    np.testing.assert_allclose(final(x, training=False), clustered(x, training=False), atol=1e-6)
    # With whole-model clustering these would still be 0, their start.
    assert final.get_layer("bn").moving_mean.numpy().all()
    assert not net.get_layer("bn").moving_mean.numpy().any()
    assert all(len(np.unique(kernel)) > 30 for kernel in kernels(net).values())


def test_clustering_keeps_zeros_that_it_finds(sparse):
    final = finalize(fit(compress(sparse, everywhere(Cluster(4)))))
    for name, kernel in kernels(final).items():
        assert len(np.unique(kernel)) <= 4
        assert not kernel[kernels(sparse)[name] == 0].any()


def test_clustering_per_channel(net):
    recipe = [Rule("conv", [Cluster(3, per_channel=True)])]
    kernel = finalize(fit(compress(net, recipe))).get_layer("conv").kernel.numpy()
    assert [len(np.unique(kernel[..., i])) for i in range(8)] == [3] * 8
    assert len(np.unique(kernel)) == 24


@pytest.mark.slow
def test_quantization_keeps_zeros_and_clusters_that_it_finds(sparse, clustered):
    for plain, values in ((sparse, None), (finalize(clustered), 4)):
        model = finalize(fit(compress(plain, everywhere(Quantize()))))
        for name, before in kernels(plain).items():
            variables = model.get_layer(f"quant_{name}").weights
            after = next(v.numpy() for v in variables if "kernel:" in v.name)
            assert (after != before).any()  # it was trained
            if values is None:
                np.testing.assert_array_equal(after == 0, before == 0)
            else:
                assert count_values(after) == values


@pytest.mark.slow
def test_zeros_and_clusters_are_kept_together(sparse):
    plain = finalize(fit(compress(sparse, everywhere(Cluster(4)))))
    model = finalize(fit(compress(plain, everywhere(Quantize()))))
    for name, before in kernels(plain).items():
        variables = model.get_layer(f"quant_{name}").weights
        after = next(v.numpy() for v in variables if "kernel:" in v.name)
        assert not after[before == 0].any()
        assert count_values(after) <= 4


@pytest.mark.slow
def test_finalize_keeps_the_simulation_of_rounding(quantized):
    x = data()[0]
    final = finalize(quantized)
    np.testing.assert_array_equal(final(x, training=False), quantized(x, training=False))


@pytest.mark.parametrize(
    ("technique", "text"),
    [
        (Prune(0.5, score="l2", pattern="2x2"), "magnitude only.*score='l2'"),
        (Prune(0.5, score="taylor"), "magnitude only.*score='taylor'"),
        (Prune(0.5, scope="global"), "scope='global'"),
        (Prune(threshold=0.1), "sparsity only.*threshold"),
        (Prune(0.5, depthwise=True), "depthwise=True"),
        (Prune(0.5, pattern="filters"), "filters or channels.*'filters'"),
        (Prune(0.5, pattern="4x1"), "matrices only.*layer 'conv'"),
        (Prune(schedules.cosine(0, 0.5, end=100)), "a cosine schedule"),
        (Prune(schedules.points([(0, 0.5)])), "a points schedule"),
        (
            Prune(schedules.linear(0, 0.5, end=150, frequency=100)),
            "stop at step 100.*an end of 100 or 200",
        ),
        (Prune(schedules.linear(0, 0.5, end=100), pattern="2:4"), "n:m masks once"),
        (Cluster(4, begin=10), "from the first step on; received begin=10"),
        (Cluster(4, frequency=1), "every step; received frequency=1"),
        (Cluster(2, keep_zeros=True), "3 or more clusters"),
        (Cluster(2, per_channel=True), "Conv2D only.*layer 'head'"),
        (Quantize(bits=4), "one scheme.*received bits=4"),
        (Quantize(delay=5), "received delay=5"),
        (Regularize("l2"), "no technique like Regularize"),
    ],
)
def test_what_tfmot_cannot_do_is_an_error_that_shows_the_way(net, technique, text):
    with pytest.raises(ValueError, match=f"{text}.*tfcompress migrate"):
        compress(net, everywhere(technique))


def test_stages_rules_and_wrapped_models_are_told(net, clustered):
    both = everywhere(Prune(0.5), Quantize())
    with pytest.raises(
        ValueError, match=r"compress with \[Prune\] and fit, finalize.*\[Quantize\]"
    ):
        compress(net, both)
    with pytest.raises(ValueError, match=r"the rule 'hed' must match a layer.*conv"):
        compress(net, [Rule("hed", [Prune(0.5)])])
    with pytest.raises(ValueError, match="finds no weight"):
        compress(net, [Rule("relu", [Prune(0.5)])])
    with pytest.raises(ValueError, match="wrappers already"):
        compress(clustered, everywhere(Prune(0.5)))
    biasless = k.Sequential([L.Conv2D(4, 3, use_bias=False, input_shape=(8, 8, 4), name="c")])
    with pytest.raises(ValueError, match=r"without a bias.*layer 'c'"):
        compress(biasless, everywhere(Cluster(3, per_channel=True)))
    dropping = k.Sequential([L.LSTM(8, dropout=0.5, input_shape=(4, 3), name="lstm")])
    with pytest.raises(ValueError, match=r"dropout.*layer 'lstm'"):
        compress(dropping, everywhere(Cluster(4)))
    lonely = k.Sequential([L.BatchNormalization(input_shape=(4,)), L.Dense(2)])
    with pytest.raises(ValueError, match=r"TFMOT cannot quantize.*tfcompress migrate"):
        compress(lonely, everywhere(Quantize()))


def test_subclassed_models_are_refused():
    class Own(k.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="subclassed tf_keras model"):
        finalize(Own())


def test_finalize_copies_a_plain_model(net):
    copy, x = finalize(net), data(4)[0]
    np.testing.assert_array_equal(copy(x), net(x))
    copy.get_layer("head").kernel.assign_add(np.ones((8, 4)))
    assert np.abs(copy(x) - net(x)).max() > 0 or not np.allclose(
        kernels(copy)["head"], kernels(net)["head"]
    )


def run_file(path, x):
    """Outputs of a .tflite in real units, and the size of a step of them (0 if float)."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path))
    runner.allocate_tensors()
    entry, out = runner.get_input_details()[0], runner.get_output_details()[0]
    results = []
    for sample in x:
        scale, zero = entry["quantization"]
        if scale:
            limits = np.iinfo(entry["dtype"])
            sample = np.clip(np.round(sample / scale + zero), limits.min, limits.max)
        runner.set_tensor(entry["index"], sample[None].astype(entry["dtype"]))
        runner.invoke()
        scale, zero = out["quantization"]
        y = runner.get_tensor(out["index"])[0]
        results.append((y.astype("float32") - zero) * scale if scale else y)
    return np.array(results), out["quantization"][0], (entry["name"], out["name"])


@pytest.mark.parametrize(
    ("precision", "limit"), [("float32", 1e-5), ("float16", 1e-3), ("dynamic_int8", 1e-2)]
)
def test_float_files_compute_what_the_model_does(sparse, tmp_path, precision, limit):
    path, x = tmp_path / "m.tflite", data(8)[0]
    convert(sparse, path, **{**SETTINGS, "precision": precision})
    received, _, names = run_file(path, x)
    np.testing.assert_allclose(received, sparse(x, training=False), atol=limit)
    assert names == ("image", "head")


def test_wrapped_models_are_finalized_on_the_way(clustered, tmp_path):
    path, x = tmp_path / "m.tflite", data(8)[0]
    convert(clustered, path, **SETTINGS)
    np.testing.assert_allclose(run_file(path, x)[0], clustered(x, training=False), atol=1e-5)


@pytest.mark.parametrize("io_dtype", ["float32", "int8", "uint8"])
def test_trained_ranges_reach_the_file(quantized, tmp_path, io_dtype):
    path, x = tmp_path / "m.tflite", data(16)[0]
    report = convert(quantized, path, **{**SETTINGS, "precision": "int8", "io_dtype": io_dtype})
    received, step, names = run_file(path, x)
    assert np.abs(received - quantized(x, training=False)).max() <= 2 * (step or 1 / 256)
    assert names == ("image", "head")
    assert report.float_ops == []
    assert (step > 0) == (io_dtype != "float32")
    assert report.file_bytes == path.stat().st_size


@pytest.mark.parametrize(
    ("precision", "limit"), [("int8", 0.02), ("int16x8", 0.005), ("int4", 0.1)]
)
def test_calibrated_files_are_near(net, tmp_path, precision, limit):
    path, x = tmp_path / "m.tflite", data()[0]
    report = convert(net, path, **{**SETTINGS, "precision": precision}, calibration=x)
    assert np.abs(run_file(path, x)[0] - net(x, training=False)).max() < limit
    assert report.float_ops == []


def test_conversions_that_make_no_sense_write_nothing(net, quantized, tmp_path):
    path = tmp_path / "m.tflite"
    with pytest.raises(ValueError, match="trained by TFMOT for int8; received precision 'float16'"):
        convert(quantized, path, **{**SETTINGS, "precision": "float16"})
    with pytest.raises(ValueError, match="needs the ranges of activations"):
        convert(net, path, **{**SETTINGS, "precision": "int8"})
    assert not path.exists()
