"""A recipe carried out on a tf_keras model by TFMOT, which can do a part of it."""

from typing import Any

from tfcompress.legacy import MOVE, import_tf_keras, import_tfmot, require_graph, settings
from tfcompress.legacy.quantization import quantize
from tfcompress.legacy.rebuild import Rebuild, copy_layer, kind_of, weights_by_name, wrappers_of
from tfcompress.recipe import Recipe, matches_of, refuse_shrink
from tfcompress.techniques import Quantize, Technique
from tfcompress.techniques.cluster import Cluster
from tfcompress.techniques.prune import Prune

_STAGES = (
    "TFMOT combines techniques in stages only: compress with [{first}] and fit, finalize, then "
    "compress the result with [{second}], which keeps the zeros and clusters that it finds"
)


def compress(model: Any, recipe: Recipe) -> Any:
    """A copy of a tf_keras model under TFMOT's wrappers.

    Steps of schedules are TFMOT's, which counts batches from 1. Pruning needs the callback
    `tfcompress.UpdateCompression()`; without it TFMOT stops the training with an error.

    Args:
        model: a Sequential or Functional `tf_keras.Model`; it is left untouched.
        recipe: a `Recipe` with one technique for each layer.

    Returns:
        A `tf_keras.Model`, not compiled.

    Raises:
        ValueError: if TFMOT cannot do what the recipe says.

    Example:
        >>> pruned = compress(model, Recipe([Rule("*", [Prune(0.5)])]))  # doctest: +SKIP
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
        matches_of(rule, layers, model)
    kinds = {type(technique) for layer in layers for technique in recipe.techniques_of(layer)}
    _check_kinds(kinds)
    # TFMOT's wrappers take layers in, so they get those of a copy.
    twin = Rebuild(import_tf_keras(), copy_layer).run(model)
    if Quantize in kinds:
        return quantize(twin, recipe)
    wrap = _prune if Prune in kinds else _cluster

    def clone(layer):
        if hasattr(layer, "layers"):
            return import_tf_keras().models.clone_model(layer, clone_function=clone)
        techniques = recipe.techniques_of(layer)
        return wrap(layer, techniques[0]) if techniques else layer

    wrapped = import_tf_keras().models.clone_model(twin, clone_function=clone)
    if not wrappers_of(wrapped):
        raise ValueError(
            "the recipe finds no weight in the layers that it names; expected kernels of Conv, "
            "Dense, recurrent layers or embeddings. Mend the patterns of its rules."
        )
    return wrapped


def finalize(model: Any) -> Any:
    """A copy of a tf_keras model without TFMOT's wrappers for pruning and clustering.

    Quantization is carried out by the converted file, so that its wrappers stay.

    Args:
        model: a `tf_keras.Model`, wrapped or not; it is left untouched.

    Returns:
        A `tf_keras.Model` with equal outputs.

    Raises:
        ValueError: if it is neither Sequential nor Functional, or was never trained under its
            pruning wrappers.
    """
    require_graph(model)
    found = wrappers_of(model)
    for layer in model._flatten_layers(include_self=False):
        if kind_of(layer) == "prune" and int(layer.pruning_step) < 1:
            raise ValueError(
                f"layer '{layer.layer.name}' is to be pruned, but nothing was pruned yet. Train "
                "the model with callbacks=[tfcompress.UpdateCompression()] before finalize."
            )
    if not found.quantized:
        return Rebuild(import_tf_keras(), copy_layer).run(model)
    tf_keras, tfmot = import_tf_keras(), import_tfmot()
    with tfmot.quantization.keras.quantize_scope():
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


def _prune(layer, technique: Prune):
    """The layer under TFMOT's pruning wrapper, if it has what can be pruned."""
    if not settings.has_kernel(layer):
        return layer
    registry = import_tfmot().sparsity.keras
    arguments = settings.pruning(layer, technique)
    try:
        return registry.prune_low_magnitude(layer, **arguments)
    except ValueError as error:
        raise settings.cannot("prune", layer, error) from error


def _cluster(layer, technique: Cluster):
    """The layer under TFMOT's clustering wrapper, if it has what can be clustered."""
    if not settings.has_kernel(layer):
        return layer
    arguments = settings.clustering(layer, technique)
    if arguments is None:
        return layer
    try:
        return settings.cluster_weights(layer, **arguments)
    except ValueError as error:
        raise settings.cannot("cluster", layer, error) from error
