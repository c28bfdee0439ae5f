"""The search: what is trained, what is not, and what is found."""

import json

import keras
import numpy as np
import optuna
import pytest
from keras import layers

from tfcompress.search.architecture.found import Candidate, Costs, costs_of, front_of
from tfcompress.search.architecture.search_architecture import search_architecture
from tfcompress.search.choices import of_picks

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(64, 2)).astype("float32")
Y = (X[:, 0] > 0).astype("int64")
HOW = {"optimizer": "sgd", "loss": "sparse_categorical_crossentropy"}
WIDTHS, DEPTHS = (2, 3, 5, 9), ("shallow", "deep")


@pytest.fixture(autouse=True)
def _quiet():
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


def build(choose):
    model = keras.Sequential([keras.Input((2,))])
    width = choose("width", WIDTHS)
    model.add(layers.Dense(width, activation="relu"))
    if choose("depth", DEPTHS) == "deep":
        model.add(layers.Dense(choose("second", (2, 4)), activation="relu"))
    model.add(layers.Dense(2, activation="softmax"))
    return model


class Judge:
    """Scores models by their first layer, and counts how many it sees."""

    def __init__(self):
        self.seen = []

    def __call__(self, model):
        self.seen.append(model)
        return -abs(model.layers[0].units - 5) - 0.1 * len(model.layers)


def search(**settings):
    judge = Judge()
    given = {"epochs": 1, "compile": HOW, "evaluate": judge, **settings}
    return search_architecture(build, (X, Y), **given), judge


def test_the_best_is_found_and_nothing_is_trained_twice():
    steps = []
    found, judge = search(trials=12, engine="random", progress=lambda *a: steps.append(a))
    assert len(judge.seen) == 12  # of 12 that there are
    assert steps == [(n, 12) for n in range(1, 13)]
    trained = [frozenset(c.picks.items()) for c in found.candidates if c.verdict == "trained"]
    assert len(set(trained)) == 12
    assert found.best.options == {"width": 5, "depth": "shallow"}
    assert found.best.score == pytest.approx(-0.2)
    assert found.model.layers[0].units == 5
    assert found.curve == list(np.maximum.accumulate([c.score for c in found.candidates
                                                      if c.verdict == "trained"]))  # fmt: skip
    repeated = [c for c in found.candidates if c.verdict == "repeated"]
    first = {frozenset(c.picks.items()): c.score for c in found.candidates if c not in repeated}
    assert repeated
    assert all(c.score == first[frozenset(c.picks.items())] for c in repeated)


def test_what_costs_more_than_the_budget_is_not_trained():
    found, judge = search(trials=2, engine="random", budget={"params": 20})
    over = [c for c in found.candidates if c.verdict == "over budget"]
    assert over
    assert all(c.costs.params > 20 and c.score is None for c in over)
    assert all(model.count_params() <= 20 for model in judge.seen)
    with pytest.raises(ValueError, match=r"within the budget.*'params': 12.*Raise the budget"):
        search(trials=1, budget={"params": 3})


def test_a_resumed_search_goes_on_as_if_it_had_not_been_stopped(tmp_path):
    whole, _ = search(trials=6, seed=2, evaluate=None)
    storage = f"sqlite:///{tmp_path / 'search.db'}"
    search(trials=3, seed=2, evaluate=None, storage=storage)
    second, _ = search(trials=6, seed=2, evaluate=None, storage=storage)
    assert [c.picks for c in second.candidates] == [c.picks for c in whole.candidates]
    assert [c.score for c in second.candidates] == [c.score for c in whole.candidates]
    again, judge = search(trials=6, seed=2, evaluate=None, storage=storage)
    assert judge.seen == []
    assert all(map(np.allclose, again.model.get_weights(), whole.model.get_weights()))
    with pytest.raises(ValueError, match=r"same settings; epochs differ.*'epochs': 2"):
        search(trials=6, seed=2, evaluate=None, storage=storage, epochs=2)


def test_a_proxy_lets_the_better_ones_pass():
    found, judge = search(trials=6, engine="random", proxy="params", proxy_share=0.5)
    asked = [c for c in found.candidates if c.verdict != "repeated"]
    assert all(c.proxy == c.costs.params for c in asked)
    for place, each in enumerate(asked):
        before = [c.proxy for c in asked[:place]]
        passes = place < 4 or each.proxy >= np.median(before)
        assert (each.verdict == "trained") == passes
    assert len(judge.seen) == 6


def test_scores_are_those_on_held_out_data():
    held_out = RANDOM.normal(size=(20, 2)).astype("float32"), np.zeros(20, "int64")
    how = HOW | {"metrics": ["accuracy"]}
    found, _ = search(trials=1, evaluate=None, compile=how, validation=held_out)
    accuracy = np.mean(np.argmax(found.model.predict(held_out[0], verbose=0), -1) == 0)
    assert found.measure == "accuracy"
    assert found.best.score == pytest.approx(accuracy)
    found, _ = search(trials=1, evaluate=None, validation=held_out)
    loss = found.model.evaluate(*held_out, verbose=0)
    assert found.measure == "-loss"
    assert found.best.score == pytest.approx(-loss, rel=1e-4)


def test_a_model_is_a_space_and_trains_as_it_was_compiled():
    inputs = keras.Input((4, 4, 1))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="c")(inputs)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(2, activation="softmax")(x))
    model.compile(keras.optimizers.SGD(0.125), HOW["loss"], metrics=["accuracy"])
    images = RANDOM.normal(size=(32, 4, 4, 1)).astype("float32")
    found = search_architecture(model, (images, Y[:32]), trials=2, epochs=1, engine="random")
    assert float(found.model.optimizer.learning_rate) == 0.125
    assert int(model.optimizer.iterations) == 0
    assert found.measure == "accuracy"
    assert set(found.best.options) <= {"width:c", "kernel:c", "separable:c", "resolution"}


def test_the_result_prints_and_is_plain_data():
    found, _ = search(trials=3, engine="random")
    assert "3 trained" in str(found)
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["best"] == found.best.number
    assert len(plain["candidates"]) == len(found.candidates)
    figure = found.plot()
    assert list(figure.axes[0].lines[0].get_ydata()) == found.curve


def test_costs_by_hand():
    inputs = keras.Input((4, 4, 1))
    x = layers.Conv2D(3, 3, padding="same", use_bias=False)(inputs)
    x = layers.GlobalAveragePooling2D()(layers.BatchNormalization()(x))
    costs = costs_of(keras.Model(inputs, layers.Dense(2)(x)))
    assert costs.macs == 16 * 27 + 6
    assert costs.params == 27 + 12 + 8
    assert costs.flash == 27 + 3 * 4 + 6 + 2 * 4
    assert costs.peak_memory == 16 * 3 * 2  # what BatchNormalization reads and gives


def test_the_front_is_what_nothing_beats():
    assert front_of([(1, 5), (2, 3), (2, 4), (3, 3), (4, 1), (0, 9)]) == [5, 0, 1, 4]
    costs = Costs(1, 1, 1, 1)
    assert Candidate(0, {}, {}, "trained", 1.0, costs).proxy is None


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"'mac'.*Did you mean 'macs'"):
        search(budget={"mac": 1})
    with pytest.raises(ValueError, match=r"'evolve'"):
        search(engine="evolve")
    with pytest.raises(ValueError, match=r"'sinflow'.*'synflow'"):
        search(proxy="sinflow")
    with pytest.raises(ValueError, match=r"loss"):
        search(compile={"optimizer": "sgd"})
    with pytest.raises(ValueError, match=r"must be compiled"):
        search(compile=None, trials=1)
    with pytest.raises(ValueError, match=r"as many samples"):
        search_architecture(build, (X, Y[:3]))
    with pytest.raises(TypeError, match=r"\(x, y\) arrays"):
        search_architecture(build, X)
    with pytest.raises(TypeError, match=r"must return a keras.Model"):
        search_architecture(lambda choose: choose("a", (1, 2)), (X, Y))
    assert build(of_picks({"width": 0, "depth": 0})).layers[0].units == 2
