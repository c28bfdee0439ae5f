"""Every command of the command line: what it does, prints and writes."""

import json
import re
import resource
import subprocess
import sys
import types

import cli_files
import numpy as np
import pytest
from cli_files import run

import tfcompress as tfc
from tfcompress.cli.app import main

folder = cli_files.folder


def children_seconds():
    """CPU time of processes that ended, which does not count what runs beside them."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["compress", "--help"], ["targets"], ["inspect"], ["benchmark", "--runs", "3"]],
)
def test_quick_commands_import_no_tensorflow(folder, arguments):
    file = [str(folder / "model.tflite")] if arguments[0] in ("inspect", "benchmark") else []
    code = (
        "import sys\nfrom tfcompress.cli.app import main\n"
        f"assert main({arguments + file}) == 0\n"
        "found = {'tensorflow', 'keras', 'jax', 'torch'} & set(sys.modules)\n"
        "assert not found, found"
    )
    start = children_seconds()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # A tenth of a second for --help alone; TensorFlow takes several.
    assert children_seconds() - start < 3


def test_convert_writes_a_file_and_reports(folder, tmp_path, capsys):
    out = tmp_path / "out.tflite"
    command = ["convert", folder / "model.keras", "-o", out]
    assert run(*command, "--precision", "float16") == 0
    shown = capsys.readouterr()
    assert out.read_bytes()[4:8] == b"TFL3"
    assert "CONV_2D" in shown.out
    assert "convert ..." in shown.err
    assert run(*command, "--calibration", folder / "x.npy", "--samples", 5, "--json", "-q") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["file_bytes"] == out.stat().st_size
    assert shown.err == ""


def test_images_are_not_read_in_a_range_that_nobody_told(folder, tmp_path, capsys):
    command = ["convert", folder / "model.keras", "-o", tmp_path / "out.tflite"]
    assert run(*command, "--calibration", folder / "photos") == 2
    assert "nothing tells how the model takes pixels" in capsys.readouterr().err


def test_convert_makes_a_model_over_the_next_frames(folder, tmp_path, capsys):
    command = ["convert", folder / "model.keras", "-o", tmp_path / "step.tflite", "-q"]
    assert run(*command, "--window", "Flatten") == 2
    assert "--window is for --chunk" in capsys.readouterr().err
    data = ["--calibration", folder / "x.npy"]
    assert run(*command, "--chunk", 2, *data) == 2
    assert "windows=['flatten" in capsys.readouterr().err
    assert run(*command, "--chunk", 2, "--window", "Flatten", *data) == 0
    stream = tfc.Stream(tmp_path / "step.tflite")
    # Layers are numbered by what was made before.
    kinds = {re.sub(r"_\d+", "", name) for name in stream.states}
    assert kinds == {"conv2d_state", "flatten_window_state"}


def test_convert_passes_every_option_on(folder, tmp_path, monkeypatch):
    received = {}

    def convert(model, path, **settings):
        received.update(settings, model=model, path=path)
        return types.SimpleNamespace(render=lambda console: None, check=None)

    from tfcompress.conversion import convert as module

    monkeypatch.setattr(module, "convert", convert)
    command = ["convert", folder / "model.keras", "-o", tmp_path / "a.tflite"]
    extra = ["--precision", "int16x8", "--io-dtype", "int16", "--strict", "--select-tf-ops"]
    images = ["--calibration", folder / "photos", "--scaling", "-1_1", "--samples", 3]
    (tmp_path / "metadata.json").write_text('{"name": "Shapes"}')
    extra += [
        "--signature",
        "serve",
        "--batch-size",
        2,
        "--dense",
        "per_tensor",
        "--convolution",
        "per_tensor",
        "--range",
        "image=-1,0.5",
        "--skip",
        "conv*",
        "--observer",
        "kl",
        "--weight-observer",
        "mse",
        "--tune",
        "gptq,bias",
        "--metadata",
        tmp_path / "metadata.json",
    ]
    assert run(*command, *extra, *images, "--target", "ethos_u55", "--format", "tflite") == 0
    assert received.pop("metadata").name == "Shapes"
    data, model = received.pop("calibration"), received.pop("model")
    assert model.input_shape == (None, 8, 8, 1)
    assert data.shape == (3, 8, 8, 1)
    assert -1 <= data.min() < 0 < data.max() <= 1
    del received["progress"]
    assert received == {
        "path": tmp_path / "a.tflite",
        "precision": "int16x8",
        "io_dtype": "int16",
        "skip": ("conv*",),
        "observer": "kl",
        "tune": ["gptq", "bias"],
        "weight_observer": "mse",
        "strict": True,
        "select_tf_ops": True,
        "samples": 3,
        "batch_size": 2,
        "dense": "per_tensor",
        "convolution": "per_tensor",
        "ranges": {"image": (-1.0, 0.5)},
        "signature": "serve",
        "target": "ethos_u55",
        "format": "tflite",
        "compressed_weights": None,
        "flash": None,
        "ram": None,
    }
    command += ["--target", "microcontroller", "--flash", "1.5k", "--ram", "64k", "-q"]
    assert run(*command, "--compressed-weights") == 0
    found = [received[name] for name in ("compressed_weights", "flash", "ram")]
    assert found == [True, 1536, 65536]


def test_compress_trains_and_reports(folder, tmp_path, capsys):
    x = np.load(folder / "x.npy")
    np.savez(tmp_path / "data.npz", x=x, y=x.mean((1, 2)) * [1, 2, 3])
    files = [folder / "model.keras", "--data", tmp_path / "data.npz", "-o", tmp_path / "a.tflite"]
    command = ["compress", *files, "--recipe", "sparse50-int8", "--epochs", 4]
    assert run(*command) == 2
    assert "Pass --loss, such as" in capsys.readouterr().err
    settings = ["--loss", "mse", "--optimizer", "sgd", "--learning-rate", 0.1, "--batch-size", 5]
    assert run(*command, *settings, "--json") == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert (found["steps"], found["precision"]) == (16, "int8")
    assert found["sparsity"] == pytest.approx(0.5)
    assert found["after"]["loss"] < found["before"]["loss"]
    assert found["bytes"] == (tmp_path / "a.tflite").stat().st_size
    assert re.search(r"Weights in flash: [\d,]+ bytes as int8, about [\d,]+ under", shown.err)
    assert re.findall(r"epoch \d of 4", shown.err) == [f"epoch {i} of 4" for i in (1, 2, 3, 4)]
    assert run(*command, *settings, "--resume") == 2
    assert "no interrupted training to resume" in capsys.readouterr().err


def test_compress_passes_every_option_on(tmp_path, monkeypatch, capsys):
    received = {}

    def fine_tune(*files, **settings):
        received.update(settings, files=files)
        if settings["overwrite"]:
            (tmp_path / "o.tflite.checkpoint").mkdir()
            (tmp_path / "o.tflite.checkpoint" / "2.weights.h5").touch()
            raise KeyboardInterrupt
        return types.SimpleNamespace(render=lambda console: None, check=None)

    monkeypatch.setattr("tfcompress.fine_tuning.fine_tune", fine_tune)
    words = "--constant-rate --batch-size 3 "
    words += "--loss mse --from-logits --optimizer sgd --learning-rate 0.1 --seed 4 "
    words += "--validation-data v.npz --validation-split 0.2 --precision int4 --io-dtype int8 "
    words += "--target ethos_u55 --distill --keep k.keras --compressed-weights --ram 64k"
    needed = ["--recipe", "r.yaml", "--data", "d.npz", "--epochs", 5]
    command = ["compress", "m.keras", *needed, "-o", tmp_path / "o.tflite", *words.split()]
    assert run(*command, "--resume") == 0
    del received["progress"]
    assert [str(file) for file in received.pop("files")] == [
        *("m.keras", "r.yaml", "d.npz", str(tmp_path / "o.tflite"))
    ]
    assert str(received.pop("validation_data")) == "v.npz"
    assert str(received.pop("keep")) == "k.keras"
    assert received == {
        **{"epochs": 5, "batch_size": 3, "loss": "mse", "from_logits": True, "optimizer": "sgd"},
        **{
            "constant_rate": True,
            "learning_rate": 0.1,
            "seed": 4,
            "validation_split": 0.2,
            "precision": "int4",
        },
        **{"io_dtype": "int8", "target": "ethos_u55", "teacher": None, "distill": True},
        **{"resume": True, "overwrite": False, "compressed_weights": True},
        "ram": 65536,
    }
    capsys.readouterr()
    assert run(*command, "--overwrite", "-q") == 130
    assert "2 epochs are kept: go on with --resume added." in capsys.readouterr().err


def test_the_model_itself_is_not_overwritten(folder, capsys):
    before = (folder / "model.keras").read_bytes()
    assert run("convert", folder / "model.keras", "-o", folder / "model.keras") == 2
    assert "--output is the model itself" in capsys.readouterr().err
    assert (folder / "model.keras").read_bytes() == before


def test_inspect(folder, capsys):
    assert run("inspect", folder / "model.tflite", "--details") == 0
    assert "All tensors" in capsys.readouterr().out
    assert run("inspect", folder / "model.tflite", "--json") == 0
    assert json.loads(capsys.readouterr().out)["inputs"][0]["shape"] == [1, 8, 8, 1]


def test_migrate(tmp_path, capsys):
    import keras
    import tf_keras

    inputs = tf_keras.Input((3,))
    old = tf_keras.Model(inputs, tf_keras.layers.Dense(2, name="d")(inputs))
    old.save(tmp_path / "old.h5")
    assert run("migrate", tmp_path / "old.h5", tmp_path / "new.keras", "--json", "-q") == 0
    assert json.loads(capsys.readouterr().out)["max_difference"] < 1e-6
    new = keras.models.load_model(tmp_path / "new.keras")
    np.testing.assert_array_equal(new.get_layer("d").kernel, old.get_layer("d").kernel)
    assert run("migrate", tmp_path / "new.keras", tmp_path / "newer.keras") == 2
    assert not (tmp_path / "newer.keras").exists()


def test_verify_tells_pass_and_fail(folder, tmp_path, capsys):
    command = ["verify", folder / "model.keras", folder / "model.tflite", "--data"]
    assert run(*command, folder / "x.npy", "--json", "-q") == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True
    assert run(*command, folder / "photos", "--scaling", "0_1", "--layers") == 0
    import keras

    model = keras.models.load_model(folder / "model.keras")
    model.layers[-1].bias.assign([9, 9, 9])
    model.save(tmp_path / "other.keras")
    command[1] = tmp_path / "other.keras"
    capsys.readouterr()
    assert run(*command, folder / "x.npy", "-q") == 1
    shown = capsys.readouterr()
    assert "failed" in shown.out
    assert shown.err == ""


def test_benchmark(folder, capsys):
    files = [folder / "model.tflite"] * 2
    brief = ["--runs", 3, "--rounds", 2]
    assert run("benchmark", *files, *brief, "--json", "--data", folder / "x.npy") == 0
    found = json.loads(capsys.readouterr().out)
    assert (len(found["files"]), found["runs"], found["rounds"]) == (2, 3, 2)
    assert run("benchmark", *files, *brief, "-q", "--data", folder / "photos") == 0
    shown = capsys.readouterr()
    assert "median ms" in shown.out
    assert shown.err == ""


def test_demo_gets_folder_and_epochs(tmp_path, capsys, monkeypatch):
    received = {}

    def demo(folder, epochs=9, progress=None):
        received.update(folder=folder, epochs=epochs)
        progress("train", 1, 2)
        print("chatter of a library")
        return types.SimpleNamespace(
            to_dict=lambda: {"inf": float("inf"), "array": np.float32([1])},
            render=lambda console: console.print("[bold]table[/]"),
        )

    monkeypatch.setitem(sys.modules, "tfcompress.bench.demo", types.SimpleNamespace(demo=demo))
    assert main(["demo", "--out", str(tmp_path), "--epochs", "3"]) == 0
    assert received == {"folder": tmp_path, "epochs": 3}
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("table\n", "load TensorFlow ...\ntrain ...\n")
    assert main(["demo", "--json", "--quiet"]) == 0
    assert received["epochs"] == 9
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"inf": None, "array": [1.0]}
    assert shown.err == ""


def test_a_closed_pipe_and_a_full_disk_are_no_drama(folder):
    python = [
        sys.executable,
        "-c",
        "import sys; from tfcompress.cli.app import main; sys.exit(main())",
    ]
    command = [*python, "inspect", str(folder / "model.tflite"), "--json"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "Error: No space left on device\n")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""


def test_choose_precision_writes_a_recipe(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TFCOMPRESS_CACHE", str(tmp_path / "cache"))
    recipe, plot = tmp_path / "recipe.yaml", tmp_path / "plot.png"
    command = ("choose-precision", folder / "model.keras", "--calibration", folder / "x.npy")
    size = (folder / "model.tflite").stat().st_size
    assert run(*command, "--flash", size, "-o", recipe, "--plot", plot, "-q", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["file"]["bytes"] <= size
    import tfcompress as tfc

    assert tfc.Recipe.load(recipe).precision == found["precisions"]
    assert plot.read_bytes()[:4] == b"\x89PNG"
    assert run(*command, "-o", recipe) == 2
    assert "needs a budget; received none" in capsys.readouterr().err
