"""ChannelPruning in several fits: it goes on, and the model is the user's own again."""

import keras
import numpy as np
import pytest
from callback_models import X, Y, compiled
from channel_pruning_models import (
    WANTED,
    Watch,
    assert_follows,
    callback,
    counts,
    fit,
    gone,
    make,
    plain,
)  # fmt: skip

from tfcompress import schedules
from tfcompress.surgery.pruning.in_training import ChannelPruning


@pytest.mark.parametrize("method", ["masks", pytest.param("group_lasso", marks=pytest.mark.slow)])
def test_second_fit_goes_on(method):
    model, whole = make(), make()
    ours, settings = callback(method=method), {"batch_size": 4, "shuffle": False, "verbose": 0}
    with pytest.warns(UserWarning, match=r"schedule of ChannelPruning did: 50% of the"):
        fit(model, 5, ours)
    model.fit(X[20:40], Y[20:40], callbacks=[ours], **settings)
    fit(whole, 10, callback(method=method))
    for a, b in zip(model.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.slow
def test_default_schedule_of_several_fits():
    """It is that of the first; a model that was trained before begins from there."""
    model, ours = make(), ChannelPruning(sparsity=0.5, round_to=1)
    fit(model, 3)
    fit(model, 8, ours)
    assert (ours._followed.begin, ours._followed.end) == (3, 7)
    before = gone(model)
    fit(model, 4, ours)
    assert gone(model) == before
    fit(make(), 4, ours)
    assert (ours._followed.begin, ours._followed.end) == (0, 2)


def test_another_optimizer_goes_on_with_the_same_callback():
    model, ours, watch = make(), callback(), Watch()
    with pytest.warns(UserWarning, match="training ended before"):
        fit(model, 4, ours, watch)
    assert_follows(watch)
    compiled(model, keras.optimizers.SGD(0.01))
    watch.seen.clear()
    fit(model, 4, ours, watch)
    assert_follows(watch, offset=4)


def test_what_is_gone_stays_gone_with_another_callback():
    model = make()
    fit(model, 2, callback(schedule=schedules.one_shot(1.0)))
    before = gone(model)
    later = callback(per_layer={"first": 0.25, "second": 0.75}, schedule=schedules.one_shot(1.0))
    fit(model, 2, later)
    assert counts(model) == [4, 9]
    assert all(set(a) <= set(b) for a, b in zip(before, gone(model), strict=True))


def test_the_model_is_the_users_own_again():
    model = plain()
    own = keras.constraints.MaxNorm(0.8), keras.regularizers.L2(1e-3)
    kernel = model.get_layer("second").kernel
    kernel.constraint, kernel.regularizer = own
    make(model=model)
    fit(model, 8, callback(method="group_lasso"))
    assert (kernel.constraint, kernel.regularizer) == own
    assert np.sqrt(np.square(kernel).sum(0)).max() <= 0.8 + 1e-6
    assert float(model.losses[0]) == pytest.approx(1e-3 * np.square(kernel).sum(), rel=1e-5)
    assert counts(model) == [4, 6]
    fit(model, 2)  # nothing holds the weights any more: biases make channels again
    assert sum(v.constraint is not None for v in model.variables) == 1


def test_an_interrupted_fit():
    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 4:
                raise KeyboardInterrupt

    model, ours = make(), callback()
    with pytest.raises(KeyboardInterrupt):
        fit(model, 8, ours, Interrupt())
    assert counts(model) == WANTED[3]
    fit(model, 4, ours)
    assert counts(model) == WANTED[6]
    assert not any(v.constraint for v in model.variables)


@pytest.mark.slow
def test_restored_weights_of_an_earlier_epoch_are_pruned_and_told(recwarn):
    model = make()
    start = model.get_weights()
    restore = keras.callbacks.LambdaCallback(on_train_end=lambda logs: model.set_weights(start))
    fit(model, 8, restore, callback())
    assert counts(model) == [4, 6]
    assert sum("put back" in str(w.message) for w in recwarn) == 1


@pytest.mark.slow
def test_resumed_by_backup_and_restore(tmp_path):
    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup")

    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    model, resumed, whole = make(), make(), make()
    with pytest.raises(KeyboardInterrupt):
        fit(model, 4, callback(), backup(), Interrupt(), epochs=2)
    watch = Watch()
    fit(resumed, 4, callback(), backup(), watch, epochs=2)
    assert [step for step, _ in watch.seen] == [5, 6, 7, 8]
    assert_follows(watch)
    fit(whole, 4, callback(), epochs=2)
    for a, b in zip(resumed.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
