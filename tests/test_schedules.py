"""Schedules: values, updates and errors, by hand; TFMOT's own are in test_tfmot_values.py."""

import keras
import numpy as np
import pytest

from tfcompress import schedules
from tfcompress.schedules import Schedule


def updates(schedule, until, start=-1):
    """Every step at which a schedule has an update, up to one."""
    found, step = [], schedule.next_update(start)
    while step is not None and step <= until:
        found.append(step)
        step = schedule.next_update(step)
    return found


def test_polynomial_values():
    cubic = schedules.polynomial(0.2, 0.8, begin=100, end=110)
    assert [round(cubic(step), 6) for step in (100, 102, 105, 110)] == [0.2, 0.4928, 0.725, 0.8]
    assert (cubic(0), cubic(99), cubic(111), cubic(10**9)) == (0.0, 0.0, 0.8, 0.8)
    slow = schedules.polynomial(0.5, 0.8, end=1000)
    np.testing.assert_allclose([slow(100), slow(150)], [0.5813, 0.6157625])
    square = schedules.polynomial(0.0, 0.8, end=4, power=2)
    assert [round(square(step), 6) for step in range(5)] == [0.0, 0.35, 0.6, 0.75, 0.8]


def test_linear_cosine_constant_and_one_shot_values():
    line = schedules.linear(0.1, 0.5, begin=10, end=20)
    assert [round(line(step), 6) for step in (9, 10, 15, 20)] == [0.0, 0.1, 0.3, 0.5]
    wave = schedules.cosine(0.0, 0.8, end=4)
    half = 0.8 * (1 - np.cos(np.pi / 4)) / 2
    np.testing.assert_allclose([wave(s) for s in range(5)], [0, half, 0.4, 0.8 - half, 0.8])
    flat = schedules.constant(0.5, begin=3)
    assert [flat(step) for step in (2, 3, 4, 10**6)] == [0.0, 0.5, 0.5, 0.5]
    once = schedules.one_shot(0.7, step=5)
    assert [once.at(step) for step in (4, 5, 6)] == [0.0, 0.7, 0.7]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (schedules.polynomial(0.0, 0.8, end=1000), [0, *range(100, 1001, 100)]),
        (schedules.polynomial(0.0, 0.8, end=25, frequency=10), [0, 10, 20, 25]),
        (schedules.linear(0.0, 0.8, begin=7, end=25, frequency=10), [7, 17, 25]),
        (schedules.cosine(0.0, 0.8, begin=7, end=8, frequency=10), [7, 8]),
        (schedules.constant(0.5, begin=4, frequency=500), [4, 504, 1004]),
        (schedules.constant(0.5, begin=4, end=9, frequency=3), [4, 7, 9]),
        (schedules.one_shot(0.5, step=30), [30]),
        (schedules.one_shot(0.5), [0]),
        (schedules.points([(0, 0.3), (50, 0.6), (1000, 0.8)]), [0, 50, 1000]),
        (schedules.points([(5, 0.3)]), [5]),
    ],
)
def test_updates_come_at_begin_at_the_frequency_and_at_the_end(schedule, expected):
    assert updates(schedule, 1100) == expected


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.polynomial(0.1, 0.8, begin=3, end=25, frequency=10),
        schedules.cosine(0.1, 0.8, begin=3, end=25, frequency=4),
        schedules.constant(0.5, begin=4, frequency=3),
        schedules.one_shot(0.5, step=9),
        schedules.points([(3, 0.3), (8, 0.6), (31, 0.8)]),
        schedules.points([(3, 0.3), (150, 0.6), (401, 0.8)]),
    ],
)
def test_at_is_the_value_of_the_latest_update(schedule):
    latest = 0.0
    due = updates(schedule, 450)
    for step in range(450):
        latest = schedule(step) if step in due else latest
        assert schedule.at(step) == latest, step


def test_points_hold_until_the_next():
    steps = schedules.points([(0, 0.3), (50, 0.6), (120, 0.8)])
    assert [steps(s) for s in (0, 49, 50, 119, 120, 999)] == [0.3, 0.3, 0.6, 0.6, 0.8, 0.8]
    assert [steps.at(s) for s in (0, 49, 50, 119, 120, 999)] == [0.3, 0.3, 0.6, 0.6, 0.8, 0.8]
    assert schedules.points([(10, 0.3)])(9) == 0.0


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.polynomial(0.1, 0.8, begin=3, end=25, frequency=10, power=2),
        schedules.cosine(0.1, 0.8, end=25),
        schedules.constant(0.5),
        schedules.points([(3, 0.3), (8, 0.6)]),
    ],
)
def test_config_round_trip(schedule):
    serialized = keras.saving.serialize_keras_object(schedule)
    assert keras.saving.deserialize_keras_object(serialized) == schedule
    assert Schedule.from_config(schedule.get_config()) == schedule
    assert hash(Schedule.from_config(schedule.get_config())) == hash(schedule)


def test_numbers_of_numpy_are_numbers():
    # Steps are often computed: np.ceil(images / batch).astype(np.int32) * epochs.
    schedule = schedules.polynomial(np.float32(0.25), np.float64(0.5), end=np.int32(100))
    assert schedule == schedules.polynomial(0.25, 0.5, end=100)
    assert type(schedule.end) is int
    assert type(schedule.initial) is float
    assert schedules.points([(np.int64(2), np.float32(0.5))]) == schedules.points([(2, 0.5)])


def test_shares_become_steps_of_a_training():
    curve = schedules.polynomial(0.0, 0.8, begin="10%", end="60%", frequency="2 %")
    assert curve.over(0, 500) == schedules.polynomial(0.0, 0.8, begin=50, end=300, frequency=10)
    # A training that begins at step 100 of the optimizer, and one too short for the frequency.
    assert curve.over(100, 500) == schedules.polynomial(0, 0.8, begin=150, end=400, frequency=10)
    assert curve.over(0, 20) == schedules.polynomial(0, 0.8, begin=2, end=12, frequency=1)
    # What is not given begins with the training, and has ten updates where it can.
    late = schedules.linear(0.0, 0.5, end="50%")
    assert late.over(40, 100) == schedules.linear(0.0, 0.5, begin=40, end=90, frequency=5)
    assert schedules.one_shot(0.5, step="12.5%").over(0, 1000) == schedules.one_shot(0.5, step=125)
    pairs = schedules.points([(0, 0.3), ("50%", 0.6)])
    assert pairs.over(0, 30) == schedules.points([(0, 0.3), (15, 0.6)])
    whole = schedules.constant(0.5)
    assert whole.over(7, 100) is whole


@pytest.mark.parametrize(
    "schedule",
    [schedules.linear(0.0, 0.5, end="50%"), schedules.points([("5%", 0.3), ("8%", 0.6)])],
)
def test_shares_wait_for_a_training(schedule):
    serialized = keras.saving.serialize_keras_object(schedule)
    assert keras.saving.deserialize_keras_object(serialized) == schedule
    for ask in (schedule, schedule.at, schedule.next_update):
        with pytest.raises(ValueError, match=r"training that has not begun.*UpdateCompression\(\)"):
            ask(0)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: schedules.linear(0, 1, end="101%"), ValueError, "end must be 0% to 100% .*101%"),
        (lambda: schedules.linear(0, 1, end="half"), TypeError, "received 'half'.*'60%' is a"),
        (lambda: schedules.linear(0, 1, begin="9%", end="3%"), ValueError, "received end=3%"),
        (lambda: schedules.linear(0, 1, begin=9, end="3%").over(0, 10), ValueError, "end=0"),
        (lambda: schedules.points([("9%", 0), ("5%", 1)]), ValueError, "Sort them"),
        (lambda: schedules.linear(0, 0.8, begin=9, end=3), ValueError, "received end=3"),
        (lambda: schedules.linear(0, 0.8, end=10.0), TypeError, r"whole number .* 10\.0"),
        (lambda: schedules.constant(0.8, begin=-1), ValueError, "begin must be 0 or more"),
        (lambda: schedules.constant(0.8, begin=True), TypeError, "begin must be a whole number"),
        (lambda: schedules.constant(0.8, frequency=0), ValueError, "frequency must be 1 or more"),
        (lambda: schedules.constant("0.8"), TypeError, "must be a finite number; received '0.8'"),
        (lambda: schedules.constant(float("nan")), TypeError, "must be a finite number"),
        (lambda: schedules.polynomial(0, 0.8, end=9, power=None), TypeError, "power must be"),
        (lambda: schedules.points([]), ValueError, "at least one"),
        (lambda: schedules.points([0.3, 0.5]), TypeError, r"\(step, value\) pairs"),
        (lambda: schedules.points([(5, 0.3), (5, 0.5)]), ValueError, r"must grow.*\[5, 5\]"),
        (lambda: schedules.points([(9, 0.3), (5, 0.5)]), ValueError, "Sort them"),
        (lambda: schedules.points([(0.5, 0.3)]), TypeError, "step of a point"),
        (lambda: schedules.points([(0, None)]), TypeError, "value of a point"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()
