"""The tasks of the benchmark: an architecture, and data made or found on any machine."""

from tfcompress.bench.tasks import anomaly, digits, glyphs, keywords, wake_vision
from tfcompress.bench.tasks.task import Data, Task, Training

TASKS: dict[str, Task] = {
    task.name: task
    for task in (digits.TASK, glyphs.TASK, keywords.TASK, wake_vision.TASK, anomaly.TASK)
}
__all__ = ["TASKS", "Data", "Task", "Training"]
