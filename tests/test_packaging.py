"""The target files, and the package as it is after `pip install` outside the checkout."""

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import jsonschema
import pytest

from tfcompress.targets import list_targets, load_target

ROOT = Path(__file__).parents[1]
TARGETS = ROOT / "tflite_targets"
NAMES = ["edge_tpu", "ethos_u55", "ethos_u65", "microcontroller", "mobile_cpu", "mobile_gpu"]


def test_list_targets_names_every_file_but_the_schema():
    assert list_targets() == NAMES
    assert {path.stem for path in TARGETS.glob("*.json")} == {*NAMES, "schema"}


@pytest.mark.parametrize("name", NAMES)
def test_target_file_fits_the_schema(name):
    schema = json.loads((TARGETS / "schema.json").read_text())
    values = json.loads((TARGETS / f"{name}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(values)
    assert values["name"] == name
    assert values["precision"] in values["precisions"]


def test_edge_tpu_values():
    target = load_target("edge_tpu")
    assert target.weights.bits == 8
    assert target["weights"]["granularity"]["dense"] == "per-tensor"
    assert target.io_dtypes == ("int8", "uint8")
    assert target.shapes.inner_dims == 3
    assert target.memory.sram_bytes == 8 * 1024 * 1024


def test_target_is_read_only_and_can_be_copied():
    target = load_target("ethos_u55")
    with pytest.raises(AttributeError):
        target.precision = "int4"
    with pytest.raises(TypeError):
        target["precision"] = "int4"
    assert copy.deepcopy(target) == pickle.loads(pickle.dumps(target)) == target


def test_misspelt_target_names_the_close_match():
    with pytest.raises(ValueError, match=r"'edgetpu'.*microcontroller.*Did you mean 'edge_tpu'\?"):
        load_target("edgetpu")


def test_misspelt_key_names_the_close_match():
    with pytest.raises(AttributeError, match=r"'wieghts'.*Did you mean 'weights'\?"):
        load_target("edge_tpu").wieghts  # noqa: B018


def test_target_from_a_file_of_ones_own(tmp_path):
    path = tmp_path / "board.json"
    shutil.copy(TARGETS / "microcontroller.json", path)
    assert load_target(path) == load_target(str(path)) == load_target("microcontroller")


def test_missing_target_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no target file .*board\.json"):
        load_target(tmp_path / "board.json")


def without_precision(values):
    del values["precision"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without_precision, r"lacks the key 'precision'"),
        (lambda values: values.update(precison="int8"), r"key 'precison'.*mean 'precision'\?"),
        (lambda values: values.update(items=1), r"unknown key 'items'"),
        (lambda values: values.update(precision="int7"), r"precision must be one of .*'int7'"),
        (lambda values: values["weights"].update(bits="8"), r"weights: bits must be .*'8'"),
        (lambda values: values["shapes"].update(batch=True), r"batch must be integer.*True"),
        (lambda values: values.update(io_dtypes=["int9"]), r"io_dtypes\[0\] must be one of .*int9"),
        (lambda values: values.update(memory=None), r"memory must be object; received None"),
    ],
)
def test_target_file_that_does_not_fit_the_schema(tmp_path, spoil, message):
    values = json.loads((TARGETS / "edge_tpu.json").read_text())
    spoil(values)
    path = tmp_path / "board.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        load_target(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b"[]", b"3"])
def test_target_file_that_is_no_json_object(tmp_path, content):
    path = tmp_path / "board.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"board\.json (is not valid JSON|must be object)"):
        load_target(path)


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
    load = (
        "import tfcompress.targets as t; print(*[t.load_target(n).name for n in t.list_targets()])"
    )
    assert run(venv / "bin/python", "-c", load, cwd=cwd).split() == NAMES
    recipes = "from tfcompress.recipe_file import *; print(*ready_recipes())"
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
    recipes = {f"tfcompress/recipes/{path.name}" for path in ROOT.glob("tfcompress/recipes/*")}
    assert len(recipes) == 7
    assert recipes <= set(names)
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "tfcompress",
        "tflite_targets",
    }
    assert not any("__pycache__" in name for name in names)


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
