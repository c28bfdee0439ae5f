"""What a Distiller computes: its loss and its gradients."""

import keras
import numpy as np
import pytest
from distillation_models import (
    IMAGES,
    WEIGHTS,
    X,
    Y,
    as_numpy,
    assert_same,
    compiled,
    convnet,
    crossentropy,
    distillation,
    divergence,
    fit,
    hidden,
    logits,
    loss_of,
    mlp,
    pair,
    two_headed,
    weights_of,
)
from keras import layers

import tfcompress as tfc
from tfcompress import distillation as kd


def test_loss_by_hand():
    student = mlp(4, "small", kernel_regularizer=keras.regularizers.L2(0.1))
    teacher = mlp(8, "large", 2, kernel_regularizer=keras.regularizers.L2(0.1))
    distiller = compiled(tfc.Distiller(student, teacher, alpha=0.3, temperature=3.0))
    task = crossentropy(Y, logits(student)).mean()
    soft = divergence(logits(teacher), logits(student), 3.0).mean()
    penalty = 0.1 * (as_numpy(student.get_layer("hidden").kernel) ** 2).sum()
    expected = 0.3 * task + 0.7 * soft + penalty
    parts = {"loss": expected, "task_loss": task, "distillation_loss": soft}
    found = distiller.evaluate(X, Y, verbose=0, return_dict=True, batch_size=5)
    assert found == pytest.approx(parts, rel=1e-5)
    assert distiller.train_on_batch(X, Y, return_dict=True) == pytest.approx(parts, rel=1e-5)


def test_activity_regularizer_counts_once_and_not_the_teachers():
    student = mlp(4, "small", activity_regularizer=keras.regularizers.L1(0.01))
    teacher = mlp(8, "large", 2, activity_regularizer=keras.regularizers.L1(0.01))
    distiller = compiled(tfc.Distiller(student, teacher, kd.Features("hidden", "hidden"), alpha=0))
    loss, parts = loss_of(distiller)
    # As much as without a teacher; whether that is a mean depends on the version of Keras.
    alone = compiled(student).evaluate(X, Y, verbose=0)
    penalty = alone - crossentropy(Y, logits(student)).mean()
    assert penalty > 0.01
    assert loss - parts["distillation_loss"] == pytest.approx(penalty, rel=1e-4)


def test_step_by_hand():
    import tensorflow as tf

    student, teacher = pair()
    with tf.GradientTape() as tape:
        outputs = student(X, training=True)
        task = tf.nn.sparse_softmax_cross_entropy_with_logits(Y, outputs)
        p = tf.nn.softmax(teacher(X) / 2.0)
        q = tf.nn.log_softmax(outputs / 2.0)
        soft = 4.0 * tf.reduce_sum(p * (tf.math.log(p) - q), axis=-1)
        loss = tf.reduce_mean(0.4 * task + 0.6 * soft)
    variables = student.trainable_variables
    gradients = tape.gradient(loss, [v.value for v in variables])
    expected = [as_numpy(v) - 0.1 * as_numpy(g) for v, g in zip(variables, gradients, strict=True)]
    distiller = compiled(tfc.Distiller(student, teacher, alpha=0.4, temperature=2.0))
    distiller.train_on_batch(X, Y)
    assert_same(weights_of(student), expected, 1e-6)


def test_only_the_student_changes():
    student, teacher = convnet(3, "small", 1), convnet(5, "large", 2)
    losses = [kd.SoftLabels(), kd.Features("conv", "conv"), kd.AttentionTransfer("norm", "norm")]
    before, of_student = weights_of(teacher), weights_of(student)
    distiller = compiled(tfc.Distiller(student, teacher, losses), run_eagerly=False)
    assert distiller.student is student
    fit(distiller, IMAGES, Y, epochs=2)
    assert_same(weights_of(teacher), before)
    assert teacher.trainable
    assert len(teacher.trainable_variables) == 6
    for old, new in zip(of_student, student.variables, strict=True):
        assert np.abs(old - as_numpy(new)).max() > 1e-4, new.path
    trained = weights_of(student)
    adapters = [as_numpy(v) for layer in distiller.adapters for v in layer.variables]
    assert len(adapters) == 2
    # evaluate() must leave the statistics of BatchNormalization alone.
    distiller.evaluate(IMAGES, Y, verbose=0)
    distiller.predict(IMAGES, verbose=0)
    assert_same(weights_of(student), trained)
    assert_same([v for layer in distiller.adapters for v in layer.variables], adapters)


def test_optimizer_trains_student_and_adapters_alone():
    student, teacher = convnet(3, "small", 1), convnet(5, "large", 2)
    distiller = compiled(tfc.Distiller(student, teacher, kd.Features("conv", "conv"), alpha=0))
    wanted = {id(v) for v in student.trainable_variables + distiller.adapters[0].variables}
    assert {id(v) for v in distiller.trainable_variables} == wanted
    both = distiller.trainable_variables + distiller.non_trainable_variables
    assert {id(v) for v in both} == {id(v) for v in distiller.variables}
    frozen = mlp(4, "frozen")
    frozen.get_layer("hidden").trainable = False
    distiller = compiled(tfc.Distiller(frozen, mlp(8, "large")))
    before = weights_of(frozen)
    distiller.train_on_batch(X, Y)
    after = weights_of(frozen)
    assert_same(before[:2], after[:2])
    assert np.abs(before[2] - after[2]).max() > 1e-4


def test_sample_weight_counts_in_both_parts():
    student, teacher = pair()
    losses = [kd.SoftLabels(2.0), kd.Features("hidden", "hidden", projection=True)]
    distiller = compiled(tfc.Distiller(student, teacher, losses, alpha=0.5))
    task = (WEIGHTS * crossentropy(Y, logits(student))).mean()
    soft = (WEIGHTS * divergence(logits(teacher), logits(student), 2.0)).mean()
    projected = as_numpy(distiller.adapters[0](hidden(student)))
    hints = (WEIGHTS * ((projected - hidden(teacher)) ** 2).mean(-1)).mean()
    for weight in (WEIGHTS, WEIGHTS[:, None]):
        loss, parts = loss_of(distiller, sample_weight=keras.ops.convert_to_tensor(weight))
        assert parts == pytest.approx(
            {
                "task_loss": task,
                "distillation_loss": soft + hints,
                "soft_labels": soft,
                "features": hints,
            },
            rel=1e-4,
        )
        assert loss == pytest.approx(0.5 * task + 0.5 * (soft + hints), rel=1e-4)


def test_class_weight_is_the_sample_weight_of_classes():
    student, teacher = pair()
    distiller = compiled(tfc.Distiller(student, teacher, alpha=0.5))
    weight = np.array([0.5, 1.0, 3.0])[Y]
    student_before = logits(student)
    history = fit(distiller, X, Y, class_weight={0: 0.5, 1: 1.0, 2: 3.0}, batch_size=32)
    assert history["task_loss"][0] == pytest.approx(
        (weight * crossentropy(Y, student_before)).mean(), rel=1e-5
    )
    assert history["distillation_loss"][0] == pytest.approx(
        (weight * divergence(logits(teacher), student_before, 2.0)).mean(), rel=1e-5
    )


def map_models():
    """Outputs with positions: three classes for each of 4 by 4."""

    def make(width, seed):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((4, 4, 2))
        x = layers.Conv2D(width, 3, padding="same", activation="relu", name="conv")(inputs)
        return keras.Model(inputs, layers.Conv2D(3, 1, name="top")(x), name=f"maps_{width}")

    return make(3, 1), make(5, 2)


@pytest.mark.parametrize(
    ("loss", "per_sample"),
    [
        (kd.SoftLabels(1.0), lambda t, s: divergence(t, s, 1.0).mean((1, 2))),
        (kd.Regression("mse"), lambda t, s: ((t - s) ** 2).mean((1, 2, 3))),
        (kd.Features(), lambda t, s: ((t - s) ** 2).mean((1, 2, 3))),
    ],
    ids=["soft", "mse", "features"],
)
def test_sample_weight_of_outputs_with_positions(loss, per_sample):
    student, teacher = map_models()
    x = IMAGES[:, :4, :4]
    expected = WEIGHTS * per_sample(logits(teacher, x), logits(student, x))
    weight = keras.ops.convert_to_tensor(WEIGHTS)
    found = distillation(student, teacher, loss, x, weight)
    assert found == pytest.approx(expected.mean(), rel=1e-4)


@pytest.mark.parametrize("loss", [kd.Relational(), kd.AttentionTransfer(), kd.Contrastive()])
def test_sample_weight_of_losses_with_one_value_for_each_output(loss):
    """Weight 0 takes a sample out of the mean, whatever the rank of the output."""
    student, teacher = map_models()
    x = IMAGES[:8, :4, :4]
    one = np.zeros(8, "float32")
    values = []
    distiller = compiled(tfc.Distiller(student, teacher, loss, alpha=0))
    for index in range(8):
        one[:] = 0
        one[index] = 1
        values.append(loss_of(distiller, x, None, keras.ops.convert_to_tensor(one))[0] * 8)
    mean = loss_of(distiller, x, None)[0]
    assert np.mean(values) == pytest.approx(mean, rel=1e-4)
    assert np.ptp(values) > 0.01 * abs(mean)


def test_outputs_by_name_and_position():
    student, teacher = two_headed(4, "small", 1), two_headed(8, "large", 2)
    ours, theirs = ([as_numpy(x) for x in model(X)] for model in (student, teacher))
    soft = divergence(theirs[0], ours[0], 2.0).mean()
    squares = ((theirs[1] - ours[1]) ** 2).mean()
    for losses in (
        {"kind": kd.SoftLabels(2.0), "size": "mse"},
        [kd.SoftLabels(2.0, output="kind"), kd.Regression("mse", output=1)],
        [{0: kd.SoftLabels(2.0)}, kd.Regression("mse", output="size")],
        [kd.SoftLabels(2.0, output=0), {"size": [kd.Regression("mse")]}],
    ):
        assert distillation(student, teacher, losses) == pytest.approx(soft + squares, rel=1e-5)
    distiller = compiled(tfc.Distiller(student, teacher, {"kind": "mae"}, alpha=0))
    assert loss_of(distiller)[0] == pytest.approx(np.abs(theirs[0] - ours[0]).mean(), rel=1e-5)
    both = divergence(theirs[1], ours[1], 2.0).mean() + divergence(theirs[0], ours[0], 2.0).mean()
    assert distillation(student, teacher) == pytest.approx(both, rel=1e-5)


def test_outputs_of_a_teacher_are_matched_by_name():
    student = two_headed(4, "small", 1)
    teacher = two_headed(8, "large", 2)
    more = keras.Model(
        teacher.inputs, [teacher.outputs[1], teacher.get_layer("hidden").output, teacher.outputs[0]]
    )
    assert [x.name for x in (student.outputs)] != [x.name for x in more.outputs]
    losses = {"kind": "mse", "size": "mae"}
    assert distillation(student, more, losses) == pytest.approx(
        distillation(student, teacher, losses), rel=1e-6
    )
    other = two_headed(4, "dict", 1, as_dict=True)
    assert distillation(other, more, losses) == pytest.approx(
        distillation(student, teacher, losses), rel=1e-6
    )


@pytest.mark.parametrize("as_dict", [True, False])
def test_fit_with_several_outputs(as_dict):
    names = ("zeta", "alpha")  # in another order than they are sorted
    student, teacher = (two_headed(w, "m", w, names, as_dict) for w in (4, 8))
    targets = {"zeta": Y, "alpha": np.stack([Y, -Y], 1).astype("float32")}
    weights = {"zeta": WEIGHTS, "alpha": WEIGHTS[::-1].copy()}
    ours, theirs = (
        [as_numpy(m(X)[n if as_dict else i]) for i, n in enumerate(names)]
        for m in (student, teacher)
    )
    distiller = compiled(
        tfc.Distiller(student, teacher, {"zeta": kd.SoftLabels(2.0), "alpha": "mse"}, alpha=0.25),
        {"zeta": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "alpha": "mse"},
        metrics={"zeta": ["accuracy"]},
    )
    y, w = (targets, weights) if as_dict else ([targets[n] for n in names], [*weights.values()])
    found = distiller.train_on_batch(X, y, w, return_dict=True)
    soft = (WEIGHTS * divergence(theirs[0], ours[0], 2.0)).mean()
    squares = (WEIGHTS[::-1] * ((theirs[1] - ours[1]) ** 2).mean(-1)).mean()
    task = (WEIGHTS * crossentropy(Y, ours[0])).mean()
    task += (WEIGHTS[::-1] * ((targets["alpha"] - ours[1]) ** 2).mean(-1)).mean()
    assert found["zeta_soft_labels"] == pytest.approx(soft, rel=1e-5)
    assert found["alpha_mean_squared_error"] == pytest.approx(squares, rel=1e-5)
    assert found["task_loss"] == pytest.approx(task, rel=1e-5)
    assert found["loss"] == pytest.approx(0.25 * task + 0.75 * (soft + squares), rel=1e-5)
    assert found["zeta_accuracy"] == pytest.approx((ours[0].argmax(-1) == Y).mean())


def test_weights_for_one_output_alone():
    student, teacher = two_headed(4, "small", 1), two_headed(8, "large", 2)
    ours, theirs = ([as_numpy(x) for x in model(X)] for model in (student, teacher))
    weights = [keras.ops.convert_to_tensor(WEIGHTS), None]
    found = distillation(student, teacher, {"kind": "mse", "size": "mse"}, X, weights)
    expected = (WEIGHTS * ((theirs[0] - ours[0]) ** 2).mean(-1)).mean()
    expected += ((theirs[1] - ours[1]) ** 2).mean()
    assert found == pytest.approx(expected, rel=1e-5)


def test_several_teachers():
    student = mlp(4, "small")
    teachers = [mlp(5, "a", 5), mlp(6, "b", 6), mlp(7, "c", 7)]
    each = [divergence(logits(t), logits(student), 2.0).mean() for t in teachers]
    assert distillation(student, teachers) == pytest.approx(np.mean(each), rel=1e-5)
    weighted = distillation(student, teachers, teacher_weights=[3, 2, 5])
    assert weighted == pytest.approx(np.average(each, weights=[3, 2, 5]), rel=1e-5)
    losses = [kd.SoftLabels(teacher=2), kd.Regression("mae", teacher=0, weight=2.0)]
    gap = np.abs(logits(teachers[0]) - logits(student)).mean()
    assert distillation(student, teachers, losses) == pytest.approx(each[2] + 2 * gap, rel=1e-5)


def test_names_functions_and_losses_of_keras():
    student, teacher = pair()
    squares = ((logits(teacher) - logits(student)) ** 2).mean()
    for losses in (
        "mse",
        ["mse"],
        keras.losses.MeanSquaredError(),
        keras.losses.mean_squared_error,
    ):
        assert distillation(student, teacher, losses) == pytest.approx(squares, rel=1e-5)
    soft = divergence(logits(teacher), logits(student), 3.0).mean()
    of_keras = keras.distillation.LogitsDistillation(temperature=3.0)
    assert distillation(student, teacher, of_keras) == pytest.approx(soft, rel=1e-5)
    of_keras = keras.distillation.LogitsDistillation(3.0, loss=keras.losses.KLDivergence())
    assert distillation(student, teacher, of_keras) == pytest.approx(soft, rel=1e-5)
    assert float(of_keras.compute_loss(teacher(X), student(X))) == pytest.approx(soft, rel=1e-3)
    of_keras = keras.distillation.FeatureDistillation(
        "mse", teacher_layer_name="top", student_layer_name="top"
    )
    assert distillation(student, teacher, of_keras) == pytest.approx(squares, rel=1e-5)


class Unregistered(kd.DistillationLoss):
    """One's own, of which Keras knows nothing."""

    def call(self, y_true, y_pred):
        return keras.ops.max(keras.ops.abs(y_true - y_pred), axis=-1)


def test_losses_of_ones_own():
    """They need not be registered, as long as nothing is saved."""
    student, teacher = pair()
    gap = logits(teacher) - logits(student)
    largest = np.abs(gap).max(-1).mean()
    ops = keras.ops
    for losses in (
        Unregistered(),
        kd.Regression(lambda a, b: ops.max(ops.abs(a - b), axis=-1)),
        lambda a, b: ops.max(ops.abs(a - b), axis=-1),
        kd.Features("top", "top", loss=lambda a, b: ops.max(ops.abs(a - b), axis=-1)),
    ):
        assert distillation(student, teacher, losses) == pytest.approx(largest, rel=1e-5)
    gap = np.abs(gap)
    huber = np.where(gap < 0.25, gap**2 / 2, 0.25 * (gap - 0.125)).mean()
    loss = keras.losses.Huber(0.25)
    assert distillation(student, teacher, loss) == pytest.approx(huber, rel=1e-5)
