"""MutualDistiller by its values: each student the teacher of the others; and born_again."""

import keras
import numpy as np
import pytest
from distillation_models import (
    WEIGHTS,
    X,
    Y,
    as_numpy,
    assert_same,
    compiled,
    convnet,
    crossentropy,
    divergence,
    fit,
    mlp,
    pair,
    weights_of,
)

import tfcompress as tfc
from tfcompress import distillation as kd


def three():
    return [mlp(width, f"m{width}", width) for width in (4, 6, 8)]


def by_hand(students, alpha, temperature, weight=1.0):
    """(tasks, divergences towards the mean of the others) of the whole data."""
    logits = [as_numpy(student(X)) for student in students]
    tasks = [(weight * crossentropy(Y, x)).mean() for x in logits]
    soft = []
    for index, own in enumerate(logits):
        others = [x for k, x in enumerate(logits) if k != index]
        soft.append(np.mean([(weight * divergence(x, own, temperature)).mean() for x in others]))
    return tasks, soft, alpha * sum(tasks) + (1 - alpha) * sum(soft)


@pytest.mark.parametrize("count", [2, 3])
def test_loss_by_hand(count):
    students = three()[:count]
    mutual = compiled(tfc.MutualDistiller(students, alpha=0.4, temperature=2.0))
    for weight in (None, WEIGHTS):
        tasks, soft, loss = by_hand(students, 0.4, 2.0, 1.0 if weight is None else weight)
        found = mutual.test_on_batch(X, Y, weight, return_dict=True)
        parts = {f"task_loss_{k + 1}": task for k, task in enumerate(tasks)}
        parts |= {"distillation_loss": sum(soft), "loss": loss}
        assert found == pytest.approx(parts, rel=1e-4)
        mutual.reset_metrics()


def test_step_by_hand():
    """What the others give counts as given: no gradient flows through it."""
    import tensorflow as tf

    students = list(pair())
    with tf.GradientTape() as tape:
        outputs = [student(X, training=True) for student in students]
        loss = 0.0
        for own, other in (outputs, outputs[::-1]):
            task = tf.nn.sparse_softmax_cross_entropy_with_logits(Y, own)
            p = tf.stop_gradient(tf.nn.softmax(other))
            soft = tf.reduce_sum(p * (tf.math.log(p) - tf.nn.log_softmax(own)), axis=-1)
            loss += tf.reduce_mean(0.5 * task + 0.5 * soft)
    variables = [v for student in students for v in student.trainable_variables]
    gradients = tape.gradient(loss, [v.value for v in variables])
    expected = [as_numpy(v) - 0.1 * as_numpy(g) for v, g in zip(variables, gradients, strict=True)]
    mutual = compiled(tfc.MutualDistiller(students))
    mutual.train_on_batch(X, Y)
    assert_same([as_numpy(v) for v in variables], expected, 1e-6)


@pytest.mark.slow
def test_all_learn_and_keep_learning_after_loading(tmp_path):
    students = three()[:2]
    losses = [kd.SoftLabels(), kd.Features("hidden", "hidden", weight=0.1)]
    mutual = compiled(
        tfc.MutualDistiller(students, losses),
        optimizer=keras.optimizers.Adam(0.01),
        run_eagerly=False,
    )
    assert all(a is b for a, b in zip(mutual.students, students, strict=True))
    assert len(mutual.adapters) == 2
    before = [crossentropy(Y, as_numpy(m(X))).mean() for m in students]
    fit(mutual, X, Y, epochs=4)
    after = [crossentropy(Y, as_numpy(m(X))).mean() for m in students]
    assert all(new < old for new, old in zip(after, before, strict=True))
    np.testing.assert_array_equal(mutual.predict(X, verbose=0), students[0].predict(X, verbose=0))
    mutual.save(tmp_path / "mutual.keras")
    loaded = keras.models.load_model(tmp_path / "mutual.keras")
    assert_same(loaded, mutual)
    assert fit(loaded, X, Y) == fit(mutual, X, Y)
    for one, other in zip(loaded.students, students, strict=True):
        assert_same(one, other)


def test_unlabelled_data():
    students = list(pair())
    mutual = compiled(tfc.MutualDistiller(students, alpha=0), loss=None)
    history = fit(mutual, X, epochs=4)
    assert history["loss"][-1] < history["loss"][0]


def test_normalization_of_all_students_is_trained():
    from distillation_models import IMAGES

    students = [convnet(3, "a", 1), convnet(4, "b", 2)]
    before = [weights_of(m) for m in students]
    fit(compiled(tfc.MutualDistiller(students)), IMAGES, Y)
    for student, old in zip(students, before, strict=True):
        for a, b in zip(old, weights_of(student), strict=True):
            assert np.abs(a - b).max() > 1e-5


def test_regularizers_of_all_students_count_once():
    students = [
        mlp(4, "a", 1, kernel_regularizer="l2", activity_regularizer="l1"),
        mlp(5, "b", 2, kernel_regularizer="l2", activity_regularizer="l1"),
    ]
    mutual = compiled(tfc.MutualDistiller(students, alpha=1))
    found = mutual.test_on_batch(X, Y, return_dict=True)
    alone = [compiled(student).evaluate(X, Y, verbose=0) for student in students]
    assert found["loss"] > found["task_loss_1"] + found["task_loss_2"] + 0.1
    assert found["loss"] == pytest.approx(sum(alone), rel=1e-5)


def test_compressed_students():
    students = list(pair())
    rules = [tfc.Rule("*", [tfc.Prune(tfc.schedules.linear(0.0, 0.5, end=6), scope="layer")])]
    students[0] = tfc.compress(students[0], rules)
    mutual = compiled(tfc.MutualDistiller(students))
    fit(mutual, X, Y, epochs=2, callbacks=[tfc.UpdateCompression()])
    final = tfc.finalize(students[0])
    for name in ("hidden", "top"):
        kernel = as_numpy(final.get_layer(name).kernel)
        assert (kernel == 0).sum() == kernel.size // 2
    assert all((as_numpy(v) != 0).all() for v in students[1].trainable_variables)


def test_bad_arguments():
    student, teacher = pair()
    for given in ([student], [], student, None):
        with pytest.raises(ValueError, match=r"two models or more.*Distiller"):
            tfc.MutualDistiller(given)
    with pytest.raises(ValueError, match="students 0 and 1 share the weight"):
        tfc.MutualDistiller([student, student])
    with pytest.raises(ValueError, match=r"alpha must be a number in \[0, 1\]"):
        tfc.MutualDistiller([student, teacher], alpha=2)
    with pytest.raises(ValueError, match="temperature must be"):
        tfc.MutualDistiller([student, teacher], temperature=0)
    with pytest.raises(ValueError, match=r"no layer named 'hid'.*Did you mean 'hidden'"):
        tfc.MutualDistiller([student, teacher], kd.Features("hid", "hidden"))
    with pytest.raises(TypeError, match="model must be a"):
        tfc.MutualDistiller([student, "teacher"])


def test_logits_and_probabilities_cannot_share_a_loss_for_labels():
    """One `loss` of compile cannot be right for both."""
    with pytest.raises(ValueError, match="probabilities"):
        tfc.MutualDistiller([mlp(4, "plain"), mlp(5, "soft", 1, "softmax")])
    tfc.MutualDistiller([mlp(4, "plain"), mlp(5, "soft", 1, "softmax")], alpha=0)


@pytest.mark.slow
def test_born_again():
    made, trained = [], []

    def build():
        made.append(mlp(4, "model", len(made)))
        return made[-1]

    def train(model):
        trained.append(model)
        fit(compiled(model, optimizer=keras.optimizers.Adam(0.01)), X, Y, epochs=2)

    models = kd.born_again(build, train, generations=2, alpha=0.3, temperature=2.0)
    assert len(models) == 3
    assert all(a is b for a, b in zip(models, made, strict=True))
    assert trained[0] is models[0]
    for index in (1, 2):
        assert isinstance(trained[index], tfc.Distiller)
        assert trained[index].student is models[index]
        assert trained[index].teachers == [models[index - 1]]
        assert (trained[index].alpha, trained[index].temperature) == (0.3, 2.0)
    # The same by hand, one after the other.
    first = mlp(4, "model", 0)
    train(first)
    assert_same(first, models[0], 1e-6)
    second = mlp(4, "model", 1)
    train(tfc.Distiller(second, first, alpha=0.3, temperature=2.0))
    assert_same(second, models[1], 1e-6)


def test_born_again_refuses():
    model = mlp(4, "model")
    for count in (0, -1, 1.5, True, None):
        with pytest.raises(ValueError, match="generations must be a whole number of 1 or more"):
            kd.born_again(lambda: model, lambda m: None, generations=count)
    with pytest.raises(ValueError, match="build gave the model 'model' twice"):
        kd.born_again(lambda: model, lambda m: None)
