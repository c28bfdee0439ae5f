"""KerasHub: SwinTransformerBackbone."""

import keras
import keras_hub


def build():
    b = keras_hub.models.SwinTransformerBackbone(
        image_shape=(64, 64, 3), embed_dim=16, depths=[2, 2], num_heads=[2, 2], window_size=4
    )
    y = keras.layers.Dense(10)(
        keras.layers.GlobalAveragePooling1D()(b.output)
        if len(b.output.shape) == 3
        else keras.layers.GlobalAveragePooling2D()(b.output)
    )
    return keras.Model(b.input, y)
