"""Masks of padded positions, which Keras hands on beside the tensors."""

from collections.abc import Iterable
from typing import Any

from keras import ops

# JAX tensors take no attributes; Keras knows where their masks are, but has no public way to ask.
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask


def mask_of(tensor: Any) -> Any:
    """The mask of a tensor, true where it is not padded; None if it has none."""
    return get_keras_mask(tensor)


def keep_mask(tensor: Any, mask: Any) -> None:
    """Gives a tensor a mask, unless that is None or the tensor has one."""
    if mask is not None and get_keras_mask(tensor) is None:
        set_keras_mask(tensor, mask)


def unpadded(tensor: Any, masks: Iterable[Any]) -> Any:
    """A tensor without a mask, with zeros where one of some masks says that it is padded.

    Args:
        tensor: of shape (batch, positions..., channels).
        masks: of the same positions; those of others count for nothing.
    """
    for mask in masks:
        rank = len(mask.shape)
        fits = len(tensor.shape) > rank and _alike(mask.shape[1:], tensor.shape[1:rank])
        if fits:
            axes = [1] * (len(tensor.shape) - rank)
            tensor = tensor * ops.cast(ops.reshape(mask, (*ops.shape(mask), *axes)), tensor.dtype)
    return tensor


def _alike(a: Any, b: Any) -> bool:
    return all(x == y or x is None or y is None for x, y in zip(a, b, strict=True))
