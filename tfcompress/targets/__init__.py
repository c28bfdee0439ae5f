"""Targets as data, and whether a .tflite file suits one."""
