"""`tfcompress distill`, and what is said of wrong arguments before training."""

import json
import re
import signal
import types

import distilling_files
import keras
import numpy as np
import pytest
from distilling_files import make_teacher
from fine_tuning_files import check_killed_and_resumed, make_data
from keras import layers

import tfcompress as tfc
from tfcompress.cli.app import main

# Fixtures of all modules about distill.
made = distilling_files.made


@pytest.fixture
def command(made, tmp_path, monkeypatch, capsys):
    """The command in a folder of its own; gives (status, output, what was said)."""
    monkeypatch.chdir(tmp_path)

    def command(*words, name="distill", data="data.npz", output="out.keras"):
        models = ["student.keras"] if name == "compress" else ["teacher.keras", "student.keras"]
        files = [*(made / model for model in models), "--data", made / data, "-o", output]
        status = main([name, *map(str, files), "--epochs", "1", *map(str, words)])
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return command


@pytest.mark.slow
def test_the_command_reports_as_json_and_shows_progress(command, made, tmp_path):
    words = ["--recipe", made / "recipe.yaml", "--alpha", 0.5, "--start-from-teacher", "--json"]
    status, out, said = command(*words, "--cache", "memory", "--learning-rate", 0.01)
    assert status == 0
    found = json.loads(out)
    assert found["taught"]["alpha"] == 0.5
    assert 0 < found["taught"]["started"] < 1
    assert found["sparsity"] == 0.75
    assert found["bytes"] == (tmp_path / "out.keras").stat().st_size
    assert re.findall(r"epoch \d of \d", said) == ["epoch 1 of 1"]


def test_help_and_a_quiet_table(command, capsys):
    assert main(["distill", "--help"]) == 0
    listed = capsys.readouterr().out
    for word in "--alpha --temperature --cache --start-from-teacher --resume --precision".split():
        assert re.search(rf"^  {word} ", listed, re.M)
    status, out, said = command("-q", "--alpha", 0, data="unlabelled.npz")
    assert (status, said) == (0, "")
    assert "agreement with the teacher" in out
    assert re.search(r"bytes, zipped +. +[\d,]+ . +[\d,]+ . +[\d,]+", out)


def test_every_option_is_passed_on(tmp_path, monkeypatch, capsys):
    received = {}

    def distill(*files, **settings):
        received.update(settings, files=[str(file) for file in files])
        if settings["overwrite"]:
            (tmp_path / "o.keras.checkpoint").mkdir()
            (tmp_path / "o.keras.checkpoint" / "2.weights.h5").touch()
            raise KeyboardInterrupt
        return types.SimpleNamespace(render=lambda console: None, check=None)

    monkeypatch.setattr("tfcompress.fine_tuning.distill", distill)
    words = "--recipe r.yaml --alpha 0.3 --temperature 2 --cache c.h5 --start-from-teacher "
    words += "--constant-rate --batch-size 3 --loss mse --from-logits --optimizer sgd --seed 4 "
    words += "--learning-rate 0.1 --validation-split 0.2 --precision int4 --io-dtype int8 "
    words += "--target ethos_u55 --compressed-weights"
    given = ["distill", "t.keras", "s.h5", "--data", "d.npz", "--epochs", "5"]
    given += ["-o", str(tmp_path / "o.keras"), *words.split()]
    assert main([*given, "--resume"]) == 0
    del received["progress"]
    assert received.pop("files") == ["t.keras", "s.h5", "d.npz", str(tmp_path / "o.keras")]
    assert received == {
        **{"epochs": 5, "recipe": "r.yaml", "alpha": 0.3, "temperature": 2.0, "cache": "c.h5"},
        **{"start_from_teacher": True, "constant_rate": True, "batch_size": 3, "loss": "mse"},
        **{"from_logits": True, "optimizer": "sgd", "seed": 4, "learning_rate": 0.1},
        **{"validation_data": None, "validation_split": 0.2, "precision": "int4"},
        **{"io_dtype": "int8", "target": "ethos_u55", "resume": True, "overwrite": False},
        "compressed_weights": True,
    }
    capsys.readouterr()
    assert main([*given, "--overwrite", "-q"]) == 130
    assert "2 epochs are kept: go on with --resume added." in capsys.readouterr().err


def test_compress_passes_its_teacher_on(monkeypatch):
    received = {}

    def fine_tune(*files, **settings):
        received.update(settings)
        return types.SimpleNamespace(render=lambda console: None, check=None)

    monkeypatch.setattr("tfcompress.fine_tuning.fine_tune", fine_tune)
    words = "compress m.keras --recipe distill-int8 --data d.npz --epochs 2 -o a.tflite"
    assert main([*words.split(), "--teacher", "t.keras"]) == 0
    assert str(received["teacher"]) == "t.keras"
    assert received["distill"] is False
    assert main([*words.replace("distill-int8", "sparse80-int8").split(), "--distill"]) == 0
    assert (received["teacher"], received["distill"]) == (None, True)


@pytest.fixture
def untrained(monkeypatch):
    monkeypatch.setattr(keras.Model, "fit", lambda *args, **kwargs: pytest.fail("it trains"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--alpha", "2"], "Invalid value for '--alpha': .* See tfcompress distill --help"),
        (["--temperature", "0"], "--temperature must be a number greater than 0; received 0.0"),
        (["--temperature", "nan"], "--temperature must be a number greater than 0; received nan"),
        (["--learning-rate", "0"], "--learning-rate must be a number greater than 0; received 0.0"),
        (["--learning-rate", "nan"], "--learning-rate must be .* greater than 0; received nan"),
        (["--recipe", "int9"], "unknown recipe 'int9'"),
        (["--recipe", "missing.yaml"], "no file at 'missing.yaml'"),
        (["--cache", "missing/c.h5"], "cannot write 'missing/c.h5': there is no folder"),
        (["--cache", "out.keras"], "the cache is another one of the files, 'out.keras'"),
        (["-o", "missing/out.keras"], "there is no folder 'missing'"),
        (["-o", "out.h5"], "the output must end in .keras or .tflite"),
        (["-o", "a.tflite", "--precision", "int8"], "'int8' needs the ranges .* Pass --recipe"),
        (["--precision", "float16"], "precision, io_dtype and target are for .tflite files"),
        (["--loss", "msee"], "unknown loss 'msee'"),
        (["--resume"], "there is no interrupted training to resume"),
        (["--validation-data", "missing.npz"], "no file at 'missing.npz'"),
    ],
)
def test_a_wrong_argument_gives_one_line(command, untrained, tmp_path, words, message):
    status, out, said = command(*words, "-q")
    assert (status, out) == (2, "")
    assert re.match(f"Error: .*{message}", said)
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def one_line(arguments, capsys, message):
    assert main([str(word) for word in arguments]) == 2
    said = capsys.readouterr().err
    assert re.match(f"Error: .*{message}", said)
    assert said.count("\n") == 1


def test_an_input_is_never_the_output(made, untrained, capsys):
    before = {path: path.read_bytes() for path in made.iterdir()}
    files = [made / "teacher.keras", made / "student.keras", "--data", made / "data.npz"]
    for path in (made / "teacher.keras", made / "student.keras"):
        words = ["distill", *files, "--epochs", 1, "-q", "-o", path]
        one_line(words, capsys, "the output is one of the files that are read")
        words = ["distill", *files, "--epochs", 1, "-q", "-o", made / "a.keras", "--cache", path]
        one_line(words, capsys, "the cache is another one of the files, .*Name a file of its own")
    assert {path: path.read_bytes() for path in made.iterdir()} == before


@pytest.mark.slow
def test_teachers_and_students_that_do_not_fit(made, untrained, tmp_path, capsys):
    def distill(teacher, student, message, *more):
        words = ["distill", teacher, student, "--data", made / "data.npz", "--epochs", 1, "-q"]
        one_line([*words, "-o", tmp_path / "a.keras", *more], capsys, message)

    teacher, student = made / "teacher.keras", made / "student.keras"
    distill(tmp_path / "none.keras", student, "no file at '.*none.keras'")
    distill(teacher, made / "data.npz", "'.*data.npz' has the ending '.npz'; expected a .keras")
    (tmp_path / "bad.keras").write_bytes(b"PK damaged")
    distill(tmp_path / "bad.keras", student, "is damaged or cut off")
    other = keras.Sequential([keras.Input((6, 6, 3)), layers.Flatten(), layers.Dense(3)])
    other.save(tmp_path / "other.keras")
    distill(tmp_path / "other.keras", student, "the teacher '.*' cannot run on the student's input")
    other = keras.Sequential([keras.Input((6, 6, 2)), layers.Flatten(), layers.Dense(5)])
    other.save(tmp_path / "classes.keras")
    distill(tmp_path / "classes.keras", student, r"the teacher gives \(None, 5\), the student")
    unsafe = keras.Sequential([keras.Input((6, 6, 2)), layers.Lambda(lambda x: x)])
    unsafe.save(tmp_path / "unsafe.keras")
    distill(tmp_path / "unsafe.keras", student, "holds Python code .a Lambda layer., which is not")
    tfc.quantize_aware(make_teacher()).save(tmp_path / "qat.keras")
    distill(tmp_path / "qat.keras", student, "comes from compress .*tfcompress.finalize.teacher")
    (tmp_path / "r.yaml").write_text(
        "distill:\n  losses:\n  - features: {teacher_layer: wyde, student_layer: conv}"
    )
    more = ["--recipe", tmp_path / "r.yaml"]
    distill(teacher, student, "no layer named 'wyde'; .* Did you mean 'wide'", *more)
    other = make_teacher()
    other.set_weights([weight * np.nan for weight in other.get_weights()])
    other.save(tmp_path / "nan.keras")
    distill(tmp_path / "nan.keras", student, f"the loss of model '{other.name}' on the data is nan")
    (tmp_path / "r.yaml").write_text("distill:\n  alpah: 1")
    distill(teacher, student, r".*r\.yaml, line 2: unknown key 'alpah' in distill", *more)
    assert not (tmp_path / "a.keras").exists()


def test_data_without_labels_need_alpha_0(command, untrained, tmp_path):
    status, _, said = command("-q", data="unlabelled.npz")
    assert status == 2
    assert re.match(
        r"Error: '.*unlabelled.npz' holds no labels, which alpha=0.5 gives a share .* received "
        r"'x'. Add the array y, or learn from the teacher alone: --alpha 0.\n$",
        said,
    )
    np.savez(tmp_path / "bad.npz", x=make_data()[0], labels=make_data()[1])
    _, _, said = command("-q", data=tmp_path / "bad.npz")
    assert said.endswith("Call it y (here: labels), or learn from the teacher alone: --alpha 0.\n")
    np.savez(tmp_path / "bad.npz", images=make_data()[0], labels=make_data()[1])
    _, _, said = command("-q", data=tmp_path / "bad.npz")
    assert said.endswith("Call them x and y (here: images, labels).\n")
    np.savez(tmp_path / "bad.npz", y=make_data()[1])
    status, _, said = command("-q", "--alpha", 0, data=tmp_path / "bad.npz")
    assert status == 2
    assert "must hold the inputs 'x' or 'x_train' or 'image'; received 'y'" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--recipe", "int8", "--teacher", "teacher.keras"],
            "the recipe 'int8' must have a section distill .* Pass --distill, or add 'distill: {}'",
        ),
        (["--recipe", "alone.yaml"], "the recipe has no rules, .* the command tfcompress distill"),
        (["--recipe", "distill-int8", "--teacher", "missing.keras"], "no file at 'missing.keras'"),
        (
            ["--recipe", "distill-int8", "--teacher", "out.keras", "-o", "out.keras"],
            "the output is one of the files that are read, 'out.keras'",
        ),
    ],
)
def test_wrong_teachers_of_compress(command, untrained, tmp_path, words, message):
    (tmp_path / "alone.yaml").write_text("distill:")
    status, _, said = command(*words, "-q", name="compress")
    assert status == 2
    assert re.match(f"Error: {message}", said)
    assert said.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_command_is_resumed(made, tmp_path, kind):
    files = [made / "teacher.keras", made / "student.keras", "--data", made / "data.npz"]
    check_killed_and_resumed(tmp_path, kind, "distill", *files, "--recipe", made / "recipe.yaml")
