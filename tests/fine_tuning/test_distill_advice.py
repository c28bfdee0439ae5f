"""distill and compress: slips that would train wrongly in silence, and what is told meanwhile."""

import re
import warnings

import distilling_files
import keras
import numpy as np
import pytest
from distilling_files import make_student, make_teacher
from fine_tuning_files import LOSS, make_data, make_model
from keras import layers

import tfcompress as tfc
from tfcompress.cli.app import main
from tfcompress.fine_tuning import fine_tune
from tfcompress.fine_tuning.data import Arrays, check_labels, warn_of_teacher

# Fixtures of all modules about distill.
made, run = distilling_files.made, distilling_files.run


@pytest.fixture
def untrained(monkeypatch):
    monkeypatch.setattr(keras.Model, "fit", lambda *args, **kwargs: pytest.fail("it trains"))


@pytest.fixture
def stages(run):
    """What progress shows of a run; a stage with what was known before it."""

    def stages(runs=run, **given):
        seen = []
        found = runs(**given, progress=lambda stage, done, total: seen.append(stage))
        return found, [stage for stage in dict.fromkeys(seen) if stage.startswith("epoch")]

    return stages


@pytest.mark.slow
def test_a_cache_file_of_other_data_is_refused(run, tmp_path):
    images, labels = make_data()
    np.savez(tmp_path / "other.npz", x=images + 1.0, y=labels)
    given = {"cache": tmp_path / "cache.h5", "epochs": 1, "batch_size": 32}
    first = run(**given)  # of two whole batches and one of 6 samples
    kept = (tmp_path / "cache.h5").read_bytes()
    with pytest.raises(ValueError, match=r"expected samples that are in '.*cache.h5', which holds"):
        run(**given, data=tmp_path / "other.npz")
    assert (tmp_path / "cache.h5").read_bytes() == kept
    assert not (tmp_path / "out.keras.checkpoint").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert run(**given).after == first.after


@pytest.mark.slow
def test_a_teacher_that_is_exchanged_with_its_student_is_told_of_once(made, tmp_path, capsys):
    small, big, data = made / "student.keras", made / "teacher.keras", made / "data.npz"
    words = ["--data", data, "--epochs", 2, "-o", tmp_path / "a.keras", "-q"]

    def told():
        lines = capsys.readouterr().err.splitlines(keepends=True)
        return "".join(x for x in lines if not x.startswith("BatchNormalization got"))

    assert main([str(word) for word in ["distill", big, small, *words]]) == 0
    assert told() == ""
    assert main([str(word) for word in ["distill", small, big, *words]]) == 0
    sizes = [keras.saving.load_model(path).count_params() for path in (small, big)]
    said = told()
    assert re.fullmatch(
        rf"Warning: the teacher '{small}' has loss \d\.\d+ on the training data \(70 samples\), "
        rf"the student 0\.\d+ before training and has {sizes[0]} parameters, the student "
        rf"{sizes[1]:,}: are the two exchanged, or are its inputs scaled otherwise\?\n",
        said,
    )


@pytest.mark.slow
def test_a_teacher_for_other_inputs_is_told_of(made, tmp_path, run):
    images, labels = make_data()
    student = make_student()
    student.fit(images, labels, epochs=10, verbose=0)
    student.save(tmp_path / "student.keras")
    x = inputs = keras.Input((6, 6, 2))
    x = layers.Rescaling(-1.0)(x)  # so that it takes one class for another
    keras.Model(inputs, keras.saving.load_model(made / "teacher.keras")(x)).save(
        tmp_path / "odd.keras"
    )
    given = {"student": tmp_path / "student.keras", "teacher": tmp_path / "odd.keras", "epochs": 1}
    with pytest.warns(UserWarning, match=r"has accuracy 0\.\d+ on .* the student 0\.\d+ before"):
        run(**given)
    files = given["student"], "distill-int8", made / "data.npz", tmp_path / "b.keras"
    with pytest.warns(UserWarning, match=r"odd.keras' has accuracy 0\.\d+ on .*exchanged"):
        fine_tune(*files, epochs=1, teacher=tmp_path / "odd.keras")
    with warnings.catch_warnings():  # the model itself is no other file
        warnings.simplefilter("error", UserWarning)
        fine_tune(*files, epochs=1)


@pytest.mark.parametrize(
    ("sizes", "theirs", "ours", "message"),
    [
        ((9, 8), {"loss": 2.0, "accuracy": 0.8}, {"loss": 1.0, "accuracy": 0.7}, None),
        (
            (9, 8),
            {"loss": 1.0, "kind_acc": 0.5},
            {"loss": 2.0, "kind_acc": 0.6},
            "has kind_acc 0.5",
        ),
        ((9, 8), {"loss": 2.0, "mae": 0.1}, {"loss": 1.0, "mae": 0.2}, r"has loss 2\.0"),
        ((9, 9), {"loss": 1.0001}, {"loss": 1.0}, None),
        ((8, 9), {}, {"distillation_loss": 1.0}, r"'t' has 8 parameters, the student 9: are"),
    ],
)
def test_when_a_teacher_is_told_of(sizes, theirs, ours, message):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warn_of_teacher("t", sizes, theirs, ours, "the data")
    assert len(told) == (message is not None)
    assert not told or re.search(message, str(told[0].message))


def compiled(path, loss, activation=None):
    model = make_model(activation=activation)
    model.compile("sgd", loss, jit_compile=False)
    model.save(path)
    return path


def test_logits_with_a_saved_crossentropy_of_probabilities(run, made, untrained, tmp_path):
    path = compiled(tmp_path / "m.keras", LOSS)
    message = rf"the loss {LOSS} takes .* outputs go from -.* pass --loss {LOSS} --from-logits\.$"
    with pytest.raises(ValueError, match=message):
        run(student=path)
    with pytest.raises(ValueError, match=message):
        fine_tune(path, "int8", made / "data.npz", tmp_path / "a.keras", epochs=1)
    compiled(path, keras.losses.SparseCategoricalCrossentropy())
    with pytest.raises(ValueError, match=message):
        run(student=path)


@pytest.mark.slow
def test_logits_whose_loss_takes_them(run, made, tmp_path):
    saved = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    found = run(student=compiled(tmp_path / "a.keras", saved), epochs=1)
    path = compiled(tmp_path / "b.keras", LOSS)
    again = run(student=path, loss=LOSS, from_logits=True, epochs=1)
    assert found.before["loss"] == pytest.approx(again.before["loss"])
    images, labels = make_data()
    expected = float(saved(labels, keras.saving.load_model(path)(images)))
    assert again.before["loss"] == pytest.approx(expected, rel=1e-4)
    # Without an activation, but from 0 to 1 as a loss of probabilities has it.
    model = keras.Sequential([keras.Input((6, 6, 2)), layers.Flatten(), layers.Dense(3)])
    model.set_weights([np.zeros((72, 3)), np.full(3, 1 / 3)])
    model.compile("sgd", LOSS, jit_compile=False)
    model.save(tmp_path / "c.keras")
    given = {"recipe": "int8", "data": made / "data.npz", "output": tmp_path / "d.keras"}
    found = fine_tune(tmp_path / "c.keras", **given, epochs=1, learning_rate=1e-9)
    assert found.before["loss"] == pytest.approx(np.log(3), rel=1e-4)


def test_labels_that_the_loss_does_not_take(run, made, untrained, tmp_path):
    path = compiled(tmp_path / "m.keras", "categorical_crossentropy", "softmax")
    with pytest.raises(
        ValueError,
        match=r"must be one-hot, 3 numbers .* received class numbers of shape \(70,\)\. Pass "
        r"--loss sparse_categorical_crossentropy, or take keras\.utils\.to_categorical\(y, 3\)\.$",
    ):
        run(student=path)
    images, labels = make_data()
    np.savez(tmp_path / "one_hot.npz", x=images, y=np.eye(3)[labels])
    with pytest.raises(ValueError, match=r"Pass --loss categorical_crossentropy, or number the"):
        run(data=tmp_path / "one_hot.npz")


@pytest.mark.slow
def test_one_hot_labels_train_with_their_loss(run, tmp_path):
    images, labels = make_data()
    np.savez(tmp_path / "one_hot.npz", x=images, y=np.eye(3)[labels])
    given = {"data": tmp_path / "one_hot.npz", "loss": "categorical_crossentropy", "epochs": 1}
    assert run(**given).before["loss"] == pytest.approx(run(epochs=1).before["loss"], rel=1e-5)


def test_labels_of_positions():
    # As many positions as classes.
    model = tfc.flatten(keras.Sequential([keras.Input((3, 2)), layers.Dense(3, "softmax")]))
    numbers = np.array([[0, 1, 2], [2, 2, 0]])
    for y in (numbers, numbers[..., None]):
        data = Arrays({"x": np.zeros((2, 3, 2)), "y": y}, model, "data.npz").match()
        check_labels(model, LOSS, data)
        with pytest.raises(ValueError, match="must be one-hot"):
            check_labels(model, "categorical_crossentropy", data)
    data = Arrays({"x": np.zeros((2, 3, 2)), "y": np.eye(3)[numbers]}, model, "data.npz").match()
    check_labels(model, "categorical_crossentropy", data)
    with pytest.raises(ValueError, match="must be class numbers"):
        check_labels(model, LOSS, data)


@pytest.mark.slow
def test_progress_shows_losses_and_the_metrics_of_the_user(stages, made, tmp_path):
    number = r"\d+\.\d{4}"
    _, shown = stages(epochs=2)
    assert shown[0] == "epoch 1 of 2"
    assert re.fullmatch(
        rf"epoch 2 of 2 \(so far: total loss {number}, accuracy {number}\)", shown[1]
    )
    _, shown = stages(epochs=2, validation_split=0.2)
    assert re.fullmatch(
        rf"epoch 2 of 2 \(so far: total loss {number}, total val_loss {number}, "
        rf"accuracy {number}, val_accuracy {number}\)",
        shown[1],
    )
    files = {"model": made / "student.keras", "recipe": "int8", "data": made / "data.npz"}
    files["output"] = tmp_path / "b.keras"
    found, shown = stages(fine_tune, **files, epochs=2)
    assert shown[0] == f"epoch 1 of 2 (so far: loss {found.before['loss']:.4f})"
    assert re.fullmatch(rf"epoch 2 of 2 \(so far: loss {number}, accuracy {number}\)", shown[1])


@pytest.mark.slow
def test_the_summary_names_what_was_learned(run, made, tmp_path):
    found = run(recipe=made / "recipe.yaml", epochs=1)
    assert f"{made / 'teacher.keras'}: soft_labels, features x0.01; alpha 0.5, temperature 2." in (
        str(found)
    )
    assert found.to_dict()["taught"]["losses"] == {"soft_labels": 1.0, "features": 0.01}
    assert "Trained 1 epoch (5 steps); " in str(found)
    (tmp_path / "r.yaml").write_text("distill: {losses: [mse], alpha: 0.5}")
    found = run(recipe=tmp_path / "r.yaml", epochs=1, batch_size=70)
    assert f"{made / 'teacher.keras'}: mean_squared_error; alpha 0.5.\n" in str(found)
    assert found.taught.temperature is None
    assert "Trained 1 epoch (1 step); " in str(found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["distiller", "mutual"])
def test_a_saved_distiller_is_no_student(run, made, untrained, tmp_path, kind):
    student = make_student()
    model = tfc.Distiller(student, make_teacher())
    if kind == "mutual":
        model = tfc.MutualDistiller([student, make_student()])
    path = tmp_path / "whole.keras"
    model.save(path)
    for given in ({"student": path}, {"teacher": path}):
        with pytest.raises(ValueError, match=r"is a .*Distiller, which trains a student") as error:
            run(**given)
    code = re.search('python -c "(.*)"$', str(error.value))[1]
    exec(code.replace("'student.keras'", repr(str(tmp_path / "student.keras"))), {})
    found = keras.saving.load_model(tmp_path / "student.keras")
    images = make_data(5)[0]
    np.testing.assert_allclose(found(images), student(images), atol=1e-6)
