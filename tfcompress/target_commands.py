"""The commands on targets: `tfcompress check` and `tfcompress targets`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tfcompress import terminal
from tfcompress.options import Json
from tfcompress.terminal import emit


def check(
    model: Annotated[Path, typer.Argument(help="A .tflite file.", show_default=False)],
    target: Annotated[
        str,
        typer.Option(
            help="A target's name (tfcompress targets lists them) or JSON file.", show_default=False
        ),
    ],
    json: Json = False,
) -> None:
    """Check a .tflite file against the rules of a device or runtime.

    \b
    Examples:
      tfcompress check model.tflite --target edge_tpu
      tfcompress check model.tflite --target ethos_u55 --json
      tfcompress check model.tflite --target boards/my_board.json

    Operator by operator: mapped or not, why, and what to do. These are rules, not the target's
    compiler. Exit status: 0 if all is mapped and fits, 1 if not.
    """
    from tfcompress.targets import load_target
    from tfcompress.tflite.check import check as run

    found = run(model, load_target(target))
    emit(found, json)
    if not found.passed:
        raise typer.Exit(1)


def targets(
    name: Annotated[
        str | None, typer.Argument(help="A target's name or JSON file.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """List the devices and runtimes that files can be made for, or show one.

    \b
    Examples:
      tfcompress targets
      tfcompress targets edge_tpu
      tfcompress targets edge_tpu --json

    Without --json, operators are only named, without their limits.
    """
    from tfcompress.targets import list_targets, load_target

    if name is None:
        known = [load_target(each) for each in list_targets()]
        terminal.emit_table(
            [{key: t[key] for key in ("name", "precision", "description")} for t in known], json
        )
    else:
        target = load_target(name)
        terminal.emit_settings(target if json else _in_short(target), json)


def _in_short(target: Mapping[str, Any]) -> dict[str, Any]:
    """What fits on a screen: of the operators their names."""
    left_out = ("limits", "common_limits", "statuses", "mends", "replacements")
    short = {key: value for key, value in target.items() if key not in left_out}
    return {**short, "operators": tuple(target["operators"])}
