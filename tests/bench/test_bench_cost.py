"""What the benchmark says that a training step costs."""

import keras
import numpy as np
import pytest
from bench_runs import DIGITS, dropping, run_of, task_of

from tfcompress.bench.methods import cost
from tfcompress.legacy import import_tf_keras


def trained(run, kit):
    model = run.model if kit == "keras" else run.twin
    run.fit(model)
    return model.get_weights()


@pytest.mark.slow
@pytest.mark.parametrize("kit", ["keras", "tf_keras"])
def test_turns_of_the_plain_model_leave_the_training_as_it_is(tmp_path, monkeypatch, kit):
    task, data = task_of(dropping)
    run = run_of(task, data, tmp_path, steps=30)
    interrupted = trained(run, kit)
    assert run.cost["steps"] == 30
    monkeypatch.setattr(cost.Plain, "turn", lambda self, steps: 1.0)
    alone = trained(run_of(task, data, tmp_path, tmp_path / "float.keras", 30), kit)
    for a, b in zip(interrupted, alone, strict=True):
        np.testing.assert_array_equal(a, b)
    other = trained(run_of(task, data, tmp_path, tmp_path / "float.keras", 30, seed=1), kit)
    assert any((a != b).any() for a, b in zip(alone, other, strict=True))


@pytest.mark.slow
def test_what_is_not_metered_trains_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(cost.Plain, "turn", lambda self, steps: 1.0)
    task, data = task_of(dropping)
    metered = trained(run_of(task, data, tmp_path), "keras")
    monkeypatch.delattr(cost.Plain, "turn")
    run = run_of(task, data, tmp_path, tmp_path / "float.keras")
    run.metered = False
    for a, b in zip(trained(run, "keras"), metered, strict=True):
        np.testing.assert_array_equal(a, b)
    assert run.cost is None


def test_the_cost_of_a_step_is_the_mean_over_those_that_count(tmp_path, monkeypatch):
    """With a clock by hand: a plain step takes 2 ms, one of the model 3 ms, a few 30 ms."""
    clock, asked = [0.0], []
    monkeypatch.setattr(cost.time, "process_time", lambda: clock[0])
    task, data = task_of(dropping)
    run = run_of(task, data, tmp_path, steps=100)
    # Turns of 10 steps, of which the first 3 do not count; a mask update in step 16 does.
    slow = {1: 9.0, 10: 1.0, 11: 1.0, 12: 1.0, 15: 0.030}

    class Slow(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            clock[0] += slow.get(batch, 0.003)

    def turn(self, steps):
        clock[0] += 5.0
        asked.append(steps)
        return 0.002

    monkeypatch.setattr(cost.Plain, "turn", turn)
    monkeypatch.setattr(cost, "TURNS", 10)
    run.fit(run.model, [Slow()])
    step = (69 * 3.0 + 30.0) / 70
    assert run.cost == {
        "steps": 100,
        "step_cpu_ms": pytest.approx(step),
        "plain_step_cpu_ms": pytest.approx(2.0),
        "step_cpu_ratio": pytest.approx(step / 2),
        "keras_step_cpu_ratio": pytest.approx(step / 2),
    }
    assert len(asked) == 1 + 10


@pytest.mark.slow
def test_plain_steps_are_timed_alone(monkeypatch, tmp_path):
    """With a clock that each step moves: 1 ms of the plain model, which halts between turns."""
    clock = [0.0]
    monkeypatch.setattr(cost.time, "process_time", lambda: clock[0])
    task, data = task_of(dropping)
    run = run_of(task, data, tmp_path)
    for plain in [*run._plains(keras).values(), *run._plains(import_tf_keras()).values()]:
        step = plain._after_step

        def ticking(step=step):
            clock[0] += 0.001
            step()

        plain._after_step = ticking
        for count in (1, 5):
            before = clock[0]
            assert plain.turn(count) == pytest.approx(0.001)
            assert clock[0] - before == pytest.approx(0.001 * (cost.SKIPPED + count))
        clock[0] += 7.0
        assert plain.turn(4) == pytest.approx(0.001)
        plain.close()
        assert not plain._thread.is_alive()


def test_a_plain_model_that_cannot_be_trained_is_told(tmp_path):
    run = run_of(*task_of(dropping), tmp_path)
    model = run.model
    plain = cost.Plain(keras, model, run.data.batches(16, 0))
    with pytest.raises(ValueError, match="compile"):
        plain.turn(2)
    plain.close()


@pytest.mark.slow
@pytest.mark.parametrize("kit", ["keras", "tf_keras"])
def test_a_plain_training_costs_what_a_plain_training_costs(tmp_path, kit):
    ratios = []
    for _ in range(3):
        run = run_of(DIGITS, DIGITS.generate(), tmp_path, steps=240)
        run.fit(run.model if kit == "keras" else run.twin)
        ratios.append(run.cost["step_cpu_ratio"])
        if kit == "keras":
            assert run.cost["keras_step_cpu_ratio"] == run.cost["step_cpu_ratio"]
    assert 0.9 < np.median(ratios) < 1.1, ratios


@pytest.mark.slow
def test_stages_count_by_their_steps(tmp_path):
    run = run_of(*task_of(dropping), tmp_path, steps=40)
    model = run.model
    run.fit(model, steps=30)
    run.fit(model, steps=10)
    assert run.cost["steps"] == 40
    a, b = ({"steps": n, "step_cpu_ratio": r} for n, r in ((30, 1.0), (10, 2.0)))
    assert cost.together([a, b]) == {"steps": 40, "step_cpu_ratio": 1.25}
    assert cost.together([]) is None
    with pytest.raises(ValueError, match="1 step or more; received 0"):
        run.fit(model, steps=0)


@pytest.mark.slow
def test_too_short_a_training_has_no_cost(tmp_path):
    run = run_of(*task_of(dropping), tmp_path, steps=1)
    run.fit(run.model)
    assert run.cost is None
