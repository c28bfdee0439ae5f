"""distill: what is told of students that do worse with a teacher, or learn for too few epochs."""

import dataclasses
import warnings
from types import SimpleNamespace

import distilling_files
import keras
import pytest
from distilling_files import same_weights

from tfcompress.fine_tuning.alone import Compare
from tfcompress.fine_tuning.training import TellOfFewEpochs

# Fixtures of all modules about distill.
made, run = distilling_files.made, distilling_files.run


@dataclasses.dataclass
class Told:
    """What `Compare` asks of a training."""

    judged: range
    judged_on: str = "the validation data (400 samples)"
    options: object = dataclasses.field(
        default_factory=lambda: SimpleNamespace(turns=(5,), epochs_before=0)
    )


def warned(alone, logs, samples=400):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Compare(alone, Told(range(samples))).on_epoch_end(0, logs)
        Compare(alone, Told(range(samples))).on_epoch_end(1, {"val_accuracy": 0.0})
    return [str(each.message) for each in caught]


@pytest.mark.parametrize(("taught", "told"), [(0.77, True), (0.772, False), (0.9, False)])
def test_more_than_a_standard_error_of_the_accuracy_counts(taught, told):
    # sqrt(2 * 0.8 * 0.2 / 400) = 0.02828...
    alone = {"loss": 1.0, "val_loss": 0.5, "val_accuracy": 0.8}
    found = warned(alone, {"val_accuracy": taught, "val_task_loss": 9.0})
    assert bool(found) is told
    if told:
        expected = "worse with its teacher (val_accuracy 0.7700) than alone (0.8000), on the valid"
        assert expected in found[0]


def test_the_loss_of_labels_is_compared_where_there_is_no_accuracy():
    alone = {"val_loss": 1.0, "val_mae": 0.1}
    assert not warned(alone, {"val_task_loss": 1.04, "val_loss": 3.0})
    assert "(val_loss 1.0600) than alone (1.0000)" in warned(alone, {"val_task_loss": 1.06})[0]


def test_a_loss_that_still_falls_by_a_tenth_needs_more_epochs():
    def told(losses, first=0):
        few = TellOfFewEpochs(3, 1000)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for epoch, loss in enumerate(losses, first):
                few.on_epoch_end(epoch, {"loss": loss})
        return [str(each.message) for each in caught]

    assert told([9.0, 2.0, 1.81]) == told([1.5], first=2) == []
    (said,) = told([9.0, 2.0, 1.5])
    assert "fell by 25% in the last of 3 epochs of 1,000 samples" in said
    assert said.endswith("Pass --epochs 6.")


@pytest.mark.slow
def test_a_bad_teacher_is_told_of_and_the_training_stays_what_it_was(run, made, tmp_path):
    bad = keras.saving.load_model(made / "teacher.keras")
    kernel = bad.layers[-1].kernel
    kernel.assign(-5 * kernel.value)  # sure of the wrong classes
    bad.save(tmp_path / "bad.keras")
    given = {"teacher": tmp_path / "bad.keras", "validation_split": 0.25, "alpha": 0.1}
    with pytest.warns(UserWarning, match="worse with its teacher"):
        run(**given, epochs=5, output="five.keras")
    epochs = []

    def stop(stage, done, total):
        epochs.append(stage)
        if stage.startswith("epoch 3"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(**given, epochs=5, progress=stop)
    assert "train the student alone for an epoch, to compare" in epochs
    run(**given, epochs=5, resume=True)
    same_weights(tmp_path / "five.keras", tmp_path / "out.keras")
