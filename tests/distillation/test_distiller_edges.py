"""Distillation where the data or models are out of the ordinary: masks, caches, odd numbers."""

import keras
import numpy as np
import pytest
from distillation_models import IMAGES, RANDOM, WEIGHTS, X, Y, compiled, fit, mlp, pair
from keras import layers, ops

import tfcompress as tfc
from tfcompress import distillation as kd

TOKENS = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 6, 0], [1, 1, 1, 0, 0], [6, 5, 4, 3, 2]])


def loss_of(distiller, x):
    return distiller.evaluate(x, verbose=0, return_dict=True)["loss"]


def text(width, seed, masked=True):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(7, width, mask_zero=masked)(inputs)
    x = layers.Dense(width, bias_initializer="ones", name="mid")(x)
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


@pytest.mark.slow
@pytest.mark.parametrize("masked", [(True, True), (False, True)])
@pytest.mark.parametrize(
    "loss",
    [kd.Features, kd.AttentionTransfer, kd.Relational, kd.Contrastive],
)
def test_cache_gives_back_masks(loss, masked):
    losses = []
    for cache in (None, "memory"):
        student, teacher = text(4, 1, masked[0]), text(4, 2, masked[1])
        keras.utils.set_random_seed(0)
        distiller = tfc.Distiller(student, teacher, loss("mid", "mid"), alpha=0.0, cache=cache)
        losses.append(fit(compiled(distiller, None), TOKENS, epochs=2)["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_padding_of_either_model_counts_for_both():
    """The same weights, but one of the models does not mask."""
    plain, masking = text(4, 1, False), text(4, 1, True)
    distiller = tfc.Distiller(plain, masking, kd.Features("mid", "mid"), alpha=0.0)
    assert loss_of(compiled(distiller, None), TOKENS) == pytest.approx(0, abs=1e-9)


@keras.saving.register_keras_serializable("tests")
class Scaled(keras.Model):
    """What it computes shows in its config alone."""

    def __init__(self, factor):
        super().__init__()
        self.factor, self.dense = factor, layers.Dense(3)

    def call(self, x):
        return self.dense(ops.mean(x, 1) * self.factor)

    def get_config(self):
        return {"factor": self.factor}


def recurrent(make):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((5, 2))
    return keras.Model(inputs, layers.Dense(3)(make()(inputs)))


def joined(mode):
    return layers.Bidirectional(layers.GRU(4), merge_mode=mode)


def scaled(factor):
    keras.utils.set_random_seed(3)
    model = Scaled(factor)
    model(np.zeros((1, 5, 2), "float32"))
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "old", "new"),
    [
        (lambda back: recurrent(lambda: layers.LSTM(4, go_backwards=back)), False, True),
        (lambda mode: recurrent(lambda: joined(mode)), "sum", "ave"),
        (scaled, 1.0, 5.0),
    ],
    ids=["lstm", "bidirectional", "subclassed"],
)
def test_cache_of_a_teacher_with_other_settings_is_refused(make, old, new, tmp_path):
    x = RANDOM.normal(size=(8, 5, 2)).astype("float32")

    def train(teacher):
        student = recurrent(layers.Flatten)
        distiller = tfc.Distiller(student, teacher, alpha=0.0, cache=tmp_path / "teacher.h5")
        fit(compiled(distiller, None), x)

    train(make(old))
    train(make(old))
    with pytest.raises(ValueError, match="another teacher"):
        train(make(new))


def test_samples_without_any_feature_have_no_gradient():
    loss = kd.Contrastive()
    student = ops.convert_to_tensor(np.concatenate([np.zeros((1, 4)), RANDOM.normal(size=(7, 4))]))
    student = keras.Variable(ops.cast(student, "float32"))
    teacher = RANDOM.normal(size=(8, 4)).astype("float32")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("gradients by TensorFlow")
    import tensorflow as tf

    with tf.GradientTape() as tape:
        value = loss(teacher, student.value)
    gradient = tape.gradient(value, student.value).numpy()
    assert np.abs(gradient[0]).max() == 0
    assert 0 < np.abs(gradient).max() < 10


def test_probabilities_in_half_precision():
    teacher = mlp(8, "large", 2)
    inputs = keras.Input((6,))
    x = layers.Dense(3, name="top")(inputs)
    # Behind the Permute the logits cannot be had any more.
    head = layers.Reshape((3,))(layers.Permute((2, 1))(layers.Softmax()(layers.Reshape((1, 3))(x))))
    student = keras.Model(inputs, layers.Activation("linear", dtype="float16")(head))
    student.get_layer("top").kernel.assign(RANDOM.normal(size=(6, 3)) * 20)
    distiller = tfc.Distiller(student, teacher, kd.SoftLabels(from_logits=(True, None)), alpha=0.0)
    assert np.isfinite(loss_of(compiled(distiller, None), X))


def test_classes_that_the_teacher_masks():
    teacher = np.array([[1.0, 0.0, -np.inf]], "float32")
    student = np.array([[0.5, 0.5, 0.3]], "float32")
    p = np.exp(teacher) / np.exp(teacher).sum()
    q = np.exp(student) / np.exp(student).sum()
    expected = sum(p[0, k] * np.log(p[0, k] / q[0, k]) for k in (0, 1))
    assert float(kd.SoftLabels(1.0)(teacher, student)) == pytest.approx(expected, rel=1e-5)


def test_own_output_learns_labels_whatever_alpha():
    model = mlp(4, "small")
    trainer = tfc.SelfDistiller(model, ["hidden"], alpha=0.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    expected = float(loss(Y, model(X)))
    found = compiled(trainer).evaluate(X, Y, batch_size=32, verbose=0, return_dict=True)
    assert found["task_loss"] == pytest.approx(expected, rel=1e-5)


def test_function_with_a_value_for_each_sample_of_a_map():
    loss = kd.Regression(lambda a, b: ops.mean(ops.square(a - b), axis=(1, 2, 3)))
    teacher, student = IMAGES[:4], IMAGES[4:8]
    expected = np.mean(WEIGHTS[:4] * ((teacher - student) ** 2).mean((1, 2, 3)))
    weights = WEIGHTS[:4].reshape(4, 1, 1)  # as a Distiller gives them
    assert float(loss(teacher, student, weights)) == pytest.approx(expected, rel=1e-5)


def test_function_with_one_number_for_a_batch_is_refused():
    def mean(a, b):
        return ops.mean(ops.square(a - b))

    with pytest.raises(ValueError, match=r"'mean' gives one number .* a value for each sample"):
        tfc.Distiller(*pair(), mean)


def test_lambda_as_a_loss():
    student, teacher = pair()
    distiller = tfc.Distiller(student, teacher, [lambda a, b: ops.mean(abs(a - b), -1)], alpha=0.0)
    expected = np.abs(np.array(teacher(X)) - np.array(student(X))).mean()
    compiled(distiller, None, run_eagerly=False)
    assert loss_of(distiller, X) == pytest.approx(expected, rel=1e-5)


def test_weights_without_labels_are_refused():
    distiller = compiled(tfc.Distiller(*pair(), alpha=0.0), None)
    with pytest.raises(ValueError, match=r"sample_weight needs labels y .* alpha=0"):
        distiller.fit(X, sample_weight=WEIGHTS, verbose=0)


def test_weights_by_name_of_output():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    heads = [layers.Dense(2, name=name)(inputs) for name in ("zeta", "alpha")]
    student, teacher = (
        keras.Model(inputs, heads),
        keras.models.clone_model(keras.Model(inputs, heads)),
    )
    distiller = tfc.Distiller(student, teacher, {"zeta": "mse"}, alpha=0.0)
    compiled(distiller, None)
    weights = {"zeta": np.zeros(32), "alpha": np.ones(32)}
    losses = [
        float(distiller.compute_loss(X, None, student(X), given, training=False))
        for given in (weights, list(weights.values()), {"alpha": np.ones(32)}, None)
    ]
    assert losses[0] == losses[1] == 0
    assert losses[2] == losses[3] > 0


def test_student_in_full_precision_under_a_policy_of_half():
    student, teacher = pair()
    x = X * 4097
    expected = student.predict(x, verbose=0)
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        distiller = tfc.Distiller(student, teacher)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    np.testing.assert_array_equal(distiller.predict(x, verbose=0), expected)


class Yes(keras.Model):
    """Probabilities that do not exclude one another, which only values can tell."""

    def __init__(self, units):
        super().__init__()
        self.dense = layers.Dense(units)

    def call(self, x):
        return ops.sigmoid(self.dense(x))


@pytest.mark.parametrize("units", [1, 5])
def test_numbers_that_may_be_probabilities_ask_for_the_word(units):
    models = [Yes(units), Yes(units)]
    for model in models:
        model(X[:1])
    activation = {"activation": "sigmoid"} if units == 1 else {}
    with pytest.raises(ValueError, match=r"from 0 to 1.*from_logits=False"):
        tfc.Distiller(*models, kd.SoftLabels(**activation))
    told = kd.SoftLabels(2.0, from_logits=False, activation="sigmoid")
    distiller = compiled(tfc.Distiller(*models, told, alpha=0.0), None)
    logits = [np.array(model.dense(X)) / 2 for model in models]
    q, p = (1 / (1 + np.exp(-x)) for x in logits)
    expected = 4 * np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    assert loss_of(distiller, X) == pytest.approx(expected, rel=1e-4)


def test_shared_statistics_are_refused():
    norm = layers.BatchNormalization(center=False, scale=False)
    models = []
    for name in ("student", "teacher"):
        inputs = keras.Input((6,))
        models.append(keras.Model(inputs, layers.Dense(3)(norm(inputs)), name=name))
    with pytest.raises(ValueError, match="share weights"):
        tfc.Distiller(*models)
    norm.trainable = False
    tfc.Distiller(*models)


def test_losses_by_number_of_output_are_loaded(tmp_path):
    distiller = compiled(tfc.Distiller(*pair(), {0: "mse"}, alpha=0.0), None)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert [term.output for term in loaded.terms] == [0]
    expected = loss_of(distiller, X)
    assert loss_of(loaded, X) == pytest.approx(expected, rel=1e-6)


def test_callback_list_beside_a_cache():
    distiller = compiled(tfc.Distiller(*pair(), alpha=0.0, cache="memory"), None)
    seen = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: epochs.append(epoch))
    epochs = []
    together = keras.callbacks.CallbackList([seen], model=distiller)
    for _ in range(2):
        distiller.fit(X, verbose=0, epochs=2, callbacks=together)
    assert epochs == [0, 1, 0, 1]


def test_fully_convolutional_models_of_unknown_size():
    def net(seed):
        keras.utils.set_random_seed(seed)
        x = inputs = keras.Input((None, None, 2))
        for _ in range(4):
            x = layers.MaxPooling2D()(layers.Conv2D(2, 3, padding="same")(x))
        return keras.Model(inputs, layers.UpSampling2D(16)(layers.Conv2D(3, 1)(x)))

    distiller = compiled(tfc.Distiller(net(0), net(1), alpha=0.0), None)
    images = RANDOM.normal(size=(2, 32, 16, 2)).astype("float32")
    assert loss_of(distiller, images) > 0


def test_calls_that_the_user_replaced_stay():
    student, teacher = mlp(4, "small"), mlp(4, "large")
    layer = teacher.get_layer("hidden")
    original = layer.call
    layer.call = lambda x, **kwargs: original(x) * 2
    before = np.array(teacher(X))
    distiller = tfc.Distiller(student, teacher, kd.Features("hidden", "hidden"), alpha=0.0)
    loss_of(compiled(distiller, None), X)
    np.testing.assert_array_equal(np.array(teacher(X)), before)
    assert "call" not in student.get_layer("hidden").__dict__


@pytest.mark.parametrize("number", [float("nan"), float("inf"), "1", True, -1])
def test_weights_that_are_no_numbers(number):
    with pytest.raises(ValueError, match="weight must be"):
        kd.SoftLabels(weight=number)
    with pytest.raises(ValueError, match="teacher_weights must be"):
        tfc.Distiller(mlp(4, "small"), [mlp(4, "a"), mlp(4, "b")], teacher_weights=[number, 1])


def test_numbers_of_numpy():
    distiller = tfc.Distiller(*pair(), alpha=np.float32(0.5), temperature=np.int64(3))
    assert (distiller.alpha, distiller.temperature) == (0.5, 3.0)
