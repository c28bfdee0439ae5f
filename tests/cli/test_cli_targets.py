"""Commands on targets: files converted and trained for one, checked against one, lists of them."""

import json

import cli_files
import numpy as np
import pytest
from cli_files import run

import tfcompress as tfc
from tfcompress.cli.app import main

folder = cli_files.folder


def test_convert_for_a_target_ends_with_its_check(folder, tmp_path, capsys):
    command = ["convert", folder / "model.keras", "-o", tmp_path / "a.tflite"]
    command += ["--calibration", folder / "x.npy"]
    assert run(*command, "--target", "edge_tpu", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["io_dtype"], found["check"]["passed"]) == ("int8", True)
    assert run("check", tmp_path / "a.tflite", "--target", "edge_tpu") == 0
    assert run("check", tmp_path / "a.tflite", "--target", "web") == 1
    assert "Convert with io_dtype='float32'" in capsys.readouterr().out
    assert run(*command, "--target", "edge_tpu", "--io-dtype", "float32") == 2
    assert "'edge_tpu' takes io_dtype 'int8' or 'uint8'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "web", "--format", "onnx"], "target and metadata are for .tflite files"),
        (["--format", "openvino"], "expected a name that ends in .xml"),
        (["--target", "edge_tpu", "--precision", "float16"], "takes precision 'int8'; received"),
    ],
)
def test_convert_says_what_cannot_be_before_it_loads_the_model(tmp_path, capsys, words, message):
    (tmp_path / "model.keras").write_bytes(b"no model")
    assert run("convert", tmp_path / "model.keras", "-o", tmp_path / "a.onnx", *words) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "load the model" not in shown


def test_convert_fails_if_the_target_cannot_run_the_file(folder, tmp_path, capsys):
    import keras

    x = keras.Input((8, 8, 1))
    model = keras.Model(x, keras.ops.cumsum(keras.layers.Conv2D(2, 3)(x), axis=1))
    model.save(tmp_path / "sums.keras")
    command = ["convert", tmp_path / "sums.keras", "-o", tmp_path / "a.tflite"]
    command += ["--calibration", folder / "x.npy"]
    assert run(*command, "--target", "edge_tpu") == 1
    assert "CUMSUM" in capsys.readouterr().out
    assert (tmp_path / "a.tflite").exists()
    assert run(*command, "--target", "mobile_cpu") == 0  # LiteRT's own kernel runs it.


@pytest.mark.slow
def test_compress_for_a_target(folder, tmp_path, capsys):
    x = np.load(folder / "x.npy")
    np.savez(tmp_path / "data.npz", x=x, y=x.mean((1, 2)) * [1, 2, 3])
    out = tmp_path / "a.tflite"
    command = ["compress", folder / "model.keras", "--data", tmp_path / "data.npz", "-o", out]
    command += ["--epochs", 1, "--loss", "mse", "--optimizer", "adam", "--target", "edge_tpu"]
    assert run(*command, "--recipe", "int8", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["check"]["passed"], found["check"]["path"]) == (True, str(out))
    assert [t.dtype for t in tfc.inspect(out).inputs] == ["int8"]
    # Weights of 4 bits are stored in the 8 that it takes.
    assert run(*command, "--recipe", "int4", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["precision"], found["check"]["passed"]) == ("int8", True)
    assert run(*command, "--recipe", "int8", "--io-dtype", "float32") == 2
    command[command.index(out)] = tmp_path / "a.keras"
    assert run(*command, "--recipe", "int8") == 2
    assert "target are for .tflite files" in capsys.readouterr().err


def test_targets(capsys):
    assert main(["targets"]) == 0
    assert "edge_tpu" in capsys.readouterr().out
    assert main(["targets", "--json"]) == 0
    assert {row["name"] for row in json.loads(capsys.readouterr().out)} >= {"mobile_cpu"}
    assert main(["targets", "edge_tpu"]) == 0
    assert "weights: type int; bits 8; " in capsys.readouterr().out
    assert main(["targets", "edge_tpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["weights"]["bits"] == 8
