"""The measurements of parts: what they share, and that each is reached by its name."""

import importlib
import json

import measurements as parts
import pytest
from measurements.__main__ import MEASUREMENTS, main


def measurement(arguments=None):
    """What it measures.

    And how.
    """


COUNTS = {"rounds": (7, "paired rounds")}


def test_jobs_take_turns_and_none_always_follows_the_same_one(capsys):
    order = []
    jobs = {name: lambda name=name: order.append(name) or len(order) for name in "abc"}
    assert parts.interleaved(jobs, 3) == {"a": [1, 6, 8], "b": [2, 4, 9], "c": [3, 5, 7]}
    assert order == list("abcbcacab")
    assert capsys.readouterr().err.count(" of 3, load ") == 3


def test_counts_are_whole_numbers_of_at_least_1(capsys):
    parser = parts.parser_of(measurement, COUNTS)
    assert parser.prog.endswith(" measurement")
    assert parser.description == "What it measures."
    assert vars(parser.parse_args([])) == {"rounds": 7, "json": False}
    assert vars(parser.parse_args(["--rounds", "2", "--json"])) == {"rounds": 2, "json": True}
    for wrong in ("0", "-1", "2.5", "many"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--rounds", wrong])
        assert f"at least 1; received {wrong}" in capsys.readouterr().err


def test_what_is_found_is_json_or_a_table(capsys):
    parser = parts.parser_of(measurement, COUNTS)
    columns, rows = {"name": "", "ms": ".1f", "share": ".0%"}, [("a", 1.25, 0.5), ("b", 1234, None)]
    parts.show(parser.parse_args(["--json"]), {"found": [1.5]}, "Title", columns, rows)
    assert json.loads(capsys.readouterr().out) == {"found": [1.5]}
    parts.show(parser.parse_args([]), {}, "Title", columns, rows)
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.strip() == "Title"
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    assert [row for row in cells if row] == [["a", "1.2", "50%"], ["b", "1234.0", "–"]]


def test_values_are_told_by_their_mean_and_scatter():
    assert parts.spread([1, 2, 3]) == "2.00 ± 1.00"
    assert parts.spread([0.98765], 4) == "0.9877"
    assert parts.spread([]) == "–"


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_each_is_reached_by_its_name(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    assert told.startswith(f"usage: python -m measurements {name} [-h]")
    # Some leave files, or lines of JSON, and take no such option.
    assert ("--json" in told) == (
        name not in {"auto_budgets", "architecture_search", "digits_table", "engines_live"}
    )


def test_speedups_count_without_amx_where_there_is_some(monkeypatch):
    surgery = importlib.import_module("measurements.surgery_quality")
    first, second = {"ratio": 1.0}, {"ratio": 0.5, "no_amx": {"ratio": 0.25}}
    found = [first, second, {"ratio": 0.8, "no_amx": None}]
    monkeypatch.setattr(surgery, "latencies", lambda paths: found)
    monkeypatch.setattr(surgery.machine, "has_amx", lambda: True)
    with_amx = [{"speedup": 4.0, "speedup_amx": 2.0}, {"speedup": None, "speedup_amx": 1.25}]
    assert surgery.speedups(["a", "b", "c"]) == with_amx
    monkeypatch.setattr(surgery.machine, "has_amx", lambda: False)
    without = [{"speedup": 2.0, "speedup_amx": None}, {"speedup": 1.25, "speedup_amx": None}]
    assert surgery.speedups(["a", "b", "c"]) == without
