"""Students and teachers for init_from_teacher, and teachers with dead channels."""

import keras
import numpy as np
from keras import layers, ops


def shaken(model, seed=0):
    """Random weights, also where Keras starts from zeros and ones."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        low = 0.5 if "variance" in variable.name or "gamma" in variable.name else -0.5
        variable.assign(rng.uniform(low, 1.0, variable.shape))
    return model


def bn(x, name):
    return layers.ReLU()(layers.BatchNormalization(name=name)(x))


def image(size=8):
    return keras.Input((size, size, 3), name="image")


def cnn(width):
    x = inputs = image()
    x = bn(layers.Conv2D(width, 3, padding="same", name="a")(x), "a_bn")
    x = layers.MaxPooling2D()(x)
    x = bn(layers.Conv2D(width, 3, use_bias=False, name="b")(layers.ZeroPadding2D()(x)), "b_bn")
    x = layers.Dropout(0.2)(layers.UpSampling2D()(x))
    x = layers.PReLU(shared_axes=[1, 2], name="prelu")(layers.Conv2D(width, 2, 2, name="c")(x))
    x = layers.Dense(width, name="d")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(3, "softmax", name="out")(x))


def residual(width):
    x = inputs = image()
    x = bn(layers.Conv2D(width, 3, padding="same", name="a")(x), "a_bn")
    for name in "bc":
        y = bn(layers.Conv2D(width, 3, padding="same", name=f"{name}1")(x), f"{name}1_bn")
        y = layers.BatchNormalization(name=f"{name}_bn")(
            layers.Conv2D(width, 3, padding="same", name=f"{name}2")(y)
        )
        x = layers.ReLU()(layers.Add()([x, y]))
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(width // 2, 1, activation="relu", name="squeeze")(gate)
    x = x * layers.Conv2D(width, 1, activation="sigmoid", name="excite")(gate)
    return keras.Model(inputs, layers.Dense(2, name="out")(layers.GlobalMaxPooling2D()(x)))


def concat(width):
    x = inputs = image()
    a = layers.Conv2D(width, 3, padding="same", activation="relu", name="a")(x)
    b = layers.Conv2D(width // 2, 1, name="b")(a)
    x = bn(layers.Concatenate()([a, b, inputs]), "joint_bn")
    left, right = ops.split(layers.Conv2D(width, 1, name="halves")(x), 2, axis=-1)
    x = left * ops.sigmoid(right)
    x = ops.transpose(ops.reshape(x, (-1, 64, width // 2)), (0, 2, 1))
    x = layers.Permute((1, 2))(x)[:, :, 1:9]
    x = layers.Flatten(data_format="channels_first")(x)
    return keras.Model(inputs, layers.Dense(2, name="out")(x))


def separable(width):
    x = inputs = image()
    x = layers.Conv2D(width, 3, name="a")(x)
    x = bn(layers.DepthwiseConv2D(3, padding="same", name="dw")(x), "dw_bn")
    x = layers.ReLU()(layers.Conv2D(width, 1, name="b")(x))
    x = layers.DepthwiseConv2D(2, depth_multiplier=2, name="twice")(x)
    x = layers.ReLU()(layers.SeparableConv2D(width, 3, name="c")(x))
    x = layers.Conv2D(width, 3, groups=2, name="grouped")(x)
    return keras.Model(inputs, layers.Dense(2, name="out")(ops.mean(x, axis=(1, 2))))


def mlp(width):
    hidden = [layers.Dense(width, "gelu", name=name) for name in "ab"]
    inner = keras.Sequential([layers.Dense(width, name="c"), layers.LeakyReLU()])
    return keras.Sequential([keras.Input((5,)), *hidden, inner, layers.Dense(2, name="out")])


def recurrent(kind):
    def build(width):
        x = inputs = keras.Input((6, 3))
        x = kind(width, return_sequences=True, name="a")(x)
        x = layers.Conv1D(width, 2, name="b")(x)
        x = layers.TimeDistributed(layers.Dense(width, "relu"), name="c")(x)
        x = layers.Bidirectional(kind(width), name="d")(x)
        return keras.Model(inputs, layers.Dense(2, name="out")(x))

    return build


def unrolled(width):
    x = inputs = keras.Input((4, 3))
    x = layers.LSTM(width, unroll=True, return_sequences=True, name="a")(x)
    x = layers.GRU(width, unroll=True, name="b")(x)
    return keras.Model(inputs, layers.Dense(2, name="out")(x))


def decoder(width):
    x = inputs = keras.Input((4,))
    x = layers.Dense(16 * width, "relu", name="a")(x)
    x = layers.Reshape((4, 4, width))(x)
    x = layers.Conv2DTranspose(width, 3, 2, activation="relu", name="b")(x)
    return keras.Model(inputs, layers.Conv2D(2, 1, name="out")(x))


def attention(width):
    x = inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 8, name="tokens")(x)
    x = x + layers.MultiHeadAttention(width // 4, 3, value_dim=5, name="heads")(x, x)
    x = layers.EinsumDense("btd,dhk->bthk", (None, width, 2), bias_axes="hk", name="up")(x)
    x = layers.EinsumDense("bthk,hkd->btd", (None, 8), bias_axes="d", name="down")(x)
    return keras.Model(inputs, layers.Dense(2, name="out")(x[:, 0]))


def siamese(width):
    both = keras.Input((2, 5))
    shared = layers.Dense(width, "relu", name="a")
    x = layers.Subtract()([shared(both[:, 0]), shared(both[:, 1])])
    x = layers.Maximum()([layers.Dense(width, name="b")(x), ops.abs(x)])
    return keras.Model(both, layers.Dense(2, name="out")(x))


class Scaled(layers.Layer):
    """A layer with weights of its own and no layers inside."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.kernel = self.add_weight(shape=(5, width), name="kernel")
        self.shift = self.add_weight(shape=(width,), name="shift")

    def call(self, x):
        return ops.relu(ops.matmul(x, self.kernel) + self.shift)


class Subclassed(keras.Model):
    """A model whose `call` is Python, with a layer of the user's and one that never trains."""

    def __init__(self, width):
        super().__init__()
        self.scaled = Scaled(width, name="scaled")
        self.middle = layers.Dense(width, "relu", name="a")
        self.norm = layers.BatchNormalization(name="a_bn")
        self.out = layers.Dense(2, name="out")

    def call(self, x):
        x = self.scaled(x)
        return self.out(x + self.norm(self.middle(x), training=False))


def subclassed(width):
    model = Subclassed(width)
    model(np.zeros((1, 5), "float32"))
    return model


# The channels that are not dead in teachers of width 8, by how many a layer has.
HALF = [0, 3]
KEPT = {8: [1, 2, 6, 7], 4: HALF}
HALVES = [0, 3, 4, 7]


def kill(layer, kept=None):
    """Zeros in a layer for all output channels but some: these are zero then, or stay zero."""
    if isinstance(layer, layers.Bidirectional):
        kill(layer.forward_layer)
        kill(layer.backward_layer)
        return
    layer = getattr(layer, "layer", layer)
    gates = 3 if isinstance(layer, layers.GRU) else 4 if isinstance(layer, layers.LSTM) else 1
    for weight in getattr(layer, "cell", layer).weights:
        through = isinstance(layer, layers.DepthwiseConv2D) and "kernel" in weight.name
        if through or weight.name in ("moving_variance", "gamma", "alpha", "depthwise_kernel"):
            continue
        axis = -2 if isinstance(layer, layers.Conv2DTranspose) and len(weight.shape) > 1 else -1
        count = weight.shape[axis] // gates
        live = np.isin(np.arange(count), KEPT[count] if kept is None else kept)
        live = np.tile(live, gates)
        weight.assign(weight * (live[:, None] if axis == -2 else live))


def kill_channels(model, **kept):
    """`kill` for all layers that are named, and all of width 8 or 4 with the usual channels."""
    flat = [x for x in model._flatten_layers() if x.weights and not isinstance(x, keras.Model)]
    for layer in flat:
        if layer.name in kept:
            kill(layer, kept[layer.name])
        elif layer.name in "a b c d a_bn b_bn c_bn b1 b2 c1 c2 b1_bn c1_bn dw dw_bn excite".split():
            kill(layer)
    return model


def check_equal(student, teacher, tolerance=1e-5):
    given = student.inputs[0] if hasattr(student, "inputs") else keras.Input((5,))
    shape, rng = (3, *given.shape[1:]), np.random.default_rng(2)
    whole = "int" in given.dtype
    x = rng.integers(0, 9, shape) if whole else rng.normal(size=shape).astype("float32")
    a, b = (np.asarray(model(x, training=False)) for model in (student, teacher))
    assert np.ptp(b) > 1e-3
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


JOINT = [*KEPT[8], 8, 11, 12, 13, 14]
CASES = {
    "cnn": (cnn, {}),
    "residual": (residual, {"squeeze": HALF}),
    "concat": (concat, {"joint_bn": JOINT, "halves": HALVES}),
    "separable": (
        separable,
        {
            "twice": [2, 3, 4, 5, 12, 13, 14, 15],
            "c": HALVES,
            "grouped": [1, 2, 5, 6],
        },
    ),
    "mlp": (mlp, {}),
    "lstm": (recurrent(layers.LSTM), {}),
    "gru": (recurrent(layers.GRU), {}),
    "decoder": (decoder, {"a": [8 * i + j for i in range(16) for j in KEPT[8]]}),
    "siamese": (siamese, {}),
    "subclassed": (subclassed, {"scaled": KEPT[8]}),
}


def dense(*widths, names="abcdefgh", inputs=3):
    parts = [layers.Dense(width, name=name) for width, name in zip(widths, names, strict=False)]
    return keras.Sequential([keras.Input((inputs,)), *parts])
