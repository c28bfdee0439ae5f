"""The suite of published architectures: parameters, generated data, table, command line."""

import json

import keras
import numpy as np
import pytest

from tfcompress.bench import acceptance
from tfcompress.bench.acceptance import ARCHITECTURES, LEGEND, Row, main, to_markdown
from tfcompress.bench.models import generated_data
from tfcompress.tools.accept import Acceptance, ToolResult

PUBLISHED = {
    "resnet8": 78_666,
    "ds_cnn": 24_908,
    "mobilenet_v1": 221_794,
    "autoencoder": 269_992,
    "digits": 12_346,
}
SHAPES = {
    "resnet8": ((32, 32, 3), 10),
    "ds_cnn": ((49, 10, 1), 12),
    "mobilenet_v1": ((96, 96, 3), 2),
    "autoencoder": ((640,), 640),
    "digits": ((8, 8, 1), 10),
}


@pytest.fixture(scope="module", params=PUBLISHED)
def built(request):
    task = ARCHITECTURES[request.param]
    return request.param, task.build(keras, task.published[0])


def test_parameters_and_shapes_are_those_published(built):
    name, model = built
    assert model.count_params() == ARCHITECTURES[name].published[1] == PUBLISHED[name]
    shape, outputs = SHAPES[name]
    assert model.input_shape == (None, *shape)
    assert model.output_shape == (None, outputs)


def test_generated_data_can_be_told_apart(built):
    name, model = built
    x, y = generated_data(model, 64)
    assert x.shape == (64, *model.input_shape[1:])
    assert x.dtype == np.float32
    assert x.min() >= 0
    assert x.max() <= 1
    again, _ = generated_data(model, 64)
    assert (x == again).all()
    if name == "autoencoder":
        assert y is x
        return
    # The nearest mean of a class in other data tells the class.
    other, labels = generated_data(model, 200, seed=1)
    means = np.array([other[labels == k].mean(0) for k in range(labels.max() + 1)])
    gaps = np.abs(x[:, None] - means[None]).reshape(64, len(means), -1).mean(-1)
    assert (gaps.argmin(1) == y).all()


def result(tool, status="passed", reason="", **figures):
    figures = {name.replace("_", " "): value for name, value in figures.items()}
    return ToolResult(tool, tool, status, reason, figures, 0.5)


def row(model, io_dtype, *results):
    return Row(model, "QAT", io_dtype, 24908, 50160, Acceptance("m.tflite", results))


def test_table_has_one_line_for_each_file():
    rows = [
        row("a", "int8", result("vela", CPU_ops=0, NPU_ops=50, ms=0.18), result("apk")),
        row(
            "b",
            "int8",
            result("vela", "failed", "2 on the CPU", CPU_ops=2, NPU_ops=9, ms=1.5),
            result("apk", "not run", "no aapt"),
        ),
        row("a", "float32", result("litertjs", max_LSB=3, max_LSB_of_an_op=1)),
        row("b", "float32", result("litertjs", max_LSB=0, kernels="XNNPACK", LSB_to_reference=4)),
    ]
    assert to_markdown(rows).splitlines() == [
        "Inputs and outputs int8:",
        "",
        "| model | parameters | int8 by | bytes | Vela CPU ops | NPU ops | ms (U55-128) | apk |",
        "|---|---|---|---|---|---|---|---|",
        "| a | 24,908 | QAT | 50,160 | 0 | 50 | 0.18 | passed |",
        "| b | 24,908 | QAT | 50,160 | FAILED 2 | 9 | 1.5 | not run |",
        "",
        "Inputs and outputs float32:",
        "",
        "| model | parameters | int8 by | bytes | LiteRT.js LSB |",
        "|---|---|---|---|---|",
        "| a | 24,908 | QAT | 50,160 | 3 (ops 1) |",
        "| b | 24,908 | QAT | 50,160 | 0 (XNNPACK; 4) |",
        "",
        *LEGEND.splitlines(),
        "",
        "- b, QAT, vela: failed: 2 on the CPU",
        "- b, QAT, apk: not run: no aapt",
    ]


@pytest.mark.parametrize(("status", "code"), [("passed", 0), ("failed", 1), ("not run", 1)])
def test_exit_status_and_files(monkeypatch, tmp_path, capsys, status, code):
    rows = [row("a", "int8", result("tflm", status, "why", arena_bytes=8208))]
    monkeypatch.setattr(acceptance, "run", lambda only, tools, folder: rows)
    assert main(["-o", str(tmp_path / "t.md")]) == code
    assert (tmp_path / "t.md").read_text() + "\n" == capsys.readouterr().out
    assert main(["-o", str(tmp_path / "t.json")]) == code
    (found,) = json.loads((tmp_path / "t.json").read_text())
    assert found["acceptance"]["results"][0]["figures"] == {"arena bytes": 8208}
    assert found["acceptance"]["passed"] is (status == "passed")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tools", "vella"], "unknown tool 'vella'"),
        (["--only", "resnet9"], "Did you mean 'resnet8'?"),
        (["-o", "table.txt"], "ends in .md or .json"),
        (["-o", "nowhere/table.md"], "there is no folder 'nowhere'"),
    ],
)
def test_bad_arguments(arguments, said, capsys):
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_digits_pass_all_that_runs_anywhere(tmp_path, capsys):
    tools = "tflm,openvino,vela,tflite_support"
    assert main(["--only", "digits", "--tools", tools, "--folder", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| digits | 12,346 |") for line in lines) == 3
    assert len(list(tmp_path.glob("*.tflite"))) == 3
