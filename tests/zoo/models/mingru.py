"""mingru-keras: MinGRU."""

import keras


def build():
    import mingru_keras

    known = vars(mingru_keras).values()
    layer = next(x for x in known if isinstance(x, type) and issubclass(x, keras.layers.Layer))
    i = keras.Input((16, 8))
    return keras.Model(i, keras.layers.Dense(3)(layer(16)(i)))
