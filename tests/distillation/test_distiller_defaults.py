"""What a Distiller does where nobody says how: shares, temperature, the dropout of the student."""

from pathlib import Path

import keras
import numpy as np
import pytest
from distillation_models import X, Y, compiled, crossentropy, divergence, logits, mlp
from keras import layers

import tfcompress as tfc
from tfcompress.distillation.distiller import Distillation

SAVED = Path(__file__).parents[1] / "compatibility" / "saved"


def dropping(kind="dropout"):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(X.shape[1:])
    if kind == "dropout":
        x = layers.GaussianNoise(0.9)(layers.Dropout(0.5)(layers.Dense(16, "relu")(inputs)))
    else:
        x = layers.GRU(8, dropout=0.5, recurrent_dropout=0.5)(layers.Reshape((-1, 1))(inputs))
    return keras.Model(inputs, layers.Dense(3)(x), name="dropping")


def loss_by_hand(student, teacher, alpha, temperature):
    soft = divergence(logits(teacher), logits(student), temperature).mean()
    return alpha * crossentropy(Y, logits(student)).mean() + (1 - alpha) * soft


def test_labels_and_teacher_count_alike_at_temperature_2():
    student, teacher = mlp(4, "small"), mlp(8, "large", 2)
    distiller = compiled(tfc.Distiller(student, teacher))
    expected = loss_by_hand(student, teacher, 0.5, 2.0)
    assert distiller.evaluate(X, Y, verbose=0)[0] == pytest.approx(expected, rel=1e-5)
    assert repr(distiller) == (
        "<Distiller of 'small' by 'large', alpha=0.5, temperature=2, dropout=False>"
    )


@pytest.mark.parametrize("kind", ["dropout", "recurrent"])
def test_the_dropout_of_the_student_is_off_while_it_learns_and_stays_its_own(kind):
    student, teacher = dropping(kind), mlp(8, "large", 2)
    expected = loss_by_hand(student, teacher, 0.5, 2.0)
    # As it was before the step.
    found = compiled(tfc.Distiller(student, teacher)).train_on_batch(X, Y)[0]
    assert found == pytest.approx(expected, rel=1e-5)
    noise = np.abs(np.asarray(student(X, training=True)) - np.asarray(student(X))).max()
    assert noise > 0.01
    distiller = compiled(tfc.Distiller(student, teacher, dropout=True))
    expected = loss_by_hand(student, teacher, 0.5, 2.0)
    assert abs(distiller.train_on_batch(X, Y)[0] - expected) > 1e-3


def test_what_was_chosen_is_saved_and_old_files_mean_what_they_meant(tmp_path):
    old = keras.saving.load_model(SAVED / "distiller.keras")
    assert (old.alpha, old.temperature, old.dropout) == (0.3, 3.0, True)
    config = Distillation(alpha=0.1, temperature=4.0).get_config()
    assert Distillation.from_config(config).dropout is None
    del config["dropout"]
    assert Distillation.from_config(config) == Distillation(None, 0.1, 4.0, dropout=True)
    tfc.Distiller(mlp(4, "small"), mlp(8, "large")).save(tmp_path / "new.keras")
    new = keras.saving.load_model(tmp_path / "new.keras")
    assert (new.alpha, new.temperature, new.dropout) == (0.5, 2.0, False)


def test_a_distillation_says_only_what_it_was_told():
    assert repr(Distillation(dropout=True)) == "Distillation(dropout=True)"
    assert Distillation(alpha=0).settled == Distillation(None, 0, 2.0, dropout=False)
    with pytest.raises(ValueError, match=r"dropout must be True, False, or None .* received 0.1"):
        Distillation(dropout=0.1)
    with pytest.raises(ValueError, match=r"dropout must be True, False, or None .* received 0"):
        tfc.Distiller(mlp(4, "small"), mlp(8, "large"), dropout=0)
