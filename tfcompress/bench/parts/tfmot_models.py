"""The network of `training_cost` on tf_keras, trained under TFMOT's techniques."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tfcompress.bench.parts.training_cost import CLUSTERS, FREQUENCY, compiled, mobile_net

# Per-channel clustering is left out: TFMOT skips convolutions without a bias, such as these.
VARIANTS = ("plain", "qat", "prune", "cluster", "pcqat")


def build(variant: str, width: int) -> tuple[Any, Callable[[], list]]:
    """A compiled tf_keras model of one of the `VARIANTS`, and what makes its callbacks."""
    import tensorflow_model_optimization as tfmot
    import tf_keras

    model = mobile_net(tf_keras, width)
    callbacks: Callable[[], list] = list
    if variant == "qat":
        model = tfmot.quantization.keras.quantize_model(model)
    elif variant == "prune":
        schedule = tfmot.sparsity.keras.ConstantSparsity(0.8, 0, frequency=FREQUENCY)
        model = tfmot.sparsity.keras.prune_low_magnitude(model, schedule)
        callbacks = lambda: [tfmot.sparsity.keras.UpdatePruningStep()]  # noqa: E731
    elif variant == "cluster":
        model = clustered(model)
    elif variant == "pcqat":
        model = preserving(_sparse_and_clustered(model))
    return compiled(tf_keras, model), callbacks


def clustered(model: Any, clusters: int = CLUSTERS, preserve: bool = False) -> Any:
    """The model with its convolutions and Dense layers under TFMOT's clustering.

    Layer by layer: as a whole, TFMOT's wrapper would not tell BatchNormalization that it trains.
    """
    import tf_keras
    from tensorflow_model_optimization.python.core.clustering.keras import cluster
    from tensorflow_model_optimization.python.core.clustering.keras.cluster_config import (
        CentroidInitialization,
    )

    def wrap(layer):
        if type(layer) not in (tf_keras.layers.Conv2D, tf_keras.layers.Dense):
            return layer
        start = CentroidInitialization.KMEANS_PLUS_PLUS
        return cluster._cluster_weights(layer, clusters, start, preserve_sparsity=preserve)

    return tf_keras.models.clone_model(model, clone_function=wrap)


def preserving(model: Any) -> Any:
    """The model under TFMOT's quantization-aware training that keeps zeros and clusters."""
    import tensorflow_model_optimization as tfmot

    scheme = tfmot.experimental.combine.Default8BitClusterPreserveQuantizeScheme(True)
    annotated = tfmot.quantization.keras.quantize_annotate_model(model)
    return tfmot.quantization.keras.quantize_apply(annotated, scheme)


def _sparse_and_clustered(model: Any) -> Any:
    """The weights as pruning and clustering would leave them."""
    for layer in model.layers:
        if type(layer).__name__ not in ("Conv2D", "Dense"):
            continue
        kernel = layer.kernel.numpy()
        grid = np.linspace(kernel.min(), kernel.max(), CLUSTERS - 1)
        nearest = grid[np.abs(kernel[..., None] - grid).argmin(-1)]
        limit = np.quantile(np.abs(kernel), 0.8)
        layer.kernel.assign(np.where(np.abs(kernel) < limit, 0.0, nearest))
    return model
