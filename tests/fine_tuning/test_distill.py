"""distill: from a teacher and a student to a file, the same whether interrupted or not."""

import json
import re

import distilling_files
import h5py
import keras
import numpy as np
import pytest
from distilling_files import distance, same_weights
from fine_tuning_files import LOSS, interrupted, make_data, make_model

import tfcompress as tfc
from tfcompress.fine_tuning import distill

# Fixtures of all modules about distill.
made, run = distilling_files.made, distilling_files.run

load = keras.saving.load_model


@pytest.fixture(scope="module")
def whole(made):
    """An uninterrupted run, and its file."""
    (made / "whole").mkdir()
    output = made / "whole" / "out.keras"
    files = made / "teacher.keras", made / "student.keras", made / "data.npz"
    before = [path.read_bytes() for path in files]
    found = distill(*files, output, epochs=3, batch_size=16)
    assert [path.read_bytes() for path in files] == before  # only read
    return found, output


def test_the_student_learns_and_the_result_says_so(whole, made):
    found, path = whole
    images, labels = make_data()
    teacher, student = load(made / "teacher.keras"), load(made / "student.keras")
    theirs = teacher.evaluate(images, labels, verbose=0)
    before, after = (
        model.evaluate(images, labels, verbose=0, return_dict=True)
        for model in (student, load(path))
    )
    # The teacher gives logits; by the student's loss it is judged by probabilities.
    assert found.taught.scores["loss"] == pytest.approx(theirs, abs=1e-4)
    accuracy = np.mean(np.argmax(teacher(images), -1) == labels)
    assert found.taught.scores["accuracy"] == pytest.approx(accuracy)
    assert found.before == pytest.approx(before, abs=1e-5)
    assert found.after == pytest.approx(after, abs=1e-5)
    assert found.after["loss"] < found.before["loss"]
    far, near = (distance(teacher(images), model(images), 2.0) for model in (student, load(path)))
    assert near < 0.8 * far
    assert (found.recipe, found.steps, found.resumed, found.sparsity) == (None, 15, 0, 0.0)
    assert found.bytes == path.stat().st_size
    assert found.taught.bytes > found.taught.zipped > 0
    assert [p.name for p in path.parent.iterdir()] == ["out.keras"]
    shown = str(found)
    assert re.search("what +. teacher . before . +after", shown)
    taught = f"Taught by {made / 'teacher.keras'}: soft_labels; alpha 0.5, temperature 2."
    assert taught in shown
    told = json.loads(json.dumps(found.to_dict()))["taught"]
    assert (told["started"], told["losses"]) == (None, {"soft_labels": 1.0})


def shapes_in(path):
    """The shapes of all arrays in a file."""
    shapes = set()
    with h5py.File(path) as file:
        file.visititems(lambda _, item: shapes.add(getattr(item, "shape", None)))
    return shapes


@pytest.mark.slow
def test_a_resumed_training_gives_what_an_uninterrupted_one_gives(run, whole, tmp_path):
    interrupted(run, 13)
    shapes = shapes_in(tmp_path / "out.keras.checkpoint" / "2.weights.h5")
    assert (3, 3, 2, 8) in shapes
    assert (3, 3, 2, 16) not in shapes  # of the teacher
    found = run(resume=True)
    assert found.resumed == 2
    assert found.after == whole[0].after
    same_weights(whole[1], tmp_path / "out.keras")
    assert [p.name for p in tmp_path.iterdir()] == ["out.keras"]


@pytest.mark.slow
@pytest.mark.parametrize(("at", "cache"), [(8, None), (13, None), (13, "memory"), (13, "cache.h5")])
def test_a_resumed_training_under_a_recipe(run, made, tmp_path, at, cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"recipe": made / "recipe.yaml", "start_from_teacher": True, "optimizer": "adam"}
    expected = run(output="whole.keras", cache=cache and cache.replace(".", "2."), **given)
    interrupted(run, at, cache=cache, **given)
    (state,) = (tmp_path / "out.keras.checkpoint").glob("*.weights.h5")
    shapes = shapes_in(state)
    assert {(3, 3, 2, 8), (8, 16)} <= shapes  # (8, 16) leads to the teacher's width
    assert (3, 3, 2, 16) not in shapes
    found = run(cache=cache, resume=True, **given)
    assert (found.resumed, found.after) == (at // 5, expected.after)
    same_weights(tmp_path / "whole.keras", tmp_path / "out.keras")


@pytest.mark.slow
def test_a_training_is_resumed_with_the_same_teacher_and_settings(run, made, tmp_path):
    interrupted(run, 8)
    with pytest.raises(ValueError, match=r"alpha was 0.5, now 0.1; temperature was 2.0, now 4"):
        run(resume=True, alpha=0.1, temperature=4.0)
    with pytest.raises(ValueError, match="another content of teacher"):
        run(resume=True, teacher=made / "student.keras")
    with pytest.raises(ValueError, match="start_from_teacher was False, now True"):
        run(resume=True, start_from_teacher=True)
    # What is as by default may be said.
    assert run(resume=True, alpha=0.5).resumed == 1


def test_without_labels_the_student_is_judged_by_its_teacher(run, made, tmp_path):
    found = run(data=made / "unlabelled.npz", alpha=0.0, temperature=2.0, epochs=2)
    images = make_data()[0].astype("float32")
    teacher = load(made / "teacher.keras")(images)
    for told, path in (
        (found.before, made / "student.keras"),
        (found.after, tmp_path / "out.keras"),
    ):
        student = load(path)(images)
        assert told["distillation_loss"] == pytest.approx(distance(teacher, student, 2.0), rel=1e-4)
        agreement = np.mean(np.argmax(teacher, -1) == np.argmax(student, -1))
        assert told["agreement"] == pytest.approx(agreement)
    assert found.after["distillation_loss"] < found.before["distillation_loss"]
    assert f"{found.after['agreement']:.1%}" in str(found)
    assert found.taught.scores == {}


@pytest.mark.slow
def test_alpha_0_needs_no_loss_but_takes_labels_where_it_has_one(run, made, tmp_path):
    make_model().save(tmp_path / "plain.keras")
    given = {"alpha": 0.0, "epochs": 1, "optimizer": "sgd", "student": tmp_path / "plain.keras"}
    assert list(run(**given).after) == ["distillation_loss", "agreement"]
    assert list(run(**given, loss=LOSS).after) == ["loss", "accuracy"]
    with pytest.raises(ValueError, match=r"received no optimizer. Pass --optimizer, such as adam"):
        run(**{**given, "optimizer": None})
    images, labels = make_data(20)
    np.savez(tmp_path / "test.npz", x=images, y=labels)
    given = {"data": made / "unlabelled.npz", "alpha": 0.0, "epochs": 1}
    found = run(**given, validation_data=tmp_path / "test.npz")
    assert found.judged_on == "the validation data (20 samples)"
    expected = load(tmp_path / "out.keras").evaluate(images, labels, verbose=0)
    assert list(found.after.values()) == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_one_recipe_prunes_quantizes_and_distills(run, made, tmp_path):
    given = {"recipe": made / "recipe.yaml", "learning_rate": 0.02, "epochs": 6}
    found = run("out.tflite", **given)
    assert (found.precision, found.sparsity) == ("int8", 0.75)
    assert found.bytes == (tmp_path / "out.tflite").stat().st_size
    assert found.after["loss"] < found.before["loss"]
    run("out.keras", **given)
    images = make_data()[0].astype("float32")
    checked = tfc.verify(tmp_path / "out.keras", tmp_path / "out.tflite", images)
    assert checked.passed
    assert checked.outputs[0].keras.max_lsb <= 1
    kernels = [w.numpy() for w in load(tmp_path / "out.keras").weights if w.name == "kernel"]
    assert sum(map(np.count_nonzero, kernels)) == sum(each.size for each in kernels) / 4


@pytest.mark.slow
@pytest.mark.parametrize("precision", [None, "float16"])
def test_a_tflite_file_without_a_recipe(run, tmp_path, precision):
    found = run("out.tflite", precision=precision, epochs=1)
    assert found.precision == (precision or "float32")
    run("out.keras", epochs=1)
    images = make_data()[0].astype("float32")
    assert tfc.verify(tmp_path / "out.keras", tmp_path / "out.tflite", images).passed
