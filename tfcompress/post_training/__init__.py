"""What makes a trained model lose less when it is quantized without training: pure functions."""

from tfcompress.post_training.batch_norm import reestimate_batch_norm

__all__ = [
    "reestimate_batch_norm",
]
