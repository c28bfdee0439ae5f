"""Shares of the training: steps when `fit` begins, kept in what is saved."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress import Cluster, Prune, PruneCallback, Quantize, UpdateCompression, schedules
from tfcompress.layers.compressed import Compressed
from tfcompress.layers.fake_quant import FakeQuant

X = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
Y = X[:, :1]
# In 16 steps: updates at 0, 4 and 8.
HALF = schedules.linear(0.0, 0.5, end="50%", frequency="25%")


def plain():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, activation="relu", name="a"), layers.Dense(1, name="b")]
    )


def compressed(*techniques):
    return compiled(tfc.compress(plain(), [tfc.Rule("*", list(techniques))]))


def compiled(model):
    model.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=False)
    return model


def fit(model, epochs=2, first=0, callbacks=None, **kwargs):
    """8 steps an epoch."""
    given = {"batch_size": 8, "shuffle": False, "verbose": 0, "initial_epoch": first, **kwargs}
    callbacks = [UpdateCompression()] if callbacks is None else callbacks
    model.fit(X, Y, epochs=epochs, callbacks=callbacks, **given)
    return model


def techniques_of(model):
    return next(x for x in model._flatten_layers() if isinstance(x, Compressed)).techniques


def assert_same(a, b):
    for v, w in zip(a.weights, b.weights, strict=True):
        np.testing.assert_array_equal(v, w, err_msg=v.path)


def test_fit_makes_steps_of_shares():
    model = compressed(
        Prune(HALF, score="l1"), Cluster(3, frequency="12.5%"), Quantize(delay="25%")
    )
    fit(model)
    prune, cluster, quantize = techniques_of(model)
    assert prune.sparsity == schedules.linear(0.0, 0.5, end=8, frequency=4)
    assert (cluster.frequency, quantize.delay) == (2, 4)
    (first, *_) = (x for x in model.layers if isinstance(x, Compressed))
    assert first.bound[0].techniques[1].begin == 8  # where pruning ends
    assert {x.delay for x in model.layers if isinstance(x, FakeQuant) and x.fixed is None} == {4}
    with_steps = [
        Prune(schedules.linear(0.0, 0.5, end=8, frequency=4), score="l1"),
        Cluster(3, frequency=2),
        Quantize(delay=4),
    ]
    assert_same(model, fit(compressed(*with_steps)))


@pytest.mark.parametrize("whole", [True, False])
def test_resuming_changes_nothing(tmp_path, whole):
    techniques = [Prune(HALF), Quantize(delay="75%", freeze="90%")]
    reference, half = fit(compressed(*techniques)), compressed(*techniques)

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    fit(half, callbacks=[UpdateCompression(), Stop()])
    if whole:
        half.save(tmp_path / "half.keras")
        model = keras.models.load_model(tmp_path / "half.keras")
    else:  # as BackupAndRestore does
        half.save_weights(tmp_path / "half.weights.h5")
        model = compressed(*techniques)
        model.optimizer.build(model.trainable_variables)
        model.load_weights(tmp_path / "half.weights.h5")
    assert_same(reference, fit(model, first=1))


def test_a_model_that_goes_on_with_its_optimizer_begins_where_it_is():
    model, callback = fit(compiled(plain()), callbacks=[]), PruneCallback(Prune(HALF))
    fit(model, epochs=4, first=2, callbacks=[callback])
    assert callback._followed.sparsity == schedules.linear(0.0, 0.5, begin=16, end=24, frequency=4)
    # The same steps in a further fit, others for another model.
    fit(model, epochs=1, callbacks=[callback])
    assert callback._followed.sparsity.end == 24
    fit(compiled(plain()), epochs=1, callbacks=[callback])
    assert callback._followed.sparsity.end == 4


def test_backup_and_restore_goes_on_with_the_same_steps(tmp_path):
    reference = fit(compiled(plain()), callbacks=[PruneCallback(Prune(HALF, score="l1"))])

    class Fail(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise KeyboardInterrupt

    backup = tmp_path / "backup"
    for after in ([Fail()], []):
        model, kept = compiled(plain()), keras.callbacks.BackupAndRestore(backup)
        callbacks = [PruneCallback(Prune(HALF, score="l1")), kept, *after]
        try:
            fit(model, callbacks=callbacks)
        except KeyboardInterrupt:
            assert after
    assert_same(reference, model)


def batches():
    while True:
        yield X[:8], Y[:8]


def test_the_length_must_be_known():
    for model, callback in (
        (compressed(Prune(0.8)), UpdateCompression()),
        (compiled(plain()), PruneCallback(Prune(0.8))),
    ):
        endless = keras.utils.PyDataset
        import tensorflow as tf

        spec = (tf.TensorSpec((8, 6)), tf.TensorSpec((8, 1)))
        endless = tf.data.Dataset.from_generator(batches, output_signature=spec)
        with pytest.raises(ValueError, match="Pass steps_per_epoch to fit"):
            model.fit(endless.take(3), epochs=2, verbose=0, callbacks=[callback])
        model.fit(endless, epochs=2, steps_per_epoch=4, verbose=0, callbacks=[callback])
        assert int(model.optimizer.iterations) == 8


def test_a_loop_of_ones_own():
    model, update = compressed(Prune(HALF)), UpdateCompression()
    update.set_model(model)
    update.set_params({"epochs": 2, "steps": 8})
    update.on_train_begin()
    for step in range(16):
        update.on_train_batch_begin(step % 8)
        model.train_on_batch(X[:8], Y[:8])
        update.on_train_batch_end(step % 8)
    update.on_epoch_end(1)
    assert techniques_of(model)[0].sparsity.end == 8
    final = tfc.finalize(model)
    assert sum(int(np.sum(np.array(v) == 0)) for v in final.trainable_variables[::2]) == 28


def test_a_number_is_gradual_and_lets_no_layer_die():
    model = plain()
    model.get_layer("b").kernel.assign(model.get_layer("b").kernel * 1e-4)
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            kernels = [np.array(self.model.get_layer(name).kernel) for name in "ab"]
            seen.append([int(np.sum(kernel == 0)) for kernel in kernels])

    callback = PruneCallback(Prune(0.75, score="magnitude", floor=0.5))
    fit(compiled(model), callbacks=[callback, Watch()])
    assert callback._followed.sparsity == schedules.polynomial(0.0, 0.75, end=5, frequency=1)
    totals = [sum(zeros) for zeros in seen]
    assert totals == sorted(totals)
    assert totals[5:] == [56 - 14] * 11  # of the 48 and 8 weights
    assert [8 - zeros for _, zeros in seen[5:]] == [1] * 11  # half of a quarter


def test_the_score_by_default():
    assert techniques_of(compressed(Prune(0.8)))[0].score == "taylor"
    assert techniques_of(compressed(Prune(0.8, score="l2")))[0].score == "l2"
    assert techniques_of(compressed(Prune(threshold=0.1)))[0].score is None
    # A layer with several calls has no such scores; all are ranked by one.
    inputs, shared = keras.Input((6,)), layers.Dense(6, name="a")
    twice = keras.Model(inputs, layers.Dense(1, name="b")(shared(shared(inputs))))
    model = tfc.compress(twice, [tfc.Rule("*", [Prune(0.8)])])
    assert [x.techniques[0].score for x in model.layers if isinstance(x, Compressed)] == [None] * 2
    averaged = plain()
    averaged.compile(keras.optimizers.Adam(use_ema=True), "mse", jit_compile=False)
    fit(averaged, callbacks=[PruneCallback(Prune(0.5))])
    assert int(np.sum(np.array(averaged.get_layer("a").kernel) == 0)) > 0


def test_files_from_before_mean_what_they_did():
    config = Prune(schedules.constant(0.8), score="magnitude", scope="global").get_config()
    del config["floor"]
    assert Prune.from_config(config).floor == 0.0


def test_ready_recipes_need_no_length():
    model = compiled(tfc.compress(plain(), tfc.Recipe.load("sparse-cluster-int8")))
    fit(model)
    assert techniques_of(model)[0].sparsity.end == 5  # 30% of 16 steps
