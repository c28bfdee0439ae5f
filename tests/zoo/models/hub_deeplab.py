"""KerasHub: DeepLabV3ImageSegmenter (ResNet-18-like)."""

import keras_hub
from zoo.common import fixed


def build():
    e = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 32, 32],
        stackwise_num_blocks=[1, 1, 1],
        stackwise_num_strides=[1, 2, 2],
        block_type="basic_block",
        use_pre_activation=False,
        image_shape=(96, 96, 3),
    )
    b = keras_hub.models.DeepLabV3Backbone(
        image_encoder=e,
        low_level_feature_key="P2",
        spatial_pyramid_pooling_key="P4",
        dilation_rates=[6, 12, 18],
        upsampling_size=4,
    )
    return fixed(
        keras_hub.models.DeepLabV3ImageSegmenter(backbone=b, num_classes=4, preprocessor=None),
        (96, 96, 3),
    )
