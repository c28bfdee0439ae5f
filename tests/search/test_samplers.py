"""Engines: what the finished trials make them pick."""

import importlib
import sys

import numpy as np
import optuna
import pytest

from tfcompress.search.samplers import (
    SAMPLERS,
    Evolution,
    PolicyGradient,
    RandomChoices,
    indices_of,
    sampler,
)

OURS = ("random", "evolution", "reinforcement")
CHOICES = {f"x{i}": 5 for i in range(6)}


@pytest.fixture(autouse=True)
def _quiet():
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


def distance(trial):
    """0 at best: how far the picks are from 0, 1, 2, ..."""
    picks = [trial.suggest_int(name, 0, count - 1) for name, count in CHOICES.items()]
    return -float(sum(abs(pick - place % 5) for place, pick in enumerate(picks)))


def study_of(engine, storage=None):
    return optuna.create_study(
        study_name="s",
        storage=storage,
        sampler=engine,
        direction="maximize",
        load_if_exists=True,
    )


def told(study, picks, value=None, broken=None):
    """Tells a study of a trial with given picks; without a value it was given up."""
    study.enqueue_trial(picks)
    trial = study.ask()
    for name in picks:
        trial.suggest_int(name, 0, 4)
    if broken is not None:
        trial.set_constraint("macs", broken)
    state = None if value is not None else optuna.trial.TrialState.PRUNED
    study.tell(trial, value, state=state)


def picks_of(study):
    return [indices_of(trial) for trial in study.trials]


@pytest.mark.parametrize("name", OURS)
def test_a_stopped_search_goes_on_as_if_it_had_not_been(name, tmp_path):
    whole = study_of(sampler(name, 5))
    whole.optimize(distance, n_trials=40)
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    for _ in range(2):
        study_of(sampler(name, 5), storage).optimize(distance, n_trials=20)
    again = study_of(sampler(name, 5), storage)
    assert picks_of(again) == picks_of(whole)
    other = study_of(sampler(name, 6))
    other.optimize(distance, n_trials=40)
    assert picks_of(other) != picks_of(whole)


def test_engines_that_learn_are_better_than_chance():
    means = {}
    for name in OURS:
        best = []
        for seed in range(4):
            study = study_of(sampler(name, seed))
            study.optimize(distance, n_trials=100)
            best.append(study.best_value)
        means[name] = np.mean(best)
    assert means["evolution"] > means["random"] + 1
    assert means["reinforcement"] > means["random"] + 1


def asked(engine, trials):
    """The picks of the next trial, after trials that were told."""
    study = study_of(engine)
    for trial in trials:
        told(study, *trial)
    trial = study.ask()
    return {name: trial.suggest_int(name, 0, 4) for name in ("a", "b", "c")}


def differing(picks, others):
    return sum(picks[name] != others[name] for name in picks)


BEST, WORSE = {"a": 4, "b": 4, "c": 4}, {"a": 0, "b": 0, "c": 0}


@pytest.mark.parametrize("seed", range(5))
def test_a_child_differs_from_the_best_of_its_tournament_in_one_pick(seed):
    engine = Evolution(seed, population=3, tournament=3, crossover=0.0)
    trials = [(WORSE, 1.0), (BEST, 3.0), (WORSE, 2.0)]
    assert differing(asked(engine, trials), BEST) == 1


@pytest.mark.parametrize("seed", range(5))
def test_the_best_dies_of_age(seed):
    engine = Evolution(seed, population=2, tournament=2, crossover=0.0)
    trials = [(BEST, 3.0), (WORSE, 1.0), (WORSE, 2.0)]
    assert differing(asked(engine, trials), WORSE) == 1


@pytest.mark.parametrize("seed", range(5))
def test_what_breaks_a_constraint_loses_tournaments_and_leaves_first(seed):
    engine = Evolution(seed, population=2, tournament=2, crossover=0.0)
    trials = [(BEST, 1.0, 0.0), (WORSE, 9.0, 0.5), (WORSE, None, 0.5)]
    assert differing(asked(engine, trials), BEST) == 1
    less, more = {"a": 1, "b": 1, "c": 1}, {"a": 3, "b": 3, "c": 3}
    assert differing(asked(engine, [(more, None, 2.0), (less, None, 0.1)]), less) == 1


def test_a_child_of_two_has_picks_of_both():
    engine = Evolution(0, population=2, tournament=1, crossover=1.0)
    study = study_of(engine)
    told(study, BEST, 1.0)
    told(study, WORSE, 1.0)
    mixed = 0
    for _ in range(30):
        trial = study.ask()
        picks = [trial.suggest_int(name, 0, 4) for name in ("a", "b", "c")]
        mixed += 0 in picks and 4 in picks
    assert mixed > 10


@pytest.mark.parametrize("seed", range(5))
def test_what_was_tried_is_not_tried_again(seed):
    trials = [({"a": i, "b": 0, "c": 0}, 1.0 + i) for i in range(5)]
    picks = asked(Evolution(seed, population=5, tournament=5, crossover=0.0), trials)
    assert picks not in [trial[0] for trial in trials]


def test_reinforce_steps_as_by_hand():
    engine = PolicyGradient(learning_rate=0.5, decay=0.9, entropy=0.0)
    study = study_of(engine)
    told(study, {"a": 1}, 1.0)  # the first one is what is usual
    assert np.allclose(engine.probabilities(study)["a"], 0.2)
    told(study, {"a": 2}, 2.0)
    # growth 1, spread 0.1 of 1, so that it is 1 / sqrt(0.1) = 3.16 spreads better: 3 count.
    step = 0.5 * 3.0 * (np.eye(5)[2] - 0.2)
    assert np.allclose(engine.probabilities(study)["a"], np.exp(step) / np.exp(step).sum())


def test_reinforce_learns_from_broken_constraints_and_what_was_given_up():
    for broken, penalty in ((0.25, 0.5), (None, 2.0)):
        engine = PolicyGradient(learning_rate=0.5, entropy=0.0, penalty=2.0)
        study = study_of(engine)
        told(study, {"a": 3}, None, broken)
        step = 0.5 * -penalty * (np.eye(5)[3] - 0.2)
        assert np.allclose(engine.probabilities(study)["a"], np.exp(step) / np.exp(step).sum())


def test_entropy_draws_the_policy_back_to_uniform():
    found = []
    for entropy in (0.0, 0.5):
        engine = PolicyGradient(entropy=entropy)
        study = study_of(engine)
        for value in range(6):
            told(study, {"a": 2}, float(value))
        found.append(engine.probabilities(study)["a"][2])
    assert found[1] < found[0]


def test_a_seed_gives_the_same_whichever_choice_is_asked_first():
    study = study_of(RandomChoices(3))
    first, second = study.ask(), study_of(RandomChoices(3)).ask()
    a = {name: first.suggest_int(name, 0, 99) for name in ("x", "y")}
    b = {name: second.suggest_int(name, 0, 99) for name in ("y", "x")}
    assert a == b
    assert a["x"] != a["y"]


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"'evolutoin'.*Did you mean 'evolution'"):
        sampler("evolutoin")
    with pytest.raises(ValueError, match="tournament"):
        Evolution(population=4, tournament=5)
    with pytest.raises(ValueError, match="entropy"):
        PolicyGradient(entropy=-1)
    with pytest.raises(ValueError, match="seed"):
        RandomChoices(-1)
    study = optuna.create_study(directions=["minimize"] * 2, sampler=Evolution())
    with pytest.raises(ValueError, match=r"one objective; received '2 objectives'.*nsga2"):
        study.ask()
    with pytest.raises(TypeError, match="choose"):
        study_of(RandomChoices()).ask().suggest_float("x", 0, 1)


def test_every_name_makes_a_sampler():
    for name in SAMPLERS:
        assert isinstance(sampler(name, 1), optuna.samplers.BaseSampler)


def test_a_missing_optuna_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "tfcompress.search.samplers")
    with pytest.raises(ImportError, match=r"pip install 'tfcompress\[auto\]'"):
        importlib.import_module("tfcompress.search.samplers")
