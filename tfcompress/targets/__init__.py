"""Targets as data, and whether a .tflite file suits one."""

__all__ = ["Check", "Finding", "OperatorCheck", "Part", "check", "judge"]
