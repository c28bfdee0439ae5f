"""Acceptance: what other tools that take .tflite files say of one."""

from __future__ import annotations
