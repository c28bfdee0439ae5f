"""KerasHub: MoonshineBackbone (speech encoder-decoder)."""

import keras
import keras_hub
import numpy as np


def build():
    m = keras_hub.models.MoonshineBackbone(
        vocabulary_size=60,
        filter_dim=32,
        encoder_num_layers=1,
        decoder_num_layers=1,
        hidden_dim=32,
        intermediate_dim=64,
        encoder_num_heads=2,
        decoder_num_heads=2,
    )
    sh = {
        "encoder_input_values": (4000, 1),
        "encoder_padding_mask": (4000,),
        "decoder_token_ids": (8,),
        "decoder_padding_mask": (8,),
    }
    new = {k: keras.Input(sh[k], dtype=v.dtype, name=k) for k, v in m.input.items()}
    y = m(new)
    return keras.Model(new, y["decoder_sequence_output"] if isinstance(y, dict) else y)


def data(n, rng):
    return {
        "decoder_padding_mask": np.ones((n, 8), "int32"),
        "decoder_token_ids": rng.integers(0, 60, (n, 8)).astype("int32"),
        "encoder_input_values": rng.normal(size=(n, 4000, 1)).astype("float32") * 0.3,
        "encoder_padding_mask": np.ones((n, 4000), "int32"),
    }
