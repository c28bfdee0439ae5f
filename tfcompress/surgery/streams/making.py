"""What the rules of layers make a step model of: states, delays and windows."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import keras
from keras import layers

from tfcompress.graph.copying import copy_operation, copy_trainable, copy_weights
from tfcompress.graph.nodes import scope_name
from tfcompress.graph.states import out_of, state_name, variable_name
from tfcompress.layers.batch_norm import FusedBatchNorm
from tfcompress.layers.compressed import Compressed
from tfcompress.layers.fake_quant import stateful_layers
from tfcompress.surgery.streams.lines import Ahead, Line


class Maker:
    """Makes the tensors of a step model.

    Args:
        chunk: frames of the input in one call.
        variables: whether files keep states by themselves.
        begins: ids of tensors of the window model that recurrent layers begin with, as inputs.

    Attributes:
        inputs, outputs: the states, by name, as they come and as they go.
    """

    def __init__(self, chunk: int, variables: bool, begins: Collection[int] = ()):
        self.chunk, self.variables, self.begins = chunk, variables, begins
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}
        self._names: dict[str, int] = {}
        self._copies: dict[tuple, Any] = {}
        self._fill: list[tuple[Any, Any]] = []

    def layer(self, operation, **changes):
        """A copy of an operation with other settings, one for all calls that ask for the same."""
        key = id(operation), repr(sorted(changes.items()))
        if key not in self._copies:
            inside = isinstance(operation, Compressed | FusedBatchNorm)
            settings = {f"layer.{k}" if inside else k: v for k, v in changes.items()}
            self._copies[key] = copy_operation(operation, settings or None)
            self._fill.append((operation, self._copies[key]))
        return self._copies[key]

    def fill(self) -> None:
        """Gives the copies their weights, once all are built."""
        keeping = [pair for pair in self._fill if getattr(pair[1], "stateful", False)]
        copy_weights(pair for pair in self._fill if pair not in keeping)
        for source, twin in keeping:  # whose states begin as zeros
            copy_trainable(source, twin)
            for ours, theirs in zip(_stateless(twin), _stateless(source), strict=True):
                ours.assign(theirs)

    def frames(self, line: Line) -> int:
        """How many frames of a tensor one call has."""
        if self.chunk % line.stride:
            raise Ahead(
                f"has one frame for {line.stride} of the input, but a call has {self.chunk}: pass "
                f"a chunk that is a multiple of {line.stride}",
                window=False,
            )
        return self.chunk // line.stride

    def call_of(self, line: Line) -> int | None:
        """The call that a tensor's first frame comes in; None if it is not that call's first."""
        call, rest = divmod(line.first * line.stride, self.chunk)
        return None if rest else call

    def state(self, what: str, like, shape: tuple, start: int = 0):
        """A state of a shape, as an input of the model, and its name."""
        what = scope_name(what)
        count = self._names[what] = self._names.get(what, 0) + 1
        what = what if count == 1 else f"{what}_{count}"
        if self.variables and start:
            raise Ahead(
                f"begins with call {start + 1}, but variables with the first: pad in front instead "
                "of padding='valid' before it, or pass states='io'",
                window=False,
            )
        name = variable_name(what) if self.variables else state_name(what, start)
        self.inputs[name] = keras.Input(batch_shape=shape, dtype=like.dtype, name=name)
        return self.inputs[name], name

    def keep(self, name: str, value) -> None:
        """What a state is for the next call."""
        self.outputs[out_of(name)] = value

    def remember(self, what: str, x, line: Line, frames: int, start: int = 0):
        """A tensor behind the last frames before it."""
        if frames <= 0:
            return x
        axis, shape = line.place, list(x.shape)
        count, shape[axis] = shape[axis], frames
        state, name = self.state(what, x, tuple(shape), start)
        label = f"{name.rpartition('_')[0]}_frames"
        both = layers.Concatenate(axis=axis, name=label, dtype=x.dtype)([state, x])
        self.keep(name, along(both, axis, count, count + frames))
        return both

    def delay(self, what: str, x, line: Line, frames: int) -> tuple[Any, Line]:
        """A tensor that comes later by some frames."""
        if frames <= 0:
            return x, line
        both = self.remember(f"{what}_delay", x, line, frames)
        late = line.changed(late=line.late + frames)
        return along(both, line.place, 0, x.shape[line.axis]), late

    def begun(self, what: str, x, line: Line) -> tuple[Any, Line, int]:
        """A tensor whose first frame is the first of a call, and the number of that call."""
        while self.call_of(line) is None:
            x, line = self.delay(what, x, line, self._missing(line))
        return x, line, self.call_of(line) or 0

    def _missing(self, line: Line) -> int:
        frames = self.frames(line)
        return -line.first % frames

    def window(self, what: str, x, line: Line, reach: int | None = None) -> tuple[Any, Line]:
        """The whole window that ends with a call, as the window model has it.

        Args:
            reach: what the window has to have, for one that others come later than.
        """
        if line.zeros:
            raise Ahead("reads padded frames: pad behind the layer that keeps its window")
        more = 0 if reach is None else reach - line.reach
        if more % line.stride:
            raise Ahead(f"reads tensors that come {more} frames after one another", window=False)
        length = (line.length or 0) + more // line.stride
        whole = self.remember(f"{what}_window", x, line, length - self.frames(line))
        if self.frames(line) > length:  # the call has more than the window
            start = self.frames(line) - length
            whole = along(x, line.place, start, start + (line.length or 0))
        elif more:
            whole = along(whole, line.place, 0, line.length)
        return whole, Line(None, line.length, line.stride, line.late + more // line.stride)


def _stateless(layer) -> list:
    """The variables of a layer but for states that it keeps by itself."""
    kept = {id(state) for x in stateful_layers(layer) for state in getattr(x, "states", ())}
    return [variable for variable in layer.variables if id(variable) not in kept]


def along(x, axis: int, start: int, stop: int | None):
    """Part of a tensor along an axis."""
    return x[(slice(None),) * axis + (slice(start, stop),)]
