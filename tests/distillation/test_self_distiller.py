"""SelfDistiller by its values: heads after early layers, taught by the model's own output."""

import keras
import numpy as np
import pytest
from distillation_models import (
    IMAGES,
    WEIGHTS,
    X,
    Y,
    as_numpy,
    assert_same,
    compiled,
    crossentropy,
    divergence,
    fit,
    log_softmax,
    subclassed,
    weights_of,
)
from keras import layers

import tfcompress as tfc
from tfcompress import distillation as kd


def deep(activation=None, seed=0):
    """Three layers for X: "first", "second", "third"; and "top"."""
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((6,))
    for name, width in (("first", 5), ("second", 4), ("third", 4)):
        x = layers.Dense(width, "tanh", name=name)(x)
    return keras.Model(inputs, layers.Dense(3, activation=activation, name="top")(x), name="deep")


def inside(model, name, x=X):
    return as_numpy(keras.Model(model.input, model.get_layer(name).output)(x))


def by_hand(trainer, alpha, temperature, weight=1.0):
    """(task, list of the losses of heads)."""
    model = trainer.student
    own = as_numpy(model(X))
    shares = []
    for name, head in zip(trainer.shallow, trainer.heads, strict=True):
        logits = as_numpy(head(inside(model, name)))
        task = (weight * crossentropy(Y, logits)).mean()
        soft = (weight * divergence(own, logits, temperature)).mean()
        shares.append(alpha * task + (1 - alpha) * soft)
    return (weight * crossentropy(Y, own)).mean(), shares


@pytest.mark.parametrize("weight", [None, WEIGHTS])
def test_loss_by_hand(weight):
    model = deep()
    trainer = compiled(tfc.SelfDistiller(model, ["first", "third"], alpha=0.3, temperature=2.0))
    task, shares = by_hand(trainer, 0.3, 2.0, 1.0 if weight is None else weight)
    found = trainer.test_on_batch(X, Y, weight, return_dict=True)
    assert found["task_loss"] == pytest.approx(task, rel=1e-4)
    assert found["first_loss"] == pytest.approx(shares[0], rel=1e-4)
    assert found["third_loss"] == pytest.approx(shares[1], rel=1e-4)
    assert found["loss"] == pytest.approx(task + sum(shares), rel=1e-4)


def test_step_by_hand():
    """The model's own output is the teacher: no gradient of soft labels flows into it."""
    import tensorflow as tf

    model = deep()
    trainer = compiled(tfc.SelfDistiller(model, "second", alpha=0.3, temperature=2.0))
    head = trainer.heads[0]
    until = keras.Model(model.input, [model.get_layer("second").output, model.output])
    with tf.GradientTape() as tape:
        feature, own = until(X)
        logits = head(feature)
        p = tf.stop_gradient(tf.nn.softmax(own / 2.0))
        gaps = p * (tf.math.log(p) - tf.nn.log_softmax(logits / 2.0))
        soft = 4.0 * tf.reduce_mean(tf.reduce_sum(gaps, axis=-1))
        tasks = [
            tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(Y, x))
            for x in (own, logits)
        ]
        loss = tasks[0] + 0.3 * tasks[1] + 0.7 * soft
    variables = model.trainable_variables + head.trainable_variables
    gradients = tape.gradient(loss, [v.value for v in variables])
    expected = [as_numpy(v) - 0.1 * as_numpy(g) for v, g in zip(variables, gradients, strict=True)]
    trainer.train_on_batch(X, Y)
    assert_same([as_numpy(v) for v in variables], expected, 1e-6)


def test_hints_from_deep_to_shallow():
    model = deep()
    losses = [kd.SoftLabels(), kd.Features("third", "first", weight=0.5)]
    trainer = compiled(tfc.SelfDistiller(model, ["first"], losses, alpha=0.3, temperature=2.0))
    task, shares = by_hand(trainer, 0.3, 2.0)
    dense = trainer.adapters[0]
    assert tuple(dense.kernel.shape) == (5, 4)
    projected = inside(model, "first") @ as_numpy(dense.kernel) + as_numpy(dense.bias)
    hint = 0.5 * ((projected - inside(model, "third")) ** 2).mean()
    found = trainer.test_on_batch(X, Y, return_dict=True)
    assert found["loss"] == pytest.approx(task + sum(shares) + 0.7 * hint, rel=1e-4)
    before = as_numpy(dense.kernel)
    trainer.train_on_batch(X, Y)
    assert np.abs(before - as_numpy(dense.kernel)).max() > 1e-6


@pytest.mark.slow
def test_model_and_exits_learn(tmp_path):
    model = deep("softmax")
    trainer = compiled(
        tfc.SelfDistiller(model, ["first", "second"]),
        "sparse_categorical_crossentropy",
        keras.optimizers.Adam(0.02),
        run_eagerly=False,
    )
    assert trainer.student is model
    models = [model, trainer.early_exit("first"), trainer.early_exit("second")]
    before = [-np.log(as_numpy(m(X))[np.arange(32), Y]).mean() for m in models]
    fit(trainer, X, Y, epochs=5)
    after = [-np.log(as_numpy(m(X))[np.arange(32), Y]).mean() for m in models]
    assert all(new < old for new, old in zip(after, before, strict=True))
    np.testing.assert_array_equal(trainer.predict(X, verbose=0), model.predict(X, verbose=0))
    for name, head, early in zip(trainer.shallow, trainer.heads, models[1:], strict=True):
        logits = as_numpy(head(inside(model, name)))
        np.testing.assert_allclose(as_numpy(early(X)), np.exp(log_softmax(logits)), rtol=1e-4)
    assert [layer.name for layer in models[1].layers].count("second") == 0
    models[1].save(tmp_path / "early.keras")
    loaded = keras.models.load_model(tmp_path / "early.keras")
    np.testing.assert_array_equal(as_numpy(loaded(X)), as_numpy(models[1](X)))
    trainer.save(tmp_path / "trainer.keras")
    loaded = keras.models.load_model(tmp_path / "trainer.keras")
    assert_same(loaded, trainer)
    assert fit(loaded, X, Y) == fit(trainer, X, Y)
    np.testing.assert_array_equal(
        as_numpy(loaded.early_exit("second")(X)), as_numpy(trainer.early_exit("second")(X))
    )


def test_heads_of_maps_and_of_ones_own():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(4, 3, activation="relu", name="maps")(inputs)
    x = layers.Conv2D(5, 3, activation="relu", name="more")(x)
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalMaxPooling2D()(x)))
    trainer = compiled(tfc.SelfDistiller(model, ["maps"]))
    dense = trainer.heads[0].layers[-1]
    expected = inside(model, "maps", IMAGES).mean((1, 2)) @ as_numpy(dense.kernel)
    found = as_numpy(trainer.early_exit("maps")(IMAGES))
    np.testing.assert_allclose(found, expected + as_numpy(dense.bias), atol=1e-5)
    own = keras.Sequential([layers.Flatten(), layers.Dropout(0.5), layers.Dense(3)])
    trainer = compiled(tfc.SelfDistiller(model, ["more"], heads=[own]))
    assert trainer.heads == [own]
    before = weights_of(own)
    fit(trainer, IMAGES, Y)
    assert np.abs(before[0] - weights_of(own)[0]).max() > 1e-5


def test_early_exit_takes_the_inputs_of_the_model():
    inputs = {name: keras.Input((3,), name=name) for name in ("left", "right")}
    x = layers.Dense(4, name="first")(layers.Concatenate()(list(inputs.values())))
    model = keras.Model(inputs, layers.Dense(3)(x))
    early = tfc.SelfDistiller(model, ["first"]).early_exit("first")
    assert set(early.input) == {"left", "right"}
    assert early({"left": X[:, :3], "right": X[:, 3:]}).shape == (32, 3)


def with_auxiliary(activation):
    """A model with a classifier after its first layer already."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = layers.Dense(5, "tanh", name="first")(inputs)
    aux = layers.Dense(3, activation=activation, name="aux")(x)
    x = layers.Concatenate()([layers.Dense(4, "tanh")(x), aux])
    return keras.Model(inputs, layers.Dense(3, activation=activation, name="top")(x))


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_layer_that_is_a_head_already(activation):
    model = with_auxiliary(activation)
    trainer = tfc.SelfDistiller(model, ["aux"], alpha=0.3, temperature=2.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=activation is None)
    compiled(trainer, loss)
    aux, own = inside(model, "aux"), as_numpy(model(X))
    if activation:
        aux, own = np.log(aux), np.log(own)
    expected = 0.3 * crossentropy(Y, aux).mean() + 0.7 * divergence(own, aux, 2.0).mean()
    found = trainer.test_on_batch(X, Y, return_dict=True)
    assert found["aux_loss"] == pytest.approx(expected, rel=1e-3)
    np.testing.assert_allclose(
        as_numpy(trainer.early_exit("aux")(X)), inside(model, "aux"), rtol=1e-5
    )


def test_subclassed_model_that_gives_probabilities():
    """Heads must give probabilities, too: the loss of compile is about these."""
    model = subclassed(4, "softmax", 1)
    trainer = tfc.SelfDistiller(model, ["inner"], alpha=1.0)
    compiled(trainer, "sparse_categorical_crossentropy")
    head = as_numpy(trainer.heads[0](model.inner(X)))
    found = trainer.test_on_batch(X, Y, return_dict=True)
    assert found["inner_loss"] == pytest.approx(crossentropy(Y, head).mean(), rel=1e-4)


def test_unlabelled_data():
    trainer = compiled(tfc.SelfDistiller(deep(), ["first"], alpha=0), loss=None)
    history = fit(trainer, X, epochs=4)
    assert history["loss"][-1] < history["loss"][0]


def test_compressed_model():
    rules = [tfc.Rule("*", [tfc.Prune(tfc.schedules.linear(0.0, 0.5, end=6), scope="layer")])]
    model = tfc.compress(deep(), rules)
    trainer = compiled(tfc.SelfDistiller(model, ["first"]))
    fit(trainer, X, Y, epochs=2, callbacks=[tfc.UpdateCompression()])
    final = tfc.finalize(trainer.student)
    for name in ("first", "second", "third", "top"):
        kernel = as_numpy(final.get_layer(name).kernel)
        assert (kernel == 0).sum() == kernel.size // 2
    np.testing.assert_allclose(as_numpy(final(X)), as_numpy(trainer(X)), atol=1e-6)


def test_regression():
    model = deep()
    trainer = tfc.SelfDistiller(model, ["first"], "mae", alpha=0.25)
    compiled(trainer, "mse")
    target = np.ones((32, 3), "float32")
    head, own = as_numpy(trainer.heads[0](inside(model, "first"))), as_numpy(model(X))
    expected = 0.25 * ((head - 1) ** 2).mean() + 0.75 * np.abs(head - own).mean()
    found = trainer.test_on_batch(X, target, return_dict=True)
    assert found["first_loss"] == pytest.approx(expected, rel=1e-4)
    assert found["loss"] == pytest.approx(expected + ((own - 1) ** 2).mean(), rel=1e-4)


def test_refuses():
    model = deep()

    def refused(message, *args, error=ValueError, **kwargs):
        with pytest.raises(error, match=message):
            tfc.SelfDistiller(*args, **kwargs)

    refused("shallow must name one layer or more", model, [])
    refused("no layer named 'frist'.*Did you mean 'first'", model, ["frist"])
    refused("heads must be 1 layers.*received 2", model, ["first"], heads=[layers.Dense(3)] * 2)
    refused(r"\(None, 4\).*expected the same", model, ["first"], heads=[layers.Dense(4)])
    refused("Add SoftLabels", model, ["first"], kd.Features("third", "first"))
    refused("alpha", model, ["first"], alpha=-1)
    refused("temperature", model, ["first"], temperature=0)
    refused("model", "model", ["first"], error=TypeError)
    refused("not built", keras.Sequential([layers.Dense(2)]), ["first"])
    two = keras.Model(model.input, [model.output, model.get_layer("third").output], name="two")
    refused("one output; 'two' has 2", two, ["first"])
    trainer = tfc.SelfDistiller(model, ["first"])
    with pytest.raises(ValueError, match=r"no head after 'third'; expected one of \['first'\]"):
        trainer.early_exit("third")
    with pytest.raises(ValueError, match=r"subclassed model.*tfcompress\.flatten"):
        tfc.SelfDistiller(subclassed(), ["inner"]).early_exit("inner")
