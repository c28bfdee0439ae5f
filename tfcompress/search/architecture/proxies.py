"""What tells of an architecture before it is trained: pure functions of a model and a batch.

Abdelfattah et al. 2021 (arXiv:2101.08134) compare them as filters of a search. Each gives a float,
higher = better to expect, and leaves the model as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from tfcompress.backend import as_tensor
from tfcompress.graph.flatten import flatten
from tfcompress.graph.nodes import Graph, Node, exchanged
from tfcompress.surgery.macs import count
from tfcompress.surgery.pruning.judging import Batch, judge, objective

Proxy = Callable[[keras.Model, tuple[Any, Any]], float]

_RELUS = frozenset(("ReLU", "Relu", "Relu6"))
_RELU_FUNCTIONS = frozenset(("relu", "relu6"))


def synflow(model: keras.Model, batch: tuple[Any, Any]) -> float:
    """The sum of all paths from inputs to outputs, each as strong as its weights multiplied.

    Tanaka et al. 2020 (arXiv:2006.05467): with all weights made positive and BatchNormalization
    left without statistics, R is the sum of the outputs for inputs of ones, and the score the sum
    of weight times dR / dweight. Data and labels do not count.

    Args:
        model: any built Keras 3 model that `flatten` takes; Softmax at its end is left out.
        batch: (x, y) arrays, of which only the shape of a sample of x counts.

    Returns:
        The score, 0 or more; infinite where float32 does not hold it, as in very deep models.

    Raises:
        RuntimeError: Keras runs on another backend than TensorFlow.
        ValueError: the model cannot be flattened.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.layers[0].set_weights([np.array([[2.0], [-3.0]]), np.zeros(1)])
        >>> synflow(model, (np.zeros((1, 2)), None))
        5.0
    """
    twin = _with_linear_end(model)
    for layer in twin.layers:
        moving = isinstance(layer, keras.layers.BatchNormalization)
        fixed = [layer.moving_mean, layer.moving_variance] if moving else []
        for weight, value in zip(fixed, (0.0, 1.0 - getattr(layer, "epsilon", 0.0)), strict=False):
            weight.assign(ops.full(weight.shape, value))
        for weight in layer.trainable_variables:
            weight.assign(ops.abs(as_tensor(weight)))
    ones = keras.tree.map_structure(lambda x: np.ones_like(np.asarray(x)[:1], "float32"), batch[0])
    weights = twin.trainable_variables
    gradients = _gradients(lambda: ops.sum(_outputs(twin, ones)), weights)
    pairs = zip(weights, gradients, strict=True)
    return float(sum(np.sum(np.asarray(w) * g, dtype="float64") for w, g in pairs))


def gradient_norm(model: keras.Model, batch: tuple[Any, Any], loss: Any = None) -> float:
    """The sum over all weights of the Euclidean norm of the gradient of the loss.

    As "grad_norm" of Abdelfattah et al. 2021 (arXiv:2101.08134), in inference.

    Args:
        model: any built Keras 3 model that `flatten` takes.
        batch: (x, y) arrays.
        loss: Keras loss; by default the one that the model was compiled with.

    Returns:
        The score, 0 or more.

    Raises:
        RuntimeError: Keras runs on another backend than TensorFlow.
        ValueError: there is no loss, or the model cannot be flattened.

    Example:
        >>> gradient_norm(model, (x[:64], y[:64]), "mse")  # doctest: +SKIP
        3.2
    """
    judged = objective(model, loss)
    twin = flatten(model)
    weights, judging = twin.trainable_variables, judge(twin, judged)

    def value():
        given = Batch(batch[0], batch[1], None)
        predicted = judging(given.x, training=False)
        return judging.compute_loss(x=given.x, y=given.y, y_pred=predicted, training=False)

    return float(sum(np.linalg.norm(g.astype("float64")) for g in _gradients(value, weights)))


def naswot(model: keras.Model, batch: tuple[Any, Any]) -> float:
    """How well ReLUs tell the samples of a batch apart: log |det K|.

    Mellor et al. 2021 (NASWOT, arXiv:2006.04647): K counts for each pair of samples the units that
    are on for both or off for both.

    Args:
        model: any built Keras 3 model that `flatten` takes, with ReLUs.
        batch: (x, y) arrays of different samples; y does not count.

    Returns:
        The score; -inf where two samples are not told apart.

    Raises:
        ValueError: the model has no ReLU, or cannot be flattened.

    Example:
        >>> naswot(model, (x[:64], None))  # doctest: +SKIP
        312.5
    """
    flat = flatten(model)
    units = [t for n in Graph.of(flat).nodes if _is_relu(n.operation) for t in n.outputs]
    if not units:
        raise ValueError(
            f"naswot needs ReLUs; model '{model.name}' has none. Take 'synflow' or 'gradient_norm'."
        )
    found = keras.Model(flat._inputs_struct, units)(batch[0], training=False)
    codes = [ops.convert_to_numpy(x) > 0 for x in keras.tree.flatten(found)]
    on = np.concatenate([x.reshape(len(x), -1) for x in codes], axis=1).astype("float64")
    return float(np.linalg.slogdet(on @ on.T + (1 - on) @ (1 - on).T)[1])


def macs(model: keras.Model, batch: tuple[Any, Any]) -> float:
    """Multiply-accumulate operations of one sample, see `tfcompress.profile`."""
    return float(count(flatten(model))[0])


def params(model: keras.Model, batch: tuple[Any, Any]) -> float:
    """How many numbers the weights are."""
    return float(model.count_params())


PROXIES: dict[str, Proxy] = {
    "synflow": synflow,
    "gradient_norm": gradient_norm,
    "naswot": naswot,
    "macs": macs,
    "params": params,
}


def _gradients(value: Callable[[], Any], weights: list) -> list[np.ndarray]:
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"expected Keras on TensorFlow for gradients; it runs on {keras.backend.backend()}. "
            "Set KERAS_BACKEND=tensorflow, or take 'naswot'."
        )
    import tensorflow as tf

    with tf.GradientTape() as tape:
        found = value()
    variables = [weight.value for weight in weights]
    gradients = tape.gradient(found, variables, unconnected_gradients="zero")
    return [np.asarray(tf.convert_to_tensor(gradient)) for gradient in gradients]


def _outputs(model: keras.Model, x: Any) -> Any:
    found = keras.tree.flatten(model(x, training=False))
    return ops.concatenate([ops.reshape(y, (-1,)) for y in found], axis=0)


def _with_linear_end(model: keras.Model) -> keras.Model:
    """A flat copy whose outputs are not made to sum up to one."""
    graph = Graph.of(flatten(model))

    def call(node: Node, *args, **kwargs):
        if any(graph.is_output(tensor) for tensor in node.outputs):
            name = getattr(getattr(node.operation, "activation", None), "__name__", "")
            if type(node.operation).__name__ in ("Softmax", "Sigmoid", "Activation"):
                return args[0]
            if name in ("softmax", "sigmoid", "log_softmax"):
                node.operation.activation = keras.activations.linear
        return node.operation(*args, **kwargs)

    return exchanged(graph, call)


def _is_relu(operation) -> bool:
    activation = getattr(getattr(operation, "activation", None), "__name__", "")
    return type(operation).__name__ in _RELUS or activation in _RELU_FUNCTIONS
