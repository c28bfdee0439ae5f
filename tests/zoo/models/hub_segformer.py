"""KerasHub: SegFormerImageSegmenter."""

import keras_hub

BATCH = 2


def build():
    e = keras_hub.models.MiTBackbone(
        image_shape=(64, 64, 3),
        layerwise_depths=[1, 1, 1, 1],
        num_layers=4,
        layerwise_num_heads=[1, 1, 2, 2],
        layerwise_sr_ratios=[8, 4, 2, 1],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3, 3, 3],
        layerwise_strides=[4, 2, 2, 2],
        hidden_dims=[8, 16, 24, 32],
    )
    b = keras_hub.models.SegFormerBackbone(image_encoder=e, projection_filters=16)
    return keras_hub.models.SegFormerImageSegmenter(backbone=b, num_classes=4, preprocessor=None)
