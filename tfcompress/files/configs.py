"""What the configuration in a model's file names, looked through before anything is made of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

# More than any model needs; beyond, Keras takes minutes, or Python's stack does not do.
LAYERS, DEPTH = 10_000, 100

# What ends the names of settings that hold a function or an object by its name.
_NAMING = ("activation", "initializer", "regularizer", "constraint", "fn")


def short(text: object, length: int = 80) -> str:
    """A text from a file in quotes, for a message: in one line, and not longer than some words."""
    shown = " ".join(str(text)[: 4 * length].split())
    return repr(shown[:length] + "..." if len(shown) > length else shown)


@dataclasses.dataclass(frozen=True)
class Named:
    """A class or function that a configuration names.

    Attributes:
        kind: the class; "function" for a function.
        name: of the class or function.
        module, registered: where it says that it comes from; None if it does not.
        settings: what is passed to a class.
        saved: by a setting that no loaded model needs, such as those of `compile`.
    """

    kind: str
    name: str
    module: str | None
    registered: str | None
    settings: Any
    saved: bool = False


def parse(text: str | bytes, source: Any) -> Any:
    """A configuration from its JSON."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(_too_deep(source)) from error


def names(config: Any, source: Any, unused: tuple[str, ...] = ()) -> Iterator[Named]:
    """Everything that a configuration names, at any depth.

    Args:
        config: the parsed JSON.
        source: the file, for messages.
        unused: names of settings that are not looked at when the model is loaded.

    Raises:
        ValueError: if it is deeper or has more layers than models have, or reads other files.
    """
    layers, stack = 0, [(config, 0, False)]
    while stack:
        value, depth, saved = stack.pop()
        if depth > DEPTH:
            raise ValueError(_too_deep(source))
        if isinstance(value, list):
            stack += [(part, depth + 1, saved) for part in value if isinstance(part, (dict, list))]
        if not isinstance(value, dict):
            continue
        if "class_name" in value:
            yield _named(value, source, saved)
        layers += len(value["layers"]) if isinstance(value.get("layers"), list) else 0
        if layers > LAYERS:
            raise ValueError(
                f"'{source}' has more than {LAYERS:,} layers; expected fewer, as Keras would take "
                "hours for them. Build the model in Python and pass it."
            )
        for key, part in value.items():
            if isinstance(part, (dict, list)):
                stack.append((part, depth + 1, saved or key in unused))
            elif isinstance(part, str) and key.endswith(_NAMING):
                yield Named(key.rsplit("_")[-1], part, None, None, None, saved)
            elif isinstance(part, str) and key == "vocabulary":
                raise ValueError(
                    f"'{source}' would read the file {short(part)} for a vocabulary, which is not "
                    "done; expected the words themselves. Pass them as a list, and save that."
                )


def _named(value: dict, source: Any, saved: bool) -> Named:
    kind, settings = value["class_name"], value.get("config")
    module, registered = value.get("module"), value.get("registered_name")
    name = settings if kind == "function" else kind
    if kind == "__typespec__":
        name = value.get("spec_name")
    texts = (kind, name, module, registered)
    if not all(isinstance(text, str) for text in texts if text is not None) or name is None:
        raise ValueError(
            f"'{source}' is damaged: its configuration names {short(repr(kind))}, which is no "
            "class; expected the name of one. Save the model again."
        )
    return Named(kind, name, module, registered, settings, saved)


def _too_deep(source: Any) -> str:
    return (
        f"'{source}' nests its configuration deeper than {DEPTH} levels; expected fewer models "
        "and layers inside one another. Build the model flat, and save that."
    )


# Modules of Keras whose classes and functions do nothing but compute, by `keras.NAME` and
# `keras.src.NAME`.
_COMPUTING = frozenset(
    "activations constraints dtype_policies initializers layers losses metrics mixed_precision "
    "ops optimizers quantizers random regularizers".split()
)
_WHOLE = frozenset(["DTypePolicy", "Functional", "Model", "Sequential"])
_VALUES = frozenset(
    f"__{name}__" for name in "keras_tensor tensor numpy bytes ellipsis slice tuple".split()
)
# They run other code than Keras's: pickled, from another folder, or from the file.
_ACTING = frozenset(["TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "__typespec__"])
_READERS = frozenset(["get", "serialize", "deserialize"])
# Keras itself takes nothing but models and layers from these.
_EXTENSIONS = frozenset(["keras_hub", "keras_cv", "keras_nlp"])
_REGISTER = (
    "In Python, import it, load the model and pass it to tfcompress.convert; or register it with "
    "keras.saving.register_keras_serializable."
)


def check_keras(config: Any, source: Any, mend: str = _REGISTER) -> None:
    """Raises a ValueError unless a configuration for Keras 3 names only what computes.

    Args:
        mend: what to do about a class that is not known.
    """
    for named in names(config, source):
        if named.kind in ("__lambda__", "Lambda") and not _calls_function(named):
            raise ValueError(
                f"'{source}' holds Python code (a Lambda layer), which is not run; expected layers "
                "only. Replace it by keras.ops calls or a layer class of your own, or load the "
                "model in Python, if you trust it, and pass it to tfcompress.convert."
            )
        if not _is_known(named):
            where = f" of the module {short(named.module)}" if named.module else ""
            raise ValueError(
                f"'{source}' needs the class or function {short(named.name)}{where}, which is not "
                f"known here. {mend}"
            )


def _calls_function(named: Named) -> bool:
    function = named.settings.get("function") if isinstance(named.settings, dict) else None
    return isinstance(function, dict) and function.get("class_name") == "function"


def _is_known(named: Named) -> bool:
    import keras

    # What a program registered itself is its own.
    for name in (named.registered, named.name):
        if name and keras.saving.get_registered_object(name) is not None:
            return True
    if named.kind in _VALUES or named.name in _WHOLE:
        return True
    if named.name in _ACTING | _READERS or not named.name.isidentifier():
        return False
    package, *parts = (named.module or "builtins").split(".")
    if package == "builtins":
        rooms = (getattr(keras, room) for room in _COMPUTING)
        return named.kind in _NAMING or any(hasattr(room, named.name) for room in rooms)
    if package in _EXTENSIONS:
        return named.kind != "function"
    if package != "keras" or next((p for p in parts if p != "src"), "") not in _COMPUTING:
        return False
    if parts[0] == "src":  # From there Keras takes nothing but its own classes.
        return named.kind != "function"
    place: Any = keras
    for part in parts:
        place = getattr(place, part, None)
    return hasattr(place, named.name)
