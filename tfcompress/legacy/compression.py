"""A recipe carried out on a tf_keras model by TFMOT, which can do a part of it."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import numpy as np

from tfcompress.compression.rules import refuse_shrink
from tfcompress.legacy import MOVE, import_tf_keras, import_tfmot, require_graph
from tfcompress.legacy.rebuild import Rebuild, copy_layer, kind_of, weights_by_name, wrappers_of
from tfcompress.schedules import Schedule, constant
from tfcompress.techniques import Quantize, Technique
from tfcompress.techniques.cluster import Cluster
from tfcompress.techniques.masks import Pattern
from tfcompress.techniques.prune import Prune, gradual
from tfcompress.techniques.rules import Rules, require_match

_STAGES = (
    "TFMOT combines techniques in stages only: compress with [{first}] and fit, finalize, then "
    "compress the result with [{second}], which keeps the zeros and clusters that it finds"
)


def compress(model: Any, recipe: Rules) -> Any:
    """A copy of a tf_keras model under TFMOT's wrappers, not compiled.

    Steps of schedules are TFMOT's, which counts batches from 1. Pruning needs the callback
    `tfcompress.UpdateCompression()`; without it TFMOT stops the training with an error.
    """
    refuse_shrink(recipe)
    require_graph(model)
    if wrappers_of(model):
        raise ValueError(
            f"model '{model.name}' has TFMOT's wrappers already; expected a plain one. Call "
            "tfcompress.finalize(model) first, and compress the result."
        )
    layers = [x for x in model._flatten_layers(include_self=False) if not hasattr(x, "layers")]
    for rule in recipe.rules:
        require_match(rule, layers, model)
    kinds = {type(technique) for layer in layers for technique in recipe.techniques_of(layer)}
    _check_kinds(kinds)
    tf_keras = import_tf_keras()
    # TFMOT's wrappers take layers in, so they get those of a copy.
    twin = Rebuild(tf_keras, copy_layer).run(model)
    if Quantize in kinds:
        return quantize(twin, recipe)

    def clone(layer):
        if hasattr(layer, "layers"):
            return tf_keras.models.clone_model(layer, clone_function=clone)
        techniques = recipe.techniques_of(layer)
        return _wrap(layer, techniques[0]) if techniques else layer

    wrapped = clone(twin)
    if not wrappers_of(wrapped):
        raise ValueError(
            "the recipe finds no weight in the layers that it names; expected kernels of Conv, "
            "Dense, recurrent layers or embeddings. Mend the patterns of its rules."
        )
    return wrapped


def finalize(model: Any) -> Any:
    """A copy of a tf_keras model without TFMOT's wrappers for pruning and clustering.

    Quantization is carried out by the converted file, so that its wrappers stay.
    """
    require_graph(model)
    found = wrappers_of(model)
    for layer in model._flatten_layers(include_self=False):
        if kind_of(layer) == "prune" and int(layer.pruning_step) < 1:
            raise ValueError(
                f"layer '{layer.layer.name}' is to be pruned, but nothing was pruned yet. Train "
                "the model with callbacks=[tfcompress.UpdateCompression()] before finalize."
            )
    tf_keras = import_tf_keras()
    if not found.quantized:
        return Rebuild(tf_keras, copy_layer).run(model)
    with import_tfmot().quantization.keras.quantize_scope():
        twin = tf_keras.models.clone_model(model)
    for old, new in zip(model.layers, twin.layers, strict=True):
        # Where clusters were preserved there are more variables in the old one than in the new.
        for variable, value in zip(new.weights, weights_by_name(old, new), strict=True):
            variable.assign(value)
    return twin


def _check_kinds(kinds: set[type[Technique]]) -> None:
    known = {Prune, Cluster, Quantize}
    if kinds - known:
        names = ", ".join(sorted(kind.__name__ for kind in kinds - known))
        raise ValueError(f"TFMOT has no technique like {names}; received it in a recipe. {MOVE}")
    if len(kinds) > 1:
        ordered = [kind.__name__ for kind in (Prune, Cluster, Quantize) if kind in kinds]
        stages = _STAGES.format(first=ordered[0], second=", ".join(ordered[1:]))
        raise ValueError(f"received {', '.join(ordered)} in one recipe. {stages}. {MOVE}")
    if not kinds:
        raise ValueError("the recipe gives no layer a technique. Check the patterns of its rules.")


def _wrap(layer, technique: Prune | Cluster):
    """The layer under TFMOT's wrapper, if it has what can be pruned or clustered."""
    if not has_kernel(layer):
        return layer
    arguments: dict[str, Any] | None
    if isinstance(technique, Prune):
        verb, wrap = "prune", import_tfmot().sparsity.keras.prune_low_magnitude
        arguments = pruning(layer, technique)
    else:
        verb, wrap = "cluster", cluster_weights
        arguments = clustering(layer, technique)
    if arguments is None:
        return layer
    try:
        return wrap(layer, **arguments)
    except ValueError as error:
        kind, text = type(layer).__name__, " ".join(str(error).split()).split(". ")[0][:160]
        raise ValueError(
            f"TFMOT cannot {verb} layer '{layer.name}' ({kind}): {text}. Leave it out with "
            f"Rule('{layer.name}', []). {MOVE}"
        ) from error


def hand_over(callback: Any, model: Any) -> None:
    """Makes a callback of Keras 3 do in `fit` of a tf_keras model what TFMOT needs there."""
    found = wrappers_of(model)
    if not found:
        raise ValueError(
            f"{type(callback).__name__} found nothing to update in model '{model.name}'. Train "
            "the model that tfcompress.compress returned."
        )
    own = [import_tfmot().sparsity.keras.UpdatePruningStep()] if found.pruned else []
    for each in own:
        each.set_model(model)
    for name in dir(callback):
        if name.startswith("on_"):
            setattr(callback, name, partial(_call, own, name))
    # Questions of tf_keras that callbacks of Keras 3 do not know.
    for kind in ("train", "test", "predict"):
        setattr(callback, f"_implements_{kind}_batch_hooks", lambda: False)


def _call(callbacks: list[Any], name: str, *args, **kwargs) -> None:
    for callback in callbacks:
        getattr(callback, name)(*args, **kwargs)


# Layers whose zeros or clusters TFMOT preserves.
_PRESERVED = ("Conv2D", "Dense")


def quantize(model: Any, recipe: Rules) -> Any:
    """A tf_keras model under TFMOT's quantization wrappers; zeros and clusters found are kept."""
    tf_keras, keras = import_tf_keras(), import_tfmot().quantization.keras
    if any(isinstance(layer, tf_keras.Model) for layer in model.layers):
        raise ValueError(
            f"TFMOT does not quantize nested models; received model '{model.name}', which has "
            f"one. Put its layers into the outer model. {MOVE}"
        )
    chosen = []
    for layer in model.layers:
        techniques = recipe.techniques_of(layer)
        if techniques:
            _check(techniques[0])
            chosen.append(layer)
    names = {layer.name for layer in chosen}
    scheme = _scheme(chosen)

    def annotate(layer):
        if layer.name not in names or isinstance(layer, tf_keras.layers.InputLayer):
            return layer
        return keras.quantize_annotate_layer(layer)

    try:
        annotated = tf_keras.models.clone_model(model, clone_function=annotate)
        with keras.quantize_scope():
            return keras.quantize_apply(annotated, *([scheme] if scheme else []))
    except (KeyError, RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())[:300]
        raise ValueError(
            f"TFMOT cannot quantize model '{model.name}': {text} Leave such layers out with "
            f"Rule(name, []). {MOVE}"
        ) from error


def _check(technique: Technique) -> None:
    for name, value in Quantize().get_config().items():
        received = getattr(technique, name)
        if received != value and name != "axes":
            raise ValueError(
                "TFMOT has one scheme for quantization: 8 bits, Dense per tensor, from the first "
                f"step on; received {name}={received!r}. {MOVE}"
            )


def _scheme(layers: list[Any]) -> Any:
    """TFMOT's scheme that keeps the zeros and clusters which there are; None for the plain one."""
    kernels = {
        layer.name: layer.kernel.numpy() for layer in layers if type(layer).__name__ in _PRESERVED
    }
    clustered = any(is_clustered(values) for values in kernels.values())
    zeros = {name: sparsity(values) for name, values in kernels.items()}
    sparse = any(value >= SPARSE for value in zeros.values())
    experimental = import_tfmot().experimental.combine
    if not clustered:
        return experimental.Default8BitPrunePreserveQuantizeScheme() if sparse else None
    without = [name for name, value in zeros.items() if value == 0]
    if sparse and without:
        # One layer without zeros makes TFMOT forget those of all layers after it.
        names = ", ".join(f"'{name}'" for name in without)
        raise ValueError(
            "TFMOT keeps zeros and clusters together only if every quantized Conv2D and Dense has "
            f"zeros; received none in {names}. Leave these out with Rule(name, []). {MOVE}"
        )
    return experimental.Default8BitClusterPreserveQuantizeScheme(preserve_sparsity=sparse)


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
    """Arguments of `prune_low_magnitude`."""
    _require_default(technique, "depthwise", "never prunes depthwise kernels")
    pattern, schedule = Pattern.parse(technique.pattern), technique.schedule
    if schedule.curve == "polynomial" and schedule == gradual(schedule.final):
        schedule = constant(schedule.final)
    if schedule.has_shares:
        raise _lacks("counts steps from the start", f"shares of the training: {schedule}")
    # Of single weights all of these have the same order.
    scores = (None, "magnitude", "l1", "max") + (() if pattern.kind == "block" else ("l2",))
    if technique.score not in scores:
        raise _lacks("prunes by magnitude only", f"score={technique.score!r}")
    if technique.scope == "global":
        raise _lacks("ranks the weights of each layer on their own", f"scope={technique.scope!r}")
    if technique.preserve:
        raise _lacks("finds zeros of its own", "preserve=True")
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
    """Arguments of `cluster_weights`; None if the layer has too few weights for it."""
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
    if keep is None:
        keep = sparsity(values) >= SPARSE
    if keep and technique.clusters < 3:
        raise _lacks("needs 3 or more clusters to keep zeros", f"clusters={technique.clusters}")
    extra = {"cluster_per_channel": True} if technique.per_channel else {}
    return {
        "number_of_clusters": technique.clusters,
        "preserve_sparsity": bool(keep),
        **_how(technique),
        **extra,
    }


# What TFMOT calls them.
_INITS = {
    "kmeans++": "KMEANS_PLUS_PLUS",
    "linear": "LINEAR",
    "density": "DENSITY_BASED",
    "random": "RANDOM",
}
_GRADIENTS = {"mean": "AVG", "sum": "SUM"}


def _how(technique: Cluster) -> dict[str, Any]:
    """The centroids to begin with, and what their gradients are made of."""
    from tensorflow_model_optimization.python.core.clustering.keras import cluster_config

    init, gradient = _INITS[technique.init], _GRADIENTS[technique.gradient]
    return {
        "cluster_centroids_init": cluster_config.CentroidInitialization[init],
        "cluster_gradient_aggregation": cluster_config.GradientAggregation[gradient],
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
