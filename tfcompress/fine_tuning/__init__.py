"""Fine-tuning under a recipe, from files to a file: the work behind `tfcompress compress`."""

from tfcompress.fine_tuning.job import fine_tune
from tfcompress.fine_tuning.result import FineTuned

__all__ = ["FineTuned", "fine_tune"]
