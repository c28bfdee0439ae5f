"""One callback for both: that of Keras 3 lets TFMOT's do its work in tf_keras."""

from functools import partial
from typing import Any

from tfcompress.legacy import import_tfmot
from tfcompress.legacy.rebuild import wrappers_of


def hand_over(callback: Any, model: Any) -> None:
    """Makes a callback of Keras 3 do in `fit` of a tf_keras model what TFMOT needs there.

    Args:
        callback: a `keras.callbacks.Callback`, whose hooks are replaced.
        model: a `tf_keras.Model` from `compress`.

    Raises:
        ValueError: if the model is not compressed.
    """
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
