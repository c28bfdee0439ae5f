"""Distillers saved and loaded, and callbacks of Keras that restore one."""

import distiller_fits
import keras
import numpy as np
import pytest
from distillation_models import X, Y, as_numpy, assert_same, compiled, fit, subclassed, two_headed
from distiller_fits import make

import tfcompress as tfc
from tfcompress import distillation as kd

trained = distiller_fits.trained


@pytest.mark.parametrize(
    "kind",
    [
        "functional",
        *(pytest.param(k, marks=pytest.mark.slow) for k in ("subclassed", "two outputs")),
    ],
)
def test_saved_in_the_middle_of_training(tmp_path, kind):
    if kind == "functional":
        distiller = make()
    elif kind == "subclassed":
        models = subclassed(4, seed=1, name="a"), subclassed(8, seed=2, name="b")
        losses = [kd.SoftLabels(), kd.Features("inner", "inner"), kd.Contrastive("inner", "inner")]
        distiller = compiled(
            tfc.Distiller(*models, losses, alpha=0.3), optimizer=keras.optimizers.Adam(0.01)
        )
    else:
        models = two_headed(4, "a", 1), two_headed(8, "b", 2)
        distiller = tfc.Distiller(
            *models, {"kind": kd.SoftLabels(1.5), "size": "mse"}, teacher_weights=[2.0], alpha=0
        )
        distiller.compile(keras.optimizers.Adam(0.01), jit_compile=False)
    labels = [Y] if kind != "two outputs" else []
    fit(distiller, X, *labels)
    distiller.save(tmp_path / "distiller.keras")
    distiller.save_weights(tmp_path / "distiller.weights.h5")
    loaded = keras.models.load_model(tmp_path / "distiller.keras")
    assert loaded.compiled
    assert_same(loaded, distiller)
    assert_same(loaded.optimizer.variables, distiller.optimizer.variables)
    for config in (loaded.get_config(), distiller.get_config()):
        assert config["alpha"] == distiller.alpha
        assert config["temperature"] == distiller.temperature
        assert config["teacher_weights"] == [1.0]
    twin = tfc.Distiller.from_config(distiller.get_config())
    twin.load_weights(tmp_path / "distiller.weights.h5")
    assert_same(twin, distiller)
    next_epoch = fit(distiller, X, *labels)
    assert fit(loaded, X, *labels) == next_epoch
    assert_same(loaded, distiller)


def test_saved_student_needs_no_distiller(tmp_path):
    distiller = make()
    fit(distiller, X, Y)
    distiller.student.save(tmp_path / "student.keras")
    student = keras.models.load_model(tmp_path / "student.keras")
    np.testing.assert_array_equal(as_numpy(student(X)), as_numpy(distiller(X)))


@pytest.mark.slow
def test_backup_and_restore(tmp_path, trained):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(KeyboardInterrupt):
        fit(make(), X, Y, epochs=2, callbacks=[backup, Stop()])
    distiller = make()
    distiller.student.set_weights([w * 0 for w in distiller.student.get_weights()])
    fit(
        distiller, X, Y, epochs=2, callbacks=[keras.callbacks.BackupAndRestore(tmp_path / "backup")]
    )
    assert_same(distiller, trained[0], 1e-6)


def test_model_checkpoint(tmp_path, trained):
    path = tmp_path / "best.keras"
    save = keras.callbacks.ModelCheckpoint(path, monitor="val_loss", save_best_only=True)
    distiller = make()
    fit(distiller, X, Y, epochs=2, callbacks=[save], validation_data=(X, Y))
    assert_same(keras.models.load_model(path), trained[0], 1e-6)


@pytest.mark.slow
def test_early_stopping_restores_the_student():
    distiller = make()
    watch = keras.callbacks.EarlyStopping("val_loss", patience=0, restore_best_weights=True)
    distiller.optimizer.learning_rate = 5.0
    before = float(distiller.evaluate(X, Y, verbose=0, return_dict=True)["loss"])
    history = fit(distiller, X, Y, epochs=3, callbacks=[watch], validation_data=(X, Y))
    best = min(history["val_loss"])
    assert distiller.evaluate(X, Y, verbose=0, return_dict=True)["loss"] == pytest.approx(
        best, 1e-4
    )
    assert before != best
