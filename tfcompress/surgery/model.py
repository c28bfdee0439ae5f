"""What every surgery starts from: a flat copy of the user's model."""

from collections.abc import Callable

import keras

from tfcompress.baking import is_compressed
from tfcompress.graph import Graph, flatten
from tfcompress.legacy import is_legacy
from tfcompress.model_inputs import require_model


def opened(model: keras.Model) -> keras.Model:
    """A flat Functional copy of a model, with weights of its own, see `tfcompress.flatten`.

    Args:
        model: Sequential, Functional, nested or subclassed `keras.Model`, built.

    Returns:
        A Functional `keras.Model`, not compiled, whose names and trainable flags are the user's.

    Raises:
        TypeError: the model is not a Keras 3 model.
        ValueError: the model is not built, cannot be flattened, or is wrapped by `compress`.
    """
    require_keras3(model)
    if is_compressed(model):
        raise ValueError(
            "model must be a plain one, whose layers can be exchanged; received "
            f"'{model.name}', whose layers are wrapped by compress or quantize_aware. Finalize it "
            "first with tfcompress.finalize, or do surgery before compress."
        )
    return flatten(model)


def require_keras3(model) -> None:
    """Raises a TypeError unless this is a Keras 3 model; says how to bring over a tf_keras one."""
    if is_legacy(model):
        raise TypeError(
            f"model must be a keras.Model of Keras 3; received '{model.name}' of tf_keras "
            "(Keras 2). Save it with model.save('old.h5'), then bring it over with `tfcompress "
            "migrate old.h5 new.keras`."
        )
    require_model(model)


def exchanged(graph: Graph, call: Callable) -> keras.Model:
    """A new model of a graph of `opened`, whose operations may be used again, see `Graph.rebuild`.

    Args:
        graph: of a model that is given up.
        call: `call(node, *args, **kwargs) -> outputs`; it is not asked for inputs.
    """
    for node in graph.nodes:
        if not node.is_input:
            # Else they would know two calls, of which one is in no model.
            node.operation._inbound_nodes.clear()
            node.operation._outbound_nodes.clear()
    return graph.rebuild(
        lambda node, *args, **kwargs: args[0] if node.is_input else call(node, *args, **kwargs)
    )
