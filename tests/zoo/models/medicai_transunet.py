"""medicai: TransUNet 2D."""

BATCH = 2


def build():
    from medicai.models import TransUNet

    return TransUNet(
        input_shape=(64, 64, 1),
        encoder_name="resnet18",
        num_classes=3,
        num_vit_layers=1,
        num_heads=2,
        num_queries=8,
        embed_dim=32,
        mlp_dim=64,
        decoder_filters=(32, 24, 16, 16, 8),
    )
