"""What layers inside of a model give, taken down in the one forward pass that the model runs."""

import contextlib
import functools
import threading
from collections.abc import Iterable
from typing import Any

import keras
from keras import tree

from tfcompress.fake_quant import FakeQuant
from tfcompress.layers import Compressed
from tfcompress.suggestions import did_you_mean

# What `compress` makes of one layer "conv": the last of these gives what the layer gave.
_PIECES = ("__output", "_activation_range", "_activation", "_range", "")
_lock = threading.Lock()
_running = threading.local()


def find_operation(model: keras.Model, name: str, whose: str) -> Any:
    """The layer of a model, or the operation of a Functional one, that bears a name.

    Layers inside of nested and subclassed models are found, too. In a model of `compress`, which
    makes several operations of a layer, it is the last of them: the layer with its activation.

    Args:
        model: the model.
        name: of the layer; with "/" behind the names of models around it where it is not unique.
        whose: "student" or "teacher", for messages.

    Returns:
        The layer or operation.

    Raises:
        ValueError: there is none, or several; says which name is near.
    """
    known = list(operations(model))
    compressed = any(isinstance(operation, (Compressed, FakeQuant)) for _, operation in known)
    for piece in _PIECES if compressed else ("",):
        path = f"{name}{piece}"
        found = {
            id(operation): operation
            for full, operation in known
            if full == path or full.endswith(f"/{path}")
        }
        exact = [operation for full, operation in known if full == path]
        if len(found) == 1 or exact:
            return exact[0] if exact else next(iter(found.values()))
        if found:
            paths = ", ".join(sorted({full for full, _ in known if full.endswith(f"/{path}")}))
            raise ValueError(
                f"the {whose} '{model.name}' has {len(found)} layers named {name!r}: {paths}. "
                "Write one of these paths."
            )
    inputs = keras.layers.InputLayer
    names = dict.fromkeys([o.name for _, o in known if not isinstance(o, inputs)])
    mend = did_you_mean(name, names, "Look them up with model.summary(expand_nested=True).")
    shown = ", ".join(list(names)[:12]) + (", ..." if len(names) > 12 else "")
    raise ValueError(
        f"the {whose} '{model.name}' has no layer named {name!r}; expected one of {shown}. {mend}"
    )


def operations(model: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    """(path, layer or operation) of all that a model is made of, outer ones first."""
    parts = list(getattr(model, "operations", [])) or list(model._layers)
    for part in parts:
        full = f"{path}{part.name}"
        yield full, part
        # What a compressed layer wraps is not called as such.
        if isinstance(part, keras.Layer) and part._layers and not isinstance(part, Compressed):
            yield from operations(part, f"{full}/")


@contextlib.contextmanager
def recorded(wanted: Iterable[Any]):
    """While it is open, operations that run take down what they are given and what they give.

    Args:
        wanted: layers or other Keras operations.

    Yields:
        A dict: id of an operation -> list of (first tensor given, outputs), one for each call.
    """
    wanted = list({id(operation): operation for operation in wanted}.values())
    record: dict[int, list[tuple[Any, Any]]] = {id(operation): [] for operation in wanted}
    stack = _running.__dict__.setdefault("stack", [])
    with _lock:
        for operation in wanted:
            _install(operation)
    stack.append(record)
    try:
        yield record
    finally:
        stack.pop()
        with _lock:
            for operation in wanted:
                _remove(operation)


def _install(operation: Any) -> None:
    """Puts a listener in place of `call`; replicas trace in threads, so one may be there already.

    Keras has no hooks on layers, and what a nested or subclassed model computes inside of its
    `call` can be had in no other way without running it twice.
    """
    call = operation.call
    if hasattr(call, "listeners"):
        call.listeners += 1
        return

    @functools.wraps(call)
    def listen(*args, **kwargs):
        outputs = call(*args, **kwargs)
        for record in getattr(_running, "stack", []):
            if id(operation) in record:
                given = next(iter(tree.flatten((args, kwargs))), None)
                record[id(operation)].append((given, outputs))
        return outputs

    listen.listeners = 1  # type: ignore[attr-defined]
    listen.before = operation.__dict__.get("call")  # type: ignore[attr-defined]
    operation.__dict__["call"] = listen


def _remove(operation: Any) -> None:
    listener = operation.__dict__["call"]
    listener.listeners -= 1
    if listener.listeners:
        return
    del operation.__dict__["call"]
    if listener.before is not None:  # the user's own
        operation.__dict__["call"] = listener.before
