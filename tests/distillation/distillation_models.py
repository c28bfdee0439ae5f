"""Small teachers and students, their data, and the arithmetic of distillation in NumPy."""

import keras
import numpy as np
from keras import layers

import tfcompress as tfc

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(32, 6)).astype("float32")
Y = RANDOM.integers(0, 3, 32)
WEIGHTS = RANDOM.uniform(0.2, 2.0, 32).astype("float32")
IMAGES = RANDOM.normal(size=(32, 8, 8, 2)).astype("float32")


def mlp(width, name, seed=0, activation=None, **dense):
    """Dense layers "hidden" and "top", for X."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,), name="features")
    x = layers.Dense(width, activation="relu", name="hidden", **dense)(inputs)
    return keras.Model(inputs, layers.Dense(3, activation=activation, name="top")(x), name=name)


def pair(activation=None):
    """A student and a teacher that differ in width."""
    return mlp(4, "small", 1, activation), mlp(8, "large", 2, activation)


def convnet(width, name, seed=0, stride=1):
    """Layers "conv", "norm", "pool" and "top" for IMAGES."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(width, 3, stride, padding="same", activation="relu", name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(3, name="top")(x), name=name)


def two_headed(width, name, seed=0, names=("kind", "size"), as_dict=False):
    """Three classes and two numbers, for X."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,))
    x = layers.Dense(width, activation="tanh", name="hidden")(inputs)
    outputs = [layers.Dense(3, name=names[0])(x), layers.Dense(2, name=names[1])(x)]
    if as_dict:
        outputs = dict(zip(names, outputs, strict=True))
    return keras.Model(inputs, outputs, name=name)


@keras.saving.register_keras_serializable("tests")
class Wrapped(keras.Model):
    """A subclassed model around others."""

    def __init__(self, width=4, activation=None, **kwargs):
        super().__init__(**kwargs)
        self.width, self.activation = width, activation
        self.inner = layers.Dense(width, activation="relu", name="inner")
        self.top = layers.Dense(3, name="top")

    def call(self, inputs):
        x = self.top(self.inner(inputs))
        return keras.ops.softmax(x) if self.activation == "softmax" else x

    def get_config(self):
        return {**super().get_config(), "width": self.width, "activation": self.activation}


def subclassed(width=4, activation=None, seed=0, name="subclassed"):
    keras.utils.set_random_seed(seed)
    model = Wrapped(width, activation, name=name)
    model(X[:1])
    return model


def compiled(model, loss="labels", optimizer=None, **kwargs):
    """Eagerly by default: tracing takes longer than the few steps of a test."""
    settings = {"run_eagerly": True, "jit_compile": False, **kwargs}
    if loss == "labels":
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.SGD(0.1), loss, **settings)
    return model


def fit(model, *data, **kwargs):
    settings = {"batch_size": 8, "epochs": 1, "verbose": 0, "shuffle": False, **kwargs}
    return model.fit(*data, **settings).history


def weights_of(model):
    return [keras.ops.convert_to_numpy(v).copy() for v in model.variables]


def assert_same(a, b, atol=0.0):
    a, b = (weights_of(m) if isinstance(m, keras.Model) else m for m in (a, b))
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(one, other, atol=atol)


def as_numpy(tensor):
    return keras.ops.convert_to_numpy(tensor).astype("float64")


def log_softmax(x):
    x = np.asarray(x, "float64") - np.max(x, axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def softmax(x):
    return np.exp(log_softmax(x))


def divergence(teacher, student, temperature):
    """temperature^2 * KL of each sample, from logits."""
    p, q = log_softmax(teacher / temperature), log_softmax(student / temperature)
    return temperature**2 * (np.exp(p) * (p - q)).sum(-1)


def crossentropy(labels, logits):
    """Of each sample."""
    return -log_softmax(logits)[np.arange(len(labels)), labels]


def loss_of(distiller, x=X, y=Y, sample_weight=None, training=False):
    """The loss of one batch and the parts that are reported."""
    distiller.reset_metrics()
    outputs = distiller(x, training=training)
    loss = distiller.compute_loss(x, y, outputs, sample_weight, training=training)
    return float(loss), {tracker.name: float(tracker.result()) for tracker in distiller.trackers}


def logits(model, x=X):
    return as_numpy(model(x, training=False))


def distillation(student, teacher, losses=None, x=X, sample_weight=None, **kwargs):
    """The part of the loss without labels, alone."""
    distiller = tfc.Distiller(student, teacher, losses, alpha=0, **kwargs)
    return loss_of(compiled(distiller), x, None, sample_weight)[0]


def hidden(model, x=X, layer="hidden"):
    return as_numpy(keras.Model(model.input, model.get_layer(layer).output)(x))


class Counting(layers.Layer):
    """Counts the times that it really runs."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.counts = []

    def call(self, inputs):
        import tensorflow as tf

        def count(x):
            self.counts.append(len(x))
            return x

        outputs = tf.numpy_function(count, [inputs], inputs.dtype)
        outputs.set_shape(inputs.shape)
        return outputs

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape, inputs.dtype)


def counting(width, name, seed):
    inner = mlp(width, name, seed)
    counter = Counting(name="counter")
    inputs = keras.Input((6,))
    return keras.Model(inputs, inner(counter(inputs)), name=f"counting_{name}"), counter
