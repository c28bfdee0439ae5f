"""distill and compress: which teachers there may be, how they are judged, what is kept of them."""

import distilling_files
import keras
import numpy as np
import pytest
from distilling_files import distance, same_weights, softmax
from fine_tuning_files import LOSS, make_data
from keras import layers

import tfcompress as tfc
from tfcompress.distillation.distiller import Distillation
from tfcompress.fine_tuning import fine_tune
from tfcompress.fine_tuning.teaching import Teaching

# Fixtures of all modules about distill.
made, run = distilling_files.made, distilling_files.run

load = keras.saving.load_model


def test_a_student_that_starts_from_its_teacher(run, made, tmp_path):
    twin = distilling_files.make_teacher()
    twin.save(tmp_path / "twin.keras")
    given = {"optimizer": "sgd", "learning_rate": 1e-30, "epochs": 1, "alpha": 0.0}
    found = run(student=tmp_path / "twin.keras", start_from_teacher=True, **given)
    same_weights(made / "teacher.keras", tmp_path / "out.keras")
    assert found.taught.started == 1.0
    assert found.before["distillation_loss"] > 0.01
    assert found.after == {"distillation_loss": pytest.approx(0, abs=1e-6), "agreement": 1.0}
    assert "100.0% of its weights began as the teacher's" in str(found)


@pytest.mark.slow
def test_compress_by_a_recipe_with_the_model_itself_for_a_teacher(made, tmp_path):
    (tmp_path / "self.yaml").write_text(
        "distill: {alpha: 0}\nrules:\n- {layers: '*', techniques: [quantize: {bits: 4}]}"
    )
    files = made / "student.keras", tmp_path / "self.yaml", made / "unlabelled.npz"
    found = fine_tune(*files, tmp_path / "out.keras", epochs=4, learning_rate=0.005)
    assert found.before == {"distillation_loss": pytest.approx(0, abs=1e-6), "agreement": 1.0}
    images = make_data()[0].astype("float32")
    student = np.log(load(made / "student.keras")(images))
    after = distance(student, load(tmp_path / "out.keras")(images), 2.0)
    assert found.after["distillation_loss"] == pytest.approx(after, rel=0.01)  # 8 bits
    assert (found.taught.teacher, found.taught.bytes) == (None, None)
    assert "Taught by itself as it was before: soft_labels; alpha 0, temperature 2." in str(found)


@pytest.mark.slow
def test_compress_learns_from_the_model_itself_by_a_recipe_that_does_not_say_so(made, tmp_path):
    files = made / "student.keras", "int8", made / "data.npz", tmp_path / "out.keras"
    found = fine_tune(*files, epochs=1, distill=True)
    assert "Taught by itself as it was before: soft_labels; alpha 0.5, temperature 2." in str(found)
    assert (found.taught.dropout, found.precision) == (False, None)
    assert fine_tune(*files[:3], tmp_path / "alone.keras", epochs=1).taught is None


@pytest.mark.slow
def test_compress_with_a_teacher(made, tmp_path):
    files = made / "student.keras", "distill-int8", made / "data.npz", tmp_path / "out.tflite"
    found = fine_tune(*files, epochs=3, teacher=made / "teacher.keras")
    assert found.precision == "int8"
    images, labels = make_data()
    theirs = load(made / "teacher.keras").evaluate(images, labels, verbose=0)
    assert found.taught.scores["loss"] == pytest.approx(theirs, abs=1e-4)
    assert found.after["loss"] < found.before["loss"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the teacher")  # untrained
def test_a_cache_is_kept_for_later_trainings_and_refused_for_other_teachers(run, made, tmp_path):
    given = {"cache": tmp_path / "cache.h5", "epochs": 2}
    first = run(**given)
    kept = (tmp_path / "cache.h5").read_bytes()
    assert run(**given).after == first.after
    assert (tmp_path / "cache.h5").read_bytes() == kept
    other = distilling_files.make_teacher()
    other.save(tmp_path / "other.keras")
    (tmp_path / "out.keras").unlink()
    with pytest.raises(ValueError, match="another teacher"):
        run(**given, teacher=tmp_path / "other.keras")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache.h5", "other.keras"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the teacher")  # untrained
def test_a_cache_of_a_teacher_with_random_layers_is_read_again(run, tmp_path):
    # Whose generators begin elsewhere each time that the file is loaded.
    body = [layers.Flatten(), layers.Dropout(0.5), layers.Dense(3)]
    keras.Sequential([keras.Input((6, 6, 2)), *body]).save(tmp_path / "random.keras")
    given = {"cache": tmp_path / "cache.h5", "teacher": tmp_path / "random.keras", "epochs": 2}
    first = run(**given)
    keras.utils.set_random_seed(5)
    assert run(**given).after == first.after


def make_pair(width, logits, names=("left", "right")):
    """A model of two inputs and two outputs."""
    keras.utils.set_random_seed(width)
    a, b = keras.Input((4,), name=names[0]), keras.Input((3,), name=names[1])
    x = layers.Concatenate()([layers.Dense(width, "relu")(a), layers.Dense(width, "relu")(b)])
    kind = layers.Dense(2, None if logits else "softmax", name="kind")(x)
    return keras.Model({"left": a, "right": b}, {"kind": kind, "size": layers.Dense(1)(x)})


@pytest.mark.slow
def test_several_inputs_and_outputs_by_name(run, tmp_path):
    teacher, student = make_pair(32, True), make_pair(4, False)
    losses = {"kind": LOSS, "size": "mse"}
    student.compile("adam", losses, metrics={"kind": ["accuracy"]}, jit_compile=False)
    random = np.random.default_rng(0)
    left, right = random.normal(size=(2, 50, 4)).astype("float32")
    arrays = {"left": left, "right": right[:, :3]}
    right = teacher(arrays)
    logits = np.array(right["kind"])
    labels = {"kind": np.argmax(logits, -1), "size": np.array(right["size"])}
    np.savez(tmp_path / "pair.npz", **arrays, **labels)
    teacher.save(tmp_path / "teacher.keras")
    student.save(tmp_path / "student.keras")
    (tmp_path / "r.yaml").write_text(
        "distill:\n  losses:\n  - soft_labels: {output: kind}\n"
        "  - regression: {loss: mse, output: size}\n"
    )
    given = {name: tmp_path / f"{name}.keras" for name in ("teacher", "student")}
    given |= {"data": tmp_path / "pair.npz", "recipe": tmp_path / "r.yaml", "epochs": 4}
    found = run(**given)
    expected = -np.log(softmax(logits).max(-1)).mean()
    assert found.taught.scores["loss"] == pytest.approx(expected, rel=1e-4)
    assert found.taught.scores["kind_accuracy"] == 1.0
    assert found.after["loss"] < found.before["loss"]
    np.savez(tmp_path / "pair.npz", **arrays)
    found = run(**given, alpha=0.0)
    assert list(found.after) == ["distillation_loss", "agreement"]
    assert found.after["distillation_loss"] < found.before["distillation_loss"]


def test_a_teacher_is_judged_as_its_student_is():
    def dense(classes, activation=None):
        keras.utils.set_random_seed(0)
        return keras.Sequential([keras.Input((4,)), layers.Dense(classes, activation=activation)])

    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    logits = np.array(dense(3)(x))

    def judged(teacher, student):
        return Teaching(Distillation(), teacher).as_student(tfc.flatten(student))

    np.testing.assert_allclose(judged(dense(3), dense(3))(x), logits, atol=1e-6)
    probabilities = judged(dense(3), dense(3, "softmax"))(x)
    np.testing.assert_allclose(probabilities, softmax(logits), atol=1e-6)
    again = judged(dense(3, "softmax"), dense(3))(x)
    np.testing.assert_allclose(softmax(np.array(again)), softmax(logits), atol=1e-6)
    yes = judged(dense(1), dense(1, "sigmoid"))(x)
    np.testing.assert_allclose(yes, 1 / (1 + np.exp(-np.array(dense(1)(x)))), atol=1e-6)
    assert judged(dense(3), dense(4)) is None
