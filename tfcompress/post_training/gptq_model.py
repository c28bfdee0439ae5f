"""gptq: kernels on an integer grid, each layer made to give what it gave in the float model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.graph.nodes import Graph
from tfcompress.post_training.hessians import Moments, kernel_of, matrix_of
from tfcompress.post_training.kernels import Kernel, on_grid
from tfcompress.post_training.layerwise import (
    Progress,
    check_damp,
    exchange,
    flat_copy,
)
from tfcompress.post_training.obc import Quadratic, choose_grid
from tfcompress.post_training.rounded import Rounded, told, widths_of
from tfcompress.post_training.walk import batched
from tfcompress.techniques.scales import weight_scale

# From this share of zeros on a kernel counts as pruned.
_PRUNED = 0.3


def gptq(
    model: keras.Model,
    data: Any,
    bits: int | Mapping[str, int] = 4,
    *,
    samples: int | None = 200,
    batch_size: int = 32,
    dense: str = "per_channel",
    convolution: str = "per_channel",
    damp: float = 0.1,
    progress: Progress | None = None,
) -> Rounded:
    """A copy of a model whose kernels lie on integer grids, with little effect on what it computes.

    Layer by layer, in the order in which they are computed, kernels get the codes, scales and
    biases with which the layer, given what the layers before it make now, gives what it gave in the
    float model on some samples. Codes are found by the second moments of the layer's inputs, with
    GPTQ (Frantar et al. 2022, arXiv:2210.17323), which is Optimal Brain Compression (Frantar,
    Singh & Alistarh 2022, arXiv:2208.11580) in a fixed order, and improved one by one (QuantEase:
    Behdin et al. 2023, arXiv:2309.01885). It takes seconds, no labels and no training.

    Weights of 0 stay 0 in kernels of which at least three in ten are 0, as pruning leaves them.
    Kernels of few different values, as clustering leaves them, stay as they are.

    Args:
        model: any built Keras 3 model of plain layers; it is left untouched.
        data: samples as `Model.fit` takes them, without labels or with labels that are not used.
            A hundred or two, as the model was trained on.
        bits: of the codes, 2 to 8; or those of the layers that are to be changed, by name.
        samples: at most so many are taken, the first ones; None for all.
        batch_size: samples that are computed at once.
        dense, convolution: "per_channel" or "per_tensor" scales, as `convert` is to use.
        damp: how much weights are pulled to where they were: in parts of the mean power of a
            layer's inputs. More suits few samples.
        progress: called as `progress(done, total)` after each layer.

    Returns:
        A `Rounded`: a flat model with BatchNormalization folded, not compiled, with a
        `correction_report`; the scales of its grids by layer, and what each layer lost.

    Raises:
        TypeError: if the model is not a Keras 3 model.
        ValueError: if the model is compressed or cannot be flattened, has no such layers, an
            argument is out of its range, or the data do not fit.

    Example:
        >>> import keras, numpy
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3, name="head")])
        >>> rounded = gptq(model, numpy.random.default_rng(0).normal(size=(64, 8)))
        >>> rounded.scales["head"].shape
        (1, 3)
    """
    check_damp(damp)
    flat = flat_copy(model)
    widths = widths_of(bits, flat)
    rounded = round_kernels(
        flat,
        batched(Graph.of(flat), data, batch_size, samples),
        widths,
        dense=dense,
        convolution=convolution,
        damp=damp,
        progress=progress,
    )
    return told(rounded, "gptq", widths)


def round_kernels(
    flat: keras.Model,
    batches: Sequence[Sequence[Any]],
    bits: Mapping[str, int],
    *,
    dense: str = "per_channel",
    convolution: str = "per_channel",
    damp: float = 0.1,
    progress: Progress | None = None,
) -> Rounded:
    """Puts kernels of a flat model on grids in place, see `gptq`.

    Args:
        flat: with BatchNormalization folded; it is changed.
        batches: of samples, see `walk`.
        bits: of the layers that are changed, by name.
        dense, convolution: see `kernels_of`.
        damp: see `Quadratic.of`.
        progress: called as `progress(done, total)` after each layer.
    """
    scales: dict[str, np.ndarray] = {}
    sqnr: dict[str, tuple[float, float]] = {}

    def change(kernel: Kernel, moments: Moments) -> np.ndarray | None:
        value, width = kernel.value, bits[kernel.name]
        if kernel.is_table:
            return None
        largest = weight_scale(value, kernel.reduced, width)
        matrix, scale = _on_own_grid(kernel, moments, largest, width, damp)
        plain = matrix_of(kernel.layer, on_grid(value, largest, width))
        scales[kernel.name] = scale
        sqnr[kernel.name] = moments.sqnr(plain), moments.sqnr(matrix)
        return matrix

    exchange(flat, batches, bits, change, dense=dense, convolution=convolution, progress=progress)
    return Rounded(flat, scales, sqnr)


def _on_own_grid(
    kernel: Kernel, moments: Moments, largest: np.ndarray, bits: int, damp: float
) -> tuple[np.ndarray, np.ndarray]:
    """The matrix of a kernel on a grid, and its scale, shaped as the one that holds all values."""
    layer, weights = kernel.layer, moments.matrix
    zeros = weights == 0
    free = ~zeros if zeros.mean() > _PRUNED else None
    problem = Quadratic.of(weights, moments.second, moments.product, free, damp)
    shared = not kernel.axes
    start = largest.reshape(1, 1) if shared else matrix_of(layer, largest)[:, 0]
    codes, scale = choose_grid(problem, start, bits, shared)
    steps = scale.astype(np.float32)[:, None]
    kept = (
        steps[:1, :, :1].reshape(largest.shape)
        if shared
        else kernel_of(layer, steps, largest.shape)
    )
    return codes * steps, kept
