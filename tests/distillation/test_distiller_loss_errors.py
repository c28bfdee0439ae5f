"""Losses, layers and outputs that a Distiller takes, and its advice on those it refuses."""

import keras
import numpy as np
import pytest
from distillation_models import X, compiled, convnet, mlp, pair, subclassed, two_headed
from keras import layers
from refusals import refused

import tfcompress as tfc
from tfcompress import distillation as kd


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


def test_activations_that_differ():
    models = mlp(4, "student", 0, "sigmoid"), mlp(8, "teacher", 1, "softmax")
    refused(
        r"'teacher' ends with softmax, the student 'student' with sigmoid.*losses=\['mse'\]",
        lambda: tfc.Distiller(*models),
    )
    tfc.Distiller(*models, "mse")


def test_names_of_losses_as_in_recipes():
    distiller = tfc.Distiller(*pair(), ["soft_labels", "relational", "mae"])
    kinds = [type(term.loss) for term in distiller.terms]
    assert kinds == [kd.SoftLabels, kd.Relational, kd.Regression]
    assert "weight=0.5, name='soft_labels', temperature=2.0" in repr(kd.SoftLabels(2.0, weight=0.5))
