"""Trainings that go on in turns, each with a learning rate that falls anew."""

import fine_tuning_files
import keras
import numpy as np
import pytest
from fine_tuning_files import LOSS, RECIPE, interrupted, make_model

from tfcompress.fine_tuning.checkpoint import Checkpoint
from tfcompress.fine_tuning.options import Settings

# Fixtures of all modules about fine_tune.
made, run = fine_tuning_files.made, fine_tuning_files.run

RECIPES = {
    "techniques": RECIPE,
    "distilled": "distill: {alpha: 0.25, losses: [soft_labels, mse]}\n" + RECIPE,
    "shrunk": "shrink:\n  channels: {macs: 0.5, round_to: 1, score: taylor}\n  epochs: 1\n"
    + RECIPE,
}


def rates(rate, turns):
    """The learning rate at every step."""
    model = make_model()
    model.compile(keras.optimizers.Adam(rate), LOSS)
    optimizer = Settings(model.get_compile_config()).arguments(turns)["optimizer"]
    return [float(optimizer._learning_rate(step)) for step in range(sum(turns))]


def test_the_rate_falls_anew_in_each_turn():
    def cosine(steps):
        return [0.25 * (1 + np.cos(np.pi * step / steps)) for step in range(steps)]

    np.testing.assert_allclose(rates(0.5, [4, 6]), cosine(4) + cosine(6), rtol=1e-6)
    found = rates(0.5, [4, 2, 6])
    np.testing.assert_allclose(found, cosine(4) + cosine(2) + cosine(6), rtol=1e-6)
    assert found[:4] == rates(0.5, [4])
    plan = keras.optimizers.schedules
    line = rates(plan.PolynomialDecay(0.5, 1000, 0.1), [2, 4])
    np.testing.assert_allclose(line, [0.5, 0.3, 0.5, 0.4, 0.3, 0.2], rtol=1e-6)
    warm = plan.CosineDecay(0.0, 75, warmup_target=0.5, warmup_steps=25)
    found = rates(warm, [4, 8])
    expected = [0, 0.5, 0.375, 0.125, 0, 0.25, *cosine(6)]
    np.testing.assert_allclose(found, expected, atol=1e-7)
    kept = plan.ExponentialDecay(0.5, 1, 0.5)
    assert rates(kept, [1, 2]) == [0.5, 0.25, 0.125]


def test_a_schedule_in_turns_tells_its_settings():
    model = make_model()
    model.compile(keras.optimizers.Adam(0.5), LOSS)
    optimizer = Settings(model.get_compile_config()).arguments([4, 6])["optimizer"]
    config = optimizer._learning_rate.get_config()
    assert config["turns"] == [4, 6]
    assert [each["config"]["decay_steps"] for each in config["schedules"]] == [4, 6]


def same_weights(one, other):
    expected, received = (keras.saving.load_model(path).get_weights() for path in (one, other))
    for a, b in zip(expected, received, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "name", ["techniques", *(pytest.param(n, marks=pytest.mark.slow) for n in list(RECIPES)[1:])]
)
def test_a_training_goes_on_in_another_turn_as_if_it_had_been_asked_for_it_at_once(
    run, tmp_path, name
):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPES[name])
    before = name == "shrunk"
    run("first.keras", recipe=recipe, epochs=2)
    found = run("whole.keras", recipe=recipe, epochs=(2, 3))
    assert (found.epochs, found.steps) == (5 + before, 25 + 5 * before)
    assert {weight.sparsity for weight in found.weights} == {0.75}
    run(recipe=recipe, epochs=(2,), keep_checkpoint=True)
    same_weights(tmp_path / "first.keras", tmp_path / "out.keras")
    checkpoint = Checkpoint(tmp_path / "out.keras.checkpoint")
    assert checkpoint.epoch() == 2 + before
    again = run(recipe=recipe, epochs=2, keep_checkpoint=True, resume=True)
    assert again.resumed == 2 + before
    same_weights(tmp_path / "first.keras", tmp_path / "out.keras")
    interrupted(run, 8, recipe=recipe, epochs=(2, 3), resume=True)
    assert (checkpoint.epoch(), checkpoint.total()) == (3 + before, 5 + before)
    resumed = run(recipe=recipe, epochs=(2, 3), resume=True)
    assert (resumed.resumed, resumed.after) == (3 + before, found.after)
    same_weights(tmp_path / "whole.keras", tmp_path / "out.keras")
    names = {"r.yaml", "first.keras", "whole.keras", "out.keras"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_what_may_change_when_a_training_goes_on(tmp_path):
    checkpoint = Checkpoint(tmp_path / "kept")
    settings = {"epochs": 3, "epochs_before": 1, "seed": 0}
    checkpoint.begin(settings)

    def check(epochs, **changed):
        new = {**settings, "epochs": epochs, **changed}
        return checkpoint.check(new, resume=True, overwrite=False)

    assert check([3, 9]) == check([3, 9, 9]) == check(3) == 0
    assert checkpoint.total() == 4
    for epochs in (4, [4, 9], [9, 3]):
        with pytest.raises(ValueError, match="epochs was 3, now"):
            check(epochs)
    with pytest.raises(ValueError, match=r"received others: seed was 0, now 1\. Give"):
        check([3, 9], seed=1)
    checkpoint.go_on({**settings, "epochs": [3, 9]})
    assert checkpoint.total() == 13
    assert check([3, 9, 1]) == 0
    for epochs in (3, [3, 8]):
        with pytest.raises(ValueError, match=r"epochs was \[3, 9\], now"):
            check(epochs)


@pytest.mark.parametrize("epochs", [(), (3, 0), (0,), (3, 1.5), (True, 2), "3+9", -1, True])
def test_epochs_that_are_none(run, epochs):
    with pytest.raises(ValueError, match=r"epochs must be a whole .*such as \(3, 9\); received"):
        run(epochs=epochs)
