"""EEGNet v4 (depthwise over channels, max_norm, separable)."""

import keras
from keras import layers


def build():
    i = keras.Input((16, 128, 1))
    x = layers.Conv2D(8, (1, 32), padding="same", use_bias=False)(i)
    x = layers.BatchNormalization()(x)
    x = layers.DepthwiseConv2D(
        (16, 1),
        use_bias=False,
        depth_multiplier=2,
        depthwise_constraint=keras.constraints.MaxNorm(1.0),
    )(x)
    x = layers.BatchNormalization()(x)
    x = layers.Activation("elu")(x)
    x = layers.AveragePooling2D((1, 4))(x)
    x = layers.SpatialDropout2D(0.25)(x)
    x = layers.SeparableConv2D(16, (1, 16), use_bias=False, padding="same")(x)
    x = layers.BatchNormalization()(x)
    x = layers.Activation("elu")(x)
    x = layers.AveragePooling2D((1, 8))(x)
    x = layers.Dropout(0.5)(x)
    return keras.Model(
        i,
        layers.Activation("softmax")(
            layers.Dense(4, kernel_constraint=keras.constraints.MaxNorm(0.25))(layers.Flatten()(x))
        ),
    )
