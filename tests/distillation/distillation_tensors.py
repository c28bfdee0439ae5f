"""Outputs and maps of a teacher and a student, and arithmetic of losses between maps."""

import numpy as np
from distillation_models import RANDOM

T = RANDOM.normal(size=(6, 5)).astype("float32") * 3
S = RANDOM.normal(size=(6, 5)).astype("float32")
MAPS = RANDOM.normal(size=(6, 4, 4, 3)).astype("float32")
OTHER_MAPS = RANDOM.normal(size=(6, 4, 4, 3)).astype("float32")
WEIGHT = np.array([0.0, 1.0, 2.0, 0.5, 1.0, 3.0], "float32")


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def attention(x, power=2.0):
    flat = (np.abs(np.asarray(x, "float64")) ** power).sum(-1).reshape(len(x), -1)
    return unit(flat)


def squares(teacher, student):
    return ((teacher.astype("float64") - student) ** 2).reshape(len(teacher), -1).mean(-1)
