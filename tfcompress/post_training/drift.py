"""How far the outputs of a changed model lie from what they were."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops, tree

# The most of their variance by which outputs may differ. Of the benchmark's nets with 80% zeros
# four differed by 2.4% at most, and came near to the float model again; the fifth, by 15% to 20%,
# did not.
MOST = 0.1


def outputs_of(
    model: keras.Model, batches: Sequence[Sequence[np.ndarray]]
) -> list[list[np.ndarray]]:
    """The outputs of a flat model that are floats, for each batch of inputs in their order."""
    found = []
    for batch in batches:
        x = tree.pack_sequence_as(model._inputs_struct, list(batch))
        given = [ops.convert_to_numpy(y) for y in tree.flatten(model(x, training=False))]
        found.append([y.astype("float64") for y in given if y.dtype.kind == "f"])
    return found


def drift(old: list[list[np.ndarray]], new: list[list[np.ndarray]]) -> float:
    """The largest share of the variance of an output by which it differs from what it was."""
    lost = [0.0]
    for before, after in zip(zip(*old, strict=True), zip(*new, strict=True), strict=True):
        if len({y.shape[1:] for y in before}) == 1:
            a, b = np.concatenate(before), np.concatenate(after)
            variance = float(np.sum((a - a.mean(0)) ** 2))
            lost.append(float(np.sum((a - b) ** 2)) / variance if variance > 0 else 0.0)
    return max(lost)
