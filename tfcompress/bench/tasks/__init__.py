"""The tasks of the benchmark: an architecture, and data made or found on any machine."""

from tfcompress.bench.tasks import anomaly, glyphs, keywords, wake_vision, wake_word
from tfcompress.bench.tasks.task import Data, Task, Training, architecture


def _digits() -> Data:
    """1,348 digits to train with, 449 to test with."""
    # Here, as it imports TensorFlow, for which those who ask for names do not wait.
    from tfcompress.bench.demo import load_digits

    (x_train, y_train), (x_test, y_test) = load_digits()
    arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    return Data.of(arrays, 10)


# Handwritten digits of scikit-learn, 8 x 8 pixels: the task that is there on every machine.
DIGITS = Task(
    name="digits",
    title="Handwritten digits",
    build=architecture("digits"),
    published=(10, 12_346, 230_880),
    generate=_digits,
    training=Training(steps=840, batch=32, rate=5e-3),
    tuning=Training(steps=420, batch=32, rate=3e-3),
    # Moving averages of BatchNormalization need more than half of the steps.
    short=(Training(840, 32, 5e-3), Training(84, 32, 3e-3)),
)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        *(DIGITS, glyphs.TASK, keywords.TASK, wake_word.TASK),
        *(wake_vision.TASK, anomaly.TASK),
    )
}
__all__ = ["TASKS", "Data", "Task", "Training"]
