"""Stream: a step model or its file, run from call to call with the states that it left."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import tree

from tfcompress.files import models
from tfcompress.graph.states import out_of, start_of, states_of
from tfcompress.layers.fake_quant import stateful_layers
from tfcompress.tflite import flatbuffer, run


class Stream:
    """Runs a step model, or its .tflite file, over a stream: it keeps the states between calls.

    Args:
        model: what `streaming` made, also after `quantize_aware`; or the path of its .keras or
            .tflite file.
        batch_size: how many streams run side by side; a file tells its own.

    Attributes:
        states: what comes next into the inputs that are states, by name.
        calls: how many there were since the stream began.

    Raises:
        TypeError: it is neither.
        ValueError: it has no states, or cannot be run.

    Example:
        >>> stream = Stream("step.tflite")  # doctest: +SKIP
        >>> scores = stream(frames)  # doctest: +SKIP
        >>> stream.reset()  # doctest: +SKIP
    """

    def __init__(self, model: keras.Model | str | os.PathLike[str], batch_size: int = 1):
        if isinstance(model, str | os.PathLike):
            if os.fspath(model).endswith(".tflite"):
                model = _File(model)
            else:
                model = models.load_model(model)
        if isinstance(model, keras.Model):
            model = _Model(model, batch_size)
        if not isinstance(model, _File | _Model):
            raise TypeError(
                "model must be a keras.Model from streaming, or the path of its .keras or .tflite "
                f"file; received {type(model).__name__}."
            )
        self._runs: _File | _Model = model
        self._names = states_of(model.shapes, model.outputs)
        if not (self._names or model.has_variables or model.is_step):
            raise ValueError(
                f"model must have states; received inputs {[*model.shapes]} and outputs "
                f"{model.outputs}, of which none is <name>_state with an output <name>_state_out. "
                "Make one with tfcompress.streaming(model)."
            )
        self.reset()

    def reset(self, states: Mapping[str, Any] | None = None) -> None:
        """Begins a new stream.

        Args:
            states: what it begins with, arrays by the names of states, such as those that an
                encoder ends with; zeros for those left out.

        Raises:
            ValueError: one is no state of the model, or has another shape.
        """
        self.calls = 0
        self._runs.reset()
        self.states = {
            name: np.zeros(shape, dtype)
            for name, (shape, dtype) in self._runs.shapes.items()
            if name in self._names
        }
        for name, value in (states or {}).items():
            if name not in self.states or np.shape(value) != self.states[name].shape:
                known = {key: zeros.shape for key, zeros in self.states.items()}
                raise ValueError(
                    f"states must be of {known}; received {name!r} of shape {np.shape(value)}."
                )
            self.states[name] = np.asarray(value, self.states[name].dtype)

    def __call__(self, frames: Any) -> Any:
        """What the model gives for the next frames.

        Args:
            frames: an array as the input, with the batch; a dict of such by name where there are
                several inputs.

        Returns:
            An array; a dict by name where there are several outputs.
        """
        outputs = self._runs.run(self._with_states(frames))
        self.calls += 1
        for name in self._names:
            new = outputs.pop(out_of(name))
            if self.calls > start_of(name):
                self.states[name] = new
        return outputs if len(outputs) > 1 else next(iter(outputs.values()))

    def run(self, frames: Any, axis: int = 1) -> Iterator[Any]:
        """Yields what the model gives for each chunk of some frames; what is left over is unused.

        Args:
            frames: as for a call, of any length along `axis`.
        """
        for part in self._chunks(frames, axis):
            yield self(part)

    def samples(
        self, frames: Any, axis: int = 1, states: Mapping[str, Any] | None = None
    ) -> Iterator[dict[str, np.ndarray]]:
        """Yields the inputs of each call over some frames, states included, to calibrate with.

        Args:
            frames: as for `run`; each of several windows, such as those of the training, begins a
                stream.
            states: what each begins with, as for `reset`.
        """
        given, begins = self._given(frames), dict(states or {})
        streams = next(self._runs.shapes[name][0][0] for name in given)
        for first in range(0, min(map(len, given.values())) - streams + 1, streams):
            self.reset({name: x[first : first + streams] for name, x in begins.items()})
            rows = {name: values[first : first + streams] for name, values in given.items()}
            for part in self._chunks(rows, axis):
                yield self._with_states(part)
                self(part)

    def _chunks(self, frames: Any, axis: int) -> Iterator[dict[str, np.ndarray]]:
        given = self._given(frames)
        chunk = next(self._runs.shapes[name][0][axis] for name in given)
        length = min(values.shape[axis] for values in given.values())
        for start in range(0, length - chunk + 1, chunk):
            place = (slice(None),) * axis + (slice(start, start + chunk),)
            yield {name: values[place] for name, values in given.items()}

    def _given(self, frames: Any) -> dict[str, np.ndarray]:
        names = [name for name in self._runs.shapes if name not in self._names]
        if not isinstance(frames, Mapping):
            if len(names) > 1:
                raise TypeError(
                    f"frames must be a dict of arrays for inputs {names}; received "
                    f"{type(frames).__name__}."
                )
            frames = {names[0]: frames}
        if set(frames) != set(names):
            raise ValueError(f"frames must be for inputs {names}; received {list(frames)}.")
        return {name: np.asarray(frames[name]) for name in names}

    def _with_states(self, frames: Any) -> dict[str, np.ndarray]:
        given = self._given(frames)
        for name, values in given.items():
            shape, dtype = self._runs.shapes[name]
            if values.shape != tuple(shape):
                raise ValueError(
                    f"input '{name}' takes frames of shape {tuple(shape)} in each call; received "
                    f"{values.shape}."
                )
            given[name] = values.astype(dtype)
        return {**given, **self.states}


class _Model:
    """A Keras model as a function of arrays by name."""

    def __init__(self, model: keras.Model, batch_size: int):
        self._call, self._keeping = _compiled(model), stateful_layers(model)
        self.has_variables = bool(self._keeping)
        inputs = tree.flatten(model._inputs_struct)
        self.shapes = {
            x.name: ((x.shape[0] or batch_size, *x.shape[1:]), str(x.dtype)) for x in inputs
        }
        struct = model._outputs_struct
        self.is_step = isinstance(struct, dict)
        self.outputs = [str(key) for key in struct] if self.is_step else []

    def reset(self) -> None:
        """Sets what layers keep by themselves to zeros."""
        for layer in self._keeping:
            layer.reset_states()

    def run(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        made = self._call(values)
        return {name: keras.ops.convert_to_numpy(value) for name, value in made.items()}


def _compiled(model: keras.Model):
    """A model as a function, in TensorFlow as a graph: calls are many, and short."""

    def call(values):
        return model(values, training=False)

    if keras.backend.backend() != "tensorflow":
        return call
    import tensorflow as tf

    return tf.function(call, jit_compile=False)


class _File:
    """A .tflite file as a function of real values by name."""

    is_step = False  # of one without states nothing tells

    def __init__(self, path: Any):
        content = flatbuffer.load(path)
        model = flatbuffer.read(content)
        self._loads = (model, content, f"'{os.fspath(path)}'")
        operators = model.subgraphs[0].operators
        written = {index for op in operators for index in op.outputs}
        tensors = enumerate(model.subgraphs[0].tensors)
        own = any(tensor.isVariable and index not in written for index, tensor in tensors)
        handles = any(flatbuffer.op_name(model, op) == "VAR_HANDLE" for op in operators)
        self.has_variables = own or handles
        self.runner, self.is_used = run.Runner(*self._loads, reference=False), False
        self.shapes = {
            port.name: (port.shape, "float32" if port.scale is not None else port.dtype)
            for port in self.runner.inputs
        }
        self.outputs = [port.name for port in self.runner.outputs]

    def reset(self) -> None:
        """Loads the file again, if it has variables that were written."""
        if self.has_variables and self.is_used:
            self.runner, self.is_used = run.Runner(*self._loads, reference=False), False

    def run(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.is_used = True
        return dict(zip(self.outputs, self.runner.run(values), strict=True))
