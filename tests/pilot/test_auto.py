"""auto: from a model and data to a file within budgets, and what is said when there is none."""

import json
import re
import sys

import keras
import numpy as np
import pytest
from conftest import run_tflite

import tfcompress as tfc
from tfcompress.cli.app import main
from tfcompress.fine_tuning.data import Data
from tfcompress.fine_tuning.options import Settings
from tfcompress.pilot.judging import Judge
from tfcompress.pilot.space import Space
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.arena import activation_bytes


def refused(message, error=ValueError):
    return pytest.raises(error, match=message)


AFTER = {
    "weights": {
        "int8": {"precision": {"*": "int8"}},
        "int4": {"precision": {"*": "int4"}},
    }
}
QUANTIZE = [{"quantize": {"bits": 8, "momentum": 0.95}}]
TRAINED = {
    "weights": {
        "int8 trained": {"rules": [{"layers": "*", "techniques": QUANTIZE}]},
    },
    "learning rate": {"x1": {}, "x0.3": {"training": {"rate": 0.3}}},
}


def spaced(parts):
    picks = [{"weights": option} for option in parts["weights"]]
    return Space(parts, tuple(picks))


@pytest.fixture(scope="module")
def files(tmp_path_factory, float_cnn, images):
    """A compiled model and data in files."""
    folder = tmp_path_factory.mktemp("files")
    model = keras.models.clone_model(float_cnn)
    model.set_weights(float_cnn.get_weights())
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.save(folder / "model.keras")
    np.savez(folder / "train.npz", x=images[0], y=images[1])
    return folder


@pytest.fixture(scope="module")
def found(files, tmp_path_factory):
    """A search among files after training, and its folder."""
    folder = tmp_path_factory.mktemp("search")
    given = files / "model.keras", files / "train.npz", folder / "best.tflite"
    result = tfc.auto(*given, budget="flash=0.9x,quality=-5", trials=2, space=spaced(AFTER))
    return result, folder


def test_the_file_and_what_belongs_to_it(found, files, images):
    result, folder = found
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.html", "best.keras", "best.tflite", "best.tflite.auto", "best.yaml",
    ]  # fmt: skip
    assert [t.words for t in result.tried] == ["weights int8", "weights int4"]
    content = (folder / "best.tflite").read_bytes()
    smallest = min(t.costs["flash"] for t in result.tried if t.met)
    assert result.best.costs["flash"] == len(content) == smallest
    assert result.best.costs["ram"] == activation_bytes(flatbuffer.read(content))
    # A fifth was held out, as fine_tune holds it out.
    rows = np.sort(np.random.default_rng(0).permutation(256)[:51])
    given = run_tflite(folder / "best.tflite", images[0][rows], reference=False)
    accuracy = np.mean(given.argmax(-1) == images[1][rows])
    assert result.best.quality == pytest.approx(accuracy)
    assert result.judged_on == 51
    assert result.measure == "accuracy"
    model = keras.saving.load_model(folder / "best.keras")
    assert tfc.profile(model).macs == result.best.costs["macs"]


def test_bounds_and_front_are_those_of_the_float_file(found):
    result, folder = found
    plain = (folder / "best.tflite.auto/trials/float/0/model.tflite").stat().st_size
    assert result.float_file["flash"] == plain
    assert result.bounds["flash"] == pytest.approx(0.9 * plain)
    assert result.bounds["quality"] == pytest.approx(result.float_file["quality"] - 0.05)
    assert result.best in result.front
    told = result.to_dict()
    json.dumps(told, allow_nan=False)
    assert told["best"]["picks"] == result.best.picks
    text = str(result)
    assert f"{result.best.costs['flash']:,}" in text
    assert "Made again by" in text


def test_the_commands_make_the_same_file(found, tmp_path, monkeypatch, capsys):
    result, folder = found
    (command,) = result.commands
    assert command in (folder / "best.yaml").read_text().replace("\n# ", "\n")
    words = command.split()[1:]
    words[words.index("--output") + 1] = str(tmp_path / "again.tflite")
    assert main([*words, "--quiet"]) == 0
    assert (tmp_path / "again.tflite").read_bytes() == (folder / "best.tflite").read_bytes()


def test_the_page_tells_all(found):
    page = (found[1] / "best.html").read_text()
    for text in ("weights int8", "weights int4", "Quality against Flash", "precision:"):
        assert text in page
    assert "http://" not in re.sub(r"http://www\.w3\.org", "", page.split("<script>")[0])


def test_a_search_goes_on(found, files, tmp_path):
    result, folder = found
    given = files / "model.keras", files / "train.npz", folder / "best.tflite"
    with refused("Go on with --resume, or begin anew with --overwrite"):
        tfc.auto(*given, budget="flash=0.9x", trials=2, space=spaced(AFTER))
    again = tfc.auto(*given, budget="flash=0.85x", trials=1, space=spaced(AFTER), resume=True)
    assert [t.number for t in again.tried] == [t.number for t in result.tried]
    assert again.bounds["flash"] == pytest.approx(0.85 * result.float_file["flash"])
    with refused("one of another data, epochs, training"):
        other = tmp_path / "other.npz"
        np.savez(other, x=np.zeros((99, 12, 12, 3), "float32"), y=np.zeros(99, int))
        tfc.auto(given[0], other, given[2], budget="flash=1k", trials=1, seed=3, resume=True)


def test_a_budget_out_of_reach_writes_nothing(files, tmp_path):
    given = files / "model.keras", files / "train.npz", tmp_path / "best.tflite"
    with refused(r"nothing that was tried keeps the budget flash=1k: the nearest found has flash "
                 r"[\d,]+ of 1,024 \(missed\): weights int4"):  # fmt: skip
        tfc.auto(*given, budget="flash=1k", trials=9, space=spaced(AFTER))
    assert [path.name for path in tmp_path.iterdir()] == ["best.tflite.auto"]


def test_models_and_data_in_memory_and_functions_of_ones_own(float_cnn, images, tmp_path):
    model = keras.models.clone_model(float_cnn)
    model.set_weights(float_cnn.get_weights())
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)

    def third_class(labels, outputs):
        return float(np.mean((outputs.argmax(-1) == 2) == (labels == 2)))

    result = tfc.auto(
        model,
        images,
        tmp_path / "best.tflite",
        budget={"flash": "1x"},
        trials=1,
        space=spaced(AFTER),
        metric=third_class,
        validation_split=0.5,
        report=False,
    )
    assert result.measure == "third_class"
    assert result.judged_on == 128
    assert result.error is None
    assert result.report is None
    assert not (tmp_path / "best.html").exists()


@pytest.mark.slow
def test_a_trained_file_is_made_again_and_nothing_is_trained_twice(files, tmp_path):
    given = files / "model.keras", files / "train.npz", tmp_path / "best.tflite"
    how = {"budget": "flash=1x", "space": spaced(TRAINED), "epochs": (1, 1)}
    result = tfc.auto(*given, trials=2, **how)
    again = tfc.auto(*given, trials=2, resume=True, **how)
    assert len(again.tried) > len(result.tried)
    keys = [(tuple(t.picks.items()), t.epochs) for t in again.tried]
    assert len(set(keys)) == len(keys)
    assert max(t.epochs for t in again.tried) == 2
    words = again.commands[0].split()[1:]
    words[words.index("--output") + 1] = str(tmp_path / "again.tflite")
    assert main([*words, "--quiet"]) == 0
    assert (tmp_path / "again.tflite").read_bytes() == (tmp_path / "best.tflite").read_bytes()


@pytest.mark.slow
def test_codes_within_too_little_ram_are_made_again(files, tmp_path):
    cluster = {"cluster": {"clusters": 16, "frequency": "5%"}}
    rules = {"rules": [{"layers": "*", "techniques": [cluster, *QUANTIZE]}]}
    x = inputs = keras.Input((12, 12, 3))
    for filters in (16, 48):  # A table of values pays in large kernels alone.
        x = keras.layers.Conv2D(filters, 3, activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(4, activation="softmax")(x))
    model.compile("adam", "sparse_categorical_crossentropy")
    model.save(tmp_path / "model.keras")
    given = tmp_path / "model.keras", files / "train.npz", tmp_path / "best.tflite"
    how = {"target": "microcontroller", "trials": 1, "epochs": (1,), "overwrite": True}
    how["space"] = spaced({"weights": {"16 values": rules}})
    free = tfc.auto(*given, budget="flash=1x", **how)
    assert free.best.costs["flash"] == (tmp_path / "best.tflite").stat().st_size
    tight = tfc.auto(*given, budget=f"flash=1x,ram={free.best.costs['ram']}", **how)
    words = tight.commands[0].split()[1:]
    assert {"--compressed-weights", "--ram"} <= set(words)
    words[words.index("--output") + 1] = str(tmp_path / "again.tflite")
    assert main([*words, "--quiet"]) == 0
    assert (tmp_path / "again.tflite").read_bytes() == (tmp_path / "best.tflite").read_bytes()


@pytest.mark.slow
def test_an_ethos_u_costs_what_vela_counts(files, tmp_path):
    given = files / "model.keras", files / "train.npz", tmp_path / "best.tflite"
    how = {"accelerator": "ethos-u55-128", "target": "ethos_u55", "trials": 1}
    space = spaced({"weights": {"int8": AFTER["weights"]["int8"]}})
    result = tfc.auto(*given, budget="cycles=10M", space=space, **how)
    accepted = tfc.accept(tmp_path / "best.tflite", ["vela"], accelerator="ethos-u55-128")
    figures = accepted.results[0].figures
    assert result.best.costs["cycles"] == figures["cycles"]
    assert result.best.costs["ram"] == 1024 * figures["SRAM KiB"]
    assert result.best.costs["flash"] == 1024 * figures["flash KiB"]


@pytest.mark.slow
def test_a_time_too_short_for_one_trial_says_what_one_takes(files, tmp_path):
    given = files / "model.keras", files / "train.npz", tmp_path / "best.tflite"
    with refused(r"time must be enough for one trial; received 1\.0 s.*--resume"):
        tfc.auto(*given, budget="flash=0.9x", time=1.0, space=spaced(AFTER))


ARGUMENTS = [
    ({"budget": "flash=48k"}, "a search ends after some time or trials; received neither"),
    ({"trials": 0}, "trials must be 1 or more"),
    ({"time": "2 hours", "trials": None}, "time: expected a time with its unit, such as 90s"),
    ({"time": -1, "trials": None}, "time must be seconds above 0"),
    ({"engine": "grid"}, "unknown engine 'grid'; expected one of tpe, nsga2, evolution"),
    ({"resume": True, "overwrite": True}, "resume goes on and overwrite begins anew"),
    ({"target": "phone"}, "unknown target 'phone'"),
    ({"budget": "cycles=1M"}, "cycles are counted for an accelerator"),
    ({"accelerator": "ethos-u99"}, "ethos-u99"),
    ({"metric": 3}, "metric must be a function f(labels, outputs)"),
    ({"metric": "auc"}, "unknown metric 'auc'"),
    ({"epochs": (1, 0)}, "epochs must be whole numbers above 0"),
    ({"learning_rat": 0.1}, "auto takes no argument 'learning_rat'"),
    ({"learning_rate": -0.1}, "learning_rate must be a number greater than 0"),
    ({"validation_split": 2.0}, r"validation_split must be in [0, 1)"),
    ({"resume": True}, "there is no search to resume"),
    ({"space": "missing.yaml"}, "no file at 'missing.yaml'"),
    ({"workers": 0}, "workers must be 1 or more"),
    ({"output": "best.onnx"}, "the output must end in .tflite"),
    ({"storage": "mydb"}, "storage must be an address that Optuna can open"),
]


@pytest.mark.parametrize(("changed", "message"), ARGUMENTS)
def test_arguments_that_will_not_do(files, tmp_path, changed, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"budget": "flash=48k", "output": "best.tflite", "space": spaced(AFTER)}
    given |= {} if changed == {"budget": "flash=48k"} else {"trials": 1}
    given |= changed
    with refused(re.escape(message), (ValueError, TypeError)):
        tfc.auto(files / "model.keras", files / "train.npz", **given)
    assert not list(tmp_path.glob("best.*[!o]"))


def test_data_without_labels(files, images, tmp_path):
    np.savez(tmp_path / "x.npz", x=images[0])
    given = {"budget": "flash=48k", "trials": 1, "output": tmp_path / "best.tflite"}
    with refused("must hold the labels 'y'"):
        tfc.auto(files / "model.keras", tmp_path / "x.npz", **given)
    with refused("Labels are needed, by which files are judged", TypeError):
        tfc.auto(files / "model.keras", images[0], **given)


@pytest.mark.parametrize(
    ("module", "extra", "more"), [("optuna", "auto", {}), ("ray", "ray", {"workers": 2})]
)
def test_what_is_not_installed_is_named(files, tmp_path, monkeypatch, module, extra, more):
    monkeypatch.setitem(sys.modules, module, None)
    given = {"budget": "flash=48k", "trials": 1, "output": tmp_path / "best.tflite", **more}
    with refused(re.escape(f"pip install 'tfcompress[{extra}]'"), ImportError):
        tfc.auto(files / "model.keras", files / "train.npz", **given)


def test_the_command_says_what_is_wrong(files, tmp_path, capsys):
    words = ["auto", str(files / "model.keras"), "--data", str(files / "train.npz")]
    output = ["-o", str(tmp_path / "best.tflite")]
    for more, message in (
        (["--budget", "size=3", "--trials", "1"], "unknown budget 'size'"),
        (["--budget", "flash=48k", "--time", "soon"], "time: expected a time with its unit"),
        (["--budget", "flash=48k", "--trials", "1", "--epochs", "2+x"], "--epochs must be"),
        (["--budget", "flash=48k", "--trials", "1", "--memory", "much"], "--memory: expected"),
    ):
        assert main([*words, *more, *output]) == 2
        assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def judge_of(loss, metrics=None, metric=None, labels=None):
    x = keras.Input((3,))
    model = keras.Model(x, keras.layers.Dense(3, name="out")(x))
    model.compile("adam", loss, metrics=metrics)
    settings = Settings(model.get_compile_config())
    data = Data([np.zeros((4, 3))], [labels], (model._inputs_struct, model._outputs_struct, []))
    return Judge(model, settings, data, metric)


def test_quality_is_what_keras_says_of_the_outputs():
    y = np.array([0, 1, 2, 1])
    out = {"out": np.eye(3, dtype="float32")[[0, 1, 2, 0]] * 0.98 + 0.01}
    judge = judge_of("sparse_categorical_crossentropy", labels=y)
    measures = judge.measures(out)
    assert measures["accuracy"] == 0.75
    expected = -np.log(np.array([0.99, 0.99, 0.99, 0.01]) / 1.01).mean()
    assert measures["loss"] == pytest.approx(expected, rel=1e-3)
    assert judge.chosen(measures) == ("accuracy", True)


def test_losses_are_better_the_lower_they_are():
    y = np.zeros((4, 3), "float32")
    judge = judge_of("mse", labels=y)
    measures = judge.measures({"out": np.full((4, 3), 0.5, "float32")})
    assert measures["loss"] == 0.25
    assert judge.chosen(measures) == ("loss", False)
    judge = judge_of("mse", metrics=["mae"], labels=y)
    measures = judge.measures({"out": np.full((4, 3), 0.5, "float32")})
    assert judge.chosen(measures)[1] is False


def test_a_function_is_given_labels_and_outputs():
    y = np.array([0, 1, 2, 1])
    judge = judge_of("mse", metric=lambda labels, outputs: outputs[:, 0] @ labels, labels=y)
    out = np.arange(12, dtype="float32").reshape(4, 3)
    measures = judge.measures({"out": out})
    assert list(measures.values()) == [0 * 0 + 3 * 1 + 6 * 2 + 9 * 1]
    assert judge.chosen(measures)[1] is True
    judge = judge_of("mse", metric=lambda labels, outputs: None, labels=y)
    with refused("metric must return a finite number, higher is better; received None"):
        judge.measures({"out": out})


def test_parts_of_the_samples_tell_how_a_quality_scatters():
    y = np.repeat([0, 1], 100)
    judge = judge_of("sparse_categorical_crossentropy", labels=y)
    judge.data = Data([np.zeros((200, 3))], [y], judge.data.packed)
    right = np.eye(3, dtype="float32")[np.where(np.arange(200) < 20, 2, y)]
    found = judge.parts({"out": np.clip(right, 0.01, 0.98)})
    assert found == [0.0] + [1.0] * 9
