"""Copies of layers and operations, and of what they hold."""

import contextlib
import copy
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
from keras import layers, tree


class NotCopied(ValueError):
    """A layer whose copy by its configuration is not alike."""

    def __init__(self, layer, message: str):
        super().__init__(message)
        self.layer = layer


def copy_operation(operation, changes: Mapping[str, Any] | None = None):
    """A copy of a layer or operation, without its place in a graph; weights come later."""
    if not isinstance(operation, keras.Layer):
        if changes:  # Keras saves what an operation was made with, not its attributes
            return type(operation).from_config({**operation.get_config(), **changes})
        twin = object.__new__(type(operation))  # copy.copy would save and load it
        vars(twin).update(vars(operation))
        twin._inbound_nodes, twin._outbound_nodes = [], []
        return twin
    if isinstance(operation, layers.Lambda):
        twin = _copy_lambda(operation)
    else:
        twin = _copy_layer(operation, changes)
    twin.name = operation.name
    if is_whole(operation):
        keep_whole(twin)
    if twin.dtype_policy != operation.dtype_policy:
        twin.dtype_policy = operation.dtype_policy
    return twin


def keep_whole(layer) -> None:
    """Marks a layer made of layers that stays one node."""
    vars(layer)["_kept_whole"] = True  # not tracked, nor saved


def is_whole(layer) -> bool:
    """Whether a layer made of layers was marked as one that stays one node."""
    return vars(layer).get("_kept_whole", False)


def copy_weights(pairs: Iterable[tuple[Any, Any]]) -> None:
    """Copies all variables between layers of one kind, and which of them train.

    Args:
        pairs: (source, target) built layers; variables are weights, metrics and random seeds.
    """
    for source, target in pairs:
        old, new = getattr(source, "variables", []), getattr(target, "variables", [])
        if len(old) != len(new) and isinstance(source, keras.Layer):
            old, new = source.weights, target.weights  # random seeds may differ, weights may not
        _require_alike(source, target, old, new)
        copy_trainable(source, target)
        for ours, theirs in zip(new, old, strict=True):
            # JAX arrays would be shared, and are gone once one of the models trains.
            on_jax = keras.backend.backend() == "jax"
            ours.assign(np.array(theirs) if on_jax else theirs)
            if ours.trainable != theirs.trainable:
                ours.trainable = theirs.trainable
        if isinstance(target, layers.Normalization):
            target.finalize_state()


def _copy_layer(layer, changes: Mapping[str, Any] | None):
    try:
        config = _config_of(layer)
        for key, value in config.items():
            # Python functions, as in Dense(activation=f), do not survive serialization.
            if value is not None and inspect.isfunction(getattr(layer, key, None)):
                config[key] = getattr(layer, key)
        if changes is not None:
            config = _changed(config, changes)
        with keras.saving.custom_object_scope(_classes_in(layer)):
            return type(layer).from_config(config)
    except Exception as error:
        raise NotCopied(
            layer,
            f"layer '{layer.name}' ({type(layer).__name__}) cannot be copied: its "
            f"get_config/from_config failed with {type(error).__name__}: {error}. Return every "
            "argument of __init__ from get_config(), as keras.saving needs it too.",
        ) from error


def _config_of(layer) -> dict[str, Any]:
    """The configuration of a layer, also where Keras writes none, as for Identity(dtype=policy)."""
    try:
        return _with_vocabulary(layer, layer.get_config())
    except NotImplementedError:
        signature = inspect.signature(type(layer).__init__).parameters.values()
        names = [p.name for p in list(signature)[1:] if p.kind is not p.VAR_KEYWORD]
        found = {name: vars(layer)[name] for name in names if name in vars(layer)}
        held = (keras.Layer, keras.Variable)
        if len(found) != len(names) or any(isinstance(x, held) for x in tree.flatten(found)):
            raise
    policy = layer.dtype_policy
    plain = type(policy) is keras.DTypePolicy
    dtype = policy.name if plain else keras.dtype_policies.serialize(policy)
    return {"name": layer.name, "trainable": layer.trainable, "dtype": dtype, **found}


def _with_vocabulary(layer, config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the vocabulary that a lookup or TextVectorization was adapted to."""
    if not hasattr(layer, "get_vocabulary") or config.get("vocabulary") is not None:
        return config
    words = list(layer.get_vocabulary(include_special_tokens=False))
    if not words:
        return config
    lookup = getattr(layer, "_lookup_layer", layer)
    weights = getattr(lookup, "idf_weights", None)
    if lookup.output_mode == "tf_idf" and weights is not None:
        config["idf_weights"] = np.asarray(weights)[-len(words) :].tolist()
    return {**config, "vocabulary": words}


def _changed(config: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with other values; layers inside of it are to be built anew."""
    config = copy.deepcopy(config)
    for path, value in changes.items():
        *outer, key = path.split(".")
        inner = config
        for name in outer:
            inner = inner[name]["config"]
        inner[key] = value
    for value in config.values():
        if isinstance(value, dict):
            value.pop("build_config", None)
    return config


def _copy_lambda(layer):
    """Its from_config refuses Python functions."""
    return layers.Lambda(
        layer.function,
        output_shape=layer._output_shape,
        mask=layer.mask,
        arguments=dict(layer.arguments),
        name=layer.name,
        dtype=layer.dtype_policy,
        trainable=layer.trainable,
    )


def _classes_in(layer) -> dict[str, type]:
    """The user's classes that a layer's configuration may speak of, by name."""
    parts = [value for x in layer._flatten_layers() for value in (x, *vars(x).values())]
    kinds = {type(part) for part in parts if hasattr(part, "get_config")}
    return {kind.__name__: kind for kind in kinds if not kind.__module__.startswith("keras.")}


def _require_alike(source, target, old: list, new: list) -> None:
    kind = f"layer '{source.name}' ({type(source).__name__})"
    shapes = [tuple(v.shape) for v in old], [tuple(v.shape) for v in new]
    if shapes[0] != shapes[1]:
        raise NotCopied(
            source,
            f"{kind} has {len(old)} variables of shapes {shapes[0]}, its copy made by get_config() "
            f"has {len(new)} of shapes {shapes[1]}. Return every argument of __init__ from "
            "get_config(), and create all variables in __init__ or build().",
        )
    if type(source) is not type(target) or not isinstance(source, keras.Layer):
        return
    if type(source).__module__.startswith(("keras.", "tfcompress.")):
        return
    for name, value in vars(source).items():
        other = vars(target).get(name, value)
        if name not in _OWN_NAMES and name[0] != "_" and _is_plain(value) and other != value:
            raise NotCopied(
                source,
                f"{kind} has {name}={value!r}, but its copy made by get_config() has "
                f"{name}={other!r}. Return every argument of __init__ from get_config().",
            )


# Attributes of a layer that are set by Keras, or that need not be equal.
_OWN_NAMES = {"name", "built", "trainable", "seed", "autocast", "supports_masking"}


def _is_plain(value) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(part) for part in value)
    return isinstance(value, bool | int | float | str)


def copy_trainable(source, target) -> None:
    """Copies the `trainable` flag of a layer and of the layers inside of it."""
    if not isinstance(source, keras.Layer) or type(source) is not type(target):
        with contextlib.suppress(AttributeError):
            if target.trainable != source.trainable:
                target.trainable = source.trainable
        return
    for old, new in zip(source._flatten_layers(), target._flatten_layers(), strict=False):
        if new.trainable != old.trainable:
            new.trainable = old.trainable
