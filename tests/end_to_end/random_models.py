"""Random small graphs of the operations that integer files are made of, by a seed."""

import keras
import numpy as np
from keras import layers, ops

SHAPE = (8, 8, 4)


def random_model(seed: int, steps: int = 7) -> keras.Model:
    """A model of one input of SHAPE whose structure and weights follow from the seed."""
    random = np.random.default_rng(seed)
    keras.utils.set_random_seed(seed)
    inputs = keras.Input(SHAPE, name="x")
    pool = [layers.Conv2D(4, 3, padding="same")(inputs)]
    if random.random() < 0.5:
        pool.append(inputs)
    for _ in range(steps):
        step = STEPS[random.integers(len(STEPS))]
        x = pool[random.integers(max(0, len(pool) - 2), len(pool))]
        pool.append(step(random, x, pool))
    outputs = [_head(random, x) for x in pool[-1:] + ([pool[1]] if random.random() < 0.3 else [])]
    model = keras.Model(inputs, outputs if len(outputs) > 1 else outputs[0], name=f"random{seed}")
    _randomize(model, random)
    return model


def batches(seed: int, count: int = 2, size: int = 16) -> list[np.ndarray]:
    """Inputs of the model of a seed."""
    random = np.random.default_rng(1000 + seed)
    return [random.normal(size=(size, *SHAPE)).astype("float32") for _ in range(count)]


def _randomize(model, random):
    """Statistics, scales and biases that are not 0 or 1."""
    for layer in model.layers:
        for variable in layer.weights:
            shape = tuple(variable.shape)
            if variable.name in ("gamma", "moving_variance"):
                variable.assign(random.uniform(0.5, 1.5, shape))
            elif variable.name in ("beta", "bias", "moving_mean", "alpha"):
                variable.assign(random.normal(0, 0.2, shape))


def _head(random, x):
    choice = random.integers(5)
    if choice == 0:
        return layers.Dense(5, activation="softmax")(layers.GlobalAveragePooling2D()(x))
    if choice == 1:
        return layers.Dense(5)(layers.Flatten()(x))
    if choice == 2:
        return layers.Dense(3, activation="sigmoid")(layers.GlobalMaxPooling2D()(x))
    return x if choice == 3 else layers.Conv2D(2, 1)(x)


def _finish(random, x):
    """Perhaps a BatchNormalization, perhaps an activation."""
    if random.random() < 0.6:
        x = layers.BatchNormalization()(x)
    names = [None, None, "relu", "relu", "relu6", "leaky_relu", "tanh", "sigmoid", "elu"]
    names += ["hard_silu", "silu", "gelu", "hard_sigmoid"]
    name = names[random.integers(len(names))]
    return x if name is None else layers.Activation(name)(x)


def _conv(random, x, pool):
    size = int(random.choice([1, 3]))
    strides = int(random.choice([1, 1, 2]))
    padding = str(random.choice(["same", "valid"])) if min(x.shape[1:3]) >= 3 else "same"
    filters = int(random.choice([3, 4, 6]))
    return _finish(random, layers.Conv2D(filters, size, strides, padding)(x))


def _depthwise(random, x, pool):
    multiplier = int(random.choice([1, 1, 2])) if x.shape[-1] < 8 else 1
    layer = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=multiplier)
    return _finish(random, layer(x))


def _transposed(random, x, pool):
    if x.shape[1] > 8:
        return _conv(random, x, pool)
    layer = layers.Conv2DTranspose(4, 3, int(random.choice([1, 2])), padding="same")
    return _finish(random, layer(x))


def _alike(x, pool):
    """Tensors of the shape of `x`; at least one."""
    found = [t for t in pool if t.shape == x.shape and t is not x]
    return found or [layers.Conv2D(x.shape[-1], 1)(x)]


def _merge(random, x, pool):
    kinds = [layers.Add, layers.Multiply, layers.Subtract, layers.Maximum, layers.Average]
    kind = kinds[random.integers(len(kinds))]
    others = _alike(x, pool)
    y = kind()([x, others[random.integers(len(others))]])
    return layers.ReLU()(y) if random.random() < 0.3 else y


def _concat(random, x, pool):
    others = [t for t in pool if t.shape[1:3] == x.shape[1:3]]
    other = others[random.integers(len(others))]
    return layers.Concatenate()([x, other]) if x.shape[-1] + other.shape[-1] < 20 else x


def _pool(random, x, pool):
    if min(x.shape[1:3]) < 4:
        return layers.UpSampling2D(2)(x)
    kind = [layers.MaxPooling2D, layers.AveragePooling2D][random.integers(2)]
    return kind(2, padding=str(random.choice(["same", "valid"])))(x)


def _shape(random, x, pool):
    height, width, channels = x.shape[1:]
    choice = random.integers(6)
    if choice == 0:
        return layers.ZeroPadding2D(1)(x) if height < 12 else layers.Cropping2D(1)(x)
    if choice == 1:
        return layers.Permute((2, 1, 3))(x)
    if choice == 2:
        return layers.Reshape((width, height, channels))(x)
    if choice == 3 and height < 10:
        kind = str(random.choice(["nearest", "bilinear"]))
        return layers.UpSampling2D(2, interpolation=kind)(x)
    if choice == 4 and channels > 1:
        return x[..., : channels - 1]
    return layers.Dropout(0.1)(x)


def _alone(random, x, pool):
    choice = random.integers(5)
    if choice == 0:
        return layers.BatchNormalization()(x)
    if choice == 1:
        return layers.Rescaling(0.5, offset=0.25)(x)
    if choice == 2:
        # Behind a Permute, which TFLiteConverter moves into it, it would be no PRELU any more.
        return layers.PReLU(shared_axes=[1, 2])(layers.Conv2D(x.shape[-1], 1)(x))
    if choice == 3:
        return ops.multiply(x, 0.5)
    return layers.LayerNormalization(epsilon=1e-2)(x) if random.random() < 0.3 else ops.relu(x)


STEPS = [
    _conv, _conv, _conv, _depthwise, _depthwise, _transposed, _merge, _merge, _concat, _concat,
    _pool, _shape, _shape, _alone,
]  # fmt: skip
