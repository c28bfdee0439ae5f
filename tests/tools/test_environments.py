"""Environments of other tools: made once, whole or not at all."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tfcompress.tools import environments
from tfcompress.tools.environments import Unavailable


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TFCOMPRESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A package that pip installs without an index."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "pyproject.toml").write_text(
        "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
    )
    (folder / "backend.py").write_text(
        "import zipfile\n"
        "def build_wheel(out, config_settings=None, metadata_directory=None):\n"
        "    name = 'answer-1.0-py3-none-any.whl'\n"
        "    with zipfile.ZipFile(f'{out}/{name}', 'w') as z:\n"
        "        z.writestr('answer.py', 'VALUE = 42')\n"
        "        info = 'answer-1.0.dist-info'\n"
        "        z.writestr(f'{info}/METADATA', 'Metadata-Version: 2.1\\nName: answer\\n'\n"
        "                   'Version: 1.0\\n')\n"
        "        z.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\\nGenerator: hand\\n'\n"
        "                   'Root-Is-Purelib: true\\nTag: py3-none-any\\n')\n"
        "        z.writestr(f'{info}/RECORD', '')\n"
        "    return name\n"
    )
    return str(folder)


@pytest.fixture(scope="module")
def answer(package, tmp_path_factory):
    """The cache that an environment of this package was made in, and its Python."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFCOMPRESS_CACHE", str(folder))
        return folder, environments.python_environment("answer", [package])


@pytest.fixture
def copied(answer, monkeypatch):
    """To save time, further virtual environments are copies of the first, which was really made."""
    run_tool = environments.run_tool

    def run(command, **options):
        if command[1:3] != ["-m", "venv"]:
            return run_tool(command, **options)
        shutil.copytree(answer[1].parents[1], command[3], symlinks=True, dirs_exist_ok=True)
        (Path(command[3]) / ".ready").unlink()
        return ""

    monkeypatch.setattr(environments, "run_tool", run)


@pytest.mark.slow
def test_environment_holds_its_packages_and_is_made_once(answer, package, monkeypatch):
    cache, python = answer
    assert python.is_relative_to(cache)
    asked = [python, "-c", "import answer; print(answer.VALUE)"]
    assert environments.run_tool(asked, what="answer") == "42\n"
    monkeypatch.setenv("TFCOMPRESS_CACHE", str(cache))
    monkeypatch.setattr(subprocess, "run", None)  # Nothing may be run the second time.
    assert environments.python_environment("answer", [package]) == python


def test_environment_that_fails_is_not_taken_for_whole(cache, copied, package):
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"cannot install .*nowhere for broken: .*nowhere"):
            environments.python_environment("broken", [f"{package}/nowhere"])


def test_other_packages_are_another_environment(cache, monkeypatch):
    made = []
    monkeypatch.setattr(environments, "run_tool", lambda command, **_: made.append(command))
    first = environments.python_environment("tool", ["one==1"])
    assert environments.python_environment("tool", ["one==2"]) != first
    assert len(made) == 4


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("TFCOMPRESS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert environments.cache_folder() == tmp_path / "tfcompress"
    monkeypatch.setenv("TFCOMPRESS_CACHE", str(tmp_path / "mine"))
    assert environments.cache_folder() == tmp_path / "mine"


def test_missing_program_says_what_to_install():
    with pytest.raises(Unavailable, match=r"vella is not installed.*apt-get install ethos"):
        environments.program("vella", "ethos")


def test_run_tool_tells_the_end_of_what_was_said():
    script = "import sys; print('first', file=sys.stderr); sys.exit('the last word')"
    with pytest.raises(Unavailable, match="probe failed with status 1: first the last word"):
        environments.run_tool([sys.executable, "-c", script], what="probe")
    with pytest.raises(Unavailable, match="probe did not end within 0 s"):
        environments.run_tool(
            [sys.executable, "-c", "import time; time.sleep(9)"], what="probe", seconds=0.2
        )
    with pytest.raises(Unavailable, match="probe cannot be started"):
        environments.run_tool(["/nowhere/probe"], what="probe")


def test_cache_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TFCOMPRESS_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(Unavailable, match="cannot make an environment"):
        environments.python_environment("tool", ["one==1"])
    assert os.listdir(tmp_path) == ["file"]


def test_without_a_network_pip_says_so_in_one_line(cache, copied, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    start = time.monotonic()
    with pytest.raises(Unavailable) as raised:
        environments.python_environment("vela", ["nobody-has-this==1.2"])
    assert str(raised.value) == (
        "cannot install nobody-has-this==1.2 for vela: No matching distribution found for "
        "nobody-has-this==1.2. Connect to a package index (PIP_INDEX_URL), then try again; or "
        "leave vela out."
    )
    assert time.monotonic() - start < 60


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_without_a_network_npm_says_so_in_one_line(cache, monkeypatch):
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    with pytest.raises(Unavailable) as raised:
        environments.node_environment("kotlin", ["nobody-has-this@1.2.0"])
    said = str(raised.value)
    assert said.startswith("cannot install nobody-has-this@1.2.0 for kotlin: FetchError: request")
    assert "failed, reason: connect ECONNREFUSED 127.0.0.1:9. Connect to an npm registry" in said
    assert "npm error" not in said


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import sys; sys.exit('npm error code E404\\nnpm error 404 Not Found: x')", "code E404"),
        ("import sys; sys.exit('ERROR: first\\nERROR: the last.\\n  trace')", "the last"),
        ("import sys; sys.exit('no disk')", "it failed with status 1: no disk"),
    ],
)
def test_reason_of_a_package_manager(script, reason):
    with pytest.raises(Unavailable) as raised:
        environments.install([sys.executable, "-c", script], ["six"], what="it", index="PyPI")
    assert str(raised.value) == (
        f"cannot install six for it: {reason}. Connect to PyPI, then try again; or leave it out."
    )
