"""Templates of files, filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

_PLACE = re.compile(r"\{\{(\w+)\}\}")
_SECTION = re.compile(r"^\{\{([#^/])(\w+)\}\}$")
Values = Mapping[str, str | int | bool]


def fill(folder: Path, name: str, values: Values) -> str:
    """Fill in a template of a folder.

    `{{word}}` stands for a value. The lines between `{{#word}}` and `{{/word}}` stay if the value
    is true, those between `{{^word}}` and `{{/word}}` if it is not. Values are not looked into, so
    that what they hold is never taken for a place.
    """
    lines: list[str] = []
    open_sections: list[bool] = []
    for line in (folder / f"{name}.tmpl").read_text(encoding="utf-8").splitlines():
        section = _SECTION.match(line.strip())
        if section is None:
            if all(open_sections):
                lines.append(_PLACE.sub(lambda place: str(values[place[1]]), line))
        elif section[1] == "/":
            open_sections.pop()
        else:
            open_sections.append(bool(values[section[2]]) == (section[1] == "#"))
    return "\n".join(lines) + "\n"
