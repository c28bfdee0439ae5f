"""Pruning and clustering of compressed models in every mode of Keras, by their outcome."""

import warnings

import keras
import numpy as np
import pytest
from pruning_models import (
    GROWING,
    X,
    Y,
    assert_same,
    assert_sparse,
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
from tfcompress import Cluster, schedules
from tfcompress.layers.compressed import Compressed


@pytest.mark.parametrize("score", [pytest.param("magnitude", marks=pytest.mark.slow), "taylor"])
def test_finalized_model_has_the_zeros_of_the_schedule(score):
    model = make(in_layers(GROWING, score=score))
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


@pytest.mark.slow
def test_forgotten_callback_and_too_short_training(tmp_path):
    few = {"x": X[:16], "y": Y[:16]}  # four steps
    eager = {"run_eagerly": True}
    model = make(**eager)
    with pytest.raises(ValueError, match=r"callbacks=\[tfcompress\.UpdateCompression\(\)\]"):
        model.fit(X[:16], Y[:16], verbose=0)
    with pytest.raises(ValueError, match=r"callbacks=\[tfcompress\.UpdateCompression\(\)\]"):
        tfc.finalize(model)
    with pytest.raises(ValueError, match=r"callbacks=\[tfcompress\.UpdateCompression\(\)\]"):
        tfc.convert(model, tmp_path / "model.tflite")
    late = make(in_layers(schedules.linear(0.0, 0.5, begin=5, end=9)), **eager)
    with pytest.raises(ValueError, match="begins at step 5; received a model trained for 4"):
        tfc.finalize(fit(late, **few))
    late = make(in_layers(schedules.linear(0.0, 0.5, begin=5, end=9)), Cluster(4), **eager)
    with pytest.raises(ValueError, match="Prune of layer 'first' begins at step 5"):
        tfc.finalize(fit(late, **few))
    short = make(in_layers(schedules.linear(0.0, 0.5, end=8, frequency=1)), **eager)
    with pytest.warns(UserWarning, match=r"sparsity reached 0\.25 of 0\.5, due at step 8"):
        tfc.finalize(fit(short, **few))
    reached = make(in_layers(schedules.constant(0.5, end=100)), **eager)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tfc.finalize(fit(reached, **few))


@pytest.mark.slow
@pytest.mark.parametrize("score", ["magnitude", "taylor"])
def test_steps_per_execution(score):
    schedule = schedules.linear(0.0, 0.6, end=12, frequency=4)
    prune = in_layers(schedule, score=score)
    together = fit(make(prune, steps_per_execution=4))
    assert_same(together, fit(make(prune)), 1e-5)
    assert_sparse(together)


def test_new_optimizer_does_not_go_back():
    def now():
        wrapped = [x for x in model.layers if isinstance(x, Compressed)]
        return zeros([np.array(x.effective(x.layer.kernel)) for x in wrapped])

    model = fit(make(run_eagerly=True), x=X[:40], y=Y[:40])
    before = now()
    compiled(model, keras.optimizers.SGD(0.01), run_eagerly=True)
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
        model = make(in_layers(GROWING, score=score), Cluster(6), optimizer=optimizer)
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
        model = make(in_layers(GROWING, score=score), Cluster(6), optimizer=optimizer)
        fit(model, epochs=3)
        found = kernels(model)
        assert zeros(found) == wanted(found, 0.6)
        assert max(len(np.unique(kernel)) for kernel in found) <= 6


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
        from pruning_models import GROWING, SCORES, X, Y
        from pruning_models import compiled, in_layers, make_float, wanted, zeros

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
                techniques = [in_layers(GROWING, score=score), Cluster(5)][: 1 if callback else 2]
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
