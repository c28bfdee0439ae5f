"""Choices by name: what Optuna is asked, and what picks give."""

import optuna
import pytest

from tfcompress.search.choices import of_picks, of_trial


def build(choose):
    width = choose("width", (8, 16, 32))
    block = choose("block", ("plain", "residual"))
    return width, block, choose("expansion", (2, 4)) if block == "residual" else None


def test_a_trial_knows_what_was_picked_and_how_options_are_ordered():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial({"width": 2, "block": 1, "expansion": 0})
    trial = study.ask()
    assert build(of_trial(trial)) == (32, "residual", 2)
    assert trial.params == {"width": 2, "block": 1, "expansion": 0}
    kinds = {name: type(kind).__name__ for name, kind in trial.distributions.items()}
    assert kinds == {
        "width": "IntDistribution",
        "block": "CategoricalDistribution",
        "expansion": "IntDistribution",
    }


@pytest.mark.parametrize("options", [(3, 1), (1, 1), (False, True), (1, "all")])
def test_what_is_not_increasing_numbers_is_a_category(options):
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    assert of_trial(trial)("x", options) in options
    assert isinstance(trial.distributions["x"], optuna.distributions.CategoricalDistribution)


def test_picks_of_a_trial_give_the_same_again():
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3)).ask()
    assert build(of_trial(trial)) == build(of_picks(trial.params))


@pytest.mark.parametrize(
    ("picks", "message"),
    [({}, "index for 'width'"), ({"width": 3}, r"in \[0, 3\)"), ({"width": -1}, "received -1")],
)
def test_picks_that_fit_no_option_are_refused(picks, message):
    with pytest.raises(ValueError, match=message):
        of_picks(picks)("width", (8, 16, 32))


def test_no_options_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        of_picks({"width": 0})("width", ())
