"""Virtual environments of other tools: one each, as their pins conflict; made at first use.

They lie in `$TFCOMPRESS_CACHE`, else in `tfcompress` under `$XDG_CACHE_HOME` or `~/.cache`, and are
named after their packages and the Python version, so that a change of either makes a new one.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tfcompress.files import children

_READY = ".ready"
_SECONDS = 1800.0
Maker = Callable[[Path], None]


class Unavailable(RuntimeError):
    """A tool cannot be had here; the message says why and what to do.

    Attributes:
        said: the lines that a program printed before it failed.
    """

    def __init__(self, message: str, said: Sequence[str] = ()):
        super().__init__(message)
        self.said = tuple(said)


def cache_folder() -> Path:
    """Return the folder that environments lie in; it need not exist."""
    if given := os.environ.get("TFCOMPRESS_CACHE"):
        return Path(given).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "tfcompress"


def python_environment(name: str, packages: Sequence[str]) -> Path:
    """Return the Python of a virtual environment that holds these packages."""

    def make(folder: Path) -> None:
        run_tool([sys.executable, "-m", "venv", str(folder)], what=name)
        pip = [str(folder / "bin/python"), "-m", "pip", "--disable-pip-version-check"]
        # With its own 5 retries pip is slow to tell that there is no network.
        command = [*pip, "install", "--quiet", "--retries", "1"]
        install(command, packages, what=name, index="a package index (PIP_INDEX_URL)")

    return made(name, _python_contents(packages), make) / "bin/python"


def python_environment_is_ready(name: str, packages: Sequence[str]) -> bool:
    """Whether `python_environment` would have to make nothing."""
    return (_folder_of(name, _python_contents(packages)) / _READY).exists()


def _python_contents(packages: Sequence[str]) -> list[str]:
    return ["python" + ".".join(map(str, sys.version_info[:2])), *packages]


def node_environment(name: str, packages: Sequence[str]) -> Path:
    """Return a folder with these npm packages under `node_modules`."""
    npm = program("npm", "npm")

    def make(folder: Path) -> None:
        command = [npm, "install", "--no-audit", "--no-fund", "--loglevel=error"]
        command += ["--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--prefix", str(folder)]
        install(command, packages, what=name, index="an npm registry (npm_config_registry)")

    return made(name, ["npm", *packages], make)


def install(command: Sequence[str], packages: Sequence[str], *, what: str, index: str) -> None:
    """Run a package manager."""
    try:
        run_tool([*command, *packages], what=what)
    except Unavailable as error:
        raise Unavailable(
            f"cannot install {', '.join(packages)} for {what}: {_reason(error)}. Connect to "
            f"{index}, then try again; or leave {what} out.",
            error.said,
        ) from error


def _reason(error: Unavailable) -> str:
    """What pip or npm gives as the reason, without the traces around it."""
    pip = [line for line in error.said if line.startswith("ERROR: ")]
    # Of npm's lines those before have codes, those behind a trace.
    npm = [line for line in error.said if line.startswith("npm error ") and "Error: " in line]
    npm += [line for line in error.said if line.startswith("npm error ")]
    reason = (pip[-1] if pip else npm[0] if npm else str(error)).strip()
    return reason.removeprefix("ERROR: ").removeprefix("npm error ").rstrip(".")[:400]


def program(name: str, debian_package: str) -> str:
    """Return the path of an installed program."""
    found = shutil.which(name)
    if found is None:
        raise Unavailable(
            f"{name} is not installed: on Debian or Ubuntu, sudo apt-get install {debian_package}"
        )
    return found


def run_tool(
    command: Sequence[str | os.PathLike[str]],
    *,
    what: str,
    seconds: float = _SECONDS,
    folder: Path | None = None,
) -> str:
    """Run a program of an environment and return what it printed on standard output."""
    # The libraries of the calling environment are none of the tool's business.
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    try:
        done = children.finished(
            command, seconds, text=True, errors="replace", cwd=folder, env=kept
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{what} did not end within {seconds:.0f} s") from None
    except OSError as error:
        raise Unavailable(f"{what} cannot be started: {error}") from error
    if done.returncode != 0:
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise Unavailable(
            f"{what} failed with status {done.returncode}: {' '.join(said[-3:])[-600:]}", said
        )
    return done.stdout


def _folder_of(name: str, contents: Sequence[str]) -> Path:
    digest = hashlib.sha256("\n".join(contents).encode()).hexdigest()[:10]
    return cache_folder() / f"{name}-{digest}"


def made(name: str, contents: Sequence[str], make: Maker) -> Path:
    folder = _folder_of(name, contents)
    if (folder / _READY).exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock")):
            # Another process may have made it meanwhile.
            if not (folder / _READY).exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                # Last, so that what was interrupted never counts as whole.
                (folder / _READY).write_text("\n".join(contents) + "\n")
    except OSError as error:
        raise Unavailable(f"cannot make an environment in '{folder}': {error}") from error
    return folder


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
