"""`c_array`: what its files say, what it refuses, and that it writes all or nothing."""

import json
import re

import numpy as np
import pytest
import typer
from metadata_models import colours
from tflite_by_hand import OPS, TYPES, build, code, fully_connected, graph, operator, tensor
from tflm_stub import METHODS as STUB_METHODS

from tfcompress.cli import terminal
from tfcompress.cli.shipping import c_array as command
from tfcompress.export.microcontroller import generation
from tfcompress.export.microcontroller.c_array import c_array, examine
from tfcompress.export.microcontroller.generation import METHODS, generate
from tfcompress.tflite import flatbuffer
from tfcompress.tools.environments import Unavailable


@pytest.fixture(autouse=True)
def arena(monkeypatch):
    """TFLite Micro is asked in slow tests only; here it always says this."""
    answer = (1000, "measured by hand")
    monkeypatch.setattr(
        "tfcompress.export.microcontroller.c_array.measure_arena", lambda *_: answer
    )


def dense(name="x", custom=None, weights=TYPES.INT8, activations=TYPES.INT8, shape=(1, 2)):
    """FULLY_CONNECTED of 2 to 3, then a SOFTMAX or a custom operator."""
    grid = {"scale": [0.5], "zero_point": [-3]} if activations == TYPES.INT8 else {}
    tensors = [
        tensor(name, list(shape), activations, 0, **grid),
        tensor("w", [3, 2], weights, 1, [0.25], [0]),
        tensor("y", [1, 3], activations, 0, **grid),
        tensor("z", [1, 3], activations, 0, **grid),
    ]
    last = code(OPS.CUSTOM, 1, custom) if custom else code(OPS.SOFTMAX)
    operators = [operator(0, [0, 1, -1], [2], *fully_connected()), operator(1, [2], [3])]
    codes = [code(OPS.FULLY_CONNECTED), last]
    size = 12 if weights == TYPES.FLOAT16 else 6
    return build(codes, [graph(tensors, operators, [0], [3])], [bytes(range(size))])


def test_files_and_report(tmp_path):
    data = dense()
    found = c_array(data, tmp_path / "out", name="g_digits")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(found.files)
    assert found.files == (
        *("g_digits.h", "g_digits.cc", "g_digits_ops.h", "g_digits_settings.h"),
        *("main.cc", "README.md"),
    )
    text = {name: (tmp_path / "out" / name).read_text() for name in found.files}
    codes = re.findall(r"0x([0-9a-f]{2}),", text["g_digits.cc"])
    assert bytes(int(c, 16) for c in codes) == data
    assert "alignas(16) const unsigned char g_digits_data[G_DIGITS_SIZE]" in text["g_digits.cc"]
    assert f"#define G_DIGITS_SIZE {len(data)}u" in text["g_digits.h"]
    calls = re.findall(r"resolver\.(\w+)\(\)", text["g_digits_ops.h"])
    assert calls == list(found.ops) == ["AddFullyConnected", "AddSoftmax"]
    assert "#define G_DIGITS_OPS 2\n" in text["g_digits_ops.h"]
    settings = dict(re.findall(r"#define (\w+) (.+)", text["g_digits_settings.h"]))
    assert settings == {
        "G_DIGITS_ARENA_SIZE": "1008u",  # 1000 rounded up to 16
        "G_DIGITS_INPUT_0_BYTES": "2u",
        "G_DIGITS_INPUT_0_SCALE": "0.5f",
        "G_DIGITS_INPUT_0_ZERO_POINT": "(-3)",
        "G_DIGITS_OUTPUT_0_BYTES": "3u",
        "G_DIGITS_OUTPUT_0_SCALE": "0.5f",
        "G_DIGITS_OUTPUT_0_ZERO_POINT": "(-3)",
    }
    assert "1,000 bytes, measured by hand" in text["README.md"]
    assert (found.array_bytes, found.arena_bytes, found.arena_note) == (
        *(len(data), 1000),
        "measured by hand",
    )
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["inputs"][0] == {
        **{"name": "x", "shape": [1, 2], "dtype": "int8", "bytes": 2},
        **{"scale": 0.5, "zero_point": -3, "about": ""},
    }
    assert "1,000 bytes, measured by hand" in str(found)
    assert "scale 0.5, zero point -3" in str(found)


def test_without_tflite_micro_the_estimate_is_named_so(tmp_path, monkeypatch):
    def unavailable(*_):
        raise Unavailable("no index can be reached")

    monkeypatch.setattr("tfcompress.export.microcontroller.c_array.measure_arena", unavailable)
    found = c_array(dense(), tmp_path / "out")
    assert found.arena_bytes is None
    assert found.arena_lower_bound == 5  # 2 bytes go in, 3 come out; SOFTMAX works in place
    assert "not measured (no index can be reached); at least 5 bytes, an estimate" in (
        " ".join(str(found).split())
    )
    settings = (tmp_path / "out/model_settings.h").read_text()
    assert "NOT MEASURED: no index can be reached" in settings
    assert "#define MODEL_ARENA_LOWER_BOUND 5u" in settings
    assert "#define MODEL_ARENA_SIZE 16400u" in settings  # 2 * 5 + 16 KiB, rounded up to 16
    assert "not measured" in (tmp_path / "out/README.md").read_text()


def test_every_method_is_one_of_tflite_micro():
    assert sorted(METHODS.values()) == sorted(f"Add{name}" for name in STUB_METHODS)
    picked = ("BATCH_MATMUL", "CONV_2D", "L2_NORMALIZATION", "PADV2", "UNPACK", "ethos-u")
    expected = ("BatchMatMul", "Conv2D", "L2Normalization", "PadV2", "Unpack", "EthosU")
    assert tuple(METHODS[name] for name in picked) == tuple(f"Add{name}" for name in expected)


def test_a_compiled_file_for_ethos_u_is_not_measured(tmp_path):
    found = c_array(dense(custom="ethos-u"), tmp_path / "out")
    assert found.ops == ("AddFullyConnected", "AddEthosU")
    assert found.arena_bytes is None
    assert "runs on the device alone" in found.arena_note


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (dense(custom="FlexErf"), "no operator FlexErf, which a model of .* needs"),
        (dense(custom="*/\n"), r"no operator \*/\\n, which"),
        (
            dense(activations=TYPES.FLOAT32),
            r"Hybrid models are not supported \(FULLY_CONNECTED with float activations\)",
        ),
        (
            dense(weights=TYPES.FLOAT16, activations=TYPES.FLOAT32),
            r"Hybrid models are not supported \((FULLY_CONNECTED|float16)",
        ),
        (dense(activations=TYPES.INT64, weights=TYPES.INT64)[:200], "is damaged"),
        (dense(activations=TYPES.COMPLEX64), "has the type complex64; expected fixed sizes"),
        (dense(shape=(0, 2)), r"'x' .* has the shape \[0, 2\]; expected fixed sizes"),
        (b"no model", "is not a .tflite file"),
    ],
)
def test_files_that_do_not_run_are_refused(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        c_array(data, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_the_signature_leaves_open_is_the_one_that_is_stored(tmp_path):
    model = flatbuffer.read(dense())
    for index in (0, 3):
        stored = model.subgraphs[0].tensors[index]
        stored.shapeSignature = [-1, *stored.shape[1:]]
    found = c_array(flatbuffer.write(model), tmp_path / "out")
    assert [port.shape for port in (*found.inputs, *found.outputs)] == [(1, 2), (1, 3)]


def test_a_refusal_of_tflite_micro_leaves_nothing_behind(tmp_path, monkeypatch):
    def refuse(*_):
        raise ValueError("TFLite Micro refuses the file")

    monkeypatch.setattr("tfcompress.export.microcontroller.c_array.measure_arena", refuse)
    with pytest.raises(ValueError, match="refuses the file"):
        c_array(dense(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["", "3d", "a-b", "../x", "a b", "_x", "a__b", "ä", "x;", "main", "Main", "a" * 61, 3]
)
def test_names_that_are_no_identifiers_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"name: received .*; expected a C identifier"):
        c_array(dense(), tmp_path / "out", name=name)
    assert list(tmp_path.iterdir()) == []


def test_hostile_tensor_names_stay_in_their_comments():
    name = '*/ #include "/etc/passwd" /* \\\n??/ `|'
    data = dense(name=name)
    files = generate(examine(data, "model", "a file"), data)
    line = next(line for line in files["model_settings.h"].splitlines() if "input 0" in line)
    # Nothing of it ends the comment, continues the line, or is a trigraph for a backslash.
    assert line.startswith("/* input 0: ")
    assert line.endswith(", int8, 1 x 2 */")
    assert not set(line[2:-2]) & set('*\\#"\n')
    row = next(line for line in files["README.md"].splitlines() if "input 0" in line)
    assert row.count("|") == 6
    assert row.count("`") == 2


def test_numbers_are_exact():
    for value in (0.1, 1 / 255, 3.0, 1e-30, 1e30, 2**-126):
        text = generation.number(float(np.float32(value)))
        assert text[-1] == "f"
        assert set(text) & set(".e")
        assert np.float32(text[:-1]) == np.float32(value)
    assert generation.number(-2.0) == "(-2.0f)"
    with pytest.raises(ValueError, match="a scale is nan"):
        generation.number(float("nan"))


def test_folders_with_content_are_left_alone(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    c_array(dense(), folder)  # an empty one will do
    (folder / "main.cc").write_text("mine")
    (folder / "notes.txt").write_text("also mine")
    with pytest.raises(ValueError, match=r"is not empty; expected a new folder.*--force"):
        c_array(colours("float32"), folder)
    assert (folder / "main.cc").read_text() == "mine"
    found = c_array(colours("float32"), folder, force=True)
    assert (folder / "notes.txt").read_text() == "also mine"
    assert "AddMean" in (folder / "model_ops.h").read_text()
    assert sorted(p.name for p in folder.iterdir()) == sorted([*found.files, "notes.txt"])
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_folders_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="a file has that name"):
        c_array(dense(), tmp_path / "file", force=True)
    with pytest.raises(NotADirectoryError, match="file' is a file"):
        c_array(dense(), tmp_path / "file/out")
    # A folder in the place of a file: all stays as it was.
    (tmp_path / "out/main.cc").mkdir(parents=True)
    with pytest.raises(OSError, match="cannot write"):
        c_array(dense(), tmp_path / "out", force=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["main.cc"]


def test_the_command(tmp_path, monkeypatch, capsys):
    app = typer.Typer()
    app.command()(command)
    (tmp_path / "m.tflite").write_bytes(dense())
    monkeypatch.chdir(tmp_path)
    arguments = ["m.tflite", "-o", "out", "--name", "g_m", "--json", "--quiet"]
    assert terminal.run(app, arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["folder"], found["name"], found["arena_bytes"]) == ("out", "g_m", 1000)
    assert (tmp_path / "out/g_m.cc").is_file()
    assert terminal.run(app, arguments) == 2
    assert "is not empty" in capsys.readouterr().err
    assert terminal.run(app, [*arguments, "--force"]) == 0
    assert terminal.run(app, ["m.tflite", "-o", "new", "--name", "a b"]) == 2
    assert "expected a C identifier" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
