"""From files to a file: the work of `tfcompress compress`, `distill` and `shrink`."""

from tfcompress.fine_tuning.job import distill, fine_tune, shrink
from tfcompress.fine_tuning.result import FineTuned, ShrunkFile

__all__ = ["FineTuned", "ShrunkFile", "distill", "fine_tune", "shrink"]
