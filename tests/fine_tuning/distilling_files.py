"""Files for distill: a teacher, a student, data with and without labels; runs with them."""

import functools

import keras
import numpy as np
import pytest
from fine_tuning_files import LOSS, make_data, make_model
from keras import layers

from tfcompress.fine_tuning import distill

RECIPE = """
distill:
  losses:
    - soft_labels
    - features: {teacher_layer: wide, student_layer: conv, weight: 0.01}
rules:
  - layers: "*"
    techniques:
      - prune: {sparsity: {polynomial: {initial: 0.0, final: 0.75, end: 60%, frequency: 1}}}
      - quantize: {bits: 8}
"""


def make_teacher():
    """Wider than the student, and with logits for outputs."""
    keras.utils.set_random_seed(1)
    body = [layers.Conv2D(16, 3, activation="relu", name="wide"), layers.Flatten()]
    return keras.Sequential([keras.Input((6, 6, 2), name="picture"), *body, layers.Dense(3)])


@functools.cache
def trained_teacher():
    """The teacher of all modules, which none of them trains on."""
    teacher = make_teacher()
    teacher.compile(
        "adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False
    )
    teacher.fit(*make_data(), epochs=20, verbose=0)
    return teacher


def make_student():
    model = make_model()
    model.layers[0].name = "conv"
    model.compile(keras.optimizers.SGD(0.05), LOSS, metrics=["accuracy"], jit_compile=False)
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    images, labels = make_data()
    trained_teacher().save(folder / "teacher.keras")
    make_student().save(folder / "student.keras")
    np.savez(folder / "data.npz", x=images, y=labels)
    np.savez(folder / "unlabelled.npz", x=images)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture
def run(made, tmp_path):
    """distill with the files of `made`, but for what is given."""

    def run(output="out.keras", **changed):
        given = {"epochs": 3, "batch_size": 16, "output": tmp_path / output}
        given |= {name: made / f"{name}.keras" for name in ("teacher", "student")}
        given["data"] = made / "data.npz"
        return distill(**{**given, **changed})

    return run


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def distance(teacher, student, temperature):
    """Soft labels by hand, of logits and probabilities."""
    p = softmax(np.array(teacher) / temperature)
    q = softmax(np.log(np.array(student)) / temperature)
    return temperature**2 * np.mean(np.sum(p * np.log(p / q), axis=-1))


def same_weights(a, b):
    for x, y in zip(
        keras.saving.load_model(a).get_weights(),
        keras.saving.load_model(b).get_weights(),
        strict=True,
    ):
        np.testing.assert_array_equal(x, y)
