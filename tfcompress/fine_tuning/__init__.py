"""Training from files to a file: the work of `tfcompress compress` and `tfcompress distill`."""

from tfcompress.fine_tuning.job import distill, fine_tune
from tfcompress.fine_tuning.result import FineTuned

__all__ = ["FineTuned", "distill", "fine_tune"]
