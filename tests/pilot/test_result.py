"""What is told of a search: the front, and what steps are worth."""

from tfcompress.pilot.result import Tried, front_of, worth_of


def tried(number, picks, quality, flash, epochs=1, error=None):
    return Tried(number, picks, epochs, quality, {"flash": flash}, 1.0, False, True, error)


def test_the_front_is_what_nothing_beats():
    rows = [
        {"quality": 0.9, "flash": 10},
        {"quality": 0.8, "flash": 5},
        {"quality": 0.8, "flash": 6},
        None,
        {"quality": 0.9, "flash": 10},
    ]
    assert front_of(rows, up=True) == [True, True, False, False, True]
    # Of a loss less is better.
    assert front_of(rows, up=False) == [False, True, False, False, False]


def test_a_step_is_worth_what_a_trial_without_it_lacks():
    first = {"zeros": "none", "weights": "int8", "teacher": "none"}
    best = tried(0, {"zeros": "half", "weights": "few", "teacher": "float"}, 0.9, 10, epochs=3)
    others = [
        tried(1, {"zeros": "none", "weights": "few", "teacher": "float"}, 0.92, 16, epochs=1),
        tried(2, {"zeros": "none", "weights": "few", "teacher": "float"}, 0.93, 20, epochs=3),
        tried(3, {"zeros": "half", "weights": "int8"}, 0.8, 40, epochs=0),  # not trained
        tried(4, {"zeros": "half", "weights": "int8", "teacher": "float"}, None, 0, error="no"),
    ]
    (worth,) = worth_of(best, [best, *others], first)
    assert (worth.part, worth.option, worth.without) == ("zeros", "half", "none")
    assert round(worth.quality, 6) == -0.03  # beside the one that was trained as long
    assert worth.costs == {"flash": 0.5}
