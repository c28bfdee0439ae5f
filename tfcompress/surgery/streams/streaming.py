"""streaming: a model over a window in, a model over the next frames of a stream out."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
from keras import KerasTensor, tree

from tfcompress.errors import did_you_mean
from tfcompress.graph.flatten import flatten
from tfcompress.graph.inputs import require_model
from tfcompress.graph.nodes import Graph, Node, model_of
from tfcompress.graph.states import out_of, states_of
from tfcompress.layers.compressed import is_compressed
from tfcompress.layers.fake_quant import FakeQuant
from tfcompress.quantization.kernels import inner_layer
from tfcompress.quantization.opening import output_names
from tfcompress.surgery.base import rules_of
from tfcompress.surgery.macs import count, macs_by_node
from tfcompress.surgery.shapes import specs_of
from tfcompress.surgery.streams.lines import Ahead, Line
from tfcompress.surgery.streams.making import Maker
from tfcompress.surgery.streams.recurrent import states_given
from tfcompress.surgery.streams.rules import rule_of
from tfcompress.techniques.rules import Rule


@dataclasses.dataclass(frozen=True)
class StreamReport:
    """What `streaming` made, as `model.stream_report` of the step model.

    Attributes:
        chunk: frames of the input in one call.
        window: frames of the input in the window model, None if that takes any number.
        states: shape of each state without the batch, by the name of its input.
        delays: by output, how many frames of the input come before it is the first of the window
            model's. Of one that is for a whole window: how many frames of the input there are
            from the window's first on.
        windows: the outputs that are for a whole window.
        macs: multiply-accumulate operations of one call, and those that the window model spends on
            as many new frames.
    """

    chunk: int
    window: int | None
    states: dict[str, tuple[int, ...]]
    delays: dict[str, int]
    windows: tuple[str, ...]
    macs: tuple[int, float]

    def __str__(self) -> str:
        lines = [f"{name}  {shape}" for name, shape in self.states.items()]
        for name, delay in self.delays.items():
            what = "the window that began" if name in self.windows else "delayed by"
            lines.append(f"{name}  {what} {delay} frames{' before' * (name in self.windows)}")
        step, share = self.macs
        ratio = f" ({step / share:.2f} times the window's for them)" if share else ""
        return "\n".join([*lines, f"MACs of {self.chunk} frames: {step:,}{ratio}"])


def streaming(
    model: keras.Model, chunk: int = 1, axis: int = 1, windows: Any = (), states: str = "io"
) -> keras.Model:
    """A model that takes the next frames of a stream, from one trained over windows of it.

    What the window model computes again for each window is computed once: states of recurrent
    layers go in and out, convolutions and pooling find the frames before in ring buffers, branches
    that come at different times wait for each other (Rybakov et al. 2020, arXiv:2005.06720).

    Args:
        model: any Keras 3 model that `flatten` takes, plain or from `quantize_aware` or
            `compress`; it is left untouched. It must not look into the future: padding "causal" or
            "valid" along the frames, no layer that runs backwards.
        chunk: how many frames one call takes; a multiple of the product of all strides.
        axis: of the frames in the inputs.
        windows: layers that read a whole window, such as the pooling in front of a classifier: a
            name, a class, a predicate or several, as in `Rule`. The frames of their window are
            kept in a buffer, and they and what follows compute as in the window model, for the
            window that ends with the call.
        states: "io": each state is an input, named `<layer>_state`, and the output of that name
            with `_out` behind, to be the next call's input. Zeros begin a stream. "variables":
            they are called `<layer>_variable`, and files that `convert` makes keep them by
            themselves, as resource variables. The batch then is that of the model, or 1.

    Returns:
        A Functional `keras.Model`, not compiled, of a dict of inputs and a dict of outputs, with a
        `stream_report`. `Stream` runs it and its file from call to call; train it, `quantize_aware`
        it and `convert` it as any other.

    Raises:
        TypeError, ValueError: a layer looks into the future (all are named, with ways out), has no
            rule, or `chunk` does not fit.

    Example:
        >>> step = streaming(model, chunk=2, windows="pooling")  # doctest: +SKIP
        >>> stream = Stream(step)  # doctest: +SKIP
        >>> for frames in sound:  # doctest: +SKIP
        ...     scores = stream(frames)
    """
    require_model(model)
    if states not in ("io", "variables"):
        raise ValueError(f"states must be 'io' or 'variables'; received {states!r}.")
    if not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 1:
        raise ValueError(f"chunk must be a number of frames, 1 or more; received {chunk!r}.")
    flat = model if is_compressed(model) else flatten(model)
    graph = Graph.of(flat)
    begins = _begins(graph)
    length = _require_frames(graph, axis, begins)
    kept = rules_of(windows)
    _require_matches(graph, kept, windows)
    walk = _Walk(Maker(chunk, states == "variables", begins), kept, model.name)
    new_inputs, every = [], []
    for tensor in tree.flatten(graph.inputs):
        shape = list(tensor.shape)
        if id(tensor) in begins:  # whose place a state takes
            every.append(keras.Input(batch_shape=shape, dtype=tensor.dtype))
            continue
        shape[axis] = chunk
        if states == "variables":  # of one size
            shape[0] = shape[0] or 1
        new_inputs.append(keras.Input(batch_shape=shape, dtype=tensor.dtype, name=tensor.name))
        every.append(new_inputs[-1])
        walk.lines[id(tensor)] = Line(axis, length)
    made = tree.flatten(graph.run(every, walk.call))
    walk.finish()
    names, maker = output_names(flat), walk.maker
    found = [walk.lines.get(id(tensor)) for tensor in tree.flatten(graph.outputs)]
    lines = {n: _known(n, line, model) for n, line in zip(names, found, strict=True)}
    step = model_of(
        {**{x.name: x for x in new_inputs}, **maker.inputs},
        {**dict(zip(names, made, strict=True)), **maker.outputs},
        f"{model.name}_step",
    )
    maker.fill()
    share = _share(graph, walk.lines, chunk, length)
    shapes = {name: tuple(x.shape[1:]) for name, x in maker.inputs.items()}
    step.stream_report = _reported(chunk, length, shapes, lines, (count(step)[0], share))
    return step


def _share(graph: Graph, lines: dict[int, Line], chunk: int, length: int | None) -> float:
    """The MACs that one call's frames are worth in the window model: of each layer's frames as
    many as come in a call; of what has none, as the part of the window that is new.
    """
    total = 0.0
    for node, macs in macs_by_node(graph, specs_of(graph)):
        line = lines.get(id(node.outputs[0]))
        if not macs or line is None:
            continue
        frames = None if line.axis is None else line.length
        part = chunk / line.stride / frames if frames else chunk / length if length else 1.0
        total += macs * part
    return total


def _reported(chunk, length, states, lines: dict[str, Line], macs) -> StreamReport:
    whole = [name for name, line in lines.items() if line.axis is None and line.length]
    delays = {
        name: line.reach if name in whole else line.late * line.stride
        for name, line in lines.items()
    }
    return StreamReport(chunk, length, states, delays, tuple(whole), macs)


class _Walk:
    """Calls each node of the window model's graph on a step's tensors.

    Attributes:
        lines: of the window model's tensors, by their ids; weights have none.
        ahead: (name, kind, reason, whether a window is a way out) of what cannot be streamed.
    """

    def __init__(self, maker: Maker, kept: list[Rule], name: str):
        self.maker, self.kept, self.name = maker, kept, name
        self.lines: dict[int, Line] = {}
        self.ahead: list[tuple[str, str, str, bool]] = []

    def call(self, node: Node, *args, **kwargs):
        if node.is_input:
            return args[0]
        given = [self.lines.get(id(t)) for t in node.inputs]
        try:
            made, line = self._made(node, given, args, kwargs)
        except Ahead as error:
            kind = type(inner_layer(node.operation)).__name__
            self.ahead.append((node.name, kind, error.reason, error.window))
            made, line = self._anyway(node, given, args, kwargs)
        lines = line if isinstance(line, list) else [line] * len(node.outputs)
        for tensor, each in zip(node.outputs, lines, strict=True):
            if each is not None:
                self.lines[id(tensor)] = each
        return made

    def _made(self, node: Node, given: list, args: tuple, kwargs: dict):
        framed = [line for line in given if line is not None and line.axis is not None]
        if not framed:
            return self._as_it_is(node, given, args, kwargs)
        if any(rule.matches(inner_layer(node.operation)) for rule in self.kept):
            return self._windowed(node, given, args, kwargs)
        rule = rule_of(node.operation)
        if rule is None:
            raise Ahead("has no rule that tells which frames it reads")
        return rule(self.maker, node, given, args, kwargs)

    def _as_it_is(self, node: Node, given: list, args: tuple, kwargs: dict):
        """What reads weights and whole windows alone is as in the window model."""
        whole = [line for line in given if line is not None]
        if len({line.reach for line in whole if line.length}) > 1:
            raise Ahead("reads windows that begin at different times", window=False)
        return self.maker.layer(node.operation)(*args, **kwargs), whole[0] if whole else None

    def _windowed(self, node: Node, given: list, args: tuple, kwargs: dict):
        """A node that gets the whole windows of its inputs, which end at one time."""
        reach = max(line.reach for line in given if line is not None)
        rest, new, made = iter(given), [], None
        for x in tree.flatten((args, kwargs)):
            if isinstance(x, KerasTensor) and (line := next(rest)) is not None:
                if line.axis is not None:
                    x, line = self.maker.window(node.name, x, line, reach)
                elif line.reach != reach:
                    raise Ahead("reads windows that begin at different times", window=False)
                made = line
            new.append(x)
        args, kwargs = tree.pack_sequence_as((args, kwargs), new)
        return self.maker.layer(node.operation)(*args, **kwargs), made

    def _anyway(self, node: Node, given: list, args: tuple, kwargs: dict):
        """Anything in place of what cannot be, to find what else cannot."""
        x, y = node.inputs[0], node.outputs[0]
        line = given[0]
        try:
            if (
                line is not None
                and line.axis
                and x.shape[: line.axis + 1] == y.shape[: line.axis + 1]
            ):
                return self.maker.layer(node.operation)(*args, **kwargs), line.changed(zeros=0)
            return self._windowed(node, given, args, kwargs)
        except Exception:
            self.finish()
            raise

    def finish(self) -> None:
        """Raises for all that looks into the future."""
        if not self.ahead:
            return
        told = [f"'{name}' ({kind}) {reason}" for name, kind, reason, _ in self.ahead[:12]]
        more = f" and {len(self.ahead) - 12} more" if len(self.ahead) > 12 else ""
        names = [name for name, *_, window in self.ahead if window]
        ways = (
            " Ways out: train it with layers that read frames before alone (padding='causal', or "
            f"zeros in front of padding='valid'), or keep whole windows with windows={names}: "
            "these layers and what follows then compute as in the window model, in each call."
            if names
            else ""
        )
        raise ValueError(
            f"model '{self.name}' cannot take a stream frame by frame: {'; '.join(told)}{more}."
            f"{ways}"
        )


def _begins(graph: Graph) -> set[int]:
    """The ids of tensors that are given to the model for recurrent layers to begin with."""
    found = set[int]()

    def begins(tensor) -> bool:
        readers = graph.consumers(tensor)
        states = all(
            any(tensor is x for x in states_given(node))
            or (isinstance(node.operation, FakeQuant) and begins(node.outputs[0]))
            for node in readers
        )
        if states and readers and not graph.is_output(tensor):
            found.add(id(tensor))
        return id(tensor) in found

    for tensor in tree.flatten(graph.inputs):
        begins(tensor)
    return found


def _require_frames(graph: Graph, axis: int, begins: set[int]) -> int | None:
    """The length of the windows, which is that of all inputs but those that layers begin with."""
    names = [tensor.name for tensor in tree.flatten(graph.inputs)]
    if known := states_of(names, map(out_of, names)):
        raise ValueError(
            f"model is one step already, with states {known}; pass the model that it was made from."
        )
    found = {}
    for tensor in tree.flatten(graph.inputs):
        if id(tensor) in begins:
            continue
        rank = len(tensor.shape)
        if not isinstance(axis, int) or not 1 <= axis < rank:
            raise ValueError(
                f"axis must be one of 1 to {rank - 1}, the frames' in input '{tensor.name}' of "
                f"shape {tuple(tensor.shape)}; received {axis!r}."
            )
        found[tensor.name] = tensor.shape[axis]
    if not found:
        raise ValueError(f"model must have an input of frames; received {names}, states alone.")
    if len(set(found.values())) > 1:
        raise ValueError(
            f"all inputs must have as many frames; received {found} along axis {axis}. Make what "
            "reads other inputs a model of its own, with tfcompress.split."
        )
    return next(iter(found.values()))


def _require_matches(graph: Graph, kept: list[Rule], windows: Any) -> None:
    layers = [inner_layer(node.operation) for node in graph.nodes if not node.is_input]
    for rule in kept:
        if not any(rule.matches(layer) for layer in layers):
            names = [layer.name for layer in layers]
            mend = did_you_mean(rule.layers, names) if isinstance(rule.layers, str) else ""
            raise ValueError(
                f"windows must match layers of the model; received {windows!r}, of which "
                f"{rule.layers!r} matches none. {mend}".strip()
            )


def _known(name: str, line: Line | None, model: keras.Model) -> Line:
    if line is None:
        raise ValueError(f"output '{name}' of model '{model.name}' reads no input.")
    if line.zeros:
        raise ValueError(
            f"output '{name}' of model '{model.name}' is padded frames, which a stream has not."
            " Leave the padding out."
        )
    return line
