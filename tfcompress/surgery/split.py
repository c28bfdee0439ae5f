"""split: a model in two, of which the second reads what the first gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import tree

from tfcompress.errors import did_you_mean
from tfcompress.graph.flatten import flatten
from tfcompress.graph.front_end import front_end, hint_of
from tfcompress.graph.nodes import Graph, call_node, unique


class Split(NamedTuple):
    """Two models in a row, and what is known of the first.

    Attributes:
        front: from the inputs to where the model was cut.
        rest: from there to the outputs.
        hint: the frames, bands and offsets of the front-end of sound, and which functions on a
            device compute it; "" of another model. As the description of the input in the metadata
            of a file it gets into what `c_array` and `android_project` write.
    """

    front: keras.Model
    rest: keras.Model
    hint: str = ""


def split(model: keras.Model, at: str | Sequence[str] | None = None) -> Split:
    """Cuts a model in two, so that an app, or a file of its own, does what the first half does.

    The front-end of sound, from the signal to features, keeps the wide range of its numbers in
    float, or is computed by a device's own functions; the rest becomes integers as a whole.

    Args:
        model: any Keras 3 model that `flatten` takes; it is left untouched.
        at: the name of the layer whose outputs, as far as they are read, are where to cut, or
            several. None: where the front-end of sound ends, before the first weights that train.

    Returns:
        A `Split` of front, rest and hint. `rest(front(x))` is what the model gives. Inputs that
        only the rest reads are inputs of that, after what the front gives.

    Raises:
        TypeError, ValueError: if the model cannot be flattened, has no such layer, or has no
            front-end of sound and `at` is left out; or if nothing comes before or after the cut.

    Example:
        >>> front, rest, hint = split(model)  # doctest: +SKIP
        >>> convert(front, "front.tflite", precision="float32")  # doctest: +SKIP
        >>> about = Metadata(inputs=[TensorMetadata("sound", hint)])  # doctest: +SKIP
        >>> convert(  # doctest: +SKIP
        ...     rest, "rest.tflite", calibration=front.predict(x), metadata=about
        ... )
    """
    names = [at] if isinstance(at, str) else at
    first, ends, hint = _cut(model, names)
    graph = Graph(first._inputs_struct, ends[0] if len(ends) == 1 else ends, f"{model.name}_front")
    inputs = [x for x in tree.flatten(first._inputs_struct) if graph.consumers(x)]
    if not graph.nodes or not inputs:
        raise ValueError(f"nothing of model '{model.name}' comes before the cut; name a later one.")
    structure = inputs[0] if len(inputs) == 1 else inputs
    front = Graph(structure, graph.outputs, graph.name).rebuild()
    second, ends, _ = _cut(model, names)
    return Split(front, _rest(second, ends), hint)


def _cut(model: keras.Model, names: Sequence[str] | None) -> tuple[keras.Model, list, str]:
    """A flat copy, the tensors at which it is cut, and the hint."""
    flat = flatten(model)
    graph = Graph.of(flat)
    front = front_end(graph)
    if names is None:
        if front is None:
            raise ValueError(
                f"model '{model.name}' must have a front-end of sound, a spectrum before its first "
                "weights, to be split there; received one without. Name the layer where to cut: "
                f"split(model, {flat.layers[len(flat.layers) // 2].name!r})."
            )
        return flat, unique(front.ends), hint_of(front)
    known = {node.name: node for node in graph.nodes}
    for name in names:
        if name not in known:
            raise ValueError(
                f"at must name layers of model '{model.name}'; received {name!r}. "
                f"{did_you_mean(name, list(known), 'See flatten(model).summary().')}"
            )
    every = unique(t for name in names for t in known[name].outputs)
    ends = [t for t in every if graph.consumers(t) or graph.is_output(t)]
    hint = "" if front is None or {*map(id, front.ends)} != {*map(id, ends)} else hint_of(front)
    return flat, ends, hint


def _rest(flat: keras.Model, ends: list) -> keras.Model:
    """What comes after some tensors of a flat copy, which is used up."""
    outputs = flat._outputs_struct
    if any(any(end is t for t in tree.flatten(outputs)) for end in ends):
        raise ValueError("the model is cut at its output; name an earlier layer.")
    graph = Graph([*ends, *tree.flatten(flat._inputs_struct)], outputs)
    reached = {id(t) for node in graph.nodes for t in node.inputs}
    if not ends or any(id(end) not in reached for end in ends):
        raise ValueError("what is cut off is read by nothing; name a layer that leads to outputs.")
    left = [x for x in tree.flatten(flat._inputs_struct) if id(x) in reached]
    olds = [*ends, *left]
    news = [_input_of(t) for t in olds]
    graph = Graph(olds if len(olds) > 1 else olds[0], outputs)
    made = graph.run(news, call_node)
    return keras.Model(news if len(news) > 1 else news[0], made, name=f"{flat.name}_rest")


def _input_of(tensor: Any):
    name = tensor._keras_history.operation.name
    many = len(tree.flatten(tensor._keras_history.operation.output)) > 1
    name = f"{name}_{tensor._keras_history.tensor_index}" if many else name
    return keras.Input(tuple(tensor.shape[1:]), dtype=tensor.dtype, name=name)
