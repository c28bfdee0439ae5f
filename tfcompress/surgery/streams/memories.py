"""Rules of the layers that remember frames: convolutions, pooling and padding."""

from __future__ import annotations

import keras
from keras import layers

from tfcompress.graph.nodes import Node
from tfcompress.quantization.kernels import inner_layer
from tfcompress.surgery.streams.lines import Ahead, Line
from tfcompress.surgery.streams.making import Maker, along

_BEHIND = "pads frames that are yet to come; at the front alone it need not"


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
        raise Ahead(_BEHIND)
    pairs[place] = (0, 0)
    length = line.length and line.length + front
    new = line.changed(length=length, late=line.late - front, zeros=line.zeros + front)
    if not any(sum(pair) for pair in pairs):
        return args[0], new
    return maker.layer(node.operation, padding=tuple(pairs))(*args, **kwargs), new


def pad_values(maker: Maker, node: Node, lines: list, args: tuple, kwargs: dict):
    """keras.ops.pad with zeros, as a layer of padding."""
    line, operation = lines[0], node.operation
    value = (*args[1:], *kwargs.values())
    pairs = [tuple(pair) for pair in operation.pad_width]
    if operation.mode != "constant" or any(value) or len(pairs) < 2:
        raise Ahead("pads other values than zeros")
    front, back = pairs[line.place]
    if back:
        raise Ahead(_BEHIND)
    pairs[line.place] = (0, 0)
    length = line.length and line.length + front
    new = line.changed(length=length, late=line.late - front, zeros=line.zeros + front)
    return (keras.ops.pad(args[0], pairs) if any(map(sum, pairs)) else args[0]), new


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
