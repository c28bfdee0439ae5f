"""The files of a project, read from `templates/` and filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

FOLDER = Path(__file__).parent / "templates"
_PLACE = re.compile(r"\{\{(\w+)\}\}")
_SECTION = re.compile(r"^\{\{([#^/])(\w+)\}\}$")

Values = Mapping[str, str | int | bool]


def fill(name: str, values: Values) -> str:
    """Fill in a template.

    `{{word}}` stands for a value. The lines between `{{#word}}` and `{{/word}}` stay if the value
    is true, those between `{{^word}}` and `{{/word}}` if it is not. Values are not looked into, so
    that what they hold is never taken for a place.

    Args:
        name: of the template, without `.tmpl`.
        values: by word.

    Returns:
        The text.

    Raises:
        KeyError: there is no value for a word.

    Example:
        >>> fill("build.gradle.kts", {}).splitlines()[1]
        'plugins {'
    """
    lines: list[str] = []
    open_sections: list[bool] = []
    for line in (FOLDER / f"{name}.tmpl").read_text(encoding="utf-8").splitlines():
        section = _SECTION.match(line.strip())
        if section is None:
            if all(open_sections):
                lines.append(_PLACE.sub(lambda place: str(values[place[1]]), line))
        elif section[1] == "/":
            open_sections.pop()
        else:
            open_sections.append(bool(values[section[2]]) == (section[1] == "#"))
    return "\n".join(lines) + "\n"
