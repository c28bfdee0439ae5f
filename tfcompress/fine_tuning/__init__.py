"""From files to a file: the work of `tfcompress compress`, `distill` and `shrink`."""

from tfcompress.fine_tuning.calls import distill, fine_tune, shrink
from tfcompress.fine_tuning.result import FineTuned
from tfcompress.fine_tuning.shrunk import ShrunkFile

__all__ = ["FineTuned", "ShrunkFile", "distill", "fine_tune", "shrink"]
