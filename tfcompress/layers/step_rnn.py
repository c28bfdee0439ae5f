"""StepRNN: a recurrent layer whose step is a model of operations with integer kernels."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras import KerasTensor, ops, tree

from tfcompress.backend import as_tensor
from tfcompress.graph.nodes import Graph, Node, call_node
from tfcompress.layers.compressed import Compressed, effective_weight
from tfcompress.layers.fake_quant import FakeQuant, call_with, require_callback


@keras.saving.register_keras_serializable("tfcompress")
class StepRNN(keras.layers.Layer):
    """Runs a step model over time: frames and states in, an output and new states out.

    Called with a list: sequences (batch, time, ...), of which each step gets a frame, and the
    states to start from, which are zeros if there are none.

    Args:
        step: a Functional model; inputs: a frame of each sequence, then the states; outputs: that
            of the step, then the new states.
        sequences: how many of its inputs are frames.
        return_sequences, return_state, go_backwards: as of `keras.layers.RNN`.
        in_order: whether what it gives lies in the order of the frames, though it goes backwards.
        recurrent_dropout: of each state, the rate at which a step reads zeros of it while training,
            the same ones in every step; empty for none.
        seed: of that.
    """

    def __init__(
        self,
        step,
        sequences=1,
        return_sequences=False,
        return_state=False,
        go_backwards=False,
        in_order=False,
        recurrent_dropout=(),
        seed=None,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)  # casts are the business of the step's layers
        self.step, self.sequences = step, sequences
        self.return_sequences, self.return_state = return_sequences, return_state
        self.go_backwards, self.in_order = go_backwards, in_order
        self.recurrent_dropout, self.seed = tuple(recurrent_dropout), seed
        if any(self.recurrent_dropout):
            self.seed_generator = keras.random.SeedGenerator(seed)
        self.supports_masking = True
        for place, tensor in enumerate(self.step.inputs):
            given_by = functools.partial(_given, weakref.ref(self), place)
            tensor._keras_history.operation.given_by = given_by

    @property
    def graph(self) -> Graph:
        """The nodes of the step."""
        return Graph.of(self.step)

    @property
    def state_specs(self) -> list[KerasTensor]:
        """The symbolic states that the step reads."""
        return self.step.inputs[self.sequences :]

    def build(self, input_shape=None):
        """The step is built."""

    def call(self, inputs, training=False):
        frames, states = self.parted(inputs)
        states = [*states, *self._zeros(frames[0])[len(states) :]]
        kept = self._kept(states) if training else []
        values = {id(v): as_tensor(v) for v in self.step.variables}
        weights = self._effective()
        carried = list(self._observing()) if training else []
        start = [self._start_of(v, values[id(v)]) for v in carried]
        given = len(self.parted(inputs)[1])

        def scope_of(now):
            now = {**values, **dict(zip(map(id, carried), now, strict=True))}
            return keras.StatelessScope([(v, now[id(v)]) for v in self.step.variables])

        def run(carry, step_frames):
            with scope_of(carry["values"]) as scope:
                read = [x * kept[i] if kept else x for i, x in enumerate(carry["states"])]
                y, *new = self._run([*step_frames, *read], weights)
                after = [scope.get_current_value(v) for v in carried]
            made = {"values": after, "states": list(new), "y": y}
            return made, made

        before = {id(v): values[id(v)] for v in carried}
        with _observing_once(self._quantizers(), before):
            with scope_of(start) as scope:
                states = [
                    self.on_grid(place, x, training=training) if place < given else x
                    for place, x in enumerate(states)
                ]
                start = [scope.get_current_value(v) for v in carried]
            carry = {"values": start, "states": states, "y": self._first(frames[0])}
            last, every = ops.scan(
                run, carry, [_swapped(x) for x in frames], reverse=self.go_backwards
            )
        for variable, value in zip(carried, last["values"], strict=True):
            variable.assign(value)
        return self._outputs(last, every)

    def parted(self, inputs) -> tuple[list, list]:
        """What the layer is called with: sequences, and states to start from."""
        inputs = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
        return inputs[: self.sequences], inputs[self.sequences :]

    def on_grid(self, place: int, state, training=False, call=call_node):
        """What the loop begins with, rounded as the state that it becomes, which has one scale."""
        node = self.rounding_of(place)
        if node is None or node.operation.fixed or node.operation.activation:
            return state  # which may be beyond
        if training:
            return call(node, state, training=True, **node.kwargs)
        return call(node, state, source=None)  # it is no sum, as what is rounded in a step may be

    def rounding_of(self, place: int) -> Node | None:
        """What rounds a state in a step; None if nothing does."""
        graph = self.graph
        node = graph.producer(tree.flatten(graph.outputs)[place + 1])
        while node is not None and not isinstance(node.operation, FakeQuant):
            moved = (x for x in node.inputs if x.dtype != "bool")  # of what keeps the grid
            node = graph.producer(next(moved, None))
        return node

    def _outputs(self, last, every):
        y = last["y"]
        if self.return_sequences:
            y = _swapped(every["y"])
            if self.go_backwards and not self.in_order:
                y = ops.flip(y, axis=1)
        return [y, *last["states"]] if self.return_state else y

    def _run(self, inputs: list, weights: dict[int, Any]) -> list:
        """One step; techniques were applied to the weights before."""

        def call(node: Node, *args, **kwargs):
            operation = node.operation
            if not isinstance(operation, Compressed):
                return call_node(node, *args, **kwargs)
            mine = {id(t.variable): weights[id(t.variable)] for t in operation.bound}
            return call_with(operation.layer, mine, *args, **kwargs)[0]

        return tree.flatten(self.graph.run(inputs, call))

    def _effective(self) -> dict[int, Any]:
        """The effective weights of the step, by the ids of variables."""
        found = {}
        for layer in self.step._flatten_layers():
            if isinstance(layer, Compressed):
                require_callback(layer)
                found.update({id(t.variable): effective_weight(t) for t in layer.bound})
        return found

    def _quantizers(self) -> list[FakeQuant]:
        return [x for x in self.step._flatten_layers() if isinstance(x, FakeQuant)]

    def _observing(self) -> Iterator[Any]:
        """The variables that steps change while training."""
        states = (
            id(state)
            for layer in self.step._flatten_layers()
            if isinstance(layer, Compressed)
            for state in layer._non_trainable_variables
        )
        left = set(states)
        return (v for v in self.step.variables if not v.trainable and id(v) not in left)

    def _start_of(self, variable, value):
        """What the first step finds in a variable: ranges begin anew, to be of all steps."""
        if any(variable is q.range for q in self._quantizers() if q.fixed is None):
            return FakeQuant.unseen(value)
        return value

    def _kept(self, states: list) -> list:
        """What states are multiplied by while training."""
        if not any(self.recurrent_dropout):
            return []
        return [
            keras.random.dropout(ops.ones_like(x), rate, seed=self.seed_generator) if rate else 1.0
            for x, rate in zip(states, self.recurrent_dropout, strict=True)
        ]

    def _zeros(self, frames) -> list:
        batch = ops.shape(frames)[0]
        return [ops.zeros((batch, *x.shape[1:]), dtype=x.dtype) for x in self.state_specs]

    def _first(self, frames):
        y = self.step.outputs[0]
        return ops.zeros((ops.shape(frames)[0], *y.shape[1:]), dtype=y.dtype)

    def compute_output_spec(self, inputs, training=False):
        frames, _ = self.parted(inputs)
        batch, length = frames[0].shape[:2]
        y, *states = (KerasTensor((batch, *x.shape[1:]), x.dtype) for x in self.step.outputs)
        if self.return_sequences:
            y = KerasTensor((batch, length, *y.shape[1:]), y.dtype)
        return [y, *states] if self.return_state else y

    def compute_mask(self, inputs, previous_mask=None):
        """What reads the mask of a sequence is told of it by others."""
        return

    def with_step(self, step: keras.Model) -> StepRNN:
        """The same layer with another step."""
        return type(self)(**{**self._settings(), "step": step})

    def _settings(self) -> dict[str, Any]:
        names = (
            "sequences return_sequences return_state go_backwards in_order recurrent_dropout seed"
        )
        return {**super().get_config(), **{name: getattr(self, name) for name in names.split()}}

    def get_config(self):
        return {**self._settings(), "step": keras.saving.serialize_keras_object(self.step)}

    @classmethod
    def from_config(cls, config):
        step = keras.saving.deserialize_keras_object(config["step"])
        return cls(**{**config, "step": step})


def opened_layers(model: keras.Model) -> Iterator[Any]:
    """The layers of a flat model, with those of a loop's step in its place."""
    for layer in model.layers:
        if isinstance(layer, StepRNN):
            yield from opened_layers(layer.step)
        else:
            yield layer


def _given(reference: weakref.ref[StepRNN], place: int) -> KerasTensor | None:
    """The tensor on whose grid an input of a step lies: a sequence, or the state that it makes."""
    loop = reference()
    if loop is None or (place < loop.sequences and len(loop._inbound_nodes) != 1):
        return None
    if place >= loop.sequences:
        return loop.step.outputs[1 + place - loop.sequences]
    (node,) = loop._inbound_nodes
    return loop.parted(node.arguments.args[0])[0][place]


def _swapped(x):
    """A tensor with its first two axes, the batch and time, the other way round."""
    return ops.transpose(x, (1, 0, *range(2, len(x.shape))))


class _observing_once:
    """While it lasts, all calls of quantizers count as one batch for their moving averages."""

    def __init__(self, quantizers: Sequence[FakeQuant], before: dict[int, Any]):
        self.quantizers = [q for q in quantizers if q.fixed is None and id(q.range) in before]
        self.before = before

    def __enter__(self):
        for quantizer in self.quantizers:
            quantizer.before = self.before[id(quantizer.range)]

    def __exit__(self, *_):
        for quantizer in self.quantizers:
            quantizer.before = None
