"""What makes a trained model lose less when it is quantized without training: pure functions."""

from tfcompress.post_training.batch_norm import reestimate_batch_norm
from tfcompress.post_training.bias import correct_bias
from tfcompress.post_training.equalization import equalize
from tfcompress.post_training.gptq_model import Rounded, gptq
from tfcompress.post_training.pruned_model import prune_after_training

__all__ = [
    "Rounded",
    "correct_bias",
    "equalize",
    "gptq",
    "prune_after_training",
    "reestimate_batch_norm",
]
