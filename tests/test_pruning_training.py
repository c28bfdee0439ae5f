"""Pruning and clustering of compressed models in every mode of Keras, by their outcome."""

import os
import subprocess
import sys
import textwrap
import warnings

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress import Cluster, Prune, Quantize, Regularize, schedules
from tfcompress.layers import Compressed

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(64, 8, 8, 2)).astype("float32")
Y = RANDOM.integers(0, 2, 64)
GROWING = schedules.linear(0.0, 0.6, begin=2, end=13, frequency=4)
SCORES = ("magnitude", "taylor", "movement", "random")


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
    rules = [tfc.Rule("*", list(techniques or [Prune(GROWING)]))]
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
    folder = os.path.dirname(__file__)
    path = os.pathsep.join([folder, os.path.dirname(folder), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=500
    )
    assert (done.returncode == 7) if fails else (done.returncode == 0), done.stderr[-3000:]


@pytest.mark.parametrize("score", ["magnitude", "taylor"])
def test_finalized_model_has_the_zeros_of_the_schedule(score):
    model = make(Prune(GROWING, score=score))
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            wrapped = [x for x in self.model.layers if isinstance(x, Compressed)]
            effective = [np.array(x.effective(x.layer.kernel)) for x in wrapped]
            wish = wanted(effective, GROWING.at(int(self.model.optimizer.iterations)))
            seen.append(zeros(effective) == wish)

    fit(model, callbacks=[Watch()])
    assert seen == [True] * 16
    assert_sparse(model)


def test_forgotten_callback_and_too_short_training(tmp_path):
    model = make()
    model.fit(X, Y, verbose=0)
    with pytest.raises(ValueError, match=r"callbacks=\[tfcompress\.UpdateCompression\(\)\]"):
        tfc.finalize(model)
    with pytest.raises(ValueError, match=r"callbacks=\[tfcompress\.UpdateCompression\(\)\]"):
        tfc.convert(model, tmp_path / "model.tflite")
    late = make(Prune(schedules.linear(0.0, 0.5, begin=20, end=30)))
    with pytest.raises(ValueError, match="begins at step 20; received a model trained for 16"):
        tfc.finalize(fit(late))
    late = make(Prune(schedules.linear(0.0, 0.5, begin=20, end=30)), Cluster(4))
    with pytest.raises(ValueError, match="Prune of layer 'first' begins at step 20"):
        tfc.finalize(fit(late))
    short = make(Prune(schedules.linear(0.0, 0.5, end=32, frequency=4)))
    with pytest.warns(UserWarning, match=r"sparsity reached 0\.25 of 0\.5, due at step 32"):
        tfc.finalize(fit(short))
    reached = make(Prune(schedules.constant(0.5, end=100)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tfc.finalize(fit(reached))


@pytest.mark.slow
@pytest.mark.parametrize(
    "techniques",
    [
        [Prune(GROWING, score="taylor"), Cluster(5, begin=9, frequency=3)],
        [Prune(GROWING, score="movement", scope="global")],
        [Prune(GROWING, score="random"), Quantize(delay=10)],
        [Regularize("l1"), Prune(GROWING), Cluster(5, per_channel=True), Quantize(bits=8)],
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
    model = fit(make(Prune(GROWING, score="taylor"), Cluster(5)))
    model.save_weights(tmp_path / "model.weights.h5")
    for other in (
        make(Prune(GROWING, score="taylor"), Cluster(5)),
        keras.models.clone_model(model),
    ):
        other.load_weights(tmp_path / "model.weights.h5")
        assert_same(other, model)
        np.testing.assert_array_equal(other(X), model(X))


@pytest.mark.slow
@pytest.mark.parametrize("score", ["magnitude", "taylor"])
def test_steps_per_execution(score):
    schedule = schedules.linear(0.0, 0.6, end=12, frequency=4)
    prune = Prune(schedule, score=score)
    together = fit(make(prune, steps_per_execution=4))
    assert_same(together, fit(make(prune)), 1e-5)
    assert_sparse(together)


def test_new_optimizer_does_not_go_back():
    def now():
        wrapped = [x for x in model.layers if isinstance(x, Compressed)]
        return zeros([np.array(x.effective(x.layer.kernel)) for x in wrapped])

    model = fit(make(), x=X[:40], y=Y[:40])
    before = now()
    compiled(model, keras.optimizers.SGD(0.01))
    fit(model, x=X[:4], y=Y[:4])
    assert all(after >= first > 0 for after, first in zip(now(), before, strict=True))
    fit(model, x=X[:12], y=Y[:12])  # steps 12 to 14: the schedule ends at 13
    assert_sparse(model)


@pytest.mark.parametrize("score", ["taylor", "movement"])
@pytest.mark.slow
def test_mixed_float16(score):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        inner = keras.optimizers.Adam(0.01)
        optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0**22)
        model = make(Prune(GROWING, score=score), Cluster(6), optimizer=optimizer)
        fit(model, epochs=3)
    finally:
        keras.config.set_dtype_policy("float32")
    for wrapper in (x for x in model.layers if isinstance(x, Compressed)):
        assert np.isfinite(wrapper.bound[0].states[0]["scores"]).all()
    found = kernels(model)
    assert zeros(found) == wanted(found, 0.6)
    assert max(len(np.unique(kernel)) for kernel in found) == 6


@pytest.mark.slow
def test_use_ema_and_gradient_accumulation():
    for score, settings in (
        ("movement", {"use_ema": True, "ema_momentum": 0.9}),
        ("taylor", {"gradient_accumulation_steps": 2}),
    ):
        optimizer = keras.optimizers.Adam(0.01, **settings)
        model = make(Prune(GROWING, score=score), Cluster(6), optimizer=optimizer)
        fit(model, epochs=3)
        found = kernels(model)
        assert zeros(found) == wanted(found, 0.6)
        assert max(len(np.unique(kernel)) for kernel in found) <= 6


def shared(*techniques):
    keras.utils.set_random_seed(0)
    dense, inputs = layers.Dense(4, use_bias=False, name="shared"), keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2, name="logits")(dense(dense(inputs))))
    model = tfc.compress(model, [tfc.Rule("shared", list(techniques))])
    return compiled(model, keras.optimizers.SGD(0.0))


def test_shared_layer_cannot_learn_scores_that_each_call_overwrites():
    with pytest.raises(ValueError, match=r"'shared' is called 2 times.*score='movement'"):
        shared(Prune(0.5, score="taylor"))
    assert shared(Prune(0.5, score="movement")).count_params() > 0


def test_shared_layer_is_penalized_once():
    x, y = X[:4, 0, :2].reshape(4, 4), Y[:4]
    model, plain = shared(Regularize(keras.regularizers.L2(0.1))), shared(Prune(0.0))
    wrapper = next(x for x in model.layers if isinstance(x, Compressed))
    difference = model.evaluate(x, y, verbose=0)[0] - plain.evaluate(x, y, verbose=0)[0]
    assert difference == pytest.approx(0.1 * np.square(wrapper.layer.kernel).sum(), rel=1e-4)


def sequence_model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, 8, mask_zero=True, name="embedding")(inputs)
    x = layers.Bidirectional(layers.LSTM(5, return_sequences=True), name="both")(x)
    x = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = layers.GRU(6, return_sequences=True, name="gru")(x)
    x = layers.LSTM(4, name="lstm")(x)
    return keras.Model(inputs, layers.Dense(2, name="logits")(x))


TOKENS = RANDOM.integers(1, 20, (64, 6))
TOKENS[:, 4:] *= RANDOM.integers(0, 2, (64, 1))
KERNELS = ("kernel", "recurrent_kernel", "pointwise_kernel", "embeddings")


def test_masks_of_steps_reach_a_recurrent_layer():
    def make_lstm(mask_zero):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6,), dtype="int32")
        x = layers.Embedding(20, 8, mask_zero=mask_zero)(inputs)
        return keras.Model(inputs, layers.Dense(2)(layers.LSTM(4)(x)))

    short = np.where(np.arange(6) < 3, TOKENS, 0)
    outputs = []
    for mask_zero in (True, False):
        plain = make_lstm(mask_zero)
        model = tfc.compress(plain, [tfc.Rule("*", [Prune(0.0)])])
        outputs.append(np.array(model(short)))
        np.testing.assert_allclose(outputs[-1], plain(short), atol=1e-6)
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-4


@pytest.mark.slow
def test_layers_within_layers(tmp_path):
    plain, techniques = sequence_model(), [Prune(GROWING), Cluster(4)]
    model = compiled(tfc.compress(plain, [tfc.Rule("*", techniques)]))
    # Before training outputs are equal, and steps that are masked away do not count.
    np.testing.assert_allclose(model(TOKENS), plain(TOKENS), atol=1e-6)
    short = np.where(np.arange(6) < 3, TOKENS, 0)
    assert np.abs(np.array(model(short)) - model(np.where(short == 0, 1, short))).max() > 1e-4
    fit(model, x=TOKENS)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(TOKENS), model(TOKENS))
    assert_same(fit(loaded, x=TOKENS), fit(model, x=TOKENS))
    final = tfc.finalize(model)
    np.testing.assert_allclose(final(TOKENS), model(TOKENS), atol=1e-6)
    pruned = [v for v in final.trainable_variables if v.name in KERNELS]
    assert len(pruned) == 14
    for variable in pruned:
        kernel = np.array(variable)
        assert (kernel == 0).sum() == kernel.size - round(kernel.size * 0.4), variable.path
        assert len(np.unique(kernel)) <= 4


@pytest.mark.slow
@pytest.mark.parametrize("dimensions", [1, 2])
def test_separable_convolutions(dimensions):
    kind = (layers.SeparableConv1D, layers.SeparableConv2D)[dimensions - 1]
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 2) if dimensions == 1 else (8, 8, 2))
    x = kind(5, 3, activation="relu", name="separable")(inputs)
    outputs = layers.Dense(2)(layers.Flatten()(x))
    model = keras.Model(inputs, outputs)
    x = X[:, 0] if dimensions == 1 else X
    for depthwise in (False, True):
        techniques = [Prune(0.5, depthwise=depthwise), Cluster(3, depthwise=depthwise)]
        small = compiled(tfc.compress(model, [tfc.Rule("separable", techniques)]))
        fit(small, x=x, y=Y)
        final = tfc.finalize(small)
        np.testing.assert_allclose(final(x), small(x), atol=1e-6)
        layer = final.get_layer("separable")
        assert np.count_nonzero(layer.pointwise_kernel) == 5
        assert len(np.unique(layer.pointwise_kernel)) <= 3
        free = np.count_nonzero(layer.depthwise_kernel)
        assert free == np.array(layer.depthwise_kernel).size // (2 if depthwise else 1)


@pytest.mark.slow
def test_opened_layers_with_quantize(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), dtype="int32", batch_size=1)
    x = layers.Embedding(20, 8, name="embedding")(inputs)
    x = layers.GRU(5, return_sequences=True, unroll=True, name="gru")(x)
    x = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = layers.SeparableConv1D(6, 3, name="separable")(x)
    plain = keras.Model(inputs, layers.Dense(2, name="logits")(layers.Flatten()(x)))
    recipe = [tfc.Rule("*", [Prune(GROWING), Cluster(6), Quantize(bits=8)])]
    model = compiled(tfc.compress(plain, recipe))
    model.fit(TOKENS[:32], Y[:32], batch_size=1, verbose=0, callbacks=[tfc.UpdateCompression()])
    targets = [t for x in model.layers if isinstance(x, Compressed) for t in x.bound]
    pruned = [t for t in targets if any(isinstance(k, Prune) for k in t.techniques)]
    assert len(pruned) >= 8
    for target in pruned:
        mask = np.array(target.states[0]["mask"])
        assert (mask == 0).sum() == mask.size - round(mask.size * 0.4), target.variable.path
    path = tmp_path / "model.tflite"
    tfc.convert(model, path, precision="int8")
    assert tfc.verify(model, path, TOKENS[:8]).passed


RESUME = """
    import os, sys
    import keras
    import tfcompress as tfc
    from tfcompress import Cluster, Prune, PruneCallback, schedules
    from test_pruning_training import GROWING, X, Y, compiled, make, make_float

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
        model, ours = compiled(make_float()), PruneCallback(Prune(schedule))
    else:
        prune = Prune(schedule, score="taylor" if kind == "taylor" else "magnitude")
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


@pytest.mark.slow
def test_mirrored_strategy_on_two_devices():
    run_python("""
        import contextlib
        import numpy as np, tensorflow as tf
        cpus = tf.config.list_physical_devices("CPU")
        halves = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpus[0], halves)
        import keras, tfcompress as tfc
        from tfcompress import Cluster, Prune, PruneCallback
        from test_pruning_training import (GROWING, SCORES, X, Y, compiled, make_float, wanted,
                                           zeros)

        mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

        def run(techniques, two, callback=False):
            with mirrored.scope() if two else contextlib.nullcontext():
                model = make_float()
                # Statistics of a batch depend on how it is split.
                for layer in model.layers:
                    layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
                if not callback:
                    model = tfc.compress(model, [tfc.Rule("*", techniques)])
                compiled(model, keras.optimizers.SGD(0.05))
            ours = PruneCallback(*techniques) if callback else tfc.UpdateCompression()
            model.fit(X, Y, batch_size=8, epochs=2, verbose=0, shuffle=False, callbacks=[ours])
            copy = keras.models.clone_model(model)
            copy.set_weights(model.get_weights())
            return copy

        for score in SCORES:
            for callback in (False, True):
                techniques = [Prune(GROWING, score=score), Cluster(5)][: 1 if callback else 2]
                two = run(techniques, True, callback)
                final = tfc.finalize(two)
                found = [np.array(final.get_layer(n).kernel) for n in ("first", "second", "logits")]
                assert zeros(found) == wanted(found, 0.6), (score, callback)
                if not callback:
                    assert max(len(np.unique(k)) for k in found) == 5
                    outputs = [m.predict(X, verbose=0) for m in (two, final)]
                    np.testing.assert_allclose(*outputs, atol=1e-6)
                if score in ("magnitude", "random"):
                    one = run(techniques, False, callback)
                    for a, b in zip(one.get_weights(), two.get_weights(), strict=True):
                        np.testing.assert_allclose(a, b, atol=1e-4)
                elif not callback:
                    one = run(techniques[:1], False)
                    two = run(techniques[:1], True)
                    for a, b in zip(one.variables, two.variables, strict=True):
                        if a.name.endswith("scores"):
                            a, b = np.array(a), np.array(b)
                            print(score, a.ravel()[:4], b.ravel()[:4])
                            assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.9
                            assert 0.5 < np.abs(a).sum() / np.abs(b).sum() < 2
    """)


CHAIN = [Regularize("l2"), Prune(GROWING), Cluster(8, frequency=3), Quantize(bits=8)]
CHAINS = {
    "int8": CHAIN,
    "per-channel": [Prune(GROWING), Cluster(5, per_channel=True), Quantize(bits=8)],
    "int4": [Prune(GROWING), Quantize(bits=4)],
    "2:4": [Prune(pattern="2:4"), Cluster(8), Quantize(bits=8)],
}


@pytest.mark.parametrize(
    "name",
    ["int8", *(pytest.param(n, marks=pytest.mark.slow) for n in CHAINS if n != "int8")],
)
def test_a_file_keeps_zeros_and_values(name, tmp_path):
    from tfcompress.tflite import flatbuffer
    from tfcompress.tflite.lookups import tensor_values

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
