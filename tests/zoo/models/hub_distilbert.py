"""KerasHub: DistilBertTextClassifier."""

import keras_hub
from zoo.common import fixed, tokens


def build():
    b = keras_hub.models.DistilBertBackbone(
        vocabulary_size=200,
        num_layers=2,
        num_heads=2,
        hidden_dim=32,
        intermediate_dim=64,
        max_sequence_length=24,
    )
    m = keras_hub.models.DistilBertTextClassifier(backbone=b, num_classes=4, preprocessor=None)
    return fixed(m, dict.fromkeys(m.input, (24,)))


def data(n, rng):
    return tokens(n, rng)
