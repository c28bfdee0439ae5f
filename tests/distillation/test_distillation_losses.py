"""Distillation losses by their values: against NumPy written here from the papers."""

import keras
import numpy as np
import pytest
from distillation_models import as_numpy, divergence, log_softmax, softmax
from distillation_tensors import MAPS, OTHER_MAPS, WEIGHT, S, T, attention, squares, unit

from tfcompress import distillation as kd


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, "float64")))


def binary_divergence(teacher, student, temperature):
    p, q = sigmoid(teacher / temperature), sigmoid(student / temperature)
    values = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    return temperature**2 * values.mean(-1)


def huber(a, b):
    gap = np.abs(a - b)
    return np.where(gap < 1, gap**2 / 2, gap - 0.5)


def distances(x):
    """Park et al.: distances divided by the mean of those greater than 0."""
    found = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
    return found / found[found > 0].mean()


def angles(x):
    """Park et al.: cosine at i between j and k; 0 where two of them are the same."""
    count = len(x)
    found = np.zeros((count, count, count))
    for i in range(count):
        for j in range(count):
            for k in range(count):
                a, b = x[j] - x[i], x[k] - x[i]
                norm = np.linalg.norm(a) * np.linalg.norm(b)
                found[i, j, k] = a @ b / norm if norm else 0.0
    return found


def relational(teacher, student, distance=1.0, angle=2.0):
    t, s = (np.asarray(x, "float64").reshape(len(x), -1) for x in (teacher, student))
    values = distance * huber(distances(t), distances(s)).mean(-1)
    return values + angle * huber(angles(t), angles(s)).mean((-2, -1))


def contrastive(teacher, student, temperature):
    similar = unit(np.asarray(student, "float64")) @ unit(np.asarray(teacher, "float64")).T
    similar /= temperature
    return -(np.diag(log_softmax(similar)) + np.diag(log_softmax(similar.T))) / 2


CASES = {
    "soft": (kd.SoftLabels(4.0), T, S, divergence(T, S, 4.0)),
    "soft at 1": (kd.SoftLabels(), T, S, divergence(T, S, 1.0)),
    "soft probabilities": (
        kd.SoftLabels(2.0, from_logits=False),
        softmax(T).astype("float32"),
        softmax(S).astype("float32"),
        divergence(T, S, 2.0),
    ),
    "soft probabilities of the teacher": (
        kd.SoftLabels(2.0, from_logits=(False, True)),
        softmax(T).astype("float32"),
        S,
        divergence(T, S, 2.0),
    ),
    "sigmoid": (kd.SoftLabels(3.0, activation="sigmoid"), T, S, binary_divergence(T, S, 3.0)),
    "sigmoid probabilities": (
        kd.SoftLabels(3.0, from_logits=[False, False], activation="sigmoid"),
        sigmoid(T).astype("float32"),
        sigmoid(S).astype("float32"),
        binary_divergence(T, S, 3.0),
    ),
    "mse": (kd.Regression(), T, S, squares(T, S)),
    "mae": (kd.Regression("mae"), T, S, np.abs(T - S).mean(-1)),
    "huber": (
        kd.Regression(keras.losses.Huber(0.5)),
        T,
        S,
        0.5 * (huber(2 * T, 2 * S) / 2).mean(-1),
    ),
    "cosine": (
        kd.Regression(keras.losses.CosineSimilarity()),
        T,
        S,
        -(unit(T) * unit(S)).sum(-1),
    ),
    "function": (
        kd.Regression(lambda a, b: keras.ops.max(keras.ops.abs(a - b), axis=-1)),
        T,
        S,
        np.abs(T - S).max(-1),
    ),
    "features": (kd.Features(), MAPS, OTHER_MAPS, squares(MAPS, OTHER_MAPS)),
    "features, mae": (
        kd.Features(loss="mae"),
        MAPS,
        OTHER_MAPS,
        np.abs(MAPS - OTHER_MAPS).mean((1, 2, 3)),
    ),
    "attention": (
        kd.AttentionTransfer(),
        MAPS,
        OTHER_MAPS,
        ((attention(MAPS) - attention(OTHER_MAPS)) ** 2).sum(-1),
    ),
    "attention, power 4, widths": (
        kd.AttentionTransfer(power=4.0),
        MAPS,
        OTHER_MAPS[..., :2],
        ((attention(MAPS, 4.0) - attention(OTHER_MAPS[..., :2], 4.0)) ** 2).sum(-1),
    ),
    "relational": (kd.Relational(), T, S[:, :3], relational(T, S[:, :3])),
    "distances": (kd.Relational(angle=0.0), T, S, relational(T, S, 1.0, 0.0)),
    "angles": (
        kd.Relational(distance=0, angle=0.5),
        MAPS,
        S,
        relational(MAPS, S, 0.0, 0.5),
    ),
    "contrastive": (kd.Contrastive(temperature=0.2), T, S, contrastive(T, S, 0.2)),
    "contrastive, maps": (
        kd.Contrastive(),
        MAPS,
        OTHER_MAPS,
        contrastive(MAPS.mean((1, 2)), OTHER_MAPS.mean((1, 2)), 0.1),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_values(case):
    loss, teacher, student, expected = CASES[case]
    assert expected.shape == (6,)
    values = as_numpy(loss.call(*map(keras.ops.convert_to_tensor, (teacher, student))))
    np.testing.assert_allclose(values, expected, rtol=2e-4, atol=2e-6)
    np.testing.assert_allclose(float(loss(teacher, student)), expected.mean(), rtol=2e-4)
    weighted = float(loss(teacher, student, WEIGHT))
    np.testing.assert_allclose(weighted, (expected * WEIGHT).mean(), rtol=2e-4)


def test_soft_labels_of_sharp_probabilities():
    """float32 probabilities may be 0; their logarithm may not."""
    sharp = np.array([[1.0, 0.0, 0.0]], "float32")
    loss = kd.SoftLabels(2.0, from_logits=False)
    assert float(loss(sharp, sharp)) == pytest.approx(0, abs=1e-6)
    assert np.isfinite(float(loss(sharp, sharp[:, ::-1].copy())))
    both = kd.SoftLabels(2.0, from_logits=False, activation="sigmoid")
    assert np.isfinite(float(both(sharp, 1 - sharp)))


def test_soft_labels_of_large_logits():
    teacher, student = np.array([[500.0, -500.0]]), np.array([[-500.0, 500.0]])
    assert float(kd.SoftLabels(1.0)(teacher, student)) == pytest.approx(1000)
    both = kd.SoftLabels(1.0, activation="sigmoid")
    assert float(both(teacher, student)) == pytest.approx(500, rel=1e-5)


def test_gradient_of_soft_labels_is_the_difference_of_probabilities():
    """Hinton et al., equation 2, times temperature^2."""
    import tensorflow as tf

    student = tf.Variable(S)
    with tf.GradientTape() as tape:
        loss = kd.SoftLabels(5.0)(T, student)
    expected = 5.0 * (softmax(S / 5) - softmax(T / 5)) / len(S)
    np.testing.assert_allclose(tape.gradient(loss, student), expected, atol=1e-6)


def losses_to_differentiate():
    return [
        kd.SoftLabels(2.0),
        kd.SoftLabels(2.0, activation="sigmoid"),
        kd.SoftLabels(2.0, from_logits=False),
        kd.Regression(),
        kd.Features(),
        kd.AttentionTransfer(),
        kd.AttentionTransfer(power=1.0),
        kd.AttentionTransfer(power=1.5),
        kd.Relational(),
        kd.Contrastive(),
    ]


@pytest.mark.parametrize("loss", losses_to_differentiate(), ids=lambda loss: type(loss).__name__)
@pytest.mark.parametrize("kind", ["zeros", "equal samples", "the teacher's", "one sample"])
def test_gradients_are_finite(loss, kind):
    import tensorflow as tf

    teacher = np.abs(MAPS[:4, :2, :2])
    value = {
        "zeros": np.zeros_like(teacher),
        "equal samples": np.repeat(teacher[:1], 4, 0),
        "the teacher's": teacher,
        "one sample": teacher[:1],
    }[kind]
    teacher = teacher[: len(value)]
    if kind == "zeros":
        teacher = np.zeros_like(teacher)
    student = tf.Variable(value)
    with tf.GradientTape() as tape:
        result = loss(teacher, student)
    assert np.isfinite(result)
    assert np.isfinite(tape.gradient(result, student)).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(dtype):
    logits = keras.ops.cast(T * 40, dtype), keras.ops.cast(S * 40, dtype)
    exact = [as_numpy(keras.ops.cast(x, "float32")) for x in logits]
    value = kd.SoftLabels(1.0)(*logits)
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    np.testing.assert_allclose(float(value), divergence(*exact, 1.0).mean(), rtol=1e-4)
    value = kd.Relational()(*logits)
    np.testing.assert_allclose(float(value), relational(*exact).mean(), rtol=1e-3)
