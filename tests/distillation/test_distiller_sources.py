"""Where in the models a Distiller looks: logits, layers inside, inputs by name, padding."""

import keras
import numpy as np
import pytest
from distillation_models import (
    IMAGES,
    X,
    Y,
    as_numpy,
    compiled,
    convnet,
    counting,
    distillation,
    divergence,
    fit,
    hidden,
    logits,
    loss_of,
    mlp,
    pair,
    softmax,
    subclassed,
)
from keras import layers

import tfcompress as tfc
from tfcompress import distillation as kd


@pytest.mark.parametrize("activations", [("softmax", None), (None, "softmax"), ("softmax",) * 2])
def test_logits_are_found_behind_softmax(activations):
    student, teacher = pair()
    plain = distillation(student, teacher)
    students = [student, tfc.flatten(student)]
    if activations[0]:
        inside = mlp(4, "inside", 1, "softmax")
        inside.set_weights(student.get_weights())
        layer = keras.Model(student.input, layers.Softmax()(student.output))
        function = keras.Model(student.input, keras.ops.softmax(student.output))
        nested = keras.Sequential([keras.Input((6,)), inside])
        last = keras.Sequential([student, layers.Activation("softmax")])
        students = [inside, layer, function, nested, last]
    if activations[1]:
        teacher = keras.Model(teacher.input, layers.Activation("softmax")(teacher.output))
    for each in students:
        assert distillation(each, teacher) == pytest.approx(plain, rel=1e-4)


def test_logits_of_subclassed_models_are_found_by_their_values():
    student, teacher = subclassed(4, seed=1), subclassed(8, seed=2)
    plain = divergence(logits(teacher), logits(student), 2.0).mean()
    assert distillation(student, teacher) == pytest.approx(plain, rel=1e-5)
    soft = [subclassed(w, "softmax", s) for w, s in ((4, 1), (8, 2))]
    for model, same in zip(soft, (student, teacher), strict=True):
        model.set_weights(same.get_weights())
    np.testing.assert_allclose(as_numpy(soft[0](X)), softmax(logits(student)), rtol=1e-5)
    assert distillation(soft[0], teacher) == pytest.approx(plain, rel=1e-3)
    assert distillation(student, soft[1]) == pytest.approx(plain, rel=1e-3)
    assert distillation(*soft) == pytest.approx(plain, rel=1e-3)


def test_softmax_before_a_reshape():
    student, teacher = pair()
    x = layers.Reshape((1, 3))(student.output)
    shaped = keras.Model(student.input, layers.Reshape((3,))(layers.Softmax()(x)))
    plain = distillation(student, teacher)
    assert distillation(shaped, teacher) == pytest.approx(plain, rel=1e-4)


def test_sigmoid_outputs():
    student, teacher = pair("sigmoid")
    plain = [mlp(w, "plain", s) for w, s in ((4, 1), (8, 2))]
    t, s = (logits(model) for model in plain[::-1])
    p, q = (1 / (1 + np.exp(-x / 2)) for x in (t, s))
    expected = 4 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()
    assert distillation(student, teacher) == pytest.approx(expected, rel=1e-4)
    sigmoid = kd.SoftLabels(activation="sigmoid")
    assert distillation(*plain, sigmoid) == pytest.approx(expected, rel=1e-4)


def test_features_inside_of_nested_and_subclassed_models():
    student, teacher = mlp(4, "small", 1), mlp(4, "large", 2)
    expected = ((hidden(student) - hidden(teacher)) ** 2).mean()
    nested = keras.Sequential([keras.Input((6,)), layers.Identity(), teacher], name="nested")
    twice = keras.Sequential([keras.Input((6,)), nested])
    loss = kd.Features("hidden", "hidden")
    for each in (teacher, nested, twice):
        assert distillation(student, each, loss) == pytest.approx(expected, rel=1e-5)
    loss = kd.Features("nested/large/hidden", "hidden")
    assert distillation(student, twice, loss) == pytest.approx(expected, rel=1e-5)
    inner = subclassed(4, seed=3)
    loss = kd.Features("hidden", "inner")
    expected = (as_numpy(inner.inner(X)) - hidden(teacher)) ** 2
    assert distillation(inner, twice, loss) == pytest.approx(expected.mean(), rel=1e-5)
    around = keras.Sequential([keras.Input((6,)), inner])
    assert distillation(around, twice, loss) == pytest.approx(expected.mean(), rel=1e-5)


def test_features_by_hand_with_projection_and_sizes():
    student, teacher = convnet(3, "small", 1, stride=2), convnet(5, "large", 2)
    distiller = compiled(tfc.Distiller(student, teacher, kd.Features("conv", "conv"), alpha=0))
    dense = distiller.adapters[0]
    assert tuple(dense.kernel.shape) == (3, 5)
    ours = hidden(student, IMAGES, "conv") @ as_numpy(dense.kernel) + as_numpy(dense.bias)
    theirs = hidden(teacher, IMAGES, "conv")
    small = theirs.reshape(32, 4, 2, 4, 2, 5).mean((2, 4))
    expected = ((ours - small) ** 2).mean()
    assert loss_of(distiller, IMAGES)[0] == pytest.approx(expected, rel=1e-4)
    before = as_numpy(dense.kernel)
    distiller.train_on_batch(IMAGES, Y)
    assert np.abs(before - as_numpy(dense.kernel)).max() > 1e-5


def test_tap_of_a_compressed_layer_is_behind_its_activation():
    plain, teacher = convnet(3, "small", 1), convnet(3, "large", 2)
    loss = kd.Features("conv", "conv")
    expected = distillation(plain, teacher, loss, IMAGES)
    pruned = tfc.compress(plain, [tfc.Rule("*", [tfc.Prune(tfc.schedules.constant(0.0))])])
    assert distillation(pruned, teacher, loss, IMAGES) == pytest.approx(expected, rel=1e-5)
    rounded = tfc.quantize_aware(plain)
    compiled(rounded).fit(IMAGES, Y, verbose=0, epochs=2)
    given = compiled(tfc.Distiller(rounded, teacher, loss, alpha=0))
    outputs, read = given._reader(IMAGES, training=False)
    feature = as_numpy(read[given.terms[0].ours])
    assert feature.min() >= 0  # behind the relu
    assert len(np.unique(feature)) <= 256  # behind the rounding
    assert np.abs(as_numpy(outputs) - as_numpy(rounded(IMAGES))).max() == 0


@pytest.mark.parametrize("eagerly", [False, True])
def test_each_model_runs_once_a_step(eagerly):
    student, ours = counting(4, "small", 1)
    teacher, theirs = counting(8, "large", 2)
    losses = [kd.SoftLabels(), kd.Features("hidden", "hidden"), kd.Relational("hidden", "hidden")]
    distiller = compiled(tfc.Distiller(student, teacher, losses), run_eagerly=eagerly)
    ours.counts.clear()
    theirs.counts.clear()
    fit(distiller, X, Y, epochs=2)
    assert (ours.counts, theirs.counts) == ([8] * 8, [8] * 8)
    distiller.evaluate(X, Y, verbose=0, batch_size=16)
    assert (ours.counts[8:], theirs.counts[8:]) == ([16] * 2, [16] * 2)
    distiller.predict(X, verbose=0, batch_size=32)
    assert (ours.counts[10:], theirs.counts[10:]) == ([32], [])


def test_layers_are_left_without_listeners():
    student, teacher = pair()
    losses = [kd.SoftLabels(), kd.Features("hidden", "hidden")]
    distiller = compiled(tfc.Distiller(student, teacher, losses), run_eagerly=False)
    distiller.train_on_batch(X, Y)
    for model in (student, teacher):
        for layer in model.layers:
            assert "call" not in vars(layer)
    with pytest.raises(ValueError, match="incompatible"):
        distiller(X[:, :3])
    assert not any("call" in vars(layer) for layer in student.layers)


def test_dictionaries_of_inputs():
    def make(width, order):
        keras.utils.set_random_seed(width)
        given = {name: keras.Input((3,), name=name) for name in order}
        x = layers.Concatenate()([given["left"], given["right"]])
        x = layers.Dense(3, name="top")(layers.Dense(width, "tanh", name="hidden")(x))
        return keras.Model(given, x, name=f"m{width}")

    student, teacher = make(4, ("left", "right")), make(8, ("right", "left"))
    x = {"left": X[:, :3], "right": X[:, 3:]}
    expected = divergence(logits(teacher, x), logits(student, x), 2.0).mean()
    assert distillation(student, teacher, x=x) == pytest.approx(expected, rel=1e-5)
    as_list = keras.Model([teacher.input["left"], teacher.input["right"]], teacher.output)
    assert distillation(student, as_list, x=x) == pytest.approx(expected, rel=1e-5)


def two_inputs(order, as_dict, seed):
    keras.utils.set_random_seed(seed)
    given = {name: keras.Input((3,), name=name) for name in order}
    parts = [layers.Dense(3)(given[name]) for name in ("left", "right")]
    outputs = layers.Dense(3, name="top")(layers.Concatenate()(parts))
    return keras.Model(given if as_dict else list(given.values()), outputs, name=f"m{seed}")


def test_inputs_of_lists_and_dictionaries_go_by_name():
    x = {"left": X[:, :3], "right": X[:, 3:]}
    turned = [x["right"], x["left"]]
    student = two_inputs(("left", "right"), True, 1)
    teacher = two_inputs(("right", "left"), False, 2)
    t, s = logits(teacher, turned), logits(student, x)
    expected = divergence(t, s, 2.0).mean()
    assert distillation(student, teacher, x=x) == pytest.approx(expected, rel=1e-5)
    back = divergence(s, t, 2.0).mean()
    assert distillation(teacher, student, x=turned) == pytest.approx(back, rel=1e-5)


def text(width, seed, pooled):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(7, width, mask_zero=True, name="words")(inputs)
    x = layers.LSTM(width, return_sequences=True, name="lstm")(x)
    x = layers.GlobalAveragePooling1D()(x) if pooled else x
    top = layers.Dense(3, kernel_initializer=keras.initializers.RandomNormal(0, 20), name="top")
    return keras.Model(inputs, top(x), name=f"text{width}")


TOKENS = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 6, 0], [1, 1, 1, 0, 0], [6, 5, 4, 3, 2]])


@pytest.mark.slow
@pytest.mark.parametrize("activation", [None, "softmax"])
def test_padding_of_sequences_does_not_count(activation):
    student, teacher = text(4, 1, False), text(6, 2, False)
    t, s = logits(teacher, TOKENS), logits(student, TOKENS)
    mask = TOKENS != 0
    expected = (divergence(t, s, 2.0) * mask).sum() / mask.sum()
    if activation:
        models = [
            keras.Model(m.input, layers.Activation(activation)(m.output))
            for m in (student, teacher)
        ]
    else:
        models = [student, teacher]
    assert distillation(*models, x=TOKENS) == pytest.approx(expected, rel=1e-4)
    labels = np.array([[0, 1, 2, 0, 1]] * 4)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=activation is None)
    alone = compiled(models[0], loss).evaluate(TOKENS, labels, verbose=0)
    both = compiled(tfc.Distiller(*models, alpha=1), loss)
    assert both.evaluate(TOKENS, labels, verbose=0, return_dict=True)["loss"] == pytest.approx(
        alone
    )
    weight = keras.ops.convert_to_tensor(np.array([0.0, 1.0, 2.0, 0.5], "float32"))
    expected = (divergence(t, s, 2.0) * mask * as_numpy(weight)[:, None]).sum() / mask.sum()
    assert distillation(*models, x=TOKENS, sample_weight=weight) == pytest.approx(
        expected, rel=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss",
    [
        kd.Features("lstm", "lstm"),
        kd.AttentionTransfer("lstm", "lstm"),
        kd.Relational("lstm", "lstm"),
        kd.Contrastive("lstm", "lstm"),
    ],
    ids=lambda loss: loss.name,
)
def test_features_of_padded_sequences(loss):
    """What stands at padded positions must not matter."""
    student, teacher = text(4, 1, True), text(6, 2, True)
    weight = keras.ops.convert_to_tensor(np.array([0.0, 1.0, 2.0, 0.5], "float32"))
    distiller = compiled(tfc.Distiller(student, teacher, loss, alpha=0))
    assert np.isfinite(loss_of(distiller, TOKENS, None)[0])
    ones = np.eye(4, dtype="float32")
    each = [loss_of(distiller, TOKENS, None, keras.ops.convert_to_tensor(w))[0] for w in ones]
    assert loss_of(distiller, TOKENS, None)[0] == pytest.approx(sum(each), rel=1e-4)
    expected = np.dot(each, as_numpy(weight))
    assert loss_of(distiller, TOKENS, None, weight)[0] == pytest.approx(expected, rel=1e-4)
