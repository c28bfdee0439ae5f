"""Raw audio -> keras MelSpectrogram layer -> CNN."""

import keras
from keras import layers


def build():
    i = keras.Input((4000,))
    x = layers.MelSpectrogram(
        fft_length=256, sequence_stride=128, sampling_rate=8000, num_mel_bins=20
    )(i)
    x = layers.Reshape((*x.shape[1:], 1))(x)
    for f in (8, 16):
        x = layers.MaxPooling2D(2)(layers.Conv2D(f, 3, padding="same", activation="relu")(x))
    return keras.Model(i, layers.Dense(6)(layers.GlobalAveragePooling2D()(x)))
