"""What a Distiller refuses, with a message that tells how to mend it."""

import keras
import numpy as np
import pytest
from distillation_models import (
    X,
    Y,
    compiled,
    convnet,
    fit,
    mlp,
    pair,
    subclassed,
    two_headed,
)
from keras import layers

import tfcompress as tfc
from tfcompress import distillation as kd


def refused(message, make, error=ValueError, unless=None):
    with pytest.raises(error, match=message) as caught:
        make()
    assert unless is None or unless not in str(caught.value)


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan"), "half", True, None])
def test_alpha(alpha):
    refused(
        r"alpha must be a number in \[0, 1\].*received",
        lambda: tfc.Distiller(*pair(), alpha=alpha),
    )


@pytest.mark.parametrize("temperature", [0, -2.0, float("nan"), float("inf"), "4", None])
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


def test_one_number_is_no_class():
    keras.utils.set_random_seed(0)
    student, teacher = (
        keras.Sequential([keras.Input((6,)), layers.Dense(w), layers.Dense(1)]) for w in (4, 8)
    )
    refused("two classes or more.*sigmoid.*'mse'", lambda: tfc.Distiller(student, teacher))
    for losses in ("mse", kd.SoftLabels(activation="sigmoid")):
        found = compiled(tfc.Distiller(student, teacher, losses, alpha=0)).evaluate(X, verbose=0)
        assert np.min(found) >= 0


def test_unknown_names():
    student, teacher = pair()
    refused(
        r"teacher 'large' has no layer named 'hiden'; expected one of hidden, top\. "
        "Did you mean 'hidden'",
        lambda: tfc.Distiller(student, teacher, kd.Features("hiden", "hidden")),
    )
    refused(
        "student 'small' has no layer named 'topp'.*Did you mean 'top'",
        lambda: tfc.Distiller(student, teacher, kd.Features("top", "topp")),
    )
    refused(
        "student has no output 'knd'; expected one of kind, size. Did you mean 'kind'",
        lambda: tfc.Distiller(two_headed(4, "a"), two_headed(8, "b"), {"knd": "mse"}),
    )
    refused("no output 5", lambda: tfc.Distiller(student, teacher, kd.SoftLabels(output=5)))


def test_names_that_are_not_unique():
    inner = [mlp(4, name, k) for k, name in enumerate("ab")]
    inputs = keras.Input((6,))
    teacher = keras.Model(inputs, layers.Add()([m(inputs) for m in inner]), name="both")
    student = mlp(4, "small")
    refused(
        "teacher 'both' has 2 layers named 'hidden': a/hidden, b/hidden. Write one",
        lambda: tfc.Distiller(student, teacher, kd.Features("hidden", "hidden")),
    )
    tfc.Distiller(student, teacher, kd.Features("b/hidden", "hidden"))


def test_layers_that_cannot_be_tapped():
    inputs = keras.Input((6,))
    shared = layers.Dense(6, name="shared")
    student = keras.Model(inputs, layers.Dense(3, name="top")(shared(shared(inputs))), name="s")
    teacher = mlp(8, "large", 2)
    refused(
        "'shared' of 's' runs 2 times in the model; expected once",
        lambda: tfc.Distiller(student, teacher, kd.Features("hidden", "shared")),
    )
    lstm = layers.LSTM(4, return_state=True, name="lstm")
    sequence = keras.Input((5, 2))
    states = keras.Model(sequence, layers.Dense(3, name="top")(lstm(sequence)[0]), name="states")
    other = keras.models.clone_model(states)
    refused(
        "'lstm' of 'states' gives 3 tensors; expected one",
        lambda: tfc.Distiller(states, other, kd.Features("lstm", "lstm")),
    )
    refused(
        "not called where it can be seen",
        lambda: tfc.Distiller(student, mlp(8, "l"), kd.Features("features", "top")),
    )


def test_advice_fits_layers_that_cannot_be_tapped():
    inputs = keras.Input((6,))
    shared = layers.Dense(6, name="shared")
    student = keras.Model(inputs, layers.Dense(3, name="top")(shared(shared(inputs))), name="s")
    refused(
        r"^layer 'shared' of 's' runs 2 times .*Name another layer\.$",
        lambda: tfc.Distiller(student, mlp(8, "large"), kd.Features("hidden", "shared")),
        unless="Resizing",
    )


@pytest.mark.parametrize("name", ["loss", "task_loss", "distillation_loss"])
def test_names_of_losses_that_are_taken(name):
    losses = [kd.SoftLabels(name=name), kd.Regression()]
    refused(f"name.*'{name}'", lambda: tfc.Distiller(*pair(), losses))


def test_features_that_cannot_be_compared():
    student, teacher = convnet(3, "small"), convnet(5, "large", 2)
    refused(
        r"Features between layer 'pool' of the teacher 'large'.*'conv'.*same number of axes",
        lambda: tfc.Distiller(student, teacher, kd.Features("pool", "conv")),
    )
    refused(
        "has 5 channels, the student's 3; expected the same number with projection=False",
        lambda: tfc.Distiller(student, teacher, kd.Features("conv", "conv", projection=False)),
    )
    refused(
        "attention needs layers with positions",
        lambda: tfc.Distiller(student, teacher, kd.AttentionTransfer("pool", "pool")),
    )
    refused(
        "compares layers, not the output 'top'",
        lambda: tfc.Distiller(student, teacher, {"top": kd.Features("conv", "conv")}),
    )


@pytest.mark.parametrize("which", ["student", "teacher"])
def test_logits_given_as_probabilities_and_the_reverse(which):
    plain, soft = mlp(4, "plain", 1), mlp(8, "soft", 2, "softmax")
    other = mlp(5, "other", 3, "softmax")
    models = (soft, plain) if which == "student" else (plain, soft)
    says = (None, True) if which == "student" else (True, None)
    refused(
        f"the {which} 'soft' gives probabilities.*softmax.*from_logits=True says logits",
        lambda: tfc.Distiller(*models, kd.SoftLabels(from_logits=says)),
    )
    models = (plain, other) if which == "student" else (other, plain)
    says = (None, False) if which == "student" else (False, None)
    refused(
        f"the {which} 'plain' gives logits.*no activation.*from_logits=False says",
        lambda: tfc.Distiller(*models, kd.SoftLabels(from_logits=says)),
    )


def test_softmax_and_sigmoid():
    yes_no, plain = mlp(8, "yes_no", 2, "sigmoid"), mlp(4, "plain")
    refused(
        "teacher 'yes_no' ends with sigmoid.*'softmax'.*expected the same",
        lambda: tfc.Distiller(plain, yes_no, kd.SoftLabels(activation="softmax")),
    )
    # Of logits and probabilities the latter tell.
    assert tfc.Distiller(plain, yes_no).terms[0].loss.activation == "sigmoid"


def test_probabilities_of_a_subclassed_model_said_to_be_logits():
    soft = subclassed(4, "softmax", 1)
    refused(
        "gives probabilities",
        lambda: tfc.Distiller(soft, mlp(8, "t"), kd.SoftLabels(from_logits=True)),
    )


def test_losses_of_other_kinds():
    models = pair()
    refused("losses are empty", lambda: tfc.Distiller(*models, []))
    refused("losses are empty", lambda: tfc.Distiller(*models, {}))
    refused("Write SoftLabels()", lambda: tfc.Distiller(*models, kd.SoftLabels), TypeError)
    refused("received 3 among the losses", lambda: tfc.Distiller(*models, 3), TypeError)
    refused("unknown loss 'msee'", lambda: tfc.Distiller(*models, "msee"))
    of_keras = keras.distillation.LogitsDistillation(loss="categorical_crossentropy")
    refused("LogitsDistillation of Keras", lambda: tfc.Distiller(*models, of_keras), TypeError)


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


def test_activations_that_differ():
    models = mlp(4, "student", 0, "sigmoid"), mlp(8, "teacher", 1, "softmax")
    refused(
        r"'teacher' ends with softmax, the student 'student' with sigmoid.*losses=\['mse'\]",
        lambda: tfc.Distiller(*models),
    )
    tfc.Distiller(*models, "mse")


def test_missing_models_are_named():
    refused("^student: model must be", lambda: tfc.Distiller(None, mlp(4, "t")), TypeError)
    refused("^teacher: model must be", lambda: tfc.Distiller(mlp(4, "s"), "t.keras"), TypeError)


def test_names_of_losses_as_in_recipes():
    distiller = tfc.Distiller(*pair(), ["soft_labels", "relational", "mae"])
    kinds = [type(term.loss) for term in distiller.terms]
    assert kinds == [kd.SoftLabels, kd.Relational, kd.Regression]
    assert "weight=0.5, name='soft_labels', temperature=2.0" in repr(kd.SoftLabels(2.0, weight=0.5))
