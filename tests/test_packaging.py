"""The package as it is after `pip install` outside the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = sorted(
    path.stem for path in (ROOT / "tflite_targets").glob("*.json") if path.stem != "schema"
)


def run(*command, cwd):
    """Run a command and return what it printed; away from the checkout and from PYTHONPATH."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    quiet = {**kept, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=quiet,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    # From a copy, so that building leaves nothing in the checkout.
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    for name in ("tfcompress", "tflite_targets"):
        shutil.copytree(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run(*pip, "--wheel-dir", out, source, cwd=out)
    (built,) = out.glob("tfcompress-*.whl")
    return built


@pytest.fixture(scope="module")
def keras_file(tmp_path_factory):
    import keras

    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(2, 3, activation="relu")])
    path = tmp_path_factory.mktemp("model") / "tiny.keras"
    model.save(path)
    return path


def check_installed(venv, keras_file, cwd):
    """What a user does first: help, the targets, one conversion."""
    where = run(
        venv / "bin/python", "-c", "import tfcompress; print(*tfcompress.__path__)", cwd=cwd
    )
    assert Path(where.strip()).is_relative_to(venv)
    load = "import tfcompress as t; print(*[t.load_target(n).name for n in t.list_targets()])"
    assert run(venv / "bin/python", "-c", load, cwd=cwd).split() == NAMES
    recipes = "from tfcompress.recipe.file import *; print(*ready_recipes())"
    assert "sparse50-int8" in run(venv / "bin/python", "-c", recipes, cwd=cwd).split()
    for command in ("compress", "convert", "inspect", "verify", "benchmark", "demo", "targets"):
        assert command in run(venv / "bin/tfcompress", "--help", cwd=cwd)
    listed = run(venv / "bin/tfcompress", "targets", cwd=cwd)
    assert all(name in listed for name in NAMES)
    convert = ["convert", keras_file, "-o", "tiny.tflite", "--precision", "float16"]
    run(venv / "bin/tfcompress", *convert, cwd=cwd)
    assert (cwd / "tiny.tflite").read_bytes()[4:8] == b"TFL3"


def test_wheel_holds_the_data_and_nothing_else(wheel):
    listing = run(sys.executable, "-m", "zipfile", "-l", wheel, cwd=wheel.parent)
    names = [line.split()[0] for line in listing.splitlines()[1:]]
    for name in (*NAMES, "schema"):
        assert f"tflite_targets/{name}.json" in names
    assert "tfcompress/py.typed" in names
    recipes = {
        f"tfcompress/recipe/ready/{path.name}" for path in ROOT.glob("tfcompress/recipe/ready/*")
    }
    assert len(recipes) == 7
    assert recipes <= set(names)
    pages = {
        f"tfcompress/report/templates/{path.name}"
        for path in ROOT.glob("tfcompress/report/templates/*")
    }
    assert len(pages) >= 6
    assert pages <= set(names)
    kinds = {".html", ".java", ".kt", ".tmpl"}
    exported = [path for path in (ROOT / "tfcompress").rglob("*") if path.suffix in kinds]
    assert {path.relative_to(ROOT).as_posix() for path in exported} <= set(names)
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "tfcompress",
        "tflite_targets",
    }
    assert not any("__pycache__" in name for name in names)


@pytest.mark.slow
def test_installed_wheel_works_outside_the_checkout(wheel, keras_file, tmp_path):
    # The dependencies are borrowed from the environment the tests run in; a .pth file gives access
    # to them but not to the editable install there, as .pth files are not followed recursively.
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=tmp_path)
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", venv / "bin/python"]
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    (site,) = (venv / "lib").glob("python*/site-packages")
    paths = sysconfig.get_paths()
    (site / "dependencies.pth").write_text(f"{paths['purelib']}\n{paths['platlib']}\n")
    check_installed(venv, keras_file, tmp_path)


@pytest.mark.slow
def test_wheel_installs_into_an_empty_environment(wheel, keras_file, tmp_path):
    # The lock only constrains: what gets installed is what the wheel itself asks for.
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", venv, cwd=tmp_path)
    pip = [venv / "bin/python", "-m", "pip"]
    run(*pip, "install", "--quiet", wheel, "--constraint", ROOT / "requirements.lock", cwd=tmp_path)
    run(*pip, "check", cwd=tmp_path)
    check_installed(venv, keras_file, tmp_path)
