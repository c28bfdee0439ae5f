"""The commands on targets: the devices and runtimes that files are for."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Annotated, Any

from typer import Argument, Option

from tfcompress.cli.command import command, failed
from tfcompress.cli.options import Json, TFLiteFile
from tfcompress.cli.terminal import emit_json, emit_table


@command(fails=failed)
def check(
    model: TFLiteFile,
    target: Annotated[
        str, Option(help="A target's name (tfcompress targets lists them) or JSON file.")
    ],
) -> Any:
    """Check a .tflite file against the rules of a device or runtime.

    \b
    Examples:
      tfcompress check model.tflite --target edge_tpu
      tfcompress check model.tflite --target ethos_u55 --json
      tfcompress check model.tflite --target boards/my_board.json

    Operator by operator: mapped or not, why, and what to do. These are rules, not the target's
    compiler. Exit status: 0 if all is mapped and fits, 1 if not, even if the rest runs elsewhere.
    """
    from tfcompress.targets.check import check as run
    from tfcompress.targets.targets import load_target

    return run(model, load_target(target))


def targets(
    name: Annotated[str | None, Argument(help="A target's name or JSON file.")] = None,
    json: Json = False,
) -> None:
    """List the devices and runtimes that files can be made for, or show one.

    \b
    Examples:
      tfcompress targets
      tfcompress targets edge_tpu
      tfcompress targets edge_tpu --json

    Without --json, operators are only named, without their limits, and what is not known is left
    out.
    """
    from tfcompress.targets.targets import list_targets, load_target

    if name is None:
        known = [load_target(each) for each in list_targets()]
        emit_table(
            [{key: t[key] for key in ("name", "precision", "description")} for t in known], json
        )
    else:
        target = load_target(name)
        if json:
            emit_json(target)
        else:
            print("\n".join(_in_short(target)))


# Shown on their own, or too long for a screen.
_TITLES = ("name", "title", "description")
_LEFT_OUT = ("limits", "common_limits", "statuses", "mends", "replacements", "operators", "rules")
_OF_CHECK = ("rule", "mend", "text")


def _in_short(target: Mapping[str, Any]) -> list[str]:
    """What fits on a screen: a line for each setting, the operators' names, the rules in words."""
    lines = [f"{target['name']}: {target['title']}", target["description"], ""]
    for key, value in target.items():
        if key not in (*_TITLES, *_LEFT_OUT) and not key.endswith("_rule"):
            text = _as_words(value)
            lines += [f"{key}: {text}"] if text else []
    names = ", ".join(target["operators"])
    lines += [
        "",
        "operators:",
        *textwrap.wrap(names, 98, initial_indent="  ", subsequent_indent="  "),
    ]
    lines += ["", "rules:"]
    return [*lines, *(f"  - {r['text']} ({r['source']}, {r['date']})" for r in target["rules"])]


def _as_words(value: Any) -> str:
    """A setting in one line, without what is not known or what `check` tells; may be empty."""
    if isinstance(value, Mapping):
        inner = {key: _as_words(item) for key, item in value.items() if key not in _OF_CHECK}
        return "; ".join(f"{key} {text}" for key, text in inner.items() if text)
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)
