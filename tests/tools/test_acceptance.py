"""`accept`: statuses, verdict, bad names, and the command; with tools made up for the purpose."""

import json
import pkgutil
import sys

import numpy as np
import pytest
import typer
from acceptance_files import TOOLS, made_up_tools, two_layers
from ai_edge_litert import schema_py_generated as schema
from tflite_by_hand import OPS, TYPES, build, code, graph, operator, tensor

from tfcompress.cli import shipping, terminal
from tfcompress.tools import accept as module
from tfcompress.tools.accept import accept, accept_all, list_tools
from tfcompress.tools.driving import Tool


@pytest.fixture
def tools(tmp_path, monkeypatch):
    folder = tmp_path / "tools"
    folder.mkdir()
    made_up_tools(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(module, "TOOLS", {name: f"made_up_{name}:TOOL" for name in TOOLS})
    yield
    for name in TOOLS:
        sys.modules.pop(f"made_up_{name}", None)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(two_layers())
    return path


@pytest.fixture
def run(capsys):
    app = typer.Typer(rich_markup_mode=None)
    app.command()(shipping.accept)

    def run(*arguments):
        status = terminal.run(app, [str(word) for word in arguments])
        return status, *capsys.readouterr()

    return run


def test_real_tools_are_found_by_their_names():
    assert {"arm64", "litertjs", "mediapipe", "onnxruntime", "openvino"} <= set(list_tools())
    assert {"tflite_support", "tflm", "vela"} <= set(list_tools())
    for place in module.TOOLS.values():
        assert isinstance(pkgutil.resolve_name(place), Tool)


@pytest.mark.parametrize(
    ("tool", "status", "reason"),
    [
        ("yes", "passed", ""),
        ("no", "failed", "7 operators [CPU]"),
        ("refuses", "failed", "cannot read it"),
        ("elsewhere", "not applicable", "takes floats only"),
        ("absent", "not run", "sudo apt-get install absent"),
    ],
)
def test_status_and_reason(tools, file, tool, status, reason):
    (result,) = accept(file, [tool]).results
    assert (result.tool, result.title) == (tool, f"{tool.capitalize()} 1.0")
    assert (result.status, result.reason) == (status, reason)
    assert result.seconds >= 0


@pytest.mark.parametrize(
    ("asked", "passed"),
    [
        (["yes"], True),
        (["yes", "elsewhere"], True),
        (["elsewhere"], False),  # Nothing was shown.
        (["yes", "no"], False),
        (["yes", "refuses"], False),
        (["yes", "absent"], False),  # Not run is never passed.
        (None, False),
    ],
)
def test_verdict(tools, file, asked, passed):
    assert accept(file, asked).passed is passed


def test_all_tools_by_default_in_order_and_counted(tools, file):
    found = accept(file)
    names = ["absent", "counts", "elsewhere", "no", "refuses", "sees", "tuned", "yes"]
    assert [result.tool for result in found.results] == names
    assert found.counts == {"not run": 1, "not applicable": 1, "failed": 2, "passed": 4}


def test_dict_is_plain(tools, file):
    found = json.loads(json.dumps(accept(file, "yes").to_dict()))
    assert found["passed"] is True
    assert found["counts"] == {"passed": 1}
    assert found["results"][0]["figures"] == {"max LSB": 0, "bytes": 12345}


def test_table_tells_figures_and_reasons(tools, file):
    text = str(accept(file, ["yes", "no", "absent"]))
    assert "max LSB 0, bytes 12,345" in text
    assert "no (No 1.0): failed: 7 operators [CPU]" in text
    assert "absent (Absent 1.0): not run: sudo apt-get install absent" in text
    assert "NOT accepted: 1 passed, 1 failed, 1 not run" in text


def test_progress_names_the_tool(tools, file):
    seen = []
    accept(file, ["yes", "no"], progress=lambda *args: seen.append(args))
    assert seen == [("yes", 0, 2), ("no", 1, 2)]


def test_options_reach_their_tool_and_are_checked_first(tools, file):
    (result,) = accept(file, ["tuned"], speed="fast").results
    assert result.figures == {"speed": "fast"}
    with pytest.raises(ValueError, match="received 'warp'; expected slow or fast"):
        accept(file, ["tuned"], speed="warp")
    with pytest.raises(ValueError, match=r"unknown option 'spead' of tuned.*mean 'speed'"):
        accept(file, ["tuned"], spead="fast")
    with pytest.raises(ValueError, match=r"unknown option 'speed' of yes; these tools take none"):
        accept(file, ["yes"], speed="fast")


def test_files_are_measured_by_the_first(tools, file, run, tmp_path):
    other = tmp_path / "m.tflite"
    other.write_bytes(file.read_bytes() + bytes(len(file.read_bytes())))
    found = accept_all([file, other], "counts,no")
    assert [f.file_bytes for f in found.files] == [file.stat().st_size, other.stat().st_size]
    assert [f.results[0].figures["cost"] for f in found.files] == [12000, 8000]
    text = " ".join(str(found).split())
    assert "12,000 (1.00x)" in text
    assert "8,000 (0.67x)" in text
    assert f"{other.stat().st_size:,} (2.00x)" in text
    assert "NOT all files accepted" in text
    status, out, _ = run(file, other, "--with", "counts", "--json")
    assert (status, len(json.loads(out)["files"])) == (0, 2)
    with pytest.raises(TypeError, match="must be a list of paths"):
        accept_all(file)
    with pytest.raises(ValueError, match="received none"):
        accept_all([])


def test_unknown_tool_is_told_before_the_file_is_read(tools):
    with pytest.raises(ValueError, match=r"unknown tool 'absant'; expected one of .*'absent'\?"):
        accept("nowhere.tflite", ["yes", "absant"])
    with pytest.raises(ValueError, match="no tool was named; expected one of absent"):
        accept("nowhere.tflite", [])


def test_bad_files(tools, file, tmp_path):
    with pytest.raises(ValueError, match=r"no file at '.*nowhere\.tflite'"):
        accept(tmp_path / "nowhere.tflite", ["yes"])
    file.write_bytes(two_layers()[:200])
    with pytest.raises(ValueError, match="is damaged"):
        accept(file, ["yes"])


def test_data_that_does_not_fit(tools, file):
    with pytest.raises(ValueError, match="shape"):
        accept(file, ["yes"], data=[[1.0, 2.0]])


def test_command_exit_statuses(tools, file, run):
    assert run(file, "--with", "yes,elsewhere", "-q")[0] == 0
    for asked in ("yes,no", "yes,absent", "elsewhere"):
        assert run(file, "--with", asked, "-q")[0] == 1
    status, out, err = run(file, "--with", "yess", "-q")
    assert (status, out) == (2, "")
    assert "unknown tool 'yess'" in err
    assert "Did you mean 'yes'?" in err
    assert len(err.splitlines()) == 1


def test_command_prints_json(tools, file, run):
    status, out, _ = run(file, "--with", "yes, absent", "--json")
    found = json.loads(out)
    assert status == 1
    assert [result["status"] for result in found["results"]] == ["passed", "not run"]


def test_command_on_a_damaged_file(tools, file, run):
    file.write_bytes(b"\0" * 64)
    status, out, err = run(file, "--with", "yes", "-q")
    assert (status, out) == (2, "")
    assert "is not a .tflite file" in err


def test_command_passes_data_on(tools, file, run, tmp_path):
    np.save(tmp_path / "x.npy", np.array([[21, 0, 0]], np.float32))
    _, out, _ = run(file, "--with", "sees", "--data", tmp_path / "x.npy", "--json")
    assert json.loads(out)["results"][0]["figures"] == {"first": 42}  # The scale is 0.5.


def test_command_checks_data_and_accelerator(tools, file, run, tmp_path):
    status, _, err = run(file, "--with", "yes", "--data", tmp_path / "none.npy")
    assert (status, "no file at" in err) == (2, True)
    status, _, err = run(file, "--with", "yes", "--accelerator", "ethos-u55-128")
    assert (status, "unknown option 'accelerator'" in err) == (2, True)


def test_tools_may_stand_in_one_string(tools, file):
    assert [r.tool for r in accept(file, "yes, sees,,yes").results] == ["yes", "sees"]
    with pytest.raises(ValueError, match="no tool was named"):
        accept(file, " , ")
    with pytest.raises(TypeError, match=r"tools must be names.*; received int\."):
        accept(file, 3)


@pytest.mark.parametrize("path", [b"TFL3", None, 3])
def test_file_must_be_a_path(tools, path):
    said = rf"path must be the path of a \.tflite file; received {type(path).__name__}\."
    with pytest.raises(TypeError, match=said):
        accept(path, "yes")


def test_a_file_that_litert_crashes_on_is_an_error_and_not_the_end(tmp_path):
    # LiteRT's kernel of ADD aborts the process if a scale is 0.
    kind, options = schema.BuiltinOptions.AddOptions, schema.AddOptionsT()
    scales = {"x": 0.1, "y": 0.0}
    tensors = [tensor(n, [1, 4], TYPES.INT8, scale=[s], zero_point=[0]) for n, s in scales.items()]
    ops = [operator(0, [0, 0], [1], kind, options)]
    path = tmp_path / "model.tflite"
    path.write_bytes(build([code(OPS.ADD, 2)], [graph(tensors, ops, [0], [1])], []))
    with pytest.raises(
        ValueError, match=r"LiteRT cannot run '.*model\.tflite': it crashed: ended by SIGABRT"
    ):
        accept(path, ["tflm"])
