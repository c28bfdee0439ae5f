"""A model together with the tensors that losses want of it, got in one forward pass."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any

import keras
from keras import ops, tree

from tfcompress.distillation.masks import keep_mask, mask_of
from tfcompress.distillation.outputs import to_logits
from tfcompress.distillation.taps import recorded
from tfcompress.files import reason_of

Tensors = dict["Source", Any]


class CannotTap(ValueError):
    """It is not clear which tensor of a layer is meant."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where in a model a tensor is found.

    Attributes:
        output: index of an output of the model, flattened; None if it is inside.
        operation: the layer or operation inside that gives it.
        given: take what the operation is given (logits before a softmax), not what it gives.
        logits_of: "softmax" or "sigmoid" if logits are to be computed from probabilities.
    """

    output: int | None = None
    operation: Any = None
    given: bool = False
    logits_of: str | None = None

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return "the output" if self.operation is None else f"layer '{self.operation.name}'"


class Reader:
    """Runs a model once and gives its outputs and the tensors of some sources.

    Args:
        model: a built model.
        sources: what is wanted.
        names: of the inputs it is called with, if they come as a list.
    """

    def __init__(self, model: keras.Model, sources: Iterable[Source], names: Sequence[str] = ()):
        self.model, self.sources = model, tuple(dict.fromkeys(sources))
        self.names = list(names)
        self.masks: dict[Source, int] = {}  # source -> axes of its mask, once specs are known

    def __call__(self, inputs, training: bool | None = None) -> tuple[Any, Tensors]:
        """(outputs of the model, source -> tensor)."""
        wanted = [source.operation for source in self.sources if source.operation is not None]
        with recorded(wanted) as record:
            outputs = self.model(_as_called(self.model, inputs, self.names), training=training)
        return outputs, {source: self._pick(source, outputs, record) for source in self.sources}

    def _pick(self, source: Source, outputs, record) -> Any:
        if source.operation is None:
            tensor = tree.flatten(outputs)[source.output]
        else:
            calls = record[id(source.operation)]
            if not calls:
                raise CannotTap(
                    f"{source.name} of '{self.model.name}' is not called where it can be seen: it "
                    "is quantized by Keras, or inside of a tf.function or a loop. Name another "
                    "layer."
                )
            if len(calls) != 1:
                raise CannotTap(
                    f"{source.name} of '{self.model.name}' runs {len(calls)} times in the model; "
                    "expected once, so that it is clear which tensor is meant. Name another layer."
                )
            tensor = calls[0][0 if source.given else 1]
            if tree.is_nested(tensor):
                raise CannotTap(
                    f"{source.name} of '{self.model.name}' gives {len(tree.flatten(tensor))} "
                    "tensors; expected one. Name another layer."
                )
        if source.logits_of is not None:
            mask = mask_of(tensor)
            tensor = to_logits(tensor, source.logits_of)
            keep_mask(tensor, mask)
        return tensor

    def specs(self, inputs: Any, whose: str) -> tuple[Any, Tensors]:
        """What a call gives, as symbolic tensors; the model is left as it was.

        Args:
            inputs: structure of symbolic tensors.
            whose: "student" or "teacher", for messages.

        Raises:
            ValueError: if the model cannot take them.
        """
        try:
            outputs, tensors = _Symbolic(self).compute_output_spec(inputs)
        except CannotTap as error:
            raise error.__context__ or error from None
        except Exception as error:  # Keras and TensorFlow raise many kinds.
            shapes = ", ".join(str(tuple(t.shape)) for t in tree.flatten(inputs))
            raise ValueError(
                f"the {whose} '{self.model.name}' cannot run on the student's inputs {shapes}: "
                f"{_innermost(error)}. Student and teacher must take the same inputs; put layers "
                "such as keras.layers.Resizing before the teacher where they differ."
            ) from error
        return outputs, dict(zip(self.sources, tensors, strict=True))


def _innermost(error: Exception) -> str:
    """What went wrong, without the layers that Keras tells about on the way."""
    text = str(error.__context__ or error)
    marked = re.findall(r"\x1b\[1m(.+?)\x1b\[0m", text, re.DOTALL)  # bold
    return reason_of(ValueError(marked[-1] if marked else text))


class _Symbolic(keras.Operation):
    """A call of a `Reader` whose results are only described."""

    def __init__(self, reader: Reader):
        super().__init__()
        self.reader = reader

    def call(self, inputs):
        outputs, tensors = self.reader(inputs, training=False)
        masks = {source: mask_of(tensor) for source, tensor in tensors.items()}
        self.reader.masks = {s: len(mask.shape) for s, mask in masks.items() if mask is not None}
        return outputs, list(tensors.values())


def _as_called(model: keras.Model, inputs: Any, names: list[str]) -> Any:
    """The inputs of one model in the structure that another takes them in."""
    struct = getattr(model, "_inputs_struct", None)
    if struct is None or isinstance(model, keras.Sequential):
        return inputs
    flat, wanted = tree.flatten(inputs), tree.flatten(struct)
    listed = isinstance(struct, dict) and isinstance(inputs, list | tuple)
    if listed and sorted(names) == sorted(t.name for t in wanted):
        return {key: flat[names.index(t.name)] for key, t in struct.items()}
    fits = isinstance(inputs, dict) and {t.name for t in wanted} <= set(inputs)
    if fits or len(flat) != len(wanted) or type(inputs) is type(struct) is not dict:
        return inputs
    if isinstance(inputs, dict) and isinstance(struct, dict) and set(inputs) == set(struct):
        return inputs
    return tree.pack_sequence_as(struct, flat)


def frozen(tensors: Any) -> Any:
    """Tensors that no gradient flows back from, in float32, with their masks."""

    def freeze(tensor):
        new = ops.stop_gradient(ops.cast(tensor, "float32"))
        keep_mask(new, mask_of(tensor))
        return new

    return tree.map_structure(freeze, tensors)
