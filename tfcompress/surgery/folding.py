"""fold_batch_norm: BatchNormalization taken into the weights beside it."""

from __future__ import annotations

import keras

from tfcompress.graph.folding import fold
from tfcompress.surgery.base import Change, opened, reported
from tfcompress.surgery.macs import count


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """A copy of a model with BatchNormalization folded into the weights of the layers beside it.

    One that follows a convolution (also transposed, depthwise or separable) or a Dense without
    activation goes into its kernel and bias; so does one that comes before a Dense or a
    convolution that pads nothing. In inference the outputs are the same up to rounding; in
    training nothing is normalized by the batch any more (Jacob et al. 2018, arXiv:1712.05877).
    A layer that had no bias gets one. An output that a BatchNormalization gave is named after the
    layer that gives it now.

    Args:
        model: any built Keras 3 model; it is left untouched.

    Returns:
        A flat Functional `keras.Model`, not compiled. Its `surgery_report` names every
        BatchNormalization that was folded, and every one that stays and why.

    Raises:
        TypeError: the model is not a Keras 3 model.
        ValueError: it is not built, cannot be flattened, or comes from `compress`.

    Example:
        >>> folded = fold_batch_norm(model)  # doctest: +SKIP
        >>> print(folded.surgery_report)  # doctest: +SKIP
        bn1  folded into 'conv1'
        ...
    """
    flat = opened(model)
    before = count(flat)
    found = fold(flat)
    changes = [Change(name, f"folded into '{target}'") for name, target in found.into.items()]
    kept = [Change(name, why) for name, why in found.kept.items()]
    return reported(found.model, "fold_batch_norm", changes, kept, before)
