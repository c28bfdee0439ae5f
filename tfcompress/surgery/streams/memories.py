"""Rules of the layers that remember frames: convolutions, pooling, padding and recurrent ones."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from tfcompress.graph.nodes import Node
from tfcompress.quantization.placement import inner_layer
from tfcompress.surgery.streams.lines import Ahead, Line
from tfcompress.surgery.streams.making import Maker, along

# Layers of that many steps are written out for the file; LiteRT has loops of floats alone.
_UNROLLED = 64


def convolution(maker: Maker, node: Node, lines: list, args: tuple, kwargs: dict):
    """A convolution over the frames that it needs of those before, kept in a ring buffer."""
    layer = inner_layer(node.operation)
    return _sliding(maker, node, lines[0], args, kwargs, layer.kernel_size, layer.dilation_rate)


def pooling(maker: Maker, node: Node, lines: list, args: tuple, kwargs: dict):
    """Pooling as a convolution."""
    size = inner_layer(node.operation).pool_size
    size = (size,) if isinstance(size, int) else tuple(size)
    return _sliding(maker, node, lines[0], args, kwargs, size, (1,) * len(size))


def _sliding(maker: Maker, node: Node, line: Line, args, kwargs, sizes, dilations):
    layer = inner_layer(node.operation)
    place, channels_first = _place(layer, line, len(sizes))
    strides = layer.strides
    strides = (strides,) * len(sizes) if isinstance(strides, int) else tuple(strides)
    stride, reach = strides[place], (sizes[place] - 1) * dilations[place] + 1
    new_line = line
    if layer.padding == "causal":
        new_line = line.changed(late=line.late - (reach - 1), zeros=line.zeros + reach - 1)
    elif layer.padding == "same" and _padded(line.length, reach, stride):
        raise Ahead(
            f"pads frames that are yet to come (padding='same'{_mend(layer)})",
        )
    same = layer.padding == "same"
    x, start = args[0], 0
    if new_line.zeros:
        x, new_line, start = maker.begun(node.name, x, new_line)
    frames, count = reach - stride, maker.frames(new_line)
    frames += -(frames + new_line.late) % stride
    frames += stride * (frames < 0)
    x = maker.remember(node.name, x, new_line, frames, start)
    if frames >= reach:  # the last frames are for the next call
        x = along(x, new_line.place, 0, count + reach - 1)
    changes = {} if layer.padding == "valid" else {"padding": "valid"}
    if same:
        x, changes = _padded_elsewhere(node, layer, x, place, channels_first, sizes, dilations)
    y = maker.layer(node.operation, **changes)(x, *args[1:], **kwargs)
    made = Line(
        line.axis,
        node.outputs[0].shape[line.axis],
        line.stride * stride,
        (frames + new_line.late) // stride,
    )
    maker.frames(made)
    return y, made


def _place(layer, line: Line, count: int) -> tuple[int, bool]:
    """The number of the frames' axis among those that a layer slides over."""
    channels_first = getattr(layer, "data_format", None) == "channels_first"
    place = line.place - (2 if channels_first else 1)
    if not 0 <= place < count:
        raise Ahead("has the frames in its channels")
    return place, channels_first


def _padded(length: int | None, reach: int, stride: int) -> bool:
    """Whether padding='same' adds frames."""
    if length is None:
        return reach > stride or stride > 1
    return (-(-length // stride) - 1) * stride + reach > length


def _mend(layer) -> str:
    if isinstance(layer, layers.Conv1D | layers.SeparableConv1D):
        return "; 'causal' does not"
    return "; ZeroPadding at the front alone and 'valid' do not"


def _padded_elsewhere(node: Node, layer, x, place, channels_first, sizes, dilations):
    """Padding 'same' along the other axes alone."""
    strides = layer.strides
    strides = (strides,) * len(sizes) if isinstance(strides, int) else tuple(strides)
    first = 2 if channels_first else 1
    found = []
    for i, (size, dilation, stride) in enumerate(zip(sizes, dilations, strides, strict=True)):
        length = x.shape[first + i]
        reach = (size - 1) * dilation + 1
        total = 0
        if i != place:
            total = max((-(-length // stride) - 1) * stride + reach - length, 0)
        found.append((total // 2, total - total // 2))
    if not any(sum(pair) for pair in found):
        return x, {"padding": "valid"}
    if sizes[place] == 1 and strides[place] == 1:
        return x, {}
    if hasattr(layer, "pool_size"):
        raise Ahead("pools padded values (padding='same') beside the frames")
    padding = {2: layers.ZeroPadding2D, 3: layers.ZeroPadding3D}[len(sizes)]
    settings = {"name": f"{node.name}_padding", "dtype": x.dtype}
    return padding(found, data_format=layer.data_format, **settings)(x), {"padding": "valid"}


def pad(maker: Maker, node: Node, lines: list, args: tuple, kwargs: dict):
    """Zeros in front of the window, which states begin with; those at the end are yet to come."""
    (line,), layer = lines, node.operation
    given = layer.padding
    pairs = [given] if isinstance(given[0], int) else [tuple(pair) for pair in given]
    place, _ = _place(layer, line, len(pairs))
    front, back = pairs[place]
    if back:
        raise Ahead("pads frames that are yet to come; at the front alone it need not")
    pairs[place] = (0, 0)
    length = line.length and line.length + front
    new = line.changed(length=length, late=line.late - front, zeros=line.zeros + front)
    if not any(sum(pair) for pair in pairs):
        return args[0], new
    return maker.layer(node.operation, padding=tuple(pairs))(*args, **kwargs), new


def crop(maker: Maker, node: Node, lines: list, args: tuple, kwargs: dict):
    """Frames of a window that are left out, which a stream gives earlier or later."""
    (line,), layer = lines, node.operation
    given = layer.cropping
    pairs = [given] if isinstance(given[0], int) else [tuple(pair) for pair in given]
    place, _ = _place(layer, line, len(pairs))
    if line.zeros:
        raise Ahead("reads padded frames", window=False)
    front, back = pairs[place]
    pairs[place] = (0, 0)
    length = line.length and line.length - front - back
    new = line.changed(length=length, late=line.late + front)
    if not any(sum(pair) for pair in pairs):
        return args[0], new
    return maker.layer(node.operation, cropping=tuple(pairs))(*args, **kwargs), new


def recurrent(maker: Maker, node: Node, lines: list, args: tuple, kwargs: dict):
    """A recurrent layer that takes its states and gives them back."""
    layer = inner_layer(node.operation)
    line = lines[0]
    if layer.go_backwards:
        raise Ahead("runs backwards from the window's end")
    rest = {key: value for key, value in kwargs.items() if key != "training"}
    if any(value is not None for value in (*args[1:], *rest.values())):
        raise Ahead(
            "begins with states that the model computes, or reads masks: make what comes from "
            "there on a model of its own, with these as inputs",
            window=False,
        )
    if line.axis != 1:
        raise Ahead("has the frames at another axis than the second")
    if line.zeros:
        raise Ahead("reads padded frames", window=False)
    x, line, start = maker.begun(node.name, args[0], line)
    states = _states(maker, node, layer, x, start)
    frames = maker.frames(line)
    changes: dict[str, Any] = {"return_state": True, "stateful": False}
    if frames <= _UNROLLED and not _is_convolution(layer):
        changes["unroll"] = True
    twin = maker.layer(node.operation, **changes)
    given = [state for state, _ in states]
    y, *after = twin(x, initial_state=given if len(given) > 1 else given[0])
    for (_, name), value in zip(states, after, strict=True):
        maker.keep(name, value)
    sequence = Line(1, line.length, line.stride, line.late)
    latest = sequence.changed(axis=None)
    made = [sequence if layer.return_sequences else latest] + [latest] * len(after)
    if layer.return_state:
        return [y, *after], made
    return y, made[0]


def _is_convolution(layer) -> bool:
    return type(layer).__name__.startswith("ConvLSTM")


def _states(maker: Maker, node: Node, layer, x, start: int) -> list:
    """The states of a recurrent layer, as inputs."""
    given = layer.get_initial_state(batch_size=1) if not _is_convolution(layer) else None
    if given is None:
        raise Ahead("is a convolution over time with states, which no rule is for yet")
    flat = keras.tree.flatten(given)
    if any(keras.ops.any(state != 0) for state in flat):
        raise Ahead("begins with states that are not 0", window=False)
    letters = ["h", "c"] if type(layer) is layers.LSTM else [str(i) for i in range(len(flat))]
    what = [node.name] if len(flat) == 1 else [f"{node.name}_{letter}" for letter in letters]
    return [
        maker.state(name, x, (x.shape[0], *state.shape[1:]), start)
        for name, state in zip(what, flat, strict=True)
    ]
