"""BatchNormalization: what it computes in inference, and how it trains (FusedBatchNorm)."""

import keras
from keras import ops

from tfcompress.backend import as_tensor
from tfcompress.layers.fake_quant import add_last_step, call_with, require_callback
from tfcompress.schedules import is_share, steps_of


@keras.saving.register_keras_serializable("tfcompress")
class FusedBatchNorm(keras.layers.Layer):
    """BatchNormalization as quantization-aware training uses it: fast, and able to stop moving.

    On TensorFlow it trains with the fused kernel, which Keras's layer does not use: equal up to
    rounding, in about half of the time. `finalize` gives the Keras layer back.

    Args:
        layer: a `keras.layers.BatchNormalization`.
        freeze: optimizer step from which it normalizes by its moving statistics; None for never.
    """

    def __init__(self, layer, freeze=None, **kwargs):
        kwargs.setdefault("name", layer.name)
        kwargs.setdefault("trainable", layer.trainable)
        kwargs.setdefault("dtype", "float32")
        super().__init__(autocast=False, **kwargs)
        self.layer, self.freeze = layer, freeze
        self.supports_masking = True

    @property
    def scheduled(self) -> bool:
        """Whether `UpdateCompression` must advance this layer during `fit`."""
        return self.freeze is not None

    @property
    def has_shares(self) -> bool:
        """Whether its step is a share of a training that has not begun."""
        return is_share(self.freeze)

    def begin_training(self, first: int, steps: int) -> None:
        """Makes a step of a share."""
        self.freeze = steps_of(self.freeze, first, steps)

    def build(self, input_shape):
        if not self.layer.built:
            self.layer.build(input_shape)
        if self.scheduled:
            self.last_step = add_last_step(self)

    def next_step(self, step: int) -> int | None:
        """The first optimizer step after `step` at which `advance` changes something."""
        return self.freeze if self.scheduled and step < self.freeze else None

    def advance(self, step) -> None:
        """Tells the layer the optimizer step."""
        if self.scheduled:
            self.last_step.assign(step)

    def call(self, x, training=False, mask=None):
        if not training or not self.layer.trainable:
            return self.layer(x, training=False, mask=mask)
        require_callback(self)
        moving = self.layer.moving_mean, self.layer.moving_variance
        if self.freeze is None:
            y, *statistics = self._train(x, mask)
        else:  # nothing is assigned inside of the branches, which MirroredStrategy would not allow
            y, *statistics = ops.cond(
                as_tensor(self.last_step) >= self.freeze,
                lambda: (self.layer(x, training=False, mask=mask), *map(as_tensor, moving)),
                lambda: self._train(x, mask),
            )
        for variable, value in zip(moving, statistics, strict=True):
            variable.assign(value)
        return y

    def _train(self, x, mask):
        """The normalized batch, and the moving mean and variance after it."""
        layer = self.layer
        if mask is None and _is_fusable(layer, x):
            return _fused_batch_norm(layer, x)
        y, updates, _ = call_with(layer, {}, x, training=True, mask=mask)
        new = {id(variable): value for variable, value in updates}
        return y, new[id(layer.moving_mean)], new[id(layer.moving_variance)]

    def compute_output_spec(self, x, *args, **kwargs):
        return self.layer.compute_output_spec(x)

    def get_config(self):
        layer = keras.saving.serialize_keras_object(self.layer)
        return {**super().get_config(), "layer": layer, "freeze": self.freeze}

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        layer = keras.saving.deserialize_keras_object(config.pop("layer"))
        return cls(layer, **config)


def _is_fusable(layer, x) -> bool:
    """Whether TensorFlow's fused kernel computes what a BatchNormalization does."""
    return (
        keras.backend.backend() == "tensorflow"
        and len(x.shape) == 4
        and layer.axis in (-1, 3)
        and layer.variable_dtype == "float32"
        and layer.epsilon > 1e-5  # the least that cuDNN takes
        and not layer.synchronized
    )


def _fused_batch_norm(layer, x):
    import tensorflow as tf

    size = x.shape[-1]
    y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=tf.cast(x, "float32"),
        scale=as_tensor(layer.gamma) if layer.scale else tf.ones([size]),
        offset=as_tensor(layer.beta) if layer.center else tf.zeros([size]),
        mean=[],
        variance=[],
        epsilon=layer.epsilon,
    )
    count = tf.cast(tf.size(x) // size, "float32")
    # The kernel gives the unbiased variance; Keras averages the biased one.
    batch = mean, variance * ((count - 1.0) / count)
    old = as_tensor(layer.moving_mean), as_tensor(layer.moving_variance)
    keep = layer.momentum
    new = (a * keep + tf.stop_gradient(b) * (1.0 - keep) for a, b in zip(old, batch, strict=True))
    return tf.cast(y, layer.compute_dtype), *new
