"""Whether a .tflite file suits a target, by the rules in `tflite_targets/`."""

from tfcompress.tflite.check.judging import check, judge
from tfcompress.tflite.check.result import Check, Finding, OperatorCheck, Part

__all__ = ["Check", "Finding", "OperatorCheck", "Part", "check", "judge"]
