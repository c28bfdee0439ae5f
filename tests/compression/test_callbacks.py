"""UpdateCompression: which step the schedules of a model are at, in every kind of fit."""

import keras
import numpy as np
import pytest
from keras import layers

import tfcompress as tfc
from tfcompress.layers.batch_norm import FusedBatchNorm
from tfcompress.layers.compressed import Compressed
from tfcompress.layers.fake_quant import FakeQuant

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(64, 6, 6, 2)).astype("float32")
Y = RANDOM.integers(0, 3, 64)


def make_float():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 2))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(4, 3, use_bias=False)(inputs)))
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def make(eager=True, **settings):
    return compiled(tfc.quantize_aware(make_float(), **settings), run_eagerly=eager)


def compiled(model, run_eagerly=True, **kwargs):
    """A compiled model; not its step, which takes longer than a few of these."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    settings = {"jit_compile": False, "run_eagerly": run_eagerly, **kwargs}
    model.compile(keras.optimizers.Adam(0.01), loss, **settings)
    return model


def fit(model, steps, callbacks=(), **kwargs):
    """Trains batches of 4, from wherever the optimizer is."""
    callbacks = [tfc.UpdateCompression(), *callbacks]
    kwargs = {"batch_size": 4, "verbose": 0, "shuffle": False, "callbacks": callbacks, **kwargs}
    return model.fit(X[: 4 * steps], Y[: 4 * steps], **kwargs)


def phases(model):
    return {int(x.phase) for x in model.layers if isinstance(x, FakeQuant) and x.scheduled}


def scheduled(model):
    return [x for x in model.layers if getattr(x, "scheduled", False)]


def effective_equals_float(model):
    wrapped = [x for x in model.layers if isinstance(x, Compressed)]
    variables = [(x, target.variable) for x in wrapped for target in x.bound]
    return {bool(np.all(x.effective(v) == v)) for x, v in variables}


class Recorder(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append((int(self.model.optimizer.iterations), *phases(self.model)))


@pytest.mark.slow
def test_phases_change_at_their_steps():
    model, recorder = make(eager=False, delay=3, freeze=6), Recorder()
    assert phases(model) == {0}
    fit(model, 8, [recorder])
    assert recorder.seen == [(1, 0), (2, 0), (3, 1), (4, 1), (5, 1), (6, 2), (7, 2), (8, 2)]
    assert {int(x.last_step) for x in scheduled(model)} == {8}


@pytest.mark.slow
def test_delay_leaves_the_model_float_and_observes():
    model, plain = make(eager=False, delay=3), make(activation_bits=None, delay=10**6)
    fit(model, 2)
    fit(plain, 2)
    np.testing.assert_allclose(model(X), plain(X), atol=1e-5)
    assert effective_equals_float(model) == {True}
    ranges = [np.array(x.range) for x in model.layers if isinstance(x, FakeQuant)]
    assert all(r[0, 1] > 0 for r in ranges)
    fit(model, 1)
    assert effective_equals_float(model) == {False}
    assert np.abs(np.array(model(X)) - plain(X)).max() > 1e-3


def test_freeze_stops_ranges_and_statistics():
    model = make(eager=False, freeze=3)
    fit(model, 3)
    layer = next(x for x in model.layers if isinstance(x, FusedBatchNorm)).layer
    quantizers = [x for x in model.layers if isinstance(x, FakeQuant)]

    def state():
        return [np.array(v) for v in (layer.moving_mean, *(x.range for x in quantizers))]

    before, gamma = state(), np.array(layer.gamma)
    fit(model, 5)
    for a, b in zip(before, state(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(gamma - layer.gamma).max() > 0  # the weights go on


def test_steps_per_execution_counts_optimizer_steps():
    model = compiled(make(delay=5), run_eagerly=False, steps_per_execution=4)
    recorder = Recorder()
    fit(model, 12, [recorder])
    assert recorder.seen == [(4, 0), (8, 1), (12, 1)]
    assert {int(x.last_step) for x in scheduled(model)} == {12}


def test_second_fit_continues():
    model, recorder = make(delay=5), Recorder()
    fit(model, 3)
    assert phases(model) == {0}
    fit(model, 3, [recorder])
    assert recorder.seen == [(4, 0), (5, 1), (6, 1)]


def test_reload_continues(tmp_path):
    model = make(delay=5, freeze=9)
    fit(model, 3)
    model.save(tmp_path / "model.keras")
    loaded, recorder = keras.models.load_model(tmp_path / "model.keras"), Recorder()
    fit(loaded, 7, [recorder])
    assert [phase for _, phase in recorder.seen] == [0, 1, 1, 1, 1, 2, 2]


def test_new_optimizer_does_not_go_back():
    model, recorder = make(delay=5, freeze=9), Recorder()
    fit(model, 7)
    fit(compiled(model), 3, [recorder])
    assert recorder.seen == [(1, 1), (2, 2), (3, 2)]  # steps 8, 9 and 10


class BestFirst(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        logs["rank"] = epoch


@pytest.mark.parametrize("early_stopping", ["before", "after"])
def test_restored_weights_of_an_earlier_epoch_are_told_at_finalize(early_stopping):
    rules = [tfc.Rule("*", [tfc.Prune(tfc.schedules.linear(0.0, 0.8, end=8))])]
    model = compiled(tfc.compress(make_float(), rules))
    stop = keras.callbacks.EarlyStopping("rank", mode="min", restore_best_weights=True, patience=9)
    others = [tfc.UpdateCompression()]
    others.insert(0 if early_stopping == "before" else 1, stop)
    fit(model, 4, epochs=3, callbacks=[BestFirst(), *others])
    with pytest.warns(UserWarning, match=r"of 0\.8, due at step 8"):
        tfc.finalize(model)


@pytest.mark.slow
def test_unscheduled_layers_cost_nothing(monkeypatch):
    calls = []
    real = FakeQuant.advance
    monkeypatch.setattr(FakeQuant, "advance", lambda *args: (calls.append(args), real(*args)))
    fit(make(), 4)
    assert calls == []
    model = make(delay=2)
    fit(model, 10)
    count = sum(isinstance(x, FakeQuant) for x in model.layers)
    assert len(calls) == 2 * count  # at the start and at step 2


FORGOTTEN = r"callbacks=\[tfcompress\.UpdateCompression\(\)\]"


class Evaluates(keras.callbacks.Callback):
    """Uses the model before its schedules are known, as loggers do."""

    def on_train_begin(self, logs=None):
        self.model.evaluate(X[:4], Y[:4], verbose=0)
        self.model(X[:4], training=True)


@pytest.mark.parametrize("eager", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_fit_without_the_callback_stops_in_its_first_step(eager):
    model = make(delay=2, eager=eager)
    with pytest.raises(ValueError, match=FORGOTTEN):
        model.fit(X, Y, verbose=0)
    assert int(model.optimizer.iterations) == 0
    fit(model, 3, [Evaluates()])
    assert phases(model) == {1}
    model.fit(X[:4], Y[:4], verbose=0)  # what the model remembers holds
    np.testing.assert_array_equal(tfc.finalize(model)(X), model(X))


def test_a_forgotten_callback_in_other_loops_is_told_at_finalize():
    model = make(delay=2)
    for _ in range(3):
        model.train_on_batch(X[:4], Y[:4])
    with pytest.raises(ValueError, match=FORGOTTEN):
        tfc.finalize(model)
    update = tfc.UpdateCompression()  # as its docstring shows
    update.set_model(model)
    update.on_train_begin()
    update.on_train_batch_begin(0)
    model.train_on_batch(X[:4], Y[:4])
    update.on_train_batch_end(0)
    assert phases(model) == {1}
    update.on_epoch_end(0)
    np.testing.assert_array_equal(tfc.finalize(model)(X), model(X))


def test_errors():
    inputs = keras.Input((3,))
    plain = keras.Model(inputs, layers.Dense(1)(inputs))
    plain.compile("sgd", "mse")
    with pytest.raises(ValueError, match="found nothing to update in model"):
        plain.fit(np.ones((4, 3)), np.ones(4), verbose=0, callbacks=[tfc.UpdateCompression()])
    callback = tfc.UpdateCompression()
    callback.set_model(tfc.quantize_aware(plain, delay=1))
    with pytest.raises(ValueError, match=r"Compile it: model\.compile"):
        callback.on_train_begin()
