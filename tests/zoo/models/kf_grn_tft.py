"""kerasfactory: VariableSelection + GatedResidualNetwork (TFT pieces) with LSTM + MHA."""

import keras
from keras import layers


def build():
    from kerasfactory.layers import GatedLinearUnit, GatedResidualNetwork

    i = keras.Input((24, 8))
    x = layers.Dense(16)(i)
    x = GatedResidualNetwork(units=16)(x)
    x = layers.LSTM(16, return_sequences=True)(x)
    a = layers.MultiHeadAttention(2, 8)(x, x)
    x = layers.LayerNormalization()(x + GatedLinearUnit(units=16)(a))
    x = GatedResidualNetwork(units=16)(x)
    return keras.Model(i, layers.Dense(3)(x[:, -6:]))
