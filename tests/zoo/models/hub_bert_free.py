"""KerasHub: BertTextClassifier of any length."""

import keras
import keras_hub

# The length that the file is for.
NAMES = ("padding_mask", "segment_ids", "token_ids")
STRUCT = {name: keras.Input((24,), dtype="int32", name=name) for name in NAMES}


def build():
    b = keras_hub.models.BertBackbone(
        vocabulary_size=200,
        num_layers=2,
        num_heads=2,
        hidden_dim=32,
        intermediate_dim=64,
        max_sequence_length=24,
    )
    return keras_hub.models.BertTextClassifier(backbone=b, num_classes=4, preprocessor=None)


def data(n, rng):
    import numpy as np

    lens = rng.integers(8, 25, n)
    return {
        "padding_mask": (np.arange(24)[None] < lens[:, None]).astype("int32"),
        "segment_ids": rng.integers(0, 2, (n, 24)).astype("int32"),
        "token_ids": rng.integers(0, 200, (n, 24)).astype("int32"),
    }
