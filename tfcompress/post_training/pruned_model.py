"""prune_after_training: weights removed layer by layer, the others changed to make up for them."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from tfcompress.errors import check
from tfcompress.graph.flatten import flatten
from tfcompress.graph.folding import unfolded
from tfcompress.graph.nodes import Graph
from tfcompress.post_training.corrections import reported
from tfcompress.post_training.drift import MOST, drift, outputs_of
from tfcompress.post_training.hessians import Moments, kernel_of, matrix_of
from tfcompress.post_training.kernels import Kernel, kernels_of
from tfcompress.post_training.layerwise import (
    Progress,
    check_damp,
    exchange,
    flat_copy,
    named_kernels,
)
from tfcompress.post_training.obc import Quadratic
from tfcompress.post_training.walk import batched
from tfcompress.techniques import Prune
from tfcompress.techniques.masks import Pattern

ALLOCATIONS = ("size", "uniform")

# Of the search for the weights to keep: how much both of its copies of the weights are pulled to
# each other at first, by how much more after each step, and how many steps at most.
_PULL, _GROWTH, _STEPS = 0.03, 1.1, 100
_REFITTED = 50  # steps of conjugate gradients


def prune_after_training(
    model: keras.Model,
    data: Any,
    sparsity: float | Mapping[str, float] | None = None,
    *,
    pattern: str = "unstructured",
    allocation: str = "size",
    depthwise: bool = False,
    samples: int | None = 200,
    batch_size: int = 32,
    damp: float = 0.1,
    progress: Progress | None = None,
) -> keras.Model:
    """A copy of a model with weights of 0, whose other weights make up for those that went.

    Layer by layer, in the order in which they are computed, the weights that can be spared are
    searched for, and the others and the bias get the values with which the layer, given what the
    layers before it make now, gives on some samples what it gave before. That is what Optimal Brain
    Surgeon wants (Hassibi & Stork 1992; for convolutions Frantar, Singh & Alistarh 2022,
    arXiv:2208.11580; in this way SparseGPT, arXiv:2301.00774, and ALPS, Meng et al. 2024,
    arXiv:2406.07831). It takes seconds, no labels and no training. Zeros stay zeros in a file.

    Args:
        model: any built Keras 3 model of plain layers; it is left untouched.
        data: samples of the training inputs in any form that `tfcompress.convert` takes as
            calibration, from all over them; labels are left out. Some hundred.
        sparsity: the share of zeros, in [0, 1), of all kernels together; or that of each layer that
            is to be pruned, by name. May be left out with an "n:m" pattern, which has its own.
        pattern: what is pruned together, as `tfcompress.Prune` has it: "unstructured", "2:4",
            "1x4", "filters" or "channels".
        allocation: of one number for all layers: "size" lets the share that layers keep fall with
            the root of their size, so that small ones keep more; "uniform" gives each the same.
        depthwise: also prunes depthwise kernels, which are few and sensitive.
        samples: at most so many are taken, the first ones; None for all.
        batch_size: samples that are computed at once.
        damp: how much weights are pulled to where they were: in parts of the mean power of a
            layer's inputs. More suits few samples.
        progress: called as `progress(done, total)` after each layer.

    Returns:
        A flat Functional `keras.Model`, not compiled, whose BatchNormalization stays. Its
        `correction_report` names every layer that was pruned, with the signal to noise ratio of
        what it gives, and every one that was not and why.

    Raises:
        TypeError: the model is not a Keras 3 model.
        ValueError: it is not built, cannot be flattened, or comes from `compress`; no layer can be
            pruned, an argument is out of its range, or the data do not fit.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="head")])
        >>> x = np.random.default_rng(0).normal(size=(64, 8))
        >>> pruned = prune_after_training(model, x, 0.75)
        >>> int(np.count_nonzero(pruned.get_layer("head").kernel))
        8
    """
    check_damp(damp)
    fixed = Pattern.parse(pattern).sparsity is not None
    check(fixed or sparsity is not None, "sparsity", "in [0, 1)", sparsity, "0.5 is a half.")
    known = allocation in ALLOCATIONS
    check(known, "allocation", " or ".join(map(repr, ALLOCATIONS)), allocation)
    flat = flat_copy(model)
    graph = Graph.of(flat)
    layers = {kernel.name: kernel.layer for kernel in kernels_of(graph)}
    pruners = {
        name: Prune(share, pattern=pattern, depthwise=depthwise).bind(layers[name], "kernel")
        for name, share in named_kernels("sparsity", sparsity, flat).items()
    }
    refused = {name: p.refuses(layers[name], layers[name].kernel) for name, p in pruners.items()}
    names = [name for name, why in refused.items() if why is None]
    check(bool(names), "model", "one with layers that can be pruned", refused)
    if allocation == "size" and not fixed and not isinstance(sparsity, Mapping):
        sizes = {name: math.prod(layers[name].kernel.shape) for name in names}
        shares = by_size(sizes, pruners[names[0]].schedule.final)
        pruners |= {n: dataclasses.replace(pruners[n], sparsity=s) for n, s in shares.items()}
    changes: dict[str, str] = {}

    def change(kernel: Kernel, moments: Moments) -> np.ndarray:
        matrix = _pruned(kernel, moments, pruners[kernel.name], damp)
        zeros = np.mean(matrix == 0)
        changes[kernel.name] = f"{zeros:.1%} zeros, SQNR {moments.sqnr(matrix):.1f} dB"
        return matrix

    batches = batched(graph, data, batch_size, samples)
    before = outputs_of(flat, batches)
    exchange(flat, batches, names, change, progress=progress)
    lost = drift(before, outputs_of(flat, batches))
    if lost > MOST:
        warnings.warn(
            f"on the data the outputs of the pruned model differ from the old ones by {lost:.0%} "
            f"of their variance; expected at most {MOST:.0%} where a short training is to follow. "
            "Ask for fewer zeros, or let tfcompress.Prune find them while the model trains.",
            stacklevel=2,
        )
    kept = {name: why for name, why in refused.items() if why is not None}
    # Weights that are trained on need the statistics of batches to stay where they learn.
    pruned = unfolded(flatten(model), flat, names)
    return reported(pruned, "prune_after_training", changes, kept, drift=lost)


def by_size(sizes: Mapping[str, int], sparsity: float) -> dict[str, float]:
    """The sparsity of each kernel, for one of all: densities fall with the root of the size.

    What some cannot take, as they are whole, the others keep.
    """
    left, free = (1 - sparsity) * sum(sizes.values()), dict(sizes)
    while free:
        factor = left / sum(map(math.sqrt, free.values()))
        whole = {name for name, size in free.items() if factor >= math.sqrt(size)}
        if not whole:
            break
        left -= sum(free.pop(name) for name in whole)
    return {name: 1 - factor / math.sqrt(n) if name in free else 0.0 for name, n in sizes.items()}


def _pruned(kernel: Kernel, moments: Moments, pruner: Prune, damp: float) -> np.ndarray:
    layer, shape, at_end = kernel.layer, tuple(kernel.variable.shape), pruner.over(0, 0)

    def keep(sizes: np.ndarray) -> np.ndarray:
        return matrix_of(layer, at_end.mask(kernel_of(layer, sizes, shape), None, 0))

    problem = Quadratic.of(moments.matrix, moments.second, moments.product, damp=damp)
    return sparsify(problem, keep).astype(np.float32)


def sparsify(problem: Quadratic, keep: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """A matrix with weights of 0 that loses little.

    Which weights stay is searched for by ADMM (Meng et al. 2024, arXiv:2406.07831); with the
    better of its choice and that by weights times the size of their inputs (Sun et al. 2023,
    arXiv:2306.11695), those that stay get the values that lose least.

    Args:
        problem: of the kernel.
        keep: tells which weights of a matrix to keep by their sizes: bool, of its shape.

    Returns float64 (groups, d, channels).
    """
    sizes = np.sqrt(np.diagonal(problem.hessian, axis1=1, axis2=2))[..., None]
    hessian = problem.hessian / sizes / sizes.swapaxes(1, 2)
    target = problem.target * sizes
    masks = [keep(target), _searched(hessian, target, keep)]
    found = [_refitted(hessian, target, mask) / sizes for mask in masks]
    return min(found, key=lambda matrix: problem.loss(matrix).sum())


def _searched(hessian: np.ndarray, target: np.ndarray, keep) -> np.ndarray:
    """The weights to keep: where one copy of the weights loses little and one has the zeros."""
    values, vectors = np.linalg.eigh(hessian)
    turned = vectors.swapaxes(1, 2)
    wanted = hessian @ target
    sparse, dual, pull = target, np.zeros_like(target), _PULL
    mask = np.ones(target.shape, bool)
    for _ in range(_STEPS):
        pulled = turned @ (wanted - dual + pull * sparse)
        dense = vectors @ (pulled / (values[..., None] + pull))
        moved = dense + dual / pull
        before, mask = mask, keep(moved)
        sparse = np.where(mask, moved, 0.0)
        dual = dual + pull * (dense - sparse)
        pull *= _GROWTH
        if np.array_equal(mask, before):
            break
    return mask


def _refitted(hessian: np.ndarray, target: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The weights that lose least with 0 outside of a mask, by conjugate gradients."""
    found = np.where(mask, target, 0.0)
    left = mask * (hessian @ (target - found))
    way, size = left, np.square(left).sum(1)
    for _ in range(_REFITTED):
        seen = mask * (hessian @ way)
        bent = (way * seen).sum(1)
        step = size / np.where(bent > 0, bent, np.inf)
        found, left = found + step[:, None] * way, left - step[:, None] * seen
        new = np.square(left).sum(1)
        way = left + (new / np.where(size > 0, size, np.inf))[:, None] * way
        size = new
    return found
