"""What models and layers are called with, and what models call their outputs."""

from __future__ import annotations

import inspect
from typing import Any

import keras
from keras import tree

from tfcompress.dispatch import is_legacy


def require_model(model, floats: bool = True) -> None:
    """Raises unless this is a Keras 3 model, by default one that computes with float weights."""
    if isinstance(model, keras.Model):
        if floats:
            require_float(model)
        if hasattr(model, "students") and hasattr(model, "frozen_models"):
            name = "student" if hasattr(model, "student") else "students[0]"
            raise TypeError(
                f"model must be one to ship; received a {type(model).__name__}, which trains one. "
                f"Pass what it trains: its .{name}."
            )
        return
    kind = f"{type(model).__module__}.{type(model).__name__}"
    if is_legacy(model) or kind.startswith("tf_keras."):
        kind = f"'{getattr(model, 'name', kind)}' of tf_keras (Keras 2)"
        hint = (
            "Save it with model.save('old.h5'), then bring it over with `tfcompress migrate old.h5 "
            "new.keras`."
        )
    elif isinstance(model, str) or hasattr(model, "__fspath__"):
        hint = f"Load it first: keras.saving.load_model({str(model)!r})."
    else:
        hint = "Pass a keras.Model, or load one with keras.saving.load_model(path)."
    raise TypeError(f"model must be a keras.Model of Keras 3; received {kind}. {hint}")


def require_float(model) -> None:
    """Raises a ValueError for a model whose weights Keras has quantized."""
    for layer in model._flatten_layers():
        mode = getattr(layer, "quantization_mode", None)
        if mode is not None:
            raise ValueError(
                f"model '{model.name}' must have float weights; received one that Keras quantized: "
                f"layer '{layer.name}' is {mode}. Pass the model as it was before "
                "model.quantize(), a file saved then or a copy: keras.models.clone_model(model), "
                "then copy.set_weights(model.get_weights()). tfcompress quantizes it itself."
            )


def inputs_of(model, inputs=None) -> tuple[Any, tuple, dict]:
    """The symbolic inputs of a subclassed model.

    Args:
        inputs: structure of `keras.Input`s to use; by default those of the shapes that the model
            was built with, in float32. A tuple stands for several arguments of `call`.

    Returns (structure of inputs for a Functional model, args of `call`, kwargs of `call`).
    """
    if not model.built:
        raise not_built(model)
    if inputs is None:  # a Functional class with a `call` of its own has them
        inputs = getattr(model, "_inputs_struct", None)
    if inputs is not None:
        return _spread(model, inputs)
    config = model.get_build_config() or {}
    if config.get("shapes_dict"):
        names = {key: key.removesuffix("_shape") for key in config["shapes_dict"]}
        made = {names[key]: _input(x, names[key]) for key, x in config["shapes_dict"].items()}
        return list(made.values()), (), made
    if not config.get("input_shape"):
        raise not_built(model)
    if len(wanted := _required(model)) > 1:
        raise ValueError(
            f"call() of model '{model.name}' ({type(model).__name__}) takes {', '.join(wanted)}, "
            "but Keras knows the shape of the first alone. Pass "
            f"inputs=({', '.join(f'keras.Input(shape, name={x!r})' for x in wanted)})."
        )
    made = _input(config["input_shape"], "inputs")
    return made, (made,), {}


def _spread(model, inputs) -> tuple[Any, tuple, dict]:
    """Inputs given by the user, as one argument of `call` or as several."""
    wanted = _required(model)
    if isinstance(inputs, tuple) and len(wanted) > 1:
        return list(inputs), inputs, {}
    if isinstance(inputs, dict) and len(wanted) > 1 and set(wanted) <= set(inputs):
        return inputs, (), dict(inputs)
    return inputs, (inputs,), {}


def _required(model) -> list[str]:
    """The arguments of `call` that have no default."""
    plain = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = inspect.signature(model.call).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty and p.kind is plain]
    return [name for name in required if name not in ("training", "mask")]


def _input(shape, name: str):
    if isinstance(shape, dict):
        return {key: _input(part, key) for key, part in shape.items()}
    if shape and isinstance(shape[0], list | tuple | dict):
        return [_input(part, f"{name}_{i}") for i, part in enumerate(shape)]
    return keras.Input(batch_shape=(None, *shape[1:]), name=name)


def not_built(model) -> ValueError:
    """The error for a model without weights yet."""
    return ValueError(
        f"model '{model.name}' ({type(model).__name__}) is not built, so its inputs and weights "
        "are not known. Call it once on a batch of data, model(x), or model.build(shape)."
    )


def mask_of(tensor):
    """The mask that a tensor carries; None if it has none."""
    return getattr(tensor, "_keras_mask", None)


def output_names(model: keras.Model) -> list[str]:
    """The names by which losses and labels refer to a model's outputs, none if it has none."""
    struct = getattr(model, "_outputs_struct", None)
    if isinstance(struct, dict) and not any(tree.is_nested(x) for x in struct.values()):
        return sorted(struct)  # as they are flattened
    functional = getattr(model, "_functional", None) or model
    return list(getattr(functional, "output_names", None) or [])
