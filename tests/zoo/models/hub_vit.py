"""KerasHub: ViTImageClassifier."""

import keras_hub


def build():
    b = keras_hub.models.ViTBackbone(
        image_shape=(64, 64, 3), patch_size=16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64
    )
    return keras_hub.models.ViTImageClassifier(backbone=b, num_classes=10, preprocessor=None)
