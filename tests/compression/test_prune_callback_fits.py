"""PruneCallback: the model is the user's own again after a fit, and a second fit goes on."""

import warnings

import keras
import numpy as np
import pytest
from callback_models import (
    GROWING,
    Watch,
    X,
    Y,
    assert_follows,
    compiled,
    fit,
    kernels,
    make,
    plain,
    wanted,
    zeros,
)
from pruning_models import in_layers

from tfcompress import GroupLasso, PruneCallback, schedules


def test_the_model_is_the_users_own_again():
    constraint, regularizer = keras.constraints.MaxNorm(0.8), keras.regularizers.L2(1e-3)
    model = compiled(plain(kernel_constraint=constraint, kernel_regularizer=regularizer))
    conv, before = model.get_layer("conv"), set(model.optimizer.__dict__)
    variables = [v.path for v in model.variables]

    class Inside(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            norms = np.sqrt(np.square(conv.kernel).sum(0))
            assert norms.max() <= 0.8 + 1e-6

    fit(model, 6, PruneCallback(in_layers(0.5, score="movement")), Inside())
    assert conv.kernel.constraint is constraint
    assert conv.kernel.regularizer is regularizer
    assert "apply" not in set(model.optimizer.__dict__) - before
    assert [v.path for v in model.variables] == variables
    assert float(model.losses[0]) == pytest.approx(1e-3 * np.square(conv.kernel).sum(), rel=1e-5)
    gone = zeros(model)
    assert gone == wanted(model, 0.5)
    fit(model, 2)  # nothing holds the weights any more
    assert zeros(model) == [0, 0]


def test_the_model_is_given_back_when_fit_is_interrupted():
    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 3:
                raise KeyboardInterrupt

    model, callback = make(), PruneCallback(in_layers(0.5, score="taylor"))
    with pytest.raises(KeyboardInterrupt):
        fit(model, 8, callback, Interrupt())
    fit(model, 8, callback)  # once more, without watching twice
    assert zeros(model) == wanted(model, 0.5)
    assert model.get_layer("conv").kernel.constraint is None
    fit(model, 2)
    assert zeros(model) == [0, 0]


def test_saved_model_is_plain(tmp_path):
    model = make(run_eagerly=True)
    fit(model, 6, PruneCallback(in_layers(0.5)))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(X), model(X))
    assert zeros(loaded) == wanted(model, 0.5)
    assert [type(x) for x in loaded.layers] == [type(x) for x in model.layers]


def test_regularizer_counts_while_pruning():
    model, other = make(keras.optimizers.SGD(0.1)), make(keras.optimizers.SGD(0.1))
    start = kernels(model)
    fit(model, 1, PruneCallback(in_layers(0.0), regularizer="l2"))
    fit(other, 1)
    for a, b, kernel in zip(kernels(model), kernels(other), start, strict=True):
        np.testing.assert_allclose(a - b, -0.1 * 2 * 0.01 * kernel, atol=1e-6)
    assert model.losses == []
    fit(model, 2, PruneCallback(in_layers(0.0), regularizer=GroupLasso(1e-3)))


def test_own_regularizer_stays_beside_another():
    own, sgd = keras.regularizers.L1(0.05), keras.optimizers.SGD
    model = compiled(plain(kernel_regularizer=own), sgd(0.1), run_eagerly=True)
    other = compiled(plain(kernel_regularizer=own), sgd(0.1), run_eagerly=True)
    start = kernels(model)[0]
    fit(model, 1, PruneCallback(in_layers(0.0), layers="conv", regularizer="l2"))
    fit(other, 1)
    difference = kernels(model)[0] - kernels(other)[0]
    np.testing.assert_allclose(difference, -0.1 * 2 * 0.01 * start, atol=1e-6)


def test_second_fit_goes_on():
    model, whole = make(run_eagerly=True), make(run_eagerly=True)
    callback = PruneCallback(in_layers(GROWING))
    fit(model, 5, callback)
    assert zeros(model) == wanted(model, GROWING.at(5))
    model.fit(X[20:48], Y[20:48], batch_size=4, shuffle=False, verbose=0, callbacks=[callback])
    fit(whole, 12, PruneCallback(in_layers(GROWING)))
    for a, b in zip(kernels(model), kernels(whole), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("score", ["taylor", pytest.param("movement", marks=pytest.mark.slow)])
def test_learned_scores_in_a_second_fit(score):
    model, watch, schedule = make(), Watch(), schedules.linear(0.2, 0.8, end=12, frequency=2)
    fit(model, 5, PruneCallback(in_layers(schedule, score=score)), watch)
    fit(model, 9, PruneCallback(in_layers(schedule, score=score)), watch)
    assert_follows(model, watch.seen, schedule)


def test_another_optimizer_goes_on_with_the_same_callback():
    model, callback, watch = make(run_eagerly=True), PruneCallback(in_layers(GROWING)), Watch()
    fit(model, 6, callback, watch)
    compiled(model, keras.optimizers.SGD(0.01), run_eagerly=True)
    fit(model, 6, callback, watch)
    steps = [(6 * (i >= 6) + step, found) for i, (step, found) in enumerate(watch.seen)]
    assert [step for step, _ in steps] == list(range(1, 13))
    assert_follows(model, steps, GROWING)


def test_another_model_begins_anew():
    callback = PruneCallback(in_layers(GROWING))
    fit(make(run_eagerly=True), 8, callback)
    model, watch = make(run_eagerly=True), Watch()
    fit(model, 5, callback, watch)
    assert_follows(model, watch.seen, GROWING)


@pytest.mark.parametrize("undo", [True, False])
def test_restored_weights_of_an_earlier_epoch_are_pruned_and_told(undo, recwarn):
    """As EarlyStopping(restore_best_weights=True) does, whose best epoch was less sparse."""
    model = make(run_eagerly=True)
    start = model.get_weights()
    restore = keras.callbacks.LambdaCallback(on_train_end=lambda logs: model.set_weights(start))
    fit(model, 12, *([restore] if undo else []), PruneCallback(in_layers(GROWING)))
    assert zeros(model) == wanted(model, 0.7)
    told = [str(w.message) for w in recwarn if "put back" in str(w.message)]
    assert len(told) == undo


def test_too_short_training_is_told():
    model, callback = (
        make(run_eagerly=True),
        PruneCallback(in_layers(schedules.linear(0.0, 0.8, begin=4, end=8))),
    )
    with pytest.warns(UserWarning, match=r"sparsity reached 0 of 0\.8, due at step 8"):
        fit(model, 3, callback)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(model, 5, callback)


def test_fine_tuning_with_what_was_pruned():
    """A second callback holds the zeros of the first, without more of them."""
    model = make(run_eagerly=True)
    fit(model, 4, PruneCallback(in_layers(0.5)))
    gone = [k == 0 for k in kernels(model)]
    compiled(model, run_eagerly=True)
    fit(model, 4, PruneCallback(in_layers(0.5)))
    for before, kernel in zip(gone, kernels(model), strict=True):
        np.testing.assert_array_equal(kernel == 0, before)
