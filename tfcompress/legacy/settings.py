"""Settings of our techniques as arguments of TFMOT, or an error that says what TFMOT lacks."""

import dataclasses
from typing import Any

import numpy as np

from tfcompress.legacy import MOVE, import_tfmot
from tfcompress.schedules import Schedule
from tfcompress.techniques.cluster import Cluster
from tfcompress.techniques.masks import Pattern
from tfcompress.techniques.prune import Prune

# Sparsity from which zeros were surely meant.
SPARSE = 0.1
# A kernel with fewer different values than this share of its weights was surely clustered.
CLUSTERED = 0.25


def kernel_of(layer) -> Any:
    """The weight that techniques are meant for; None if there is none, or a depthwise one."""
    for name in ("kernel", "embeddings", "pointwise_kernel"):
        weight = getattr(layer, name, None)
        if weight is not None and len(weight.shape) > 1:
            return weight
    return None


def has_kernel(layer) -> bool:
    """Whether a layer holds weights that could be pruned or clustered."""
    matrices = [w for w in layer.trainable_weights if len(w.shape) > 1]
    return any("depthwise" not in w.name.split("/")[-1] for w in matrices)


def sparsity(values: np.ndarray) -> float:
    """The fraction of zeros."""
    return 1 - np.count_nonzero(values) / values.size


def is_clustered(values: np.ndarray) -> bool:
    """Whether the weights that are not zero share a few values, over all or by channel."""
    whole = [values.ravel()]
    channels = list(np.moveaxis(values, -1, 0).reshape(values.shape[-1], -1))
    return any(all(_few_values(part) for part in parts) for parts in (whole, channels))


def _few_values(values: np.ndarray) -> bool:
    values = values[values != 0]
    return len(np.unique(values)) <= CLUSTERED * values.size


def pruning(layer, technique: Prune) -> dict[str, Any]:
    """Arguments of `prune_low_magnitude`.

    Raises:
        ValueError: if TFMOT cannot prune so.
    """
    _require_default(technique, "depthwise", "never prunes depthwise kernels")
    pattern, schedule = Pattern.parse(technique.pattern), technique.schedule
    # Of single weights all of these have the same order.
    scores = ("magnitude", "l1", "max") + (() if pattern.kind == "block" else ("l2",))
    if technique.score not in scores:
        raise _lacks("prunes by magnitude only", f"score={technique.score!r}")
    if technique.scope != "layer":
        raise _lacks("ranks the weights of each layer on their own", f"scope={technique.scope!r}")
    if technique.threshold is not None:
        raise _lacks("prunes to a sparsity only", f"threshold={technique.threshold!r}")
    arguments: dict[str, Any] = {"pruning_schedule": _schedule(schedule)}
    if pattern.kind == "n:m":
        if schedule.initial != schedule.final or schedule.begin > 1 or schedule.curve == "points":
            raise _lacks("sets n:m masks once, in the first step", f"sparsity={schedule}")
        # It counts zeros where the pattern counts the weights that are kept.
        arguments["sparsity_m_by_n"] = (pattern.m - pattern.n, pattern.m)
    elif pattern.kind == "block":
        if len(kernel_of(layer).shape) != 2:
            raise _lacks(
                "prunes blocks of matrices only, such as those of Dense",
                f"pattern={technique.pattern!r} for layer '{layer.name}' ({type(layer).__name__})",
            )
        rows, columns = kernel_of(layer).shape
        if rows <= pattern.n or columns <= pattern.m:
            raise _lacks(
                "needs two blocks or more along both axes",
                f"pattern={technique.pattern!r} for layer '{layer.name}' of {rows}x{columns}",
            )
        arguments["block_size"] = (pattern.n, pattern.m)
        arguments["block_pooling_type"] = "MAX" if technique.score == "max" else "AVG"
    elif pattern.kind != "unstructured":
        raise _lacks("does not prune filters or channels", f"pattern={technique.pattern!r}")
    return arguments


def _schedule(schedule: Schedule):
    keras = import_tfmot().sparsity.keras
    if schedule.curve != "polynomial":
        raise _lacks("has constant and polynomial schedules only", f"a {schedule.curve} schedule")
    # It counts batches from 1, so that at 0 nothing would ever happen.
    begin = max(schedule.begin, 1)
    if schedule.initial == schedule.final:
        end = -1 if schedule.end is None else max(schedule.end, begin)
        return keras.ConstantSparsity(schedule.final, begin, end, schedule.frequency)
    assert schedule.end is not None  # a schedule that changes has an end
    steps, every = schedule.end - schedule.begin, schedule.frequency
    if steps % every:
        near = schedule.begin + steps // every * every
        raise ValueError(
            f"TFMOT updates every {every} steps from {schedule.begin} and would stop at step "
            f"{near}, short of the final sparsity; received end={schedule.end}. Give an end of "
            f"{near or every} or {near + every}, or another frequency. {MOVE}"
        )
    return keras.PolynomialDecay(
        schedule.initial, schedule.final, schedule.begin, schedule.end, schedule.power, every
    )


def clustering(layer, technique: Cluster) -> dict[str, Any] | None:
    """Arguments of `cluster_weights`; None if the layer has too few weights for it.

    Raises:
        ValueError: if TFMOT cannot cluster so.
    """
    _require_default(technique, "depthwise", "never clusters depthwise kernels")
    _require_default(technique, "frequency", "chooses centroids anew in every step")
    _require_default(
        technique, "seed", "draws from TensorFlow's generator (tf_keras.utils.set_random_seed)"
    )
    if technique.begin:
        raise _lacks("clusters from the first step on", f"begin={technique.begin}")
    names = ("dropout", "recurrent_dropout", "_dropout")
    if any(getattr(layer, name, 0) for name in names):
        raise _lacks(
            "switches off the dropout inside of layers that it clusters",
            f"layer '{layer.name}' ({type(layer).__name__}) with dropout",
        )
    kernel = kernel_of(layer)
    if kernel is None:
        return {"number_of_clusters": technique.clusters, **_how(technique)}
    values = kernel.numpy()
    size = values.size // values.shape[-1] if technique.per_channel else values.size
    if size <= technique.clusters:
        return None
    if technique.per_channel:
        _require_channels(layer)
    keep = technique.keep_zeros
    keep = sparsity(values) >= SPARSE if keep is None else keep
    if keep and technique.clusters < 3:
        raise _lacks("needs 3 or more clusters to keep zeros", f"clusters={technique.clusters}")
    extra = {"cluster_per_channel": True} if technique.per_channel else {}
    return {
        "number_of_clusters": technique.clusters,
        "preserve_sparsity": bool(keep),
        **_how(technique),
        **extra,
    }


def _how(technique: Cluster) -> dict[str, Any]:
    from tensorflow_model_optimization.python.core.clustering.keras import cluster_config

    inits = cluster_config.CentroidInitialization
    gradients = cluster_config.GradientAggregation
    return {
        "cluster_centroids_init": {
            "kmeans++": inits.KMEANS_PLUS_PLUS,
            "linear": inits.LINEAR,
            "density": inits.DENSITY_BASED,
            "random": inits.RANDOM,
        }[technique.init],
        "cluster_gradient_aggregation": {"mean": gradients.AVG, "sum": gradients.SUM}[
            technique.gradient
        ],
    }


def cluster_weights(layer, **arguments):
    """TFMOT's `cluster_weights`, with those of its arguments that it calls experimental."""
    from tensorflow_model_optimization.python.core.clustering.keras.experimental import cluster

    return cluster.cluster_weights(layer, **arguments)


def _require_channels(layer) -> None:
    if type(layer).__name__ != "Conv2D":
        raise _lacks(
            "clusters per channel in Conv2D only",
            f"per_channel=True for layer '{layer.name}' ({type(layer).__name__})",
        )
    if not layer.use_bias:
        raise _lacks(
            "leaves out Conv2D without a bias where it clusters per channel",
            f"per_channel=True for layer '{layer.name}' (use_bias=False)",
        )


def _require_default(technique, name: str, limit: str) -> None:
    default = next(f.default for f in dataclasses.fields(technique) if f.name == name)
    if getattr(technique, name) != default:
        raise _lacks(limit, f"{name}={getattr(technique, name)!r}")


def _lacks(limit: str, received: str) -> ValueError:
    return ValueError(f"TFMOT {limit}; received {received}. {MOVE}")


def cannot(verb: str, layer, error: Exception) -> ValueError:
    """What TFMOT's refusal of a layer becomes."""
    kind = type(layer).__name__
    text = " ".join(str(error).split()).split(". ")[0][:160]
    return ValueError(
        f"TFMOT cannot {verb} layer '{layer.name}' ({kind}): {text}. Leave it out with "
        f"Rule('{layer.name}', []). {MOVE}"
    )
