"""sensitivity_choice: which groups are cut, against losses of models with channels masked."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from graph_models import normal
from keras import layers

from tfcompress.surgery.base import opened
from tfcompress.surgery.pruning.groups import Structure
from tfcompress.surgery.pruning.judging import batches, judge, mean_loss, objective
from tfcompress.surgery.pruning.limits import Target
from tfcompress.surgery.pruning.resizing import resized
from tfcompress.surgery.pruning.trimming import _latency_saved, _pieces, sensitivity_choice


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


def branches(units=(16, 16), shares=(1.0, 1.0)):
    """A model that adds what branches of one hidden layer each say, times a factor."""
    x = keras.Input((6,))
    outs = [
        layers.Dense(1, name=f"out{i}", use_bias=False)(
            layers.Dense(n, activation="tanh", name=f"hidden{i}")(x)
        )
        for i, n in enumerate(units)
    ]
    model = keras.Model(x, layers.Add()(outs))
    for i, (n, share) in enumerate(zip(units, shares, strict=True)):
        model.get_layer(f"out{i}").kernel.assign(share * normal(n, 1))
    return model


def chosen(model, target, data, scores=None, loss="mse", **settings):
    structure = Structure(opened(model))
    scores = scores or {n: np.arange(g.size) + 1.0 for n, g in structure.prunable().items()}
    return sensitivity_choice(structure, scores, target, data=data, loss=loss, **settings)


def data_of(model, count=64):
    x = normal(count, 6)
    return x, model(x).numpy()


def test_a_useless_layer_is_cut_first():
    model = branches(shares=(1.0, 0.0))
    choice = chosen(model, Target(macs=0.6), data_of(model), round_to=1, fractions=(0.4, 0.85))
    assert set(choice) == {"hidden1"}
    # 7 MACs for each of 32 units; 0.6 of them leave 19.2 units, of which 16 are in the other layer.
    np.testing.assert_array_equal(choice["hidden1"], [13, 14, 15])


def test_the_least_important_of_the_rest_follow():
    model = branches(shares=(1.0, 0.0))
    choice = chosen(model, Target(macs=0.4), data_of(model), round_to=4, fractions=(0.5, 0.75))
    assert {name: len(kept) for name, kept in choice.items()} == {"hidden0": 8, "hidden1": 4}
    np.testing.assert_array_equal(choice["hidden0"], np.arange(8, 16))


@pytest.mark.parametrize("target", [Target(macs=0.5), Target(params=0.5), Target(sparsity=0.5)])
def test_targets_are_just_met(target):
    model = branches((24, 40), (1.0, 0.3))
    structure = Structure(opened(model))
    choice = chosen(model, target, data_of(model), round_to=1)

    def left(sizes):
        if target.name == "sparsity":
            return sum(sizes.values()) / 64
        found = structure.cost({structure.numbers[name]: n for name, n in sizes.items()})
        return found[target.name == "params"] / structure.cost({})[target.name == "params"]

    sizes = {"hidden0": 24, "hidden1": 40} | {name: len(kept) for name, kept in choice.items()}
    assert left(sizes) <= 0.5
    assert left({**sizes, "hidden1": sizes["hidden1"] + 1}) > 0.5


def test_it_loses_less_than_cutting_both_alike():
    model = branches((16, 16), (1.0, 0.1))
    data = data_of(model)
    structure = Structure(opened(model))
    scores = {"hidden0": np.arange(16.0), "hidden1": np.arange(16.0)}
    choice = chosen(model, Target(macs=0.5), data, scores, round_to=1)
    alike = {name: np.arange(8, 16) for name in scores}
    losses = [np.mean((resized(structure, c)(data[0]) - data[1]) ** 2) for c in (choice, alike)]
    assert losses[0] < losses[1] / 2


def test_growth_is_that_of_the_cut_model_and_weights_are_put_back():
    """One group is cut at one fraction, so that the one loss that is measured shows."""
    model = branches((8, 8))
    x, y = data_of(model, 10)
    structure, seen = Structure(opened(model)), []

    def loss(y, y_pred):
        value = keras.ops.mean(keras.ops.square(y - y_pred), axis=-1)
        tf.py_function(lambda v: seen.append(v.numpy()), [value], [])
        return value

    before = structure.model.get_weights()
    scores = {"hidden0": np.array([5.0, 1, 6, 2, 7, 3, 8, 4])}
    settings = {"round_to": 1, "max_sparsity": 0.5, "fractions": [0.5], "batch_size": 10}
    target = Target(macs=0.75)
    choice = sensitivity_choice(structure, scores, target, data=(x, y), loss=loss, **settings)
    np.testing.assert_array_equal(choice["hidden0"], [0, 2, 4, 6])
    cut = (resized(structure, choice)(x).numpy() - y) ** 2
    np.testing.assert_allclose(seen[-1], cut[:, 0], rtol=1e-4)
    for old, new in zip(before, structure.model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_curves_grow_and_are_convex():
    points = [(1.0, 2.0, 8), (2.0, 1.0, 6), (3.0, 6.0, 4), (2.5, 6.0, 2)]
    first, second = _pieces("a", points, 2)
    # The loss never falls: (2, 2) is on the hull, below the line from (0, 0) to (1, 2).
    assert first == (False, 1.0, "a", -6)
    # Nothing is gained by the last step, which the one before it takes along.
    assert second == (False, pytest.approx(4.0), "a", -2)


def test_what_lies_beyond_the_fractions_comes_last():
    points = [(1.0, 2.0, 8), (2.0, 4.0, 6), (4.0, 4.0, 2)]
    assert list(_pieces("a", points, 6)) == [(False, 2.0, "a", -6), (True, 0.0, "a", -2)]
    # Beside a layer that matters, a useless one loses no more than the largest fraction ...
    model = branches(shares=(1.0, 0.0))
    settings = {"round_to": 1, "fractions": (0.25, 0.5)}
    choice = chosen(model, Target(macs=0.65), data_of(model), **settings)
    assert [len(choice[name]) for name in sorted(choice)] == [12, 8]
    # ... until both have.
    choice = chosen(model, Target(macs=0.4), data_of(model), **settings)
    assert [len(choice[name]) for name in sorted(choice)] == [8, 4]


def test_loss_over_batches_is_that_of_evaluate():
    model = branches()
    x, y = normal(11, 6), normal(11, 1)
    model.compile(loss="mae", jit_compile=False)
    found = mean_loss(judge(model, objective(model)), batches((x, y), model, 4))
    assert found == pytest.approx(model.evaluate(x, y, verbose=0), rel=1e-5)


def test_progress_and_datasets():
    model, seen = branches(), []
    data = tf.data.Dataset.from_tensor_slices(data_of(model)).batch(16)
    settings = {"round_to": 4, "fractions": (0.25, 0.5)}
    first = chosen(model, Target(macs=0.6), data, progress=lambda *x: seen.append(x), **settings)
    # The model as it is, and both layers with 12, 8 and 4 units.
    assert seen == [(i, 7) for i in range(1, 8)]
    second = chosen(model, Target(macs=0.6), data_of(model), **settings)
    assert {n: list(k) for n, k in first.items()} == {n: list(k) for n, k in second.items()}


@pytest.mark.slow
def test_latency_is_gained_where_time_is_spent():
    x = keras.Input((32, 32, 3))
    y = layers.Conv2D(32, 3, padding="same", name="first")(x)
    y = layers.Conv2D(256, 3, padding="same", name="costly")(y)
    y = layers.Dense(32, name="cheap")(layers.GlobalAveragePooling2D()(y))
    model = keras.Model(x, layers.Dense(2, name="out")(y))
    data = normal(16, 32, 32, 3), normal(16, 2)
    structure, told = Structure(opened(model)), []
    scores = {name: np.arange(g.size) for name, g in structure.prunable().items()}
    sizes = {"costly": [128, 32], "cheap": [8]}
    found = _latency_saved(structure, scores, sizes, data[0], lambda: told.append(1))
    assert len(told) == len(found) == 3
    assert found["costly", 32] > 0.3
    assert found["costly", 32] > found["costly", 128] > found["cheap", 8]
    settings = {"gain": "latency", "fractions": (0.75,), "max_sparsity": 0.75}
    choice = chosen(model, Target(macs=0.6), data, **settings)
    assert structure.cost(structure.sizes(choice))[0] <= 0.6 * structure.cost({})[0]


def test_errors():
    model = branches()
    data = data_of(model)
    with pytest.raises(ValueError, match=r"out of reach: 2 groups.* leaves macs at least 0\.5"):
        chosen(model, Target(macs=0.4), data, max_sparsity=0.5)
    with pytest.raises(ValueError, match=r"leaves sparsity at most 0\.5"):
        chosen(model, Target(sparsity=0.6), data, max_sparsity=0.5)
    with pytest.raises(ValueError, match=r"unknown gain 'mac'.*Did you mean 'macs'"):
        chosen(model, Target(macs=0.5), data, gain="mac")
    with pytest.raises(ValueError, match="'sensitivity' needs data"):
        chosen(model, Target(macs=0.5), None)
    with pytest.raises(TypeError, match="again and again; received a list_iterator"):
        chosen(model, Target(macs=0.5), iter([data]))
    with pytest.raises(ValueError, match="not compiled with one"):
        chosen(model, Target(macs=0.5), data, loss=None)
    with pytest.raises(ValueError, match="received 'per_layer'"):
        chosen(model, Target(per_layer={"hidden0": 0.5}), data)
    with pytest.raises(ValueError, match="fractions must be"):
        chosen(model, Target(macs=0.5), data, fractions=(50,))
    with pytest.raises(ValueError, match="own loss must be finite"):
        chosen(model, Target(macs=0.5), (data[0], data[1] * np.inf))
    with pytest.raises(ValueError, match="needs labels"):
        chosen(model, Target(macs=0.5), data[0])
