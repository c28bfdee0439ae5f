"""Small models of every kind that users bring, with random weights."""

import keras
from keras import layers, ops


class Residual(keras.layers.Layer):
    """A user's block of layers with a weight of its own."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.conv = layers.Conv2D(filters, 3, padding="same")
        self.norm = layers.BatchNormalization()

    def build(self, input_shape):
        self.gain = self.add_weight(shape=(self.filters,), initializer="ones", name="gain")
        self.conv.build(input_shape)
        self.norm.build((*input_shape[:-1], self.filters))

    def call(self, x, training=None):
        y = ops.relu(self.norm(self.conv(x), training=training))
        return x + y * self.gain

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


class Subclassed(keras.Model):
    """A model defined by its call method."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.stem = layers.Conv2D(8, 3, padding="same", activation="relu")
        self.block = Residual(8)
        self.pool = layers.GlobalAveragePooling2D()
        self.head = keras.Sequential([layers.Dropout(0.2), layers.Dense(4, activation="softmax")])

    def call(self, x, training=None):
        x = self.block(self.stem(x), training=training)
        return self.head(self.pool(x), training=training)


def subclassed():
    model = Subclassed()
    model(ops.zeros((1, 16, 16, 3)))
    return model


def nested():
    inner = keras.Sequential(
        [keras.Input((16, 16, 8)), layers.Conv2D(8, 3, padding="same"), layers.ReLU(6.0)]
    )
    x = inputs = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(8, 1)(x)
    x = layers.Add()([x, inner(x)])
    middle = keras.Model(inputs, x, name="middle")
    inputs = keras.Input((16, 16, 3), name="image")
    x = layers.Flatten()(middle(inputs))
    return keras.Model(inputs, layers.Dense(3)(x))


def two_inputs_two_outputs():
    image = keras.Input((16, 16, 3), name="image")
    meta = keras.Input((6,), name="meta")
    x = layers.Conv2D(8, 3, activation="relu")(image)
    x = layers.Concatenate()([layers.GlobalMaxPooling2D()(x), layers.Dense(8)(meta)])
    kind = layers.Dense(4, activation="softmax", name="kind")(x)
    size = layers.Dense(1, activation="sigmoid", name="size")(x)
    return keras.Model([image, meta], [kind, size])


def conv1d():
    x = inputs = keras.Input((64, 4))
    x = layers.Conv1D(8, 5, padding="same", activation="relu")(x)
    x = layers.SeparableConv1D(8, 3, padding="same")(x)
    x = layers.BatchNormalization()(x)
    x = layers.LeakyReLU()(x)
    x = layers.MaxPooling1D()(x)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(3)(x))


def separable():
    x = inputs = keras.Input((16, 16, 3))
    x = layers.SeparableConv2D(8, 3, padding="same", activation="relu")(x)
    x = layers.SeparableConv2D(8, 3, strides=2, padding="same", depth_multiplier=2)(x)
    x = layers.BatchNormalization()(x)
    x = layers.PReLU(shared_axes=[1, 2])(x)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def unet():
    x = inputs = keras.Input((32, 32, 3))
    skips = []
    for filters in (8, 16):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        skips.append(x)
        x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(32, 3, padding="same", activation="relu")(x)
    for filters, skip in zip((16, 8), reversed(skips), strict=True):
        x = layers.Conv2DTranspose(filters, 3, strides=2, padding="same", activation="relu")(x)
        x = layers.Concatenate()([x, skip])
        x = layers.Conv2D(filters, 3, padding="same", activation="relu")(x)
    return keras.Model(inputs, layers.Conv2D(2, 1, activation="softmax")(x))


def upsampling():
    x = inputs = keras.Input((8, 8, 4))
    x = layers.UpSampling2D(2)(layers.Conv2D(8, 3, padding="same")(x))
    x = layers.UpSampling2D(2, interpolation="bilinear")(layers.Conv2D(4, 1)(x))
    return keras.Model(inputs, layers.Conv2D(2, 3, activation="tanh")(x))


def squeeze_and_excite():
    x = inputs = keras.Input((16, 16, 3))
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(x)
    x = layers.Conv2D(16, 3, strides=2, activation="hard_silu")(x)
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(4, 1, activation="relu")(gate)
    gate = layers.Conv2D(16, 1, activation="hard_sigmoid")(gate)
    x = layers.Multiply()([x, gate])
    x = layers.Activation("silu")(layers.Conv2D(8, 1)(x))
    x = layers.AveragePooling2D(2)(x)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))


def lstm():
    x = inputs = keras.Input((6, 5))
    x = layers.LSTM(8, unroll=True, return_sequences=True)(x)
    return keras.Model(inputs, layers.Dense(3)(layers.LSTM(4, unroll=True)(x)))


def gru():
    x = inputs = keras.Input((6, 5))
    return keras.Model(inputs, layers.Dense(3)(layers.GRU(8, unroll=True)(x)))


def transformer():
    x = inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(16, 4, strides=4)(x)
    x = layers.Reshape((16, 16))(x)
    x = PositionalEmbedding()(x)
    for _ in range(2):
        y = layers.LayerNormalization(epsilon=1e-3)(x)
        x = layers.Add()([x, layers.MultiHeadAttention(2, 8, dropout=0.1)(y, y)])
        y = layers.LayerNormalization(epsilon=1e-3)(x)
        y = layers.Dense(16)(layers.Dense(32, activation="gelu")(y))
        x = layers.Add()([x, y])
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


class PositionalEmbedding(keras.layers.Layer):
    """x + a learned vector a position."""

    def build(self, input_shape):
        self.positions = self.add_weight(shape=input_shape[1:], name="positions")

    def call(self, x):
        return x + self.positions


def embedding():
    x = inputs = keras.Input((12,), dtype="int32", name="tokens")
    x = layers.Embedding(50, 8)(x)
    x = layers.Conv1D(8, 3, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(2)(layers.GlobalMaxPooling1D()(x)))


def norms():
    x = inputs = keras.Input((8, 8, 8))
    x = layers.GroupNormalization(2)(x)
    x = layers.Conv2D(8, 3, padding="same")(x)
    x = layers.RMSNormalization()(x)
    x = layers.Conv2D(8, 3, padding="same", activation="elu")(x)
    x = layers.Average()([x, inputs])
    return keras.Model(inputs, layers.Flatten()(x))


BUILDERS = {
    function.__name__: function
    for function in (
        subclassed, nested, two_inputs_two_outputs, conv1d, separable, unet, upsampling,
        squeeze_and_excite, lstm, gru, transformer, embedding, norms,
    )
}  # fmt: skip
