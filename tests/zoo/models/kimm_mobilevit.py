"""kimm: MobileViTXXS."""

BATCH = 4


def build():
    import kimm

    return kimm.models.MobileViTXXS(
        input_shape=(64, 64, 3), include_preprocessing=False, weights=None, classes=10
    )
