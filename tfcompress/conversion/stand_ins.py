"""Layers that a model is lowered with: markers of ranges, and forms that have integer kernels."""

from __future__ import annotations

import tensorflow as tf
from keras import layers

from tfcompress.conversion.markers import named_for, told_as
from tfcompress.layers.fake_quant import FakeQuant


class _SameShape(layers.Layer):
    """A layer whose output has the shape of its input, and its mask."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def compute_output_shape(self, input_shape):
        return input_shape


class Marker(_SameShape):
    """Two fake-quantization ops in a row, which tell a constant range to the file's reader."""

    def __init__(self, quantizer: FakeQuant, low: float, high: float):
        super().__init__(name=quantizer.name)
        self.quantizer, self.low, self.high = quantizer, low, high

    def call(self, x, source=0, node=None):
        x = self.quantizer._activate(x)
        floats = self.quantizer.float_source
        stays = floats is True or source in (floats or ())
        return _marked(x, self.low, self.high, self.quantizer.bits, stays, node)


class OnTable(_SameShape):
    """Rows of a table on a symmetric grid, marked with its range: the converter may fold them."""

    def __init__(self, step: float, **kwargs):
        super().__init__(**kwargs)
        self.step = step

    def call(self, x):
        return _marked(x, -128.0 * self.step, 127.0 * self.step, 8, False)


class OnGrid(_SameShape):
    """Weights rounded for good: the converter folds them, and the grid tells their scale."""

    def __init__(self, quantizer: FakeQuant):
        super().__init__(name=quantizer.name)
        self.levels = 2.0 ** (quantizer.bits - 1) - 1.0
        self.step = float(quantizer.limits()[1]) / self.levels

    def call(self, x, source=0):
        return tf.clip_by_value(tf.round(x / self.step), -self.levels, self.levels) * self.step


class Affine(_SameShape):
    """scale * x + offset by channel, as a 1x1 depthwise convolution: one exactly quantizable op."""

    def __init__(self, scale, offset, axis: int = -1, **kwargs):
        super().__init__(**kwargs)
        self.scale, self.offset, self.axis = scale, offset, axis

    def call(self, x):
        x = tf.cast(x, "float32")  # images may come in as integers
        last = len(x.shape) - 1
        if self.axis in (-1, last):
            return self._on_last(x)
        order = [i for i in range(last + 1) if i != self.axis] + [self.axis]
        back = [order.index(i) for i in range(last + 1)]
        return tf.transpose(self._on_last(tf.transpose(x, order)), back)

    def _on_last(self, x):
        channels = x.shape[-1]
        scale = tf.broadcast_to(tf.cast(self.scale, x.dtype), (channels,))
        offset = tf.broadcast_to(tf.cast(self.offset, x.dtype), (channels,))
        shape = tuple(x.shape)
        image = x if len(shape) == 4 else tf.reshape(x, (shape[0], 1, -1, channels))
        kernel = tf.reshape(scale, (1, 1, channels, 1))
        y = tf.nn.bias_add(tf.nn.depthwise_conv2d(image, kernel, (1, 1, 1, 1), "SAME"), offset)
        return y if len(shape) == 4 else tf.reshape(y, shape)


class PlainRsqrt(_SameShape):
    """1 / sqrt(x): the kernel itself gives its largest value at 0."""

    def call(self, x):
        return tf.math.rsqrt(x)


class Nearest(layers.Layer):
    """UpSampling2D as the one op that LiteRT has for it."""

    def __init__(self, size, **kwargs):
        super().__init__(**kwargs)
        self.factors = size

    def call(self, x):
        size = (x.shape[1] * self.factors[0], x.shape[2] * self.factors[1])
        return tf.raw_ops.ResizeNearestNeighbor(images=x, size=size, half_pixel_centers=False)

    def compute_output_shape(self, shape):
        return (shape[0], shape[1] * self.factors[0], shape[2] * self.factors[1], shape[3])


class Rows(layers.Embedding):
    """An Embedding as the one op that LiteRT has for it: Keras counts negative rows from the end.

    Words are not negative. LiteRT ends a run with an error where one is.
    """

    def call(self, words):
        words = words if words.dtype == "int64" else tf.cast(words, "int32")
        return tf.cast(tf.gather(self.embeddings, words), self.compute_dtype)


class Comparison:
    """A table from integers to integers by comparing with each, as LiteRT knows those of texts.

    Args:
        table: of TensorFlow.
    """

    def __init__(self, table):
        self.keys, self.values = (x.numpy() for x in table.export())
        self.default = table.default_value.numpy()

    def lookup(self, x):
        equal = tf.equal(x[..., None], self.keys)
        found = tf.reduce_sum(tf.where(equal, self.values, tf.zeros_like(self.values)), axis=-1)
        return tf.where(tf.reduce_any(equal, axis=-1), found, self.default)


def _marked(x, low: float, high: float, bits: int, stays: bool, node: int | None = None):
    low, high, wider = told_as(low, high, stays)
    name = None if node is None else named_for(node)
    # The converter copies single ones to where it takes ranges for equal; ours come in pairs.
    for by in (1.0, wider):
        limits = {"min": by * low, "max": by * high}
        x = tf.raw_ops.FakeQuantWithMinMaxVars(inputs=x, num_bits=bits, name=name, **limits)
    return x
