"""tf_keras (Keras 2) models: the same recipes, carried out by TensorFlow Model Optimization.

tf_keras and TFMOT are imported only where a tf_keras model is there already, or a file of one.
"""

import importlib
import os
from typing import Any

# What every error about a limit of TFMOT ends with.
MOVE = (
    "Keras 3 has no such limit: model.save('old.h5'), then `tfcompress migrate old.h5 new.keras`, "
    "and compress that."
)


def import_tf_keras() -> Any:
    """The module `tf_keras`."""
    try:
        return importlib.import_module("tf_keras")
    except ImportError as error:
        raise ValueError(
            "Keras 2 models need tf_keras, which cannot be imported here "
            f"({error}). Install it: pip install tf-keras."
        ) from error


def import_tfmot() -> Any:
    """The module `tensorflow_model_optimization`, imported without a trace in the environment."""
    name = "TF_USE_LEGACY_KERAS"
    before = os.environ.get(name)
    try:
        return importlib.import_module("tensorflow_model_optimization")
    except ImportError as error:
        raise ValueError(
            "tf_keras models are compressed by TensorFlow Model Optimization, which cannot be "
            f"imported here ({error}). Install it: pip install tensorflow-model-optimization."
        ) from error
    finally:
        # TFMOT sets it for good, and every process started later would see it.
        if before is None:
            os.environ.pop(name, None)


def require_graph(model: Any) -> None:
    """Raises a ValueError unless this tf_keras model is Sequential or Functional, and built."""
    tf_keras = import_tf_keras()
    sequential = isinstance(model, tf_keras.Sequential)
    if not sequential and not getattr(model, "_is_graph_network", False):
        raise ValueError(
            f"model '{model.name}' is a subclassed tf_keras model; expected a Sequential or "
            "Functional one. Rebuild it in Keras 3, where subclassed models can be compressed, "
            "and load its weights layer by layer."
        )
    if not model.built or not model.inputs:
        raise ValueError(
            f"model '{model.name}' is not built, so that its input shapes are not known. Call "
            "model.build(input_shape), or begin it with an InputLayer."
        )
