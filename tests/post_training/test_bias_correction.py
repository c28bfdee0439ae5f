"""correct_bias: means against NumPy, and against samples of the distributions it assumes."""

import keras
import numpy as np
import pytest
from graph_models import normal, seeded, sequential
from keras import layers

import tfcompress as tfc
from tfcompress.graph.folding import folded
from tfcompress.graph.nodes import Graph
from tfcompress.post_training import correct_bias, equalize, reestimate_batch_norm
from tfcompress.post_training.bias import _rectified
from tfcompress.post_training.kernels import kernels_of, on_grid
from tfcompress.post_training.walk import before_activation, run, walk

__all__ = ["seeded"]


def conv_net(pooling=layers.GlobalAveragePooling2D):
    x = keras.Input((6, 6, 2))
    y = layers.Conv2D(4, 3, use_bias=False, padding="same", name="a")(x)
    y = layers.ReLU(6.0)(layers.BatchNormalization()(y))
    y = layers.DepthwiseConv2D(3, padding="same", name="b")(y)
    y = layers.LeakyReLU(0.1)(layers.BatchNormalization()(y))
    y = layers.Conv2D(3, 1, activation="relu", name="c")(y)
    return keras.Model(x, layers.Dense(2, name="head")(pooling()(y)))


@pytest.fixture(scope="module")
def trained():
    """A net whose BatchNormalizations have what data show, and these data."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(1)
    model, data = conv_net(), rng.normal(size=(200, 6, 6, 2)).astype("float32")
    for v in model.trainable_weights:
        v.assign(rng.normal(size=v.shape))
    return reestimate_batch_norm(model, data), data


def rounded(model, bits=3):
    new = tfc.flatten(model)
    for kernel in kernels_of(Graph.of(new)):
        scale = np.abs(kernel.value).max(kernel.reduced, keepdims=True) / (2 ** (bits - 1) - 1)
        kernel.variable.assign(on_grid(kernel.value, scale, bits))
    return new


def means_of(model, x):
    """By name of a layer, the means by channel of what it gives before its activation."""
    found = {}

    def visit(node, calls):
        if hasattr(node.operation, "kernel"):
            (made,) = before_activation(node, calls)
            found[node.name] = np.array(made).reshape(-1, made.shape[-1]).mean(0)
        return run(node, calls)

    walk(Graph.of(model), [[x]], visit)
    return found


def test_means_are_those_of_the_float_model(trained):
    model, data = trained
    reference = folded(tfc.flatten(model))
    quantized = rounded(reference)
    before = [np.array(w) for w in quantized.weights]
    new = correct_bias(quantized, model, data, batch_size=100, samples=None)
    assert all(np.array_equal(a, b) for a, b in zip(before, quantized.weights, strict=True))
    wanted, got, worse = (means_of(m, data) for m in (reference, new, quantized))
    for name, means in wanted.items():
        np.testing.assert_allclose(got[name], means, atol=1e-4)
        assert np.abs(worse[name] - means).max() > 1e-3
        np.testing.assert_array_equal(new.get_layer(name).kernel, quantized.get_layer(name).kernel)
    assert [change.layer for change in new.correction_report.changes] == ["a", "b", "c", "head"]


def test_values_by_hand_and_a_bias_where_there_was_none():
    make = lambda: sequential(  # noqa: E731
        layers.Dense(1, "relu", use_bias=False, name="a"), layers.Dense(1, name="b"), size=1
    )
    model, quantized = make(), make()
    for each, weights in ((model, (1.5, 2.0, 1.0)), (quantized, (1.0, 3.0, 1.0))):
        each.set_weights(
            [np.array([[weights[0]]]), np.array([[weights[1]]]), np.array([weights[2]])]
        )
    new = correct_bias(quantized, model, np.float32([[-2], [4]]))
    # Means of a: 1.5 * 1 and 1; of b: 2 * 6 / 2 + 1 and, as a gives 0 and 4.5 now, 3 * 4.5 / 2 + 1.
    np.testing.assert_allclose(new.get_layer("a").bias, [0.5])
    np.testing.assert_allclose(new.get_layer("b").bias, [1 + 7 - 7.75])
    same = correct_bias(model, model, np.float32([[-2], [4]]))
    assert {c.detail for c in same.correction_report.kept} == {
        "its means are those of the float model"
    }


@pytest.mark.parametrize(
    ("operation", "function"),
    [
        (layers.ReLU(), lambda x: np.maximum(x, 0)),
        (layers.ReLU(6.0, 0.2), lambda x: np.clip(x, 0, 6) + 0.2 * np.minimum(x, 0)),
        (keras.activations.relu6, lambda x: np.clip(x, 0, 6)),
        (layers.Activation("leaky_relu"), lambda x: np.where(x > 0, x, 0.2 * x)),
        (keras.activations.linear, lambda x: x),
    ],
)
def test_means_of_clipped_normals(operation, function):
    mean, std = np.array([-1.0, 0.5, 5.0, 9.0]), np.array([2.0, 1.0, 3.0, 0.0])
    samples = function(mean + std * np.random.default_rng(0).normal(size=(200_000, 4)))
    np.testing.assert_allclose(_rectified(mean, std, operation), samples.mean(0), atol=0.02)


_SLOW = [pytest.param(x, marks=pytest.mark.slow) for x in ("equalize", "norms")]


@pytest.mark.parametrize("by", ["fold", *_SLOW])
def test_without_data_by_batch_norm(by, trained):
    model, data = trained
    reference = {"fold": folded, "equalize": equalize, "norms": lambda m: m}[by](tfc.flatten(model))
    quantized = rounded(reference)
    new = correct_bias(quantized, reference if by == "equalize" else model)
    kept = {change.layer: change.detail for change in new.correction_report.kept}
    unknown = "the mean of what it reads is not known without data"
    assert kept == dict.fromkeys(["a", "head"], unknown)
    wanted = means_of(reference, data)
    for name in "bc":  # each for itself, with its inputs as in the float model
        layer, off = reference.get_layer(name), []
        kept_weights = layer.get_weights()
        for source in (quantized, new):
            layer.set_weights(source.get_layer(name).get_weights()[: len(kept_weights)])
            off.append(np.abs(means_of(reference, data)[name] - wanted[name]).max())
        layer.set_weights(kept_weights)
        assert off[1] < 0.3 * off[0]


def test_bad_input():
    model = conv_net()
    with pytest.raises(ValueError, match=r"'a' is not there; expected a kernel of \(3, 3, 2, 4\)"):
        correct_bias(model, sequential(layers.Dense(2)))
    other = sequential(layers.Dense(3, name="b"))
    with pytest.raises(ValueError, match=r"layer 'b' has a kernel of \(8, 3\)"):
        correct_bias(sequential(layers.Dense(2, name="b")), other)
    x = keras.Input((None, 2))
    opened = keras.Model(x, layers.Conv1D(2, 1)(x))
    with pytest.raises(ValueError, match="leaves sizes open"):
        correct_bias(opened, opened)
    with pytest.raises(ValueError, match="Finalize it first"):
        correct_bias(tfc.quantize_aware(sequential(layers.Dense(2))), model, normal(2, 8))
