"""Scores of channels from data, against masks, gradients of factors and activations."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from graph_models import normal
from keras import layers, ops
from surgery_models import switch_off_channels

from tfcompress.surgery.base import opened
from tfcompress.surgery.pruning.groups import Structure
from tfcompress.surgery.pruning.judging import objective
from tfcompress.surgery.pruning.scores import score_groups


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


def product(y, y_pred):
    """A loss that is linear in the outputs, so that first-order changes are exact."""
    return ops.sum(y * y_pred, axis=-1)


def shaken(model):
    rng = np.random.default_rng(1)
    for v in model.weights:
        v.assign(
            rng.normal(0.5, 1, v.shape) if "variance" not in v.name else rng.uniform(1, 2, v.shape)
        )
    return model


def mlp(units=5):
    x = keras.Input((4,))
    hidden = layers.Dense(units, activation="relu", name="hidden")(x)
    return shaken(keras.Model(x, layers.Dense(3, name="out")(hidden)))


def residual():
    """One group that two convolutions make, BatchNorms carry, and two layers read."""
    x = keras.Input((6, 6, 2))
    a = layers.Conv2D(4, 3, padding="same", name="first")(x)
    a = layers.ReLU(name="a")(layers.BatchNormalization()(a))
    b = layers.Conv2D(3, 3, padding="same", name="inner")(a)
    b = layers.ReLU(name="b")(layers.BatchNormalization()(b))
    b = layers.Conv2D(4, 1, name="last")(b)
    c = layers.Add(name="c")([a, b])
    return shaken(keras.Model(x, layers.Dense(2, name="out")(layers.GlobalAveragePooling2D()(c))))


def scored(model, score, data, loss=product, **settings):
    return score_groups(Structure(opened(model)), score, data, loss=loss, **settings)


def changes(model, layer, axis, x, y, loss):
    """By how much the loss of each sample falls once one channel that a kernel reads is masked."""
    kernel = layer.kernel
    whole, old = loss(y, model(x)), kernel.numpy()
    found = []
    for channel in range(old.shape[axis]):
        masked = old.copy()
        np.moveaxis(masked, axis, 0)[channel] = 0
        kernel.assign(masked)
        found.append(whole - loss(y, model(x)))
    kernel.assign(old)
    return np.array(found)


def test_taylor_and_fisher_are_the_change_of_a_linear_loss():
    model, x, y = mlp(), normal(8, 4), normal(8, 3)
    lost = changes(model, model.get_layer("out"), 0, x, y, product)
    (taylor,) = scored(model, "taylor", (x, y), batch_size=8).values()
    (fisher,) = scored(model, "fisher", (x, y)).values()
    np.testing.assert_allclose(taylor, np.abs(lost.mean(1)), rtol=1e-4)
    np.testing.assert_allclose(fisher, np.sqrt((lost**2).mean(1)), rtol=1e-4)


def test_batches_of_taylor_count_by_their_samples():
    model, x, y = mlp(), normal(7, 4), normal(7, 3)
    lost = changes(model, model.get_layer("out"), 0, x, y, product)
    wanted = np.sqrt((5 * lost[:, :5].mean(1) ** 2 + 2 * lost[:, 5:].mean(1) ** 2) / 7)
    (taylor,) = scored(model, "taylor", (x, y), batch_size=5).values()
    np.testing.assert_allclose(taylor, wanted, rtol=1e-4)


def test_heads_of_attention():
    x = keras.Input((5, 8))
    attended = layers.MultiHeadAttention(4, 3, name="attention")(x, x)
    model = shaken(keras.Model(x, layers.Dense(2)(layers.Flatten()(attended))))
    x, y = normal(6, 5, 8), normal(6, 2)
    kernel = model.get_layer("attention").output_dense
    lost = changes(model, kernel, 0, x, y, product)
    structure = Structure(opened(model))
    (heads,) = [name for name, group in structure.prunable().items() if group.unit == "heads"]
    found = score_groups(structure, "fisher", (x, y), loss=product)[heads]
    np.testing.assert_allclose(found, np.sqrt((lost**2).mean(1)), rtol=1e-3)


def test_channels_that_no_layer_reads():
    """Two tensors are multiplied over channels: half of the change is due to either."""
    x = keras.Input((3, 4))
    q, k = (layers.Dense(5, name=name)(x) for name in "qk")
    y = layers.Flatten()(ops.matmul(q, ops.transpose(k, (0, 2, 1))))
    model = shaken(keras.Model(x, y))
    x, y = normal(6, 3, 4), normal(6, 9)
    q, k = (keras.Model(model.input, model.get_layer(n).output)(x).numpy() for n in "qk")
    lost = np.einsum("nij,nic,njc->nc", y.reshape(6, 3, 3), q, k)
    (found,) = scored(model, "fisher", (x, y)).values()
    np.testing.assert_allclose(found, 2 * np.sqrt((lost**2).mean(0)), rtol=1e-3)
    (zeros,) = scored(model, "apoz", x, None).values()
    np.testing.assert_array_equal(zeros, np.ones(5))


def gates_of(model, x, y):
    """Gradients, by sample, of factors on what layers of `residual` read."""
    a, b = (keras.Model(model.input, model.get_layer(n).output)(x) for n in "ab")
    inner, last, out = (model.get_layer(n) for n in ("inner", "last", "out"))
    norm = model.layers[model.layers.index(inner) + 1]
    factors = [tf.ones((len(x), n)) for n in (4, 4, 3)]
    with tf.GradientTape() as tape:
        tape.watch(factors)
        read, pooled, narrow = (f[:, None, None] for f in factors)
        b = ops.relu(norm(inner(a * read), training=False))
        c = (a + last(b * narrow)) * pooled
        loss = ops.mean(keras.losses.mean_squared_error(y, out(ops.mean(c, (1, 2)))))
    read, pooled, narrow = (len(x) * g.numpy() for g in tape.gradient(loss, factors))
    return {"first": read + pooled, "inner": narrow}


def test_a_group_with_several_readers_sums_what_they_read():
    model, x, y = residual(), normal(6, 6, 6, 2), normal(6, 2)
    gates = gates_of(model, x, y)
    taylor = scored(model, "taylor", (x, y), "mse", batch_size=3)
    fisher = scored(model, "fisher", (x, y), "mse")
    assert taylor.keys() == gates.keys() == fisher.keys()
    for name, gate in gates.items():
        means = gate.reshape(2, 3, -1).mean(1)
        np.testing.assert_allclose(taylor[name], np.sqrt((means**2).mean(0)), rtol=1e-3)
        np.testing.assert_allclose(fisher[name], np.sqrt((gate**2).mean(0)), rtol=1e-3)


@pytest.mark.parametrize("score", ["taylor", "fisher"])
def test_frozen_layers_and_penalties_do_not_matter(score):
    model, data = residual(), (normal(4, 6, 6, 2), normal(4, 2))
    wanted = scored(model, score, data, "mse")
    model.trainable = False
    model.get_layer("out").kernel.regularizer = keras.regularizers.L2(1.0)
    found = scored(model, score, data, "mse")
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5)


@pytest.mark.parametrize("score", ["taylor", "fisher", "apoz"])
def test_channels_of_zeros_are_the_lowest(score):
    structure = Structure(opened(residual()))
    for group in structure.prunable().values():
        switch_off_channels(group, [1])
    data = normal(4, 6, 6, 2), normal(4, 2)
    for values in score_groups(structure, score, data, loss="mse").values():
        assert values[1] == 0
        assert np.delete(values, 1).min() > 0


def test_apoz_is_the_share_of_values_that_are_not_zero():
    model, x = residual(), normal(7, 6, 6, 2)
    a, c, b = (keras.Model(model.input, model.get_layer(n).output)(x).numpy() for n in "acb")
    pooled = c.mean((1, 2))  # what "out" reads
    zeros = (a == 0).sum((0, 1, 2)) + (pooled == 0).sum(0)
    found = scored(model, "apoz", x, None, batch_size=3)
    np.testing.assert_allclose(found["first"], 1 - zeros / (7 * 36 + 7), rtol=1e-6)
    np.testing.assert_allclose(found["inner"], 1 - (b == 0).mean((0, 1, 2)), rtol=1e-6)
    assert 0 < found["inner"].min() < 1


def test_apoz_looks_at_flattened_and_concatenated_channels():
    x = keras.Input((4, 4, 2))
    a = layers.Conv2D(3, 3, activation="relu", name="a")(x)
    b = layers.Conv2D(2, 3, activation="relu", name="b")(x)
    both = layers.Flatten()(layers.Concatenate()([a, b]))
    model = shaken(keras.Model(x, layers.Dense(2)(both)))
    x = normal(9, 4, 4, 2)
    found = scored(model, "apoz", x, None)
    for name in "ab":
        values = keras.Model(model.input, model.get_layer(name).output)(x).numpy()
        np.testing.assert_allclose(found[name], (values != 0).mean((0, 1, 2)), rtol=1e-6)


def two_inputs():
    a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    x = layers.Concatenate()([layers.Dense(4, name="left")(a), layers.Dense(5, name="right")(b)])
    y, z = layers.Dense(2, name="y")(x), layers.Dense(1, name="z")(x)
    return shaken(keras.Model({"a": a, "b": b}, {"y": y, "z": z}))


class Pairs(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return 2

    def __getitem__(self, i):
        return keras.tree.map_structure(lambda a: a[4 * i : 4 * i + 4], (self.x, self.y))


@pytest.mark.parametrize("score", ["taylor", "apoz"])
def test_forms_of_data(score):
    model = two_inputs()
    x, y = {"a": normal(8, 4), "b": normal(8, 3)}, {"y": normal(8, 2), "z": normal(8, 1)}
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    model.compile(loss={"y": "mse", "z": "mae"}, loss_weights={"y": 1.0, "z": 3.0})
    loss = objective(model)
    wanted = scored(model, score, (x, y), loss, batch_size=4)
    assert set(wanted) == {"left", "right"}
    for data in (iter(dataset), Pairs(x, y)):
        found = scored(model, score, data, loss, batch_size=4)
        for name, values in wanted.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-5)


def test_weights_of_losses_and_of_samples_count():
    model = two_inputs()
    x, y = {"a": normal(8, 4), "b": normal(8, 3)}, {"y": normal(8, 2), "z": normal(8, 1)}
    only_y = keras.Model(model.input, {"y": model.output["y"]})
    half = keras.tree.map_structure(lambda a: a[:4], (x, {"y": y["y"]}))
    wanted = scored(only_y, "taylor", half, {"y": "mse"})
    model.compile(loss={"y": "mse", "z": "mse"}, loss_weights={"y": 1.0, "z": 0.0})
    first = np.float32([1, 1, 1, 1, 0, 0, 0, 0])
    found = scored(model, "taylor", (x, y, first), objective(model), batch_size=4)
    for name, values in wanted.items():  # of the two batches the second has no gradients
        np.testing.assert_allclose(np.sqrt(2) * found[name], values, rtol=1e-5)


def test_samples_are_spread_over_arrays_and_the_first_of_datasets():
    model, x, y = mlp(), normal(9, 4), normal(9, 3)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(2).repeat()
    for data, rows in (((x, y), [0, 4, 8]), (dataset, [0, 1, 2])):
        (wanted,) = scored(model, "fisher", (x[rows], y[rows])).values()
        (found,) = scored(model, "fisher", data, samples=3).values()
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_errors():
    model, x, y = mlp(), normal(8, 4), normal(8, 3)
    data = tf.data.Dataset.from_tensor_slices((x, y))
    for score in ("taylor", "fisher", "apoz"):
        with pytest.raises(ValueError, match=r"needs data; received none.*needs none: l1, l2"):
            scored(model, score, None)
    with pytest.raises(ValueError, match=r"needs labels.*Pass \(x, y\)"):
        scored(model, "taylor", x)
    with pytest.raises(ValueError, match="not compiled with one"):
        scored(model, "taylor", (x, y), None)
    with pytest.raises(ValueError, match="unknown loss 'msee'"):
        scored(model, "taylor", (x, y), "msee")
    with pytest.raises(ValueError, match="must come in batches"):
        scored(model, "apoz", data)
    with pytest.raises(ValueError, match="received a dataset without"):
        scored(model, "apoz", data.batch(2).repeat())
    with pytest.raises(ValueError, match="at least one sample"):
        scored(model, "apoz", x[:0])
    with pytest.raises(ValueError, match="same number of samples"):
        scored(model, "taylor", (x, y[:3]))
    with pytest.raises(ValueError, match=r"expected \(samples, 4\)"):
        scored(model, "apoz", x[:, :3])
    with pytest.raises(TypeError, match="batched dataset, as for"):
        scored(model, "apoz", 3)
    with pytest.raises(ValueError, match="finite"):
        scored(model, "taylor", (x, y * np.inf))
