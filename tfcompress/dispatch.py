"""The one place where a model of tf_keras (Keras 2) goes another way than one of Keras 3."""

import sys
from collections.abc import Callable
from typing import Any

# name -> what the room `legacy` does instead
_LEGACY: dict[str, Callable[..., Any]] = {}


def is_legacy(model: Any) -> bool:
    """Whether this is a `tf_keras.Model`; imports nothing."""
    module = sys.modules.get("tf_keras")
    return module is not None and isinstance(model, module.Model)


def register_legacy(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: what is done for a model of tf_keras, under the function's own name."""
    _LEGACY[function.__name__] = function
    return function


def legacy(name: str) -> Callable[..., Any]:
    """What is done under a name for a model of tf_keras."""
    return _LEGACY[name]
