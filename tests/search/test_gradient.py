"""A differentiable choice: what the loss and the budget make of the odds."""

import keras
import numpy as np
import optuna
import pytest
from keras import layers

from tfcompress.search.architecture.found import costs_of
from tfcompress.search.architecture.gradient import LearnedChoices, learn_choices
from tfcompress.search.architecture.search_architecture import search_architecture
from tfcompress.search.architecture.training import Training
from tfcompress.search.choices import of_picks

RANDOM = np.random.default_rng(0)
Y = RANDOM.integers(0, 2, 128)
# The classes differ in the order of two neighbours, which a kernel of one place does not see.
X = np.zeros((128, 6, 6, 1), "float32")
for row, kind in enumerate(Y):
    places = RANDOM.permutation(15)[:6]
    X.reshape(128, -1)[row, 2 * places + 1 - kind] = 1.0
    X.reshape(128, -1)[row, 2 * places + kind] = -1.0


def network():
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6, 6, 1))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="seeing")(inputs)
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="spare")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(x))
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy",
                  metrics=["accuracy"])  # fmt: skip
    return model


def learned(limits, epochs=25):
    model = network()
    how = dict(model._compile_config.config)
    return learn_choices(model, Training.of((X, Y), 0.25, how, None, 1, 16, 0), epochs, limits)


def likeliest(build, odds):
    return build(of_picks({name: int(np.argmax(each)) for name, each in odds.items()}))


def test_a_budget_is_kept_by_what_is_likeliest():
    build, odds = learned({"macs": 8_000.0})
    assert {name: len(each) for name, each in odds.items()} == {
        "width:seeing": 2, "width:spare": 2, "kernel:seeing": 2, "kernel:spare": 2,
    }  # fmt: skip
    assert all(each.sum() == pytest.approx(1) for each in odds.values())
    assert costs_of(likeliest(build, odds)).macs <= 8_000


def test_what_the_task_needs_is_learned():
    """Either kernel has to see neighbours, and no cost speaks against it."""
    build, odds = learned({}, epochs=10)
    assert max(odds["kernel:seeing"][1], odds["kernel:spare"][1]) > 0.6
    assert costs_of(likeliest(build, odds)).macs > 8_000


def test_the_likeliest_is_first_and_others_follow_their_odds():
    odds = {"a": np.array([0.1, 0.7, 0.2])}
    study = optuna.create_study(sampler=LearnedChoices(odds, seed=1))
    picks = [study.ask().suggest_int("a", 0, 2) for _ in range(400)]
    assert picks[0] == 1
    assert np.allclose(np.bincount(picks, minlength=3) / 400, odds["a"], atol=0.07)


def test_the_engine_finds_what_is_within_the_budget():
    found = search_architecture(
        network(), (X, Y), engine="gradient", supernet_epochs=15, trials=3, budget={"macs": 8_000}
    )
    assert found.engine == "gradient"
    assert found.best.costs.macs <= 8_000
    assert found.candidates[0].number == 0
