"""A function becomes a command: groups of options are spread out, what it returns is printed."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from tfcompress.cli.options import Json, Quiet
from tfcompress.cli.terminal import Progress, confine, emit

_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def command(
    fails: Callable[[Any], bool] = lambda found: False,
    writes: Callable[[Mapping[str, Any]], Iterable[Path]] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Decorator: a command out of a function that returns a result with `to_dict` and `render`.

    Its parameters are the options. One whose type is a dataclass stands for the dataclass's fields;
    `progress` for the bar that shows it, which --quiet hides. --json comes with all commands.

    Args:
        fails: whether the exit status is 1 in spite of a result.
        writes: the paths that are written with given options. No files in other folders can be
            changed then, whatever the models that the command loads do, unless they are trusted.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., None]:
        own = inspect.signature(function, eval_str=True).parameters
        groups = {name: p.annotation for name, p in own.items() if _is_group(p.annotation)}
        options = [option for parameter in own.values() for option in _options_of(parameter)]
        options.append(inspect.Parameter("json", _KEYWORD, default=False, annotation=Json))
        if "progress" in own:
            options.append(inspect.Parameter("quiet", _KEYWORD, default=False, annotation=Quiet))

        def run(json: bool = False, quiet: bool = True, **given: Any) -> None:
            if writes is not None and not given.get("trusted"):
                confine(writes(given))
            for name, group in groups.items():
                given[name] = group(
                    **{f.name: given.pop(f.name) for f in dataclasses.fields(group)}
                )
            with Progress(quiet) as progress:
                if "progress" in own:
                    given["progress"] = progress
                found = function(**given)
            emit(found, json)
            if fails(found):
                raise typer.Exit(1)

        run.__name__, run.__doc__ = function.__name__, function.__doc__
        run.__annotations__ = {}
        run.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
        return run

    return decorate


def _is_group(annotation: Any) -> bool:
    return inspect.isclass(annotation) and dataclasses.is_dataclass(annotation)


def _options_of(parameter: inspect.Parameter) -> Iterator[inspect.Parameter]:
    """The options that a parameter of a function stands for."""
    if _is_group(parameter.annotation):
        fields = inspect.signature(parameter.annotation, eval_str=True).parameters.values()
        yield from (field.replace(kind=_KEYWORD) for field in fields)
    elif parameter.name != "progress":
        yield parameter.replace(kind=_KEYWORD)


def failed(found: Any) -> bool:
    """Whether what was examined did not pass."""
    return not found.passed


def does_not_run(found: Any) -> bool:
    """Whether the check for the target, if there was one, says that it does not run the file."""
    check = found.check
    # A delegate leaves single operators to LiteRT's own kernels, which is no failure.
    return check is not None and not (check.passed or check.runs_in_parts)
