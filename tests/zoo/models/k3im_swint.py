"""k3im: SwinTModel (shifted windows)."""


def build():
    from k3im.swint import SwinTModel

    return SwinTModel(
        img_size=32,
        patch_size=(2, 2),
        embed_dim=32,
        num_heads=4,
        window_size=2,
        num_mlp=64,
        qkv_bias=True,
        dropout_rate=0.03,
        shift_size=1,
        num_classes=10,
    )
