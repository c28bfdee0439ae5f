"""What builders of the zoo share.

Each file of `models/` builds one model that people have: `build()`, and where the values of its
inputs matter `data(count, rng)`, or INTS (bounds of integers by input), UNIFORM (low, high);
BATCH is how many go through it at once, STRUCT the inputs of a subclassed model.
"""

import keras
import numpy as np


def fixed(model, shapes, name="fixed"):
    """The model on inputs of fixed sizes: what a user does before conversion."""
    old = model.input
    if not isinstance(old, dict):
        new = keras.Input(shapes, dtype=old.dtype, name="x")
    else:
        new = {k: keras.Input(shapes[k], dtype=old[k].dtype, name=k) for k in old}
    return keras.Model(new, model(new), name=name)


def tokens(count, rng, length=24, vocabulary=200, segments=False, mask=True):
    """Random token ids, if asked their padding mask and segments."""
    lengths = rng.integers(length // 2, length + 1, count)
    shape = (count, length)
    found = {"token_ids": rng.integers(0, vocabulary, shape)}
    if mask:
        found["padding_mask"] = np.arange(length)[None] < lengths[:, None]
    if segments:
        found["segment_ids"] = rng.integers(0, 2, shape)
    return {name: found[name].astype("int32") for name in sorted(found)}
