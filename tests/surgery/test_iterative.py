"""prune_channels_iteratively: how small a model is after each round, and what was trained."""

import keras
import numpy as np
import pytest
from keras import layers

from tfcompress.surgery.profile import profile
from tfcompress.surgery.pruning.prune_channels import prune_channels_iteratively

X = np.random.default_rng(0).normal(size=(32, 8, 8, 3)).astype("float32")
Y = np.random.default_rng(1).integers(0, 4, 32)


def plain(widths=(32, 48, 64)):
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 3))
    for number, width in enumerate(widths):
        x = layers.Conv2D(width, 3, padding="same", activation="relu", name=f"conv{number}")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(4, name="head")(x))


def costs(model):
    found = profile(model)
    return np.array([found.macs, found.params])


class Rounds:
    """What `fit` sees."""

    def __init__(self, train=False):
        self.models, self.costs, self.widths, self.train = [], [], [], train

    def __call__(self, model):
        self.models.append(model)
        self.costs.append(costs(model))
        found = [layer for layer in model.layers if layer.name.startswith("conv")]
        self.widths.append([layer.filters for layer in found])
        if self.train:
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=True)
            model.fit(X, Y, batch_size=16, verbose=0)


def shares(rounds, model, at):
    return [each[at] / costs(model)[at] for each in rounds.costs]


def in_order(group):
    return np.arange(group.size) + 1.0


@pytest.mark.parametrize(("name", "at"), [("macs", 0), ("params", 1)])
def test_each_round_is_a_share_of_the_given_model(name, at):
    model, rounds = plain(), Rounds()
    small = prune_channels_iteratively(model, 4, rounds, round_to=1, **{name: 0.25})
    wanted = 0.25 ** (np.arange(1, 5) / 4)
    found = np.array(shares(rounds, model, at))
    assert np.all(found <= wanted)
    assert np.all(found > wanted - 0.03)
    assert rounds.models[-1] is small
    assert model.get_layer("conv0").filters == 32


def test_curves():
    model = plain()
    for curve, wanted in (
        ("linear", [0.8, 0.6, 0.4]),
        ([0.5, 0.9, 1.0], [0.7, 0.46, 0.4]),
    ):
        rounds = Rounds()
        prune_channels_iteratively(model, 3, rounds, macs=0.4, round_to=1, curve=curve)
        np.testing.assert_allclose(shares(rounds, model, 0), wanted, atol=0.03)


def test_sparsity_counts_channels_of_the_given_model():
    rounds = Rounds()
    prune_channels_iteratively(plain(), 3, rounds, sparsity=0.875, round_to=1, scope="local")
    assert [sum(each) for each in rounds.widths] == [72, 36, 18]


def test_per_layer_by_hand():
    rounds = Rounds()
    targets = {"conv0": 0.75, "conv2": 0.5}
    small = prune_channels_iteratively(
        plain(), 2, rounds, per_layer=targets, round_to=1, score=in_order
    )
    assert rounds.widths == [[16, 48, 45], [8, 48, 32]]
    kernel, given = np.array(small.get_layer("conv0").kernel), plain().get_layer("conv0").kernel
    np.testing.assert_array_equal(kernel, np.array(given)[..., -8:])


def test_max_sparsity_is_of_the_given_model():
    rounds = Rounds()
    thin = plain((8, 64, 64))
    small = prune_channels_iteratively(
        thin, 4, rounds, macs=0.3, round_to=1, max_sparsity=0.5, score=lambda g: np.full(g.size, 1)
    )
    assert np.all(np.array(rounds.widths) >= [4, 32, 32])
    assert costs(small)[0] <= 0.3 * costs(thin)[0]


def test_training_changes_what_goes_next():
    """Scores are those of the trained model of each round."""
    model, seen = plain((16, 16)), []

    def fit(small):
        kernel = np.array(small.get_layer("conv0").kernel)
        kernel[..., :4] *= 1e-3
        small.get_layer("conv0").kernel.assign(kernel)
        seen.append(kernel)

    small = prune_channels_iteratively(
        model, 2, fit, per_layer={"conv0": 0.5}, round_to=1, score="l1", curve=[0.5, 1.0]
    )
    assert seen[0].shape[-1] == 12
    kept = np.array(small.get_layer("conv0").kernel)
    np.testing.assert_array_equal(kept[..., 4:], seen[0][..., 8:])  # which fit left as they were


def test_trains_in_each_round():
    model, rounds = plain((16, 16)), Rounds(train=True)
    start = [np.array(w) for w in model.get_weights()]
    settings = {"score": "taylor", "data": (X, Y), "loss": "sparse_categorical_crossentropy"}
    small = prune_channels_iteratively(model, 2, rounds, macs=0.5, **settings)
    assert len(rounds.models) == 2
    assert small.compiled
    assert small(X).shape == (32, 4)
    for a, b in zip(start, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_report():
    model = plain()
    small = prune_channels_iteratively(
        model, 2, Rounds(), per_layer={"conv0": 0.75}, round_to=8, keep=["conv1"]
    )
    report = small.surgery_report
    assert report.operation == "prune_channels_iteratively"
    assert [(x.layer, x.detail) for x in report.changes] == [("conv0", "32 -> 16 -> 8 channels")]
    assert {x.layer: x.detail for x in report.kept}["conv1"] == "keep names 'conv1'"
    assert [each[0] for each in (report.macs, report.params)] == list(costs(model))
    assert [each[1] for each in (report.macs, report.params)] == list(costs(small))


def test_groups_of_one_layer_are_told_apart():
    """The heads of an attention and its outputs, once a single head is left."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5, 6))
    x = layers.MultiHeadAttention(4, 3, output_shape=12, name="attention")(inputs, inputs)
    model = keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling1D()(x)))
    targets = {"attention": 0.75}
    small = prune_channels_iteratively(model, 3, Rounds(), per_layer=targets, round_to=1)
    # 12 * 0.25 ** (k / 3) is 7.6, 4.8 and 3.
    changes = sorted(change.detail for change in small.surgery_report.changes)
    assert changes == ["12 -> 8 -> 5 -> 3 channels", "4 -> 3 -> 2 -> 1 heads"]
    assert small.get_layer("attention").num_heads == 1


def test_rounding_may_leave_nothing_for_a_round():
    rounds = Rounds()
    small = prune_channels_iteratively(plain((16, 16)), 6, rounds, macs=0.5, round_to=8)
    assert len(rounds.models) == 6
    assert len({id(each) for each in rounds.models}) < 6
    assert shares(rounds, plain((16, 16)), 0)[-1] <= 0.5
    assert set(map(tuple, rounds.widths)) <= {(16, 8), (8, 16), (8, 8)}
    assert small is rounds.models[-1]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"macs": 50}, ValueError, "Did you mean 0.5"),
        ({"macs": 0.5, "params": 0.5}, ValueError, "exactly one of"),
        ({"macs": 0.5, "steps": 0}, ValueError, "a whole number of rounds, 1 or more; received 0"),
        ({"macs": 0.5, "steps": 2.5}, ValueError, "steps must be a whole number"),
        ({"macs": 0.5, "fit": None}, TypeError, "fit must be a function.*received None"),
        ({"macs": 0.5, "curve": "cubic"}, ValueError, "unknown curve 'cubic'.*geometric"),
        ({"macs": 0.5, "curve": [0.5, 0.9]}, ValueError, "2 numbers that grow to 1, one for each"),
        ({"macs": 0.5, "curve": [1.0]}, ValueError, "2 numbers that grow to 1"),
        ({"macs": 0.5, "scope": "all"}, ValueError, "unknown scope 'all'"),
        ({"macs": 0.5, "keep": "convx"}, ValueError, "keep must name layers.*'convx'"),
        ({"macs": 0.001}, ValueError, "macs=0.001 is out of reach"),
        ({"macs": 0.5, "score": "taylor"}, ValueError, "needs data"),
        ({"macs": 0.5, "keep": "*"}, ValueError, "must have channels that can be removed"),
        ({"macs": 0.5, "max_sparsity": 90}, ValueError, "Did you mean 0.9"),
    ],
)  # fmt: skip
def test_errors_come_before_any_training(settings, error, message):
    def fit(model):
        pytest.fail("it was trained")

    settings = {"steps": 2, "fit": fit, **settings}
    with pytest.raises(error, match=message):
        prune_channels_iteratively(plain((16, 16)), **settings)
