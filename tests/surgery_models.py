"""Models for surgery, channels switched off in them, and how far outputs are apart."""

import keras
import numpy as np
from keras import layers, ops

from tfcompress.surgery.pruning.groups import Structure


def grouped():
    """Grouped convolutions with a channel shuffle between them."""
    x = inputs = keras.Input((6, 6, 4))
    x = layers.Conv2D(12, 1, name="stem")(x)
    x = layers.Conv2D(12, 3, padding="same", groups=3, activation="relu", name="first")(x)
    x = layers.Reshape((6, 6, 3, 4))(x)
    x = layers.Reshape((6, 6, 12))(layers.Permute((1, 2, 4, 3))(x))
    x = layers.Conv2D(8, 3, groups=4, name="second")(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(x)))


def volumes():
    x = inputs = keras.Input((4, 4, 4, 2))
    x = layers.Conv3D(6, 2, name="conv")(x)
    x = layers.PReLU(shared_axes=[1, 2, 3])(layers.BatchNormalization()(x))
    x = layers.Conv3DTranspose(5, 2, name="up")(layers.MaxPooling3D(1)(x))
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling3D()(x)))


def depthwise_multiplied():
    x = inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, name="conv")(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="deep")(x)
    x = layers.SeparableConv2D(6, 2, depth_multiplier=3, name="separable")(x)
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))


def split_and_joined():
    """Channels that part, are sliced, padded and come together again."""
    x = inputs = keras.Input((5, 5, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(x)
    a, b = ops.split(x, [3], axis=-1)
    a = layers.Conv2D(6, 1, name="left")(a)
    b = layers.PReLU()(b)
    c = layers.Conv2D(4, 1, name="narrow")(x[..., 2:7])
    c = ops.pad(c, [(0, 0), (0, 0), (0, 0), (1, 1)])
    x = layers.Concatenate()([a + c, b])
    x = layers.UpSampling2D()(layers.ZeroPadding2D()(x))
    return keras.Model(inputs, layers.Dense(2, name="head")(layers.Flatten()(x)))


def attention_by_hand():
    """Attention over two heads from Dense layers, reshapes and matrix products."""
    x = inputs = keras.Input((5, 6))
    q, k, v = (layers.Dense(8, name=name)(x) for name in "qkv")
    q, k, v = (ops.transpose(ops.reshape(t, (-1, 5, 2, 4)), (0, 2, 1, 3)) for t in (q, k, v))
    scores = ops.softmax(ops.matmul(q, ops.swapaxes(k, -1, -2)) * 0.5)
    y = ops.reshape(ops.transpose(ops.matmul(scores, v), (0, 2, 1, 3)), (-1, 5, 8))
    y = layers.Dense(6, name="out")(y) + x
    return keras.Model(inputs, layers.Dense(2, name="head")(layers.GlobalAveragePooling1D()(y)))


def einsums():
    x = inputs = keras.Input((4, 6))
    x = layers.EinsumDense("abc,cde->abde", (4, 3, 4), bias_axes="de", name="project")(x)
    x = layers.EinsumDense("abde,def->abf", (4, 5), name="join")(x)
    x = layers.EinsumDense("...c,cd->...d", 7, bias_axes="d", activation="relu", name="dots")(x)
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))


def recurrent():
    x = inputs = keras.Input((6, 4))
    x = layers.Bidirectional(layers.LSTM(5, return_sequences=True), name="both")(x)
    x = layers.TimeDistributed(layers.Dense(6, activation="relu"), name="each")(x)
    x = layers.Bidirectional(layers.GRU(4), merge_mode="sum", name="sum")(x)
    return keras.Model(inputs, layers.Dense(2)(x))


def shared():
    """One convolution called at two places, one of them through a residual connection."""
    conv = layers.Conv2D(6, 3, padding="same", activation="relu", name="shared")
    x = inputs = keras.Input((5, 5, 3))
    x = layers.Conv2D(6, 3, padding="same", name="stem")(x)
    x = conv(conv(x)) + x
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))


def group_normalized():
    x = inputs = keras.Input((5, 5, 3))
    x = layers.Conv2D(8, 3, name="conv")(x)
    x = layers.GroupNormalization(4, name="norm")(x)
    x = layers.Conv2D(6, 1, activation="relu", name="next")(x)
    x = layers.GroupNormalization(-1, name="instance")(x)
    return keras.Model(inputs, layers.Dense(2)(layers.GlobalMaxPooling2D()(x)))


class Scaled(layers.Layer):
    """A layer of a user's own with a weight and a constant for its channels."""

    def __init__(self, size, **kwargs):
        super().__init__(**kwargs)
        self.size = size

    def build(self, input_shape):
        self.gain = self.add_weight(shape=(self.size,), initializer="ones", name="gain")

    def call(self, x):
        return x * self.gain * np.full(self.size, 0.5, "float32")

    def get_config(self):
        return {**super().get_config(), "size": self.size}


def own_layer():
    x = inputs = keras.Input((7,))
    x = Scaled(8, name="scaled")(layers.Dense(8, name="hidden")(x))
    return keras.Model(inputs, layers.Dense(2)(x))


def products():
    """Attention over two heads by `ops.einsum`, and products of two tensors."""
    x = inputs = keras.Input((5, 6))
    q, k, v = (layers.EinsumDense("btd,dnh->btnh", (5, 2, 4), name=name)(x) for name in "qkv")
    scores = ops.softmax(ops.einsum("btnh,bsnh->bnts", q, k))
    y = ops.einsum("bnts,bsnh->btnh", scores, v)
    y = layers.EinsumDense("btnh,nhd->btd", (None, 8), name="out")(y)
    y = layers.Reshape((5, 8))(y)
    y = layers.Dot((2, 2))([layers.Dense(6, name="left")(y), layers.Dense(6, name="right")(y)])
    y = ops.dot(y, np.linspace(0, 1, 20, dtype="float32").reshape(5, 4))
    return keras.Model(inputs, layers.Dense(2, name="head")(layers.Flatten()(y)))


class Positions(layers.Layer):
    """A learned table, cut to as many steps as there are, and looked up in its first rows."""

    def build(self, shape):
        self.width = shape[-1]
        self.table = self.add_weight(shape=(9, shape[-1]), name="table")

    def call(self, x):
        length, width = x.shape[1:]
        places = ops.slice(self.table, (2, 0), (length, width))
        return x + places * ops.take(self.table, np.arange(length), axis=0)

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.width)


def moved():
    """Functions that move and repeat values, constants for each channel, a Lambda."""
    x = inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(16, 1, name="stem")(x) * np.linspace(1, 2, 16, dtype="float32")
    x = ops.moveaxis(ops.roll(ops.flip(x, axis=1), 1, axis=2), -1, 1)
    x = layers.Lambda(lambda t: ops.relu(ops.moveaxis(t, 1, -1)))(x)
    x = ops.space_to_depth(ops.depth_to_space(x, 2), 4)
    x = ops.glu(layers.Conv2D(12, 1, name="gated")(x))
    x = ops.concatenate([ops.tile(x, (1, 1, 1, 2)), ops.repeat(x, 2, axis=-1)], axis=-1)
    x = Positions(name="positions")(layers.Reshape((4, -1))(ops.cumsum(x, axis=1)))
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))


def attentive():
    """Attention whose keys serve several queries, and of a single head."""
    x = inputs = keras.Input((5, 6))
    x = layers.Dense(8, name="first")(x)
    x = layers.GroupQueryAttention(3, 4, 2, use_gate=True, name="grouped")(x, x)
    keys = layers.Dense(8, activation="relu", name="keys")(x)
    y = layers.Attention(use_scale=True)([layers.Dense(8, name="q")(x), x, keys])
    y = layers.AdditiveAttention(name="additive")([layers.Dense(8, name="added")(y), y])
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(y)))


def with_states():
    """Recurrent layers with masks and states."""
    inputs = keras.Input((3,), dtype="int32")
    x = layers.Embedding(20, 6, mask_zero=True, name="words")(inputs)
    both = layers.Bidirectional(
        layers.GRU(4, return_sequences=True, return_state=True), name="both"
    )
    x, *states = both(x)
    x = layers.GRU(4, return_sequences=True, name="next")(x, initial_state=states[0])
    x = layers.Reshape((3, 1, 6))(layers.Dense(6, name="each")(x))
    conv = layers.ConvLSTM1D(6, 2, padding="same", return_state=True, name="conv")
    x, hidden, _ = conv(x)
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x + hidden)))


def there_and_back():
    """An embedding that also gives the outputs."""
    inputs = keras.Input((5,), dtype="int32")
    embedding = layers.ReversibleEmbedding(20, 8, name="words")
    x = embedding(inputs)
    x = x + layers.Dense(8, name="down")(layers.Dense(12, activation="relu", name="up")(x))
    return keras.Model(inputs, embedding(x, reverse=True))


KINDS = (
    grouped,
    volumes,
    depthwise_multiplied,
    split_and_joined,
    attention_by_hand,
    einsums,
    recurrent,
    shared,
    group_normalized,
    own_layer,
    products,
    moved,
    attentive,
    with_states,
    there_and_back,
)


def shaken(model):
    """The model with biases and statistics that are not the initial ones."""
    rng = np.random.default_rng(1)
    for variable in model.weights:
        if variable.path.endswith(("gamma", "beta", "moving_mean", "moving_variance", "bias")):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return model


def switch_off(model, fraction: float) -> int:
    """Sets some channels of every prunable group of a flat model to zero; returns how many."""
    rng = np.random.default_rng(0)
    count = 0
    for group in Structure(model).prunable().values():
        gone = rng.permutation(group.size)[: max(1, int(group.size * fraction))]
        count += len(gone)
        switch_off_channels(group, gone)
    return count


def switch_off_channels(group, gone) -> None:
    """Sets the weights that make and carry some channels of a group to zero."""
    for member in group.members:
        if member.role != "reads" and "moving_variance" not in member.variable.path:
            value = np.array(keras.ops.convert_to_numpy(member.variable))
            np.moveaxis(value, member.axis, 0)[np.ravel(member.index[gone])] = 0
            member.variable.assign(value)


def samples_of(model, count: int = 2):
    rng = np.random.default_rng(2)
    found = [
        rng.normal(size=(count, *(n or 8 for n in t.shape[1:]))).astype("float32")
        if "float" in t.dtype
        else rng.integers(0, 20, (count, *(n or 8 for n in t.shape[1:]))).astype(t.dtype)
        for t in model.inputs
    ]
    return found if len(found) > 1 else found[0]


def relative_error(a, b) -> float:
    """The largest difference of two models' outputs, relative to the largest output."""
    pairs = zip(keras.tree.flatten(a), keras.tree.flatten(b), strict=True)
    arrays = [(np.asarray(x, "float64"), np.asarray(y, "float64")) for x, y in pairs]
    return max(float(np.abs(x - y).max() / np.abs(x).max()) for x, y in arrays)
