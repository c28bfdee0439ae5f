"""A tf_keras model built anew, without TFMOT's wrappers, in tf_keras or in Keras 3."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfcompress.legacy import import_tf_keras, require_graph

PRUNING, CLUSTERING = "PruneLowMagnitude", "ClusterWeights"
QUANTIZING = ("QuantizeWrapper", "QuantizeWrapperV2", "QuantizeAnnotate")

# Passes tensors on once its simulation of rounding is gone.
QUANTIZE_LAYER = "QuantizeLayer"


@dataclasses.dataclass
class Found:
    """The TFMOT wrappers that were met: names of layers by kind."""

    pruned: list[str] = dataclasses.field(default_factory=list)
    clustered: list[str] = dataclasses.field(default_factory=list)
    quantized: list[str] = dataclasses.field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.pruned or self.clustered or self.quantized)


def kind_of(layer) -> str | None:
    """Which of TFMOT's wrappers a layer is: "prune", "cluster", "quantize", "range" or None."""
    for cls in type(layer).__mro__:
        if not cls.__module__.startswith("tensorflow_model_optimization."):
            continue
        if cls.__name__ == PRUNING:
            return "prune"
        if cls.__name__ == CLUSTERING:
            return "cluster"
        if cls.__name__ in QUANTIZING:
            return "quantize"
        if cls.__name__ == QUANTIZE_LAYER:
            return "range"
    return None


def wrappers_of(model) -> Found:
    """The TFMOT wrappers in a model, those in nested models too."""
    found = Found()
    for layer in model._flatten_layers(include_self=False):
        kind = kind_of(layer)
        if kind == "prune" and layer.pruning_vars:
            found.pruned.append(layer.layer.name)
        elif kind == "cluster" and layer.original_clusterable_weights:
            found.clustered.append(layer.layer.name)
        elif kind == "quantize":
            found.quantized.append(layer.layer.name)
    return found


class Rebuild:
    """One walk over a tf_keras model that builds another one of it.

    Args:
        keras: the Keras to build with: `tf_keras` or Keras 3's `keras`.
        make: `make(layer) -> new layer`, called for every plain layer and inside of wrappers.
        name: `name(old name) -> new name` of models and inputs.
    """

    def __init__(self, keras: Any, make: Callable, name: Callable[[str], str] = str):
        self.keras, self.make, self.name = keras, make, name
        # Pairs of an old layer, with its wrapper if it has one, and the new one.
        self.pairs: list[tuple[Any, Any]] = []
        self._made: dict[int, Any] = {}

    def run(self, model):
        """The new model, with the weights that the old one computes with."""
        new = self.model(model)
        for old, layer in self.pairs:
            layer.set_weights(effective_weights(old, layer))
            layer.trainable = old.trainable
        return new

    def model(self, model):
        require_graph(model)
        if isinstance(model, import_tf_keras().Sequential):
            return self._sequential(model)
        return self._functional(model)

    def _sequential(self, model):
        start = [self._input(tensor) for tensor in model.inputs]
        made = [self.layer(layer) for layer in model.layers]
        layers = [layer for layer in made if layer is not None]
        return self.keras.Sequential(start + layers, name=self.name(model.name))

    def _functional(self, model):
        tensors: dict[str, list] = {}

        def keep(old, new):
            # A tensor is taken out once for each of its uses, as tf_keras's own nodes do it.
            key = str(id(old))
            tensors[key] = [new] * (model._tensor_usage_count.get(key, 0) + 1)

        for tensor in model.inputs:
            keep(tensor, self._input(tensor))
        starts = {key: values[0] for key, values in tensors.items()}
        for depth in sorted(model._nodes_by_depth, reverse=True):
            for node in model._nodes_by_depth[depth]:
                if node.is_input:
                    continue
                args, kwargs = node.map_arguments(tensors)
                layer = self.layer(node.layer)
                outputs = args[0] if layer is None else layer(*args, **_known(kwargs))
                pairs = zip(tf.nest.flatten(node.outputs), tf.nest.flatten(outputs), strict=True)
                for old, new in pairs:
                    keep(old, new)
        inputs = tf.nest.map_structure(lambda t: starts[str(id(t))], model._nested_inputs)
        outputs = tf.nest.map_structure(lambda t: tensors[str(id(t))][0], model._nested_outputs)
        return self.keras.Model(_plain(inputs), _plain(outputs), name=self.name(model.name))

    def _input(self, tensor):
        layer = tensor._keras_history.layer
        if layer.sparse or layer.ragged:
            raise ValueError(
                f"input '{layer.name}' is sparse or ragged; expected a dense one. Rebuild the "
                "model with dense inputs."
            )
        return self.keras.Input(
            batch_shape=tuple(tensor.shape), dtype=tensor.dtype.name, name=self.name(layer.name)
        )

    def layer(self, layer):
        """The new layer, made once however often it is called; None if it only passes on."""
        if id(layer) not in self._made:
            self._made[id(layer)] = self._new(layer)
        return self._made[id(layer)]

    def _new(self, layer):
        if isinstance(layer, import_tf_keras().Model):
            return self.model(layer)
        kind = kind_of(layer)
        if kind == "range":
            return None
        new = self.make(layer if kind is None else layer.layer)
        if hasattr(new, "set_weights"):
            self.pairs.append((layer, new))
        return new


def copy_layer(layer):
    """A tf_keras layer of the same configuration, for `Rebuild`."""
    config = plain_activations(layer.get_config())
    with import_tf_keras().utils.custom_object_scope(_classes_in(layer)):
        return type(layer).from_config(config)


def plain_activations(value):
    """A layer's configuration without the rounding that TFMOT puts into activations."""
    if isinstance(value, dict):
        if value.get("class_name") == "QuantizeAwareActivation":
            return plain_activations(value["config"]["activation"])
        if value.get("class_name") == "NoOpActivation":
            return "linear"
        return {key: plain_activations(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_activations(part) for part in value]
    return value


def effective_weights(layer, plain) -> list[np.ndarray]:
    """The weights that a layer, under a wrapper or not, computes with.

    Of a layer trained for quantization these are the float weights, before rounding.
    """
    kind = kind_of(layer)
    if kind == "prune":
        masks = {id(weight): mask for weight, mask, _ in layer.pruning_vars}
        # Between the epochs TFMOT leaves what the optimizer added to pruned weights.
        return [
            w.numpy() * masks[id(w)].numpy() if id(w) in masks else w.numpy()
            for w in layer.layer.weights
        ]
    if kind == "cluster":
        layer.update_clustered_weights_associations()
        values = [w.numpy() for w in layer.layer.weights]
        for position, name in sorted(layer.position_original_weights.items()):
            values.insert(position, layer.get_weight_from_layer(name).numpy())
        return values
    if kind == "quantize":
        # Its kernel is a rounded tensor by now; the variables are the wrapper's.
        return weights_by_name(layer, plain)
    return [w.numpy() for w in layer.weights]


def weights_by_name(layer, plain) -> list[np.ndarray]:
    """The weights of a layer that another one has too, in the order of the other one."""
    found = {_base_name(v): v.numpy() for v in reversed(layer.weights)}
    names = [_base_name(variable) for variable in plain.weights]
    # The kernel that Keras 3 calls so in DepthwiseConv2D, too.
    return [found[name if name in found else f"depthwise_{name}"] for name in names]


def _base_name(variable) -> str:
    return variable.name.split(":")[0].split("/")[-1]


def _known(kwargs: dict) -> dict:
    """Without arguments that say nothing, which not every layer of Keras 3 takes."""
    return {key: value for key, value in kwargs.items() if value is not None}


def _plain(structure):
    """Lists and dicts of Python instead of those that tf_keras tracks."""
    if isinstance(structure, dict):
        return {key: _plain(value) for key, value in structure.items()}
    if isinstance(structure, (list, tuple)):
        return [_plain(value) for value in structure]
    return structure


def _classes_in(layer) -> dict[str, type]:
    kinds = {type(part) for part in layer._flatten_layers()}
    return {kind.__name__: kind for kind in kinds}
