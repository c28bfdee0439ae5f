"""KerasHub: T5Backbone."""

import keras
import keras_hub
import numpy as np


def build():
    m = keras_hub.models.T5Backbone(
        vocabulary_size=60,
        num_layers=1,
        num_heads=2,
        hidden_dim=32,
        intermediate_dim=64,
        key_value_dim=16,
    )
    new = {k: keras.Input((10,), dtype=v.dtype, name=k) for k, v in m.input.items()}
    return keras.Model(new, m(new)["decoder_sequence_output"])


def data(n, rng):
    t = [rng.integers(0, 60, (n, 10)).astype("int32") for _ in range(2)]
    return {
        "decoder_padding_mask": np.ones((n, 10), "int32"),
        "decoder_token_ids": t[0],
        "encoder_padding_mask": np.ones((n, 10), "int32"),
        "encoder_token_ids": t[1],
    }
