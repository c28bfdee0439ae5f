"""kimm: InceptionNeXt (small depths)."""


def build():
    from kimm._src.models.inception_next import InceptionNeXt

    return InceptionNeXt(
        depths=[1, 1, 1, 1],
        hidden_channels=[24, 32, 48, 64],
        mlp_ratios=[2, 2, 2, 2],
        input_shape=(64, 64, 3),
        include_preprocessing=False,
        weights=None,
        classes=10,
    )
