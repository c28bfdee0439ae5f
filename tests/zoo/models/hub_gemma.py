"""KerasHub: GemmaCausalLM."""

import keras_hub
from zoo.common import fixed, tokens


def build():
    b = keras_hub.models.GemmaBackbone(
        vocabulary_size=200,
        num_layers=2,
        num_query_heads=4,
        num_key_value_heads=1,
        hidden_dim=32,
        intermediate_dim=64,
        head_dim=8,
    )
    m = keras_hub.models.GemmaCausalLM(backbone=b, preprocessor=None)
    return fixed(m, dict.fromkeys(m.input, (24,)))


def data(n, rng):
    return tokens(n, rng)
