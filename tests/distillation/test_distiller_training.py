"""Distiller through Keras: data of all kinds, custom loops, metrics, and missing labels."""

import distiller_fits
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
    crossentropy,
    divergence,
    fit,
    pair,
)
from distiller_fits import make

import tfcompress as tfc

trained = distiller_fits.trained


def test_student_learns(trained):
    _, history = trained
    assert set(history) == {
        "loss",
        "task_loss",
        "distillation_loss",
        "soft_labels",
        "features",
    }
    assert history["loss"][1] < history["loss"][0]
    parts = np.array([history["task_loss"], history["distillation_loss"]])
    np.testing.assert_allclose(history["loss"], parts.mean(0), rtol=1e-5)
    sums = np.array(history["soft_labels"]) + history["features"]
    np.testing.assert_allclose(history["distillation_loss"], sums, rtol=1e-5)


def test_predict_is_the_students(trained):
    distiller, _ = trained
    np.testing.assert_array_equal(
        distiller.predict(X, verbose=0), distiller.student.predict(X, verbose=0)
    )


def batches():
    for start in range(0, 32, 8):
        yield X[start : start + 8], Y[start : start + 8]


class Sequence(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return list(batches())[index]


@pytest.mark.parametrize("kind", ["tf.data", "PyDataset", "generator"])
def test_data_of_other_kinds(trained, kind):
    import tensorflow as tf

    def forever():
        while True:
            yield from batches()

    data, options = {
        "tf.data": lambda: (tf.data.Dataset.from_tensor_slices((X, Y)).batch(8), {}),
        "PyDataset": lambda: (Sequence(), {}),
        "generator": lambda: (forever(), {"steps_per_epoch": 4}),
    }[kind]()
    distiller = make(run_eagerly=kind != "tf.data")
    fit(distiller, data, epochs=2, batch_size=None, **options)
    assert_same(distiller, trained[0], 1e-6)


def test_steps_per_execution_and_eager_runs(trained):
    for settings in ({"steps_per_execution": 4, "run_eagerly": False}, {"run_eagerly": True}):
        distiller = make(**settings)
        fit(distiller, X, Y, epochs=2)
        assert_same(distiller, trained[0], 1e-6)


def test_custom_loop(trained):
    import tensorflow as tf

    distiller = make()
    for _ in range(2):
        for x, y in batches():
            with tf.GradientTape() as tape:
                outputs = distiller(x, training=True)
                loss = distiller.compute_loss(x, y, outputs)
            variables = distiller.trainable_variables
            gradients = tape.gradient(loss, [v.value for v in variables])
            distiller.optimizer.apply(gradients, variables)
    for ours, theirs in zip(distiller.student.variables, trained[0].student.variables, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_compute_loss_without_outputs_runs_the_student_itself():
    distiller = make()
    given = distiller.compute_loss(X, Y, distiller(X, training=True))
    assert float(distiller.compute_loss(X, Y)) == pytest.approx(float(given), rel=1e-6)
    # What another batch gave must not be taken for this one's.
    outputs = distiller.student(X[:8])
    distiller(X[8:16])
    other = float(distiller.compute_loss(X[:8], Y[:8], outputs))
    again = float(distiller.compute_loss(X[:8], Y[:8], distiller(X[:8])))
    assert other == pytest.approx(again, rel=1e-6)


def test_validation_and_metrics():
    distiller = compiled(
        tfc.Distiller(*pair(), alpha=0.5),
        metrics=["accuracy"],
        weighted_metrics=["sparse_categorical_crossentropy"],
    )
    data = X[:9], Y[:9], WEIGHTS[:9]
    history = fit(distiller, X, Y, epochs=1, validation_data=data)
    student, teacher = (as_numpy(m(data[0])) for m in (distiller.student, distiller.teachers[0]))
    task = (data[2] * crossentropy(data[1], student)).mean()
    soft = (data[2] * divergence(teacher, student, 2.0)).mean()
    assert history["val_task_loss"][0] == pytest.approx(task, rel=1e-4)
    assert history["val_distillation_loss"][0] == pytest.approx(soft, rel=1e-4)
    assert history["val_loss"][0] == pytest.approx((task + soft) / 2, rel=1e-4)
    accuracy = (student.argmax(-1) == data[1]).mean()
    assert history["val_accuracy"][0] == pytest.approx(accuracy)
    assert 0 <= history["accuracy"][0] <= 1
    split = fit(distiller, X, Y, validation_split=0.25)
    assert split["val_loss"][0] > 0


def test_unlabelled_data():
    student, teacher = pair()
    distiller = compiled(tfc.Distiller(student, teacher, alpha=0), loss=None)
    history = fit(distiller, X, epochs=3, validation_data=(X,))
    expected = divergence(as_numpy(teacher(X)), as_numpy(student(X)), 2.0).mean()
    assert history["val_loss"][-1] == pytest.approx(expected, rel=1e-4)
    assert history["loss"][-1] < history["loss"][0]
    assert history["task_loss"] == [0, 0, 0]
    labelled = compiled(tfc.Distiller(*pair(), alpha=0))
    fit(labelled, X, Y, epochs=3)
    assert_same(labelled.student, student, 1e-6)


def test_labels_alone():
    """alpha=1 is training without a teacher."""
    distiller, alone = compiled(tfc.Distiller(*pair(), alpha=1)), compiled(pair()[0])
    fit(distiller, X, Y, epochs=2)
    fit(alone, X, Y, epochs=2)
    assert_same(distiller.student, alone, 1e-6)


def test_missing_labels_and_missing_loss():
    distiller = compiled(tfc.Distiller(*pair(), alpha=0.5), run_eagerly=False)
    with pytest.raises(ValueError, match=r"data have no labels, which alpha=0\.5.*alpha=0"):
        fit(distiller, X)
    distiller = compiled(tfc.Distiller(*pair(), alpha=0.5), loss=None)
    with pytest.raises(ValueError, match=r"compile got no loss .*alpha=0\.5.*compile\(optimizer"):
        fit(distiller, X, Y)


def test_no_memory_of_a_batch_is_kept():
    distiller = make()
    distiller.train_on_batch(X, Y)
    assert distiller._read.last == (None, {})


def test_dropout_of_the_teacher_is_off_and_the_students_may_be_on():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = keras.layers.Dropout(0.5, name="drop")(inputs)
    teacher = keras.Model(inputs, keras.layers.Dense(3, name="top")(x))
    student = keras.models.clone_model(teacher)
    student.set_weights(teacher.get_weights())
    distiller = compiled(tfc.Distiller(student, teacher, "mse", alpha=0, dropout=True))
    assert distiller.evaluate(X, Y, verbose=0, return_dict=True)["loss"] == 0
    found = distiller.train_on_batch(X, Y, return_dict=True)
    assert found["loss"] > 0.01
    np.testing.assert_array_equal(as_numpy(teacher(X)), as_numpy(distiller.teachers[0](X)))
