"""ChannelPruning: which channels of a user's own model are zero, and what the penalty is."""

import keras
import numpy as np
import pytest
from callback_models import X, Y, compiled
from channel_pruning_models import Watch, assert_removable, counts, fit, gone, in_order, make, plain
from keras import layers

import tfcompress as tfc
from tfcompress import schedules
from tfcompress.surgery.profile import profile
from tfcompress.surgery.pruning.in_training import ChannelPruning

GROWING = schedules.points([(0, 0.25), (3, 0.5), (6, 1.0)])
HALVES = {"per_layer": {"first": 0.5, "second": 0.5}, "round_to": 1, "score": in_order}


@pytest.mark.slow
def test_the_first_channels_at_every_batch():
    model, watch = make(run_eagerly=False), Watch()
    fit(model, 8, ChannelPruning(schedule=GROWING, **HALVES), watch)
    # Of 8 and 12 channels a quarter, a half and the whole of the half that is to go.
    wanted = [(1, 1)] * 2 + [(2, 3)] * 3 + [(4, 6)] * 3
    found = [(list(range(a)), list(range(b))) for a, b in [*wanted]]
    assert [tuple(each) for _, each in watch.seen] == found
    assert gone(model) == [[0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]


def test_what_is_zero_of_a_channel_and_what_is_not():
    model = make()
    fit(model, 3, ChannelPruning(schedule=schedules.one_shot(1.0), **HALVES))
    weights = {v.path: np.array(v) for v in model.weights}
    for path in ("first/kernel", "norm/gamma", "norm/beta", "norm/moving_mean", "other/kernel"):
        assert not weights[path][..., :4].any(), path
        assert np.all(weights[path][..., 4:].any(tuple(range(weights[path].ndim - 1)))), path
    assert np.all(weights["norm/moving_variance"] > 0)
    assert not weights["depthwise/kernel"][:, :, :4].any()
    for path in ("other/kernel", "second/kernel"):  # which read them
        assert not weights[path][:, :, :4].any()
        assert weights[path][:, :, 4:, 6:].all()
    assert not weights["head/kernel"][:6].any()
    assert weights["head/kernel"][6:].all()
    small = assert_removable(model)
    assert small.get_layer("first").filters == 4
    assert small.get_layer("second").filters == 6


@pytest.mark.parametrize("method", ["masks", "group_lasso"])
def test_macs_are_met_and_logged(method):
    model = make()
    callback = ChannelPruning(macs=0.4, method=method, round_to=1, score="l1")
    history = fit(model, 4, callback, epochs=2).history
    small = assert_removable(model)
    share = profile(small).macs / profile(model).macs
    assert share <= 0.4
    assert history["macs"][-1] == pytest.approx(share)
    assert history["channel_sparsity"][-1] == pytest.approx(sum(counts(model)) / 20)


@pytest.mark.slow
def test_parameters_rounded():
    model = make()
    fit(model, 4, ChannelPruning(params=0.6, round_to=4))
    small = assert_removable(model)
    assert small.count_params() <= 0.6 * model.count_params()
    assert small.get_layer("first").filters in (4, 8)
    assert small.get_layer("second").filters in (4, 8, 12)


@pytest.mark.slow
def test_default_schedule_ends_in_the_middle():
    model, watch = make(), Watch()
    callback = ChannelPruning(sparsity=0.5, scope="local", round_to=1)
    history = fit(model, 10, callback, watch, epochs=2).history
    by_step = {step: sum(map(len, found)) for step, found in watch.seen}
    assert by_step[1] < by_step[4] < by_step[10] == by_step[20] == 10
    assert history["channel_sparsity"] == [0.5, 0.5]
    cubic = schedules.polynomial(0.0, 1.0, end=10, frequency=1)
    for step in range(1, 11):
        assert abs(by_step[step] - 10 * cubic(step)) <= 1.5


@pytest.mark.slow
def test_frequency_of_the_default():
    model, watch = make(), Watch()
    fit(model, 16, ChannelPruning(sparsity=0.5, round_to=1, frequency=4), watch)
    numbers = [sum(map(len, found)) for _, found in watch.seen]
    assert [i + 1 for i in range(15) if numbers[i + 1] != numbers[i]] == [3, 7]


def test_keep_and_frozen_layers():
    model = plain()
    model.get_layer("second").trainable = False
    start = np.array(model.get_layer("first").kernel)
    make(model=model)
    fit(model, 4, ChannelPruning(sparsity=0.5, round_to=1, keep="first"))
    assert counts(model) == [0, 6]
    assert not np.array(model.get_layer("second").bias)[gone(model)[1]].any()
    assert np.all(start != np.array(model.get_layer("first").kernel))
    assert_removable(model)


def test_scores_from_data():
    """The weights that are judged are those that the model has by then."""
    model = plain()
    head, dead = model.get_layer("head"), [3, 7, 8]
    head.trainable = False
    kernel = np.array(head.kernel)
    kernel[dead] = 0.0  # so that the loss does not depend on these

    class Cut(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            head.kernel.assign(kernel)

    callback = ChannelPruning(
        per_layer={"second": 1 / 3},
        score="taylor",
        data=(X, Y),
        round_to=1,
        schedule=schedules.one_shot(1.0, step=2),
    )
    fit(make(model=model), 2, Cut(), callback)
    assert set(dead) < set(gone(model)[1])
    assert counts(model) == [0, 4]


def norms(model):
    """Of each channel of `second`: L2 norm of what makes it, which are 73 numbers."""
    layer = model.get_layer("second")
    kernel, bias = np.array(layer.kernel), np.array(layer.bias)
    return np.sqrt((kernel**2).sum((0, 1, 2)) + bias**2)


def test_penalty_by_hand():
    settings = {"per_layer": {"second": 0.5}, "method": "group_lasso", "strength": 0.3}
    schedule = schedules.points([(0, 0.5), (4, 1.0)])
    model, other = (make(keras.optimizers.SGD(0.1), run_eagerly=False) for _ in range(2))
    start, seen = norms(model), []
    weights = [np.array(model.get_layer("second").kernel)]

    class Losses(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            seen.append((float(self.model.losses[0]), norms(self.model)))

    callback = ChannelPruning(schedule=schedule, score=in_order, round_to=1, **settings)
    with pytest.warns(UserWarning, match=r"50% of the penalty, so that no channel is zero yet"):
        fit(model, 1, callback, Losses())
    assert seen[0][0] == pytest.approx(0.5 * 0.3 * np.sqrt(73) * start[:6].sum(), rel=1e-5)
    assert model.losses == []
    # The penalty's gradient, beside that of the loss.
    fit(other, 1)
    step = np.array(model.get_layer("second").kernel) - np.array(other.get_layer("second").kernel)
    pull = 0.1 * 0.15 * np.sqrt(73) * weights[0] / start
    pull[..., 6:] = 0.0
    np.testing.assert_allclose(step, -pull, atol=1e-6)
    fit(model, 4, callback)
    assert counts(model) == [0, 6]


@pytest.mark.slow
def test_penalty_grows_and_shrinks_what_goes():
    model, seen = make(keras.optimizers.Adam(0.01), run_eagerly=False), []
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: seen.append(norms(model)))
    callback = ChannelPruning(
        per_layer={"second": 0.5},
        method="group_lasso",
        score=in_order,
        round_to=1,
        strength=0.1,
        schedule=schedules.linear(0.0, 1.0, end=64, frequency=2),
    )
    history = fit(model, 16, watch, callback, epochs=4).history
    going, staying = np.mean(seen[2][:6] / seen[0][:6]), np.mean(seen[2][6:] / seen[0][6:])
    assert going < 0.5
    assert staying > 0.9
    assert history["channel_sparsity"] == [0, 0, 0, 0.3]
    assert_removable(model)


def test_channels_that_a_normalization_mixes_stay():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(8, 3, name="mixed")(inputs)
    x = layers.Conv2D(8, 1, activation="relu", name="free")(layers.LayerNormalization()(x))
    model = compiled(keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x))))
    fit(model, 4, ChannelPruning(sparsity=0.5, round_to=1))
    kernels = [np.array(model.get_layer(name).kernel) for name in ("mixed", "free")]
    assert [(k == 0).all((0, 1, 2)).sum() for k in kernels] == [0, 4]
    assert_removable(model)


BAD = [
    ({"macs": 50}, ValueError, r"macs must be a number in \(0, 1\); received 50. Did you mean 0.5"),
    ({"macs": 0.5, "params": 0.5}, ValueError, "exactly one of macs, params.*received macs, param"),
    ({}, ValueError, "exactly one of macs, params.*received none"),
    ({"macs": 0.5, "method": "lasso"}, ValueError, "unknown method 'lasso'.*'group_lasso'"),
    ({"macs": 0.5, "scope": "sensitivity"}, ValueError, "unknown scope 'sensitivity'"),
    ({"macs": 0.5, "score": "taylor"}, ValueError, "'taylor' needs data"),
    ({"macs": 0.5, "score": "l3"}, ValueError, "unknown score 'l3'"),
    ({"macs": 0.5, "strength": 0}, ValueError, "strength must be a number above 0; received 0"),
    ({"macs": 0.5, "frequency": 0}, ValueError, "frequency must be a whole number.*received 0"),
    ({"macs": 0.5, "round_to": 0}, ValueError, "round_to must be a whole number"),
    ({"macs": 0.5, "schedule": 0.5}, TypeError, "one of tfcompress.schedules.*received 0.5"),
    (
        {"macs": 0.5, "schedule": schedules.linear(0.0, 0.5, end=9)},
        ValueError,
        r"end with 1; received one with values from 0 to 0\.5.*by macs, params",
    ),
    (
        {"macs": 0.5, "schedule": schedules.one_shot(1.0), "frequency": 3},
        ValueError,
        "a frequency of its own; received frequency=3",
    ),
]


@pytest.mark.parametrize(("settings", "error", "message"), BAD)
def test_errors(settings, error, message):
    with pytest.raises(error, match=message):
        ChannelPruning(**settings)


def test_errors_at_the_start_of_fit():
    def begins(model, **settings):
        callback = ChannelPruning(**settings)
        callback.set_model(model)
        callback.on_train_begin()

    with pytest.raises(ValueError, match="Compile it"):
        begins(plain(), macs=0.5)
    with pytest.raises(ValueError, match=r"keep must name layers.*'fist'.*Did you mean 'first'"):
        begins(make(), macs=0.5, keep=["fist"])
    with pytest.raises(ValueError, match=r"per_layer must name layers.*'third'"):
        begins(make(), per_layer={"third": 0.5})
    with pytest.raises(ValueError, match=r"macs=0.01 is out of reach.*at least"):
        begins(make(), macs=0.01)
    with pytest.raises(ValueError, match="must have channels that can be removed"):
        begins(make(), macs=0.5, keep="*")
    wrapped = compiled(tfc.compress(plain(), [tfc.Rule("*", [tfc.Prune(0.5)])]))
    with pytest.raises(ValueError, match=r"models that are not wrapped.*Prune before compress"):
        begins(wrapped, macs=0.5)
    assert not any(v.constraint for v in wrapped.variables)
