"""One HTML file that needs nothing else: templates, style, scripts and plotly.js put together."""

from __future__ import annotations

import base64
import functools
import hashlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfcompress.files.writing import atomic_write
from tfcompress.results import plain
from tfcompress.version import VERSION

FOLDER = Path(__file__).parent / "templates"
SCRIPTS = ("tables.js", "report.js")


def require_extra() -> None:
    """Raises an ImportError that tells what to install if Jinja2 or plotly is missing."""
    try:
        import jinja2  # noqa: F401
        import plotly  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"the report needs {error.name}, which is not installed. "
            "Run: pip install 'tfcompress[report]'"
        ) from error


def write_page(
    path: str | os.PathLike[str], template: str, values: Mapping[str, Any], data: Mapping[str, Any]
) -> int:
    """Writes an HTML file, whole or not at all, that asks the network for nothing."""
    require_extra()
    plotly, script = _plotly_js(), _inline("".join(map(_own, SCRIPTS)))
    text = (
        _environment()
        .get_template(template)
        .render(
            **values,
            data=plain(data),
            policy=_policy(plotly, script),
            # Files of the package, not of a user.
            style=_safe(_own("style.css")),
            plotly=_safe(plotly),
            script=_safe(script),
            version=VERSION,
        )
    )
    # JSON and names of files may hold halves of characters, which no text file can.
    content = text.encode(errors="replace")
    atomic_write(path, content)
    return len(content)


@functools.cache
def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # `tojson` escapes <, >, & and ', so that no text can end the element that it stands in.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment


def _own(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


@functools.cache
def _plotly_js() -> str:
    from plotly.offline import get_plotlyjs

    return _inline(get_plotlyjs())


def _inline(script: str) -> str:
    """A script as it may stand in a page, with one kind of line ends, which its hash is of."""
    script = script.replace("\r\n", "\n").replace("\r", "\n")
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _safe(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)


def _policy(*scripts: str) -> str:
    """A Content-Security-Policy: these scripts and no others, and nothing from anywhere."""
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


MISSING = "–"
MINUS = "−"


def number(value: float | None, digits: int = 0, sign: bool = False) -> str:
    """A number with thousands apart."""
    if value is None or math.isnan(value):
        return MISSING
    text = f"{value:{'+' if sign else ''},.{digits}f}"
    # What is rounded to 0 is neither.
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def significant(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, not fewer than its whole part."""
    if value is None or math.isnan(value):
        return MISSING
    if value == 0 or math.isinf(value):
        return number(value, 0)
    return number(value, min(9, max(0, digits - 1 - math.floor(math.log10(abs(value))))))


def spread(mean: float | None, std: float, count: int, digits: int, sign: bool = False) -> str:
    """A mean and, of several, its standard deviation."""
    text = number(mean, digits, sign)
    return text if mean is None or count < 2 else f"{text} ± {number(std, digits)}"
