"""How `check` tells what it found, its command, and files that mean harm."""

import dataclasses
import json
import random
import shlex
import subprocess
import sys

import numpy as np
import pytest
import typer
from op_files import File, op_file, options, real, weight

from tfcompress.cli import terminal
from tfcompress.cli.devices import check as command
from tfcompress.targets.check import check
from tfcompress.targets.targets import list_targets, load_target
from tfcompress.tflite import flatbuffer


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a file that suits Edge TPUs, one that does not, and others that are none."""
    folder = tmp_path_factory.mktemp("files")
    file = File()
    first = file.part(real(1, 8, 8, 16), "int8")
    (folder / "good.tflite").write_bytes(file.bytes([first], [file.conv(first)]))
    middle = file.unary("HARD_SWISH", file.conv(first))
    (folder / "bad.tflite").write_bytes(file.bytes([first], [file.conv(middle)]))
    (folder / "corrupt.tflite").write_bytes((folder / "good.tflite").read_bytes()[:-300])
    (folder / "model.keras").write_bytes(b"PK\x03\x04" + bytes(100))
    (folder / "board.json").write_text('{"extends": "edge_tpu", "partition": "some"}')
    return folder


def run(capsys, *words):
    app = typer.Typer()
    app.command()(command)
    app.command("other")(lambda: None)  # One command alone would lose its name.
    status = terminal.run(app, ["check", *map(str, words)])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_exit_status_0_if_all_is_mapped(files, capsys):
    status, out, err = run(capsys, files / "good.tflite", "--target", "edge_tpu")
    assert (status, err) == (0, "")
    assert "1 of 1 mapped" in out
    assert "PASSED" in out
    assert "check of rules, not edgetpu_compiler, which tfcompress cannot run" in out


def test_exit_status_1_if_not(files, capsys):
    status, out, err = run(capsys, files / "bad.tflite", "--target", "edge_tpu")
    assert (status, err) == (1, "")
    assert "More than one subgraph is not supported" in out
    assert "Replace hard_swish by relu6 before training." in out


def test_json(files, capsys):
    path = files / "bad.tflite"
    status, out, _ = run(capsys, path, "--target", "edge_tpu", "--json")
    told = json.loads(out)
    assert status == 1
    assert told == json.loads(json.dumps(check(path, "edge_tpu").to_dict()))
    assert (told["passed"], told["mapped"], told["is_rule_check"]) == (False, 2, True)
    assert told["parts"][1] == {"mapped": False, "first": 2, "last": 3, "count": 2}
    assert told["operators"][2]["reason"] == "Google Coral Edge TPU does not list HARD_SWISH"


def test_names_the_tool_that_has_the_last_word(files, capsys):
    path = files / "good.tflite"
    _, out, _ = run(capsys, path, "--target", "ethos_u55", "--json")
    assert json.loads(out)["real_tool"] == (
        f"tfcompress accept {path} --with vela --accelerator ethos-u55-128"
    )
    assert "--with vela" in str(check(path, "ethos_u55"))
    # As `convert` does, which checks bytes and names the file afterwards.
    unnamed = check(path.read_bytes(), "mediapipe")
    named = dataclasses.replace(unnamed, path="a b.tflite")
    assert named.real_tool == "tfcompress accept 'a b.tflite' --with mediapipe"
    assert "not a run on the device" in str(check(path, "mobile_gpu"))


@pytest.mark.parametrize(
    ("file", "target", "message"),
    [
        ("good.tflite", "edgetpu", "unknown target 'edgetpu'; expected one of edge_tpu, ethos_u55"),
        ("good.tflite", "none.json", "no target file none.json"),
        ("good.tflite", "board.json", "partition must be one of ['rest', 'each', 'none']"),
        ("none.tflite", "edge_tpu", "no file at"),
        ("corrupt.tflite", "edge_tpu", "is damaged"),
        ("model.keras", "edge_tpu", "must go through tfcompress.convert first"),
        (".", "edge_tpu", "is a folder"),
    ],
)
def test_bad_input(files, capsys, monkeypatch, file, target, message):
    monkeypatch.chdir(files)
    status, out, err = run(capsys, file, "--target", target)
    assert (status, out) == (2, "")
    assert err.startswith("Error: ")
    assert message in err
    assert err.count("\n") == 1


def test_bytes_of_any_kind(files):
    data = (files / "good.tflite").read_bytes()
    for given in (data, bytearray(data), memoryview(data)):
        found = check(given, "ethos_u55")
        assert (found.passed, found.path) == (True, "")
        assert found.real_tool.startswith("tfcompress accept MODEL.tflite --with vela ")


@pytest.mark.parametrize(
    ("target", "accelerator"),
    [("ethos_u65", "ethos-u65-256"), ("ethos_u85", "ethos-u85-256")],
)
def test_the_command_that_is_printed_asks_for_the_same_chip(files, target, accelerator):
    data = (files / "good.tflite").read_bytes()
    path = files / "a good (1).tflite"
    path.write_bytes(data)
    command = check(path, target).real_tool
    assert shlex.split(command) == (
        ["tfcompress", "accept", str(path), "--with", "vela", "--accelerator", accelerator]
    )


def test_what_is_left_to_the_runtimes_own_kernels_is_no_failure(files, capsys):
    file = File()
    first = file.part(real(1, 10), "int8")
    data = file.bytes([first], [file.unary("SOFTMAX", file.unary("ABS", first))])
    (files / "softmax.tflite").write_bytes(data)
    status, out, _ = run(capsys, files / "softmax.tflite", "--target", "mobile_cpu")
    assert status == 1
    assert "NOT ALL MAPPED: 2 of 2 run on LiteRT's own kernels" in out
    assert "act only if time matters" in out
    assert "What to do" not in out


def test_a_long_file_fits_on_a_screen():
    file = File()
    first = last = file.part(real(1, 8, 8, 16), "int8")
    names = "LOG SQRT EXP ABS SIN COS CEIL ROUND FLOOR NEG SIGN RSQRT SQUARE ELU GELU".split()
    for i in range(100):
        last = file.conv(last) if i % 2 else file.unary(names[i // 2 % len(names)], last)
    found = check(file.bytes([first], [last]), "edge_tpu")
    assert len(found.operators) == 100
    assert found.mapped == 1  # behind one that can run in front of it
    text = str(found)
    assert len(text.splitlines()) <= 50
    assert "and others: --json lists all of them" in text
    assert "and 7 more" in text
    # Behind the first one it is that one which counts.
    assert text.count("operator 2 (SQRT), which is not mapped") == 1
    each = check(file.bytes([first], [last]), "ethos_u55")
    assert "parts in all" in str(each)


def test_names_are_not_taken_for_markup():
    model = flatbuffer.read(op_file("SIGN", "int8", [real(1, 4)], [real(1, 4)]))
    model.subgraphs[0].tensors[1].name = b"[red]x[/red]"
    assert "[red]x[/red]" in str(check(flatbuffer.write(model), "edge_tpu"))


def test_check_needs_no_tensorflow(files):
    code = (
        "import sys; from tfcompress.targets.check import check; "
        f"check({str(files / 'good.tflite')!r}, 'edge_tpu'); "
        "print([m for m in ('tensorflow', 'keras') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def hostile(random, data):
    """Changes what a file says while it stays a flatbuffer."""
    model = flatbuffer.read(data)
    graph = model.subgraphs[0]
    tensor, op = random.choice(graph.tensors), random.choice(graph.operators)
    indices = [-1, *range(len(graph.tensors))]
    sizes = [-3, 0, 1, 2, 10**9]
    change = random.randrange(9)
    if change == 0:
        op.builtinOptions, op.builtinOptionsType = None, 0
    elif change == 1:
        tensor.shape = random.choices(sizes, k=random.randrange(7))
    elif change == 2:
        op.inputs = random.choices(indices, k=random.randrange(5))
    elif change == 3:
        op.outputs = random.choices(indices, k=random.randrange(3))
    elif change == 4:
        tensor.type = random.randrange(18)
    elif change == 5 and tensor.quantization is not None:
        tensor.quantization.scale = np.float32([0, np.nan, np.inf, -1][: random.randrange(5)])
    elif change == 6:
        tensor.shapeSignature = random.choices(sizes, k=random.randrange(6))
    elif change == 7:
        code = random.choice(model.operatorCodes)
        code.builtinCode = random.randrange(210)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    else:
        tensor.buffer = random.randrange(len(model.buffers))
    return flatbuffer.write(model)


@pytest.mark.slow
def test_hostile_files_raise_nothing_but_what_says_that_they_are_damaged():
    built = options("Conv2D", strideH=1, strideW=1, dilationHFactor=1, dilationWFactor=1)
    parts = [real(1, 4, 4, 4), weight(4, 3, 3, 4), None]
    data = op_file("CONV_2D", "int8", parts, [real(1, 4, 4, 4)], built, 3)
    targets = [load_target(name) for name in list_targets()]
    dice, judged, damaged = random.Random(0), 0, 0
    for _ in range(400):
        changed = data
        try:
            for _ in range(dice.randrange(1, 4)):
                changed = hostile(dice, changed)
            found = check(changed, dice.choice(targets))
        except ValueError as error:
            damaged += "damaged" in str(error)
            continue
        judged += 1
        assert str(found)
        json.dumps(found.to_dict())
    assert judged + damaged == 400
    assert judged > 100


def test_bodies_of_control_flow_are_checked_too():
    model = flatbuffer.read(op_file("SQRT", "int8", [real(1, 4)], [real(1, 4)]))
    model.subgraphs.append(flatbuffer.read(flatbuffer.write(model)).subgraphs[0])
    found = check(flatbuffer.write(model), "ethos_u55")
    assert [(op.subgraph, op.mapped) for op in found.operators] == [(0, False), (1, False)]
    assert len(found.parts) == 1
    assert "1 not; 1 more inside of these, in bodies of control flow" in str(found)
    model.operatorCodes[0].builtinCode = model.operatorCodes[0].deprecatedBuiltinCode = 19
    found = check(flatbuffer.write(model), "edge_tpu")
    assert [op.mapped for op in found.operators] == [True, False]
    assert found.operators[1].status == "More than one subgraph is not supported"
