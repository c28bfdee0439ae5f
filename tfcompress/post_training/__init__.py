"""What makes a trained model lose less when it is quantized without training: pure functions."""

from tfcompress.post_training.adaround_model import adaround
from tfcompress.post_training.batch_norm import reestimate_batch_norm
from tfcompress.post_training.bias import correct_bias
from tfcompress.post_training.equalization import equalize
from tfcompress.post_training.gptq_model import gptq
from tfcompress.post_training.pruned_model import prune_after_training
from tfcompress.post_training.rounded import Rounded

__all__ = [
    "Rounded",
    "adaround",
    "correct_bias",
    "equalize",
    "gptq",
    "prune_after_training",
    "reestimate_batch_norm",
]
