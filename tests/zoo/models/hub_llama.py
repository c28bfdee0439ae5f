"""KerasHub: LlamaBackbone."""

import keras_hub
from zoo.common import fixed, tokens


def build():
    m = keras_hub.models.LlamaBackbone(
        vocabulary_size=200,
        num_layers=2,
        num_query_heads=4,
        num_key_value_heads=2,
        hidden_dim=32,
        intermediate_dim=64,
    )
    return fixed(m, dict.fromkeys(m.input, (24,)))


def data(n, rng):
    return tokens(n, rng)
