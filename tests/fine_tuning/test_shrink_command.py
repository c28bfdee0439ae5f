"""`tfcompress shrink`: surgery from a file to a file, with training and without."""

import json
import re
import subprocess
import sys
import types

import fine_tuning_files
import keras
import numpy as np
import pytest
from fine_tuning_files import LOSS, make_data, make_model

import tfcompress as tfc
from tfcompress.cli.app import main
from tfcompress.cli.training import steps_of
from tfcompress.surgery import macs
from tfcompress.surgery.pruning.prune_channels import prune_channels
from tfcompress.surgery.shrink import Shrink

# A fixture of all modules about fine_tune; its model has one convolution of 8 filters.
made = fine_tuning_files.made
HALF = ["--macs", "0.5", "--round-to", "1"]


@pytest.fixture
def command(made, tmp_path, monkeypatch, capsys):
    """The command in a folder of its own; gives (status, output, what was said)."""
    monkeypatch.chdir(tmp_path)

    def command(*words, model=made / "model.keras", output="out.keras"):
        status = main(["shrink", str(model), "-o", output, *map(str, words)])
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return command


def half_by_hand(made, **settings):
    model = keras.saving.load_model(made / "model.keras")
    return prune_channels(model, macs=0.5, round_to=1, **settings)


def same_weights(a, b):
    for x, y in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_array_equal(x, y)


def test_surgery_alone(command, made, tmp_path):
    status, out, said = command(*HALF, "--json")
    assert status == 0
    stages = re.findall(r"^(.*) \.\.\.$", said, re.M)
    assert stages == ["load TensorFlow", "load the model", "shrink", "write the file"]
    found = json.loads(out)
    written = keras.saving.load_model(tmp_path / "out.keras")
    same_weights(written, half_by_hand(made))
    # 4 of 8 filters: 4 x 4 places x 3 x 3 x 2 x 4, and 4 x 4 x 4 x 3 of the Dense.
    assert macs.count(written)[0] == 16 * 18 * 4 + 64 * 3 == 1344
    assert found["report"]["macs"] == [2688, 1344]
    assert found["report"]["params"] == [macs.count(make_model())[1], macs.count(written)[1]]
    assert found["report"]["changes"][0]["detail"] == "8 -> 4 channels"
    assert found["bytes"] == (tmp_path / "out.keras").stat().st_size
    # It goes on training as the original did.
    assert type(written.optimizer) is keras.optimizers.SGD
    assert written.get_compile_config()["loss"] == LOSS
    assert [path.name for path in tmp_path.iterdir()] == ["out.keras"]


def test_a_quiet_table(command):
    status, out, said = command(*HALF, "-q")
    assert (status, said) == (0, "")
    assert re.search(r"conv2d\S* +. 8 -> 4 channels", out)
    assert re.search(r"MACs +. +2,688 . +1,344", out)
    assert re.search(r"bytes, zipped +. +[\d,]+ . +[\d,]+", out)
    # Of 144 + 8 + 4 * 8 + 384 + 3 parameters.
    assert "prune_channels left 50.0% of the MACs and 50.3% of the parameters. Not trained" in out


@pytest.mark.parametrize(
    ("words", "macs_left"),
    [
        (["--method", "svd", "--rank", "1", "--layers", "dense*"], 2304 + 128 + 3),
        (["--method", "separable"], 16 * 9 * 2 + 16 * 2 * 8 + 384),
        (["--sparsity", "0.25", "--round-to", "2", "--score", "l1"], 1728 + 288),
    ],
)
def test_other_surgery(command, tmp_path, words, macs_left):
    status, _, said = command(*words, "-q")
    assert (status, said) == (0, "")
    assert macs.count(keras.saving.load_model(tmp_path / "out.keras"))[0] == macs_left


def test_a_tflite_file_computes_what_the_keras_file_does(command, tmp_path):
    assert command(*HALF, "-q")[0] == 0
    status, out, _ = command(*HALF, "--json", output="out.tflite")
    assert status == 0
    assert json.loads(out)["precision"] == "float32"
    images = make_data(8)[0].astype("float32")
    assert tfc.verify(tmp_path / "out.keras", tmp_path / "out.tflite", images).passed
    status, out, _ = command(*HALF, "-q", "--precision", "float16", output="half.tflite")
    assert status == 0
    assert "half.tflite, float16" in out


def test_scores_look_at_data_without_training(command, made, tmp_path):
    status, _, said = command(*HALF, "--score", "taylor", "--data", made / "data.npz", "-q")
    assert (status, said) == (0, "")
    images, labels = make_data()
    by_hand = half_by_hand(made, score="taylor", data=(images, labels), loss=LOSS)
    same_weights(keras.saving.load_model(tmp_path / "out.keras"), by_hand)


def test_the_multiple_may_be_measured(monkeypatch, command, made, tmp_path):
    fastest = "tfcompress.surgery.pruning.measuring.fastest_rounding"
    monkeypatch.setattr(fastest, lambda *_args, **_settings: 1)
    words = ["--macs", "0.5", "--round-to", "latency", "--data", made / "data.npz", "-q"]
    status, _, said = command(*words)
    assert (status, said) == (0, "")
    by_hand = half_by_hand(made, score="reconstruction", data=make_data()[0])
    same_weights(keras.saving.load_model(tmp_path / "out.keras"), by_hand)


def test_weights_are_fitted_to_data_without_training(command, made, tmp_path):
    status, _, said = command(*HALF, "--data", made / "data.npz", "-q")
    assert (status, said) == (0, "")
    by_hand = half_by_hand(made, score="reconstruction", data=make_data()[0])
    same_weights(keras.saving.load_model(tmp_path / "out.keras"), by_hand)


def test_a_model_that_was_not_compiled(command, made, tmp_path):
    make_model().save(tmp_path / "plain.keras")
    assert command(*HALF, "-q", model=tmp_path / "plain.keras")[0] == 0
    assert not keras.saving.load_model(tmp_path / "out.keras").compiled
    words = [*HALF, "--score", "taylor", "--data", made / "data.npz", "-q"]
    status, _, said = command(*words, model=tmp_path / "plain.keras")
    assert status == 2
    assert re.match("Error: expected a loss", said)
    assert command(*words, "--loss", LOSS, model=tmp_path / "plain.keras")[0] == 0


@pytest.mark.slow
def test_training_from_the_original(command, made, tmp_path):
    words = ["--data", made / "data.npz", "--epochs", 2, "--batch-size", 16, "--json"]
    status, out, said = command(*HALF, *words, "--distill")
    assert status == 0
    assert re.findall(r"epoch \d of \d", said) == ["epoch 1 of 2", "epoch 2 of 2"]
    found = json.loads(out)
    images, labels = make_data()

    def judged(model):
        model.compile("sgd", LOSS, metrics=["accuracy"], jit_compile=False)
        return pytest.approx(model.evaluate(images, labels, verbose=0, return_dict=True), abs=1e-5)

    assert found["before"] == judged(keras.saving.load_model(made / "model.keras"))
    assert found["shrunk"]["scores"] == judged(half_by_hand(made, data=images))
    written = keras.saving.load_model(tmp_path / "out.keras")
    assert found["after"] == judged(written)
    assert found["shrunk"]["report"]["macs"] == [2688, macs.count(written)[0]]
    assert found["taught"]["losses"] == {"soft_labels": 1.0}
    assert (found["steps"], found["shrunk"]["epochs"]) == (10, 0)


@pytest.mark.slow
def test_training_without_a_teacher(command, made):
    words = ["--data", made / "data.npz", "--epochs", 2, "--batch-size", 16, "-q"]
    status, out, said = command(*HALF, *words)
    assert (status, said) == (0, "")
    assert re.search(r"what +. before . shrunk . +after", out)
    assert re.search(r"MACs +. +2,688 . +1,344 . +1,344", out)
    assert "Trained 2 epochs (10 steps)" in out


def test_every_option_is_passed_on(monkeypatch, tmp_path):
    received = {}

    def shrink(*files, **settings):
        received.update(settings, given=[str(x) for x in files[:2]], steps=files[2])
        return types.SimpleNamespace(render=lambda console: None, check=None)

    monkeypatch.setattr("tfcompress.fine_tuning.shrink", shrink)
    words = "--sparsity 0.3 --score apoz --scope local --round-to 4 --max-sparsity 0.7 --keep a "
    words += "--keep b* --data d.npz --epochs 3 --distill --teacher t.keras --batch-size 8 "
    words += "--loss mse --optimizer sgd --learning-rate 0.1 --constant-rate --seed 5 --resume "
    words += "--validation-data v.npz --precision float16 --io-dtype float32 --target mobile_cpu"
    assert main(["shrink", "m.keras", "-o", "o.tflite", *words.split()]) == 0
    channels = {"sparsity": 0.3, "score": "apoz", "scope": "local", "round_to": 4}
    channels |= {"max_sparsity": 0.7, "keep": ["a", "b*"]}
    assert received.pop("steps") == Shrink({"channels": channels})
    assert received.pop("given") == ["m.keras", "o.tflite"]
    del received["progress"]
    assert {k: str(v) for k, v in received.items()} == {
        **{"data": "d.npz", "epochs": "3", "distill": "True", "teacher": "t.keras"},
        **{"batch_size": "8", "loss": "mse", "from_logits": "False", "optimizer": "sgd"},
        **{"learning_rate": "0.1", "constant_rate": "True", "validation_data": "v.npz"},
        **{"validation_split": "0.0", "seed": "5", "precision": "float16"},
        **{"io_dtype": "float32", "target": "mobile_cpu", "resume": "True", "overwrite": "False"},
    }


def test_an_interrupted_training_says_how_to_go_on(command, made, monkeypatch, tmp_path):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("tfcompress.fine_tuning.shrink", interrupted)
    folder = tmp_path / "out.keras.checkpoint"
    words = [*HALF, "--data", made / "data.npz", "--epochs", 3, "-q"]
    assert "kept" not in command(*words)[2]
    folder.mkdir()
    (folder / "4.weights.h5").touch()
    (folder / "run.json").write_text(json.dumps({"epochs": 3, "epochs_before": 2}))
    status, _, said = command(*words)
    assert status == 130
    assert "4 of 5 epochs are kept: go on with --resume added." in said
    (folder / "run.json").write_text("{}")
    assert "4 epochs are kept: go on with --resume added." in command(*words)[2]


def test_methods_are_steps():
    assert steps_of("svd", {"energy": 0.9}) == Shrink(
        {"factorize": {"method": "svd", "energy": 0.9}}
    )
    assert steps_of("separable", {"layers": []}) == Shrink({"separable": {}})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "--method channels needs one of --macs, --params, --sparsity, --latency;"),
        ("--macs 0.5 --params 0.5", "exactly one of .* received macs, params"),
        ("--macs 50", r"macs must be a number in \(0, 1\); received 50.0. Did you mean 0.5\?"),
        (
            "--method svd",
            "--method svd needs one of --macs, --params, --rank, --energy; rec",
        ),
        ("--method svd --rank 0", "rank must be a whole number, 1 or more; received 0"),
        ("--method svd --sparsity 0.5", "--method svd takes --macs, .*; received --sparsity"),
        ("--method cp --rank 2 --score l1", "--method cp takes .*; received --score. Leave it out"),
        ("--method separable --macs 0.5", "--method separable takes --layers, --depth-multiplier;"),
        ("--macs 0.5 --rank 2", "--method channels takes --macs, .*--keep; received --rank"),
        ("--macs 0.5 --layers a", "--method channels takes .*; received --layers"),
        ("--method svt --rank 2", "--method must be one of channels, .*'svt'. Did you mean 'svd'"),
        ("--macs 0.5 --score l3", "--score must be one of l1, .*received 'l3'"),
        ("--macs 0.5 --scope all", "--scope must be one of global, local, sensitivity"),
        ("--macs 0.5 --epochs 2", "--epochs 2 needs data to train on; received none. Pass --data"),
        (
            "--method separable --data d.npz",
            "--data are for training, or .* Pass --epochs, or",
        ),
        ("--macs 0.5 --score taylor", "the score 'taylor' needs data; received none. Pass --data"),
        ("--macs 0.5 --scope sensitivity", "the scope 'sensitivity' needs data; received none"),
        (
            "--macs 0.5 --round-to latency",
            "--round-to latency is measured of int8 files",
        ),
        ("--macs 0.5 --round-to 0", "round_to must be .* or 'latency'; received 0"),
        ("--macs 0.5 --round-to few", "round_to must be .* or 'latency'; received 'few'"),
        ("--macs 0.5 --distill", "--distill is for training, which --epochs asks for"),
        ("--macs 0.5 --learning-rate 0.1", "--learning-rate is for training, which --epochs asks"),
        ("--macs 0.5 --resume", "--resume is for training, which --epochs asks for"),
        ("--macs 0.5 --loss mse", "--loss is for training"),
        ("--macs 0.5 --data d.npz --epochs 1 --from-logits", "--from-logits belongs to a loss"),
        ("--macs 0.5 --data d.npz --epochs 1 --teacher t.keras", "--teacher is for --distill"),
        ("--macs 0.5 -o a.h5", "--output must end in .keras or .tflite; received 'a.h5'. Rename"),
        ("--macs 0.5 --precision float16", "--precision is for .tflite files; received it with"),
        ("--macs 0.5 --target edge_tpu", "--target is for .tflite files"),
        ("--macs 0.5 -o a.tflite --precision int8", "--precision int8 needs the ranges .*recipe"),
        ("--macs 0.5 -o a.tflite --target edge_tpu", "--target edge_tpu needs the ranges .*recipe"),
        ("--macs 0.5 -o a.tflite --target egde_tpu", "unknown target 'egde_tpu'"),
    ],
)
def test_what_makes_no_sense_gives_one_line_at_once(command, monkeypatch, tmp_path, words, message):
    monkeypatch.setattr("tfcompress.fine_tuning.shrink", lambda *a, **k: pytest.fail("it runs"))
    status, out, said = command(*words.split(), "-q")
    assert (status, out) == (2, "")
    assert re.match(f"Error: .*{message}", said)
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_slip_costs_no_import_of_tensorflow():
    code = (
        "import sys; from tfcompress.cli.app import main; "
        "assert main(['shrink', 'm.keras', '--macs', '50', '-o', 'o.keras']) == 2; "
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")
    assert "Did you mean 0.5?" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--macs", "0.01"], "macs=0.01 is out of reach"),
        ([*HALF, "--keep", "cnv*"], ".*cnv"),
        (["--method", "svd", "--rank", "4000"], ".*rank.*4000"),
        ([*HALF, "-o", "missing/a.keras"], "there is no folder 'missing'"),
        (["--method", "tucker", "--rank", "2", "--layers", "dense"], ".*dense"),
    ],
)
def test_what_the_model_cannot_do(command, tmp_path, words, message):
    status, out, said = command(*words, "-q")
    assert (status, out) == (2, "")
    assert re.match(f"Error: .*{message}", said)
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_input_is_never_the_output(command, made):
    before = (made / "model.keras").read_bytes()
    status, _, said = command(*HALF, output=str(made / "model.keras"))
    assert status == 2
    assert "the output is one of the files that are read" in said
    assert (made / "model.keras").read_bytes() == before
