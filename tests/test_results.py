"""What all results share: plain data for JSON, and printing."""

import dataclasses
import io
import json
import math
from pathlib import Path

import numpy as np
from rich.console import Console

from tfcompress.results import Result, plain, print_line


@dataclasses.dataclass(frozen=True)
class Part:
    sizes: tuple[int, ...]

    def to_dict(self):
        return {"sum": sum(self.sizes)}


@dataclasses.dataclass(frozen=True)
class Found(Result):
    parts: tuple[Part, ...]
    seconds: float
    told: str

    def _print(self, console):
        print_line(console, self.told)


def test_json_gets_no_nan_and_no_numpy():
    given = {"a": math.nan, 1: (math.inf, 2.5, "text"), np.int64(2): np.float32([0.5, -np.inf])}
    found = json.loads(json.dumps(plain(given), allow_nan=False))
    assert found == {"a": None, "1": [None, 2.5, "text"], "2": [0.5, None]}
    assert plain(Path("a") / "b") == "a/b"


def test_what_a_part_tells_of_itself_is_told():
    found = Found((Part((1, 2)), Part(())), -math.inf, "")
    assert found.to_dict() == {"parts": [{"sum": 3}, {"sum": 0}], "seconds": None, "told": ""}


def test_a_result_prints_brackets_as_they_are(capsys):
    found = Found((), 1.0, "input[0] [red]")
    assert str(found) == "input[0] [red]\n"
    console = Console(file=io.StringIO(), width=120)
    found.render(console)
    assert console.file.getvalue() == "input[0] [red]\n"
    found.render()
    assert capsys.readouterr().out == "input[0] [red]\n"
