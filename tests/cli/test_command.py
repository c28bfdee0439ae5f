"""Functions as commands: groups of options, what is printed, and the exit status."""

import dataclasses
import json
from typing import Annotated

import pytest
import typer

from tfcompress.cli import terminal
from tfcompress.cli.command import command
from tfcompress.cli.options import choice
from tfcompress.cli.terminal import Progress


@dataclasses.dataclass(frozen=True)
class Found:
    words: tuple

    def to_dict(self):
        return {"words": self.words}

    def render(self, console):
        console.print(*self.words)


@dataclasses.dataclass(frozen=True)
class Group:
    size: Annotated[int, typer.Option(min=1, help="How large.")] = 3
    kind: Annotated[str | None, choice(("a_kind", "other"), "Which.")] = None


@command(fails=lambda found: 9 in found.words)
def quick(name: Annotated[str, typer.Argument()]):
    print("a library's chatter")
    return Found((name, len(name)))


@command(fails=lambda found: 9 in found.words)
def slow(number: Annotated[int, typer.Option()], *, group: Group, progress: Progress):
    progress("work", 0, None)
    return Found((number, group.size, group.kind))


def run(*arguments):
    app = typer.Typer(pretty_exceptions_enable=False)
    for each in (quick, slow):
        app.command()(each)
    return terminal.run(app, list(map(str, arguments)))


def test_a_group_is_spread_into_its_options(capsys):
    assert run("slow", "--number", 1, "--size", 4, "--kind", "other", "--json") == 0
    shown = capsys.readouterr()
    assert (json.loads(shown.out), shown.err) == ({"words": [1, 4, "other"]}, "work ...\n")
    assert run("slow", "--number", 1, "-q") == 0
    assert capsys.readouterr() == ("1 3 None\n", "")


def test_only_what_shows_progress_can_be_quiet(capsys):
    assert run("quick", "bob") == 0
    assert capsys.readouterr() == ("bob 3\n", "")
    assert run("quick", "bob", "--quiet") == 2
    assert "No such option" in capsys.readouterr().err


def test_a_result_may_be_a_failure(capsys):
    assert run("slow", "--number", 9, "--quiet") == 1
    assert capsys.readouterr() == ("9 3 None\n", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--kind", "akind"],
            "--kind must be one of a_kind, other; received 'akind'. Did you mean 'a",
        ),
        (["--size", "0"], "Invalid value for '--size'"),
    ],
)
def test_values_are_checked(capsys, words, message):
    assert run("slow", "--number", 1, *words) == 2
    assert message in capsys.readouterr().err
