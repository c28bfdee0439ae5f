"""ncps: CfC (closed-form continuous RNN)."""

import keras


def build():
    from ncps.keras import CfC

    i = keras.Input((12, 4))
    return keras.Model(i, keras.layers.Dense(3)(CfC(16)(i)))
