"""Models, settings and data that a Distiller refuses, and functions that refuse a Distiller."""

import keras
import numpy as np
import pytest
from distillation_models import X, Y, compiled, convnet, fit, mlp, pair, two_headed
from keras import layers
from refusals import refused

import tfcompress as tfc
from tfcompress import distillation as kd


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan"), "half", True])
def test_alpha(alpha):
    refused(
        r"alpha must be a number in \[0, 1\].*received",
        lambda: tfc.Distiller(*pair(), alpha=alpha),
    )


@pytest.mark.parametrize("temperature", [0, -2.0, float("nan"), float("inf"), "4"])
def test_temperature(temperature):
    refused(
        "temperature must be a number greater than 0; received",
        lambda: tfc.Distiller(*pair(), temperature=temperature),
    )


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -1.0], [1, 2, 3]])
def test_teacher_weights(weights):
    student, teacher = pair()
    refused(
        "teacher_weights must be 2 numbers greater than 0",
        lambda: tfc.Distiller(student, [teacher, mlp(5, "b")], teacher_weights=weights),
    )


def test_teachers():
    student, teacher = pair()
    refused("one or more; received none", lambda: tfc.Distiller(student, []))
    for index in (1, -1, "large"):
        loss = kd.SoftLabels(teacher=index)
        refused(
            r"teacher of soft_labels must be an index from 0 to 0; received",
            lambda loss=loss: tfc.Distiller(student, teacher, loss),
        )


def test_models():
    student, teacher = pair()
    unbuilt = keras.Sequential([layers.Dense(3)])
    refused("is not built.*Call it once", lambda: tfc.Distiller(unbuilt, teacher))
    refused("is not built.*Call it once", lambda: tfc.Distiller(student, unbuilt))
    for other in ("model.keras", None, layers.Dense(3), X):
        refused("model", lambda other=other: tfc.Distiller(other, teacher), TypeError)
        refused("model", lambda other=other: tfc.Distiller(student, other), TypeError)
    compressed = tfc.quantize_aware(teacher)
    refused(
        r"comes from compress.*tfcompress\.finalize", lambda: tfc.Distiller(student, compressed)
    )
    inner = tfc.Distiller(student, teacher)
    for models in ((student, inner), (inner, teacher)):
        refused("a Distiller.*its .?student", lambda m=models: tfc.Distiller(*m), TypeError)


def test_models_of_tf_keras():
    tf_keras = pytest.importorskip("tf_keras")
    old = tf_keras.Sequential([tf_keras.layers.Dense(3, input_shape=(6,))])
    student, teacher = pair()
    refused(
        "student is a model of tf_keras.*migrate", lambda: tfc.Distiller(old, teacher), TypeError
    )
    refused(
        "teacher is a model of tf_keras.*migrate", lambda: tfc.Distiller(student, old), TypeError
    )


def test_shared_weights():
    student = mlp(4, "small")
    hidden = student.get_layer("hidden")
    shared = keras.Model(student.input, layers.Dense(3)(hidden.output), name="shared")
    refused(
        r"'small' and teacher 'shared' share weights .*hidden/kernel, 2 in all.*\.flatten",
        lambda: tfc.Distiller(student, shared),
    )
    refused("share weights", lambda: tfc.Distiller(student, student))
    hidden.trainable = False
    distiller = compiled(tfc.Distiller(student, shared))
    before = keras.ops.convert_to_numpy(hidden.kernel).copy()
    fit(distiller, X, Y)
    np.testing.assert_array_equal(before, hidden.kernel)


def test_inputs_that_differ():
    student, teacher = mlp(4, "small"), convnet(3, "images")
    refused(
        r"teacher 'images' cannot run on the student's inputs \(None, 6\).*same inputs",
        lambda: tfc.Distiller(student, teacher),
    )


def test_outputs_that_differ():
    student, teacher = pair()
    five = keras.Model(teacher.input, layers.Dense(5)(teacher.get_layer("hidden").output), name="5")
    refused(
        r"teacher '5'.*student 'small'.*teacher gives \(None, 5\), the student \(None, 3\)",
        lambda: tfc.Distiller(student, five),
    )
    refused(
        r"teacher 'two' has 2 outputs \(kind, size\), the student 1",
        lambda: tfc.Distiller(student, two_headed(4, "two")),
    )
    refused(
        r"has 1 outputs.*the student 2 \(kind, size\).*keras\.Model\(inputs, outputs\)",
        lambda: tfc.Distiller(two_headed(4, "two"), teacher),
    )
    for rank in (layers.Reshape((3, 1)), layers.Reshape((1, 3))):
        other = keras.Model(teacher.input, rank(teacher.output))
        refused("expected the same shape", lambda other=other: tfc.Distiller(student, other))


@pytest.mark.parametrize("function", [tfc.flatten, tfc.finalize, tfc.quantize_aware])
def test_not_a_model_to_ship(function, tmp_path):
    distiller = tfc.Distiller(*pair())
    refused(
        "received a Distiller, which trains one.*its .?student",
        lambda: function(distiller),
        TypeError,
    )
    refused(
        "received a Distiller.*its .?student",
        lambda: tfc.convert(distiller, tmp_path / "m.tflite"),
        TypeError,
    )
    mutual = tfc.MutualDistiller(list(pair()))
    refused("received a MutualDistiller.*its .?students", lambda: function(mutual), TypeError)


def test_compress_of_a_distiller():
    rules = [tfc.Rule("*", [tfc.Prune(0.5)])]
    refused(
        "received a Distiller.*its .?student",
        lambda: tfc.compress(tfc.Distiller(*pair()), rules),
        TypeError,
    )


class School(keras.Model):
    """A model of a user who counts students."""

    def __init__(self):
        super().__init__()
        self.students, self.top = 5, layers.Dense(3)

    def call(self, inputs):
        return self.top(inputs)


def test_other_models_may_have_students():
    school = School()
    school(X[:1])
    assert tfc.flatten(school).output_shape == (None, 3)


def test_other_data_than_the_models_take():
    distiller = compiled(tfc.Distiller(*pair()), run_eagerly=False)
    with pytest.raises(ValueError, match="shape"):
        fit(distiller, X[:, :4], Y)


def test_missing_models_are_named():
    refused("^student: model must be", lambda: tfc.Distiller(None, mlp(4, "t")), TypeError)
    refused("^teacher: model must be", lambda: tfc.Distiller(mlp(4, "s"), "t.keras"), TypeError)
