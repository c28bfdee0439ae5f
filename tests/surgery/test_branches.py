"""add_branches leaves outputs as they are; fold_branches makes one convolution of the branches."""

import keras
import numpy as np
import pytest
from factor_models import kinds, normal, of_layer, relative_error
from keras import layers

from tfcompress.surgery.branches import add_branches, fold_branches

FIRST = {"data_format": "channels_first"}
# What makes a layer, the shape of its input, and how many branches it gets.
LAYERS = {
    "same": (lambda **k: layers.Conv2D(4, 3, padding="same", **k), (7, 6, 4), 2),
    "valid": (lambda **k: layers.Conv2D(4, 3, **k), (7, 6, 4), 2),
    "even": (lambda **k: layers.Conv2D(4, (4, 2), padding="same", **k), (7, 6, 4), 2),
    "even valid": (lambda **k: layers.Conv2D(5, (2, 4), strides=2, **k), (7, 6, 4), 1),
    "strides": (lambda **k: layers.Conv2D(4, 3, 2, padding="same", **k), (8, 7, 4), 1),
    "strides, long": (lambda **k: layers.Conv2D(4, (10, 4), 2, "same", **k), (49, 10, 1), 1),
    "sparse": (lambda **k: layers.Conv2D(4, 2, 3, padding="same", **k), (8, 7, 4), 1),
    "dilated": (lambda **k: layers.Conv2D(4, 3, dilation_rate=2, **k), (9, 8, 4), 2),
    "groups": (lambda **k: layers.Conv2D(4, 3, padding="same", groups=2, **k), (7, 6, 4), 2),
    "first": (lambda **k: layers.Conv2D(4, 3, padding="same", **FIRST, **k), (4, 7, 6), 2),
    "line": (lambda **k: layers.Conv1D(4, 3, **k), (9, 4), 2),
    "causal": (lambda **k: layers.Conv1D(4, 3, padding="causal", **k), (9, 4), 2),
    "depthwise": (lambda **k: layers.DepthwiseConv2D(3, padding="same", **k), (7, 6, 4), 2),
    "depthwise strides": (lambda **k: layers.DepthwiseConv2D(3, 2, "same", **k), (8, 8, 4), 1),
    "multiplied": (lambda **k: layers.DepthwiseConv2D(3, depth_multiplier=2, **k), (7, 6, 4), 1),
    "depthwise line": (lambda **k: layers.DepthwiseConv1D(3, **k), (9, 4), 2),
}


def trained(model):
    """The model with weights as after training: variances that are not 1, scales that are not 0."""
    for number, variable in enumerate(model.weights):
        value = normal(*variable.shape, seed=number)
        variable.assign(np.abs(value) + 0.5 if "variance" in variable.path else value)
    return model


QUICK = ("even", "strides, long", "depthwise")
CASES = [
    pytest.param(name, on, marks=[] if on and name in QUICK else [pytest.mark.slow])
    for name in LAYERS
    for on in (True, False)
]


@pytest.mark.parametrize(("case", "normalized"), CASES)
def test_branches_are_folded_into_the_very_sum(case, normalized):
    build, shape, branches = LAYERS[case]
    x = keras.Input(shape)
    y = build(use_bias=normalized, name="conv", activation=None if normalized else "relu")(x)
    if normalized:
        y = layers.ReLU()(layers.BatchNormalization(axis=1 if case == "first" else -1)(y))
    model = trained(keras.Model(x, y))
    data = normal(3, *shape, seed=5)
    branched = add_branches(model)
    assert relative_error(model, branched, data) < 1e-5
    assert kinds(branched).count("BatchNormalization") == branches + normalized
    trained(branched)
    folded = fold_branches(branched)
    assert relative_error(branched, folded, data) < 1e-5
    kind = "Activation" if not normalized else "ReLU"
    assert kinds(folded) == [type(model.get_layer("conv")).__name__, kind]
    assert folded.get_layer("conv").kernel.shape == model.get_layer("conv").kernel.shape


def test_values_by_hand():
    """A kernel of 3 places, one of one place, and the input: their taps, scaled, in one kernel."""
    model = of_layer(layers.Conv1D(1, 3, padding="same", use_bias=False, name="conv"), 5, 1)
    model.get_layer("conv").kernel.assign(np.reshape([1.0, 2.0, 3.0], (3, 1, 1)))
    branched = add_branches(model, scale=1.0)
    branched.get_layer("conv_pointwise").kernel.assign([[[10.0]]])
    for name, factor, mean in (("pointwise", 2.0, 1.0), ("identity", 3.0, 0.0)):
        norm = branched.get_layer(f"conv_{name}_norm")
        norm.moving_variance.assign([1 - norm.epsilon])
        norm.moving_mean.assign([mean])
        norm.gamma.assign([factor])
    conv = fold_branches(branched).get_layer("conv")
    assert np.allclose(np.ravel(conv.kernel), [1, 2 + 10 * 2 + 3, 3], atol=1e-5)
    assert np.allclose(conv.bias, [-2.0])


def test_branches_are_saved_and_loaded(tmp_path):
    model = trained(add_branches(of_layer(layers.Conv2D(3, 3, padding="same"), 6, 6, 3)))
    model.save(tmp_path / "branched.keras")
    loaded = keras.models.load_model(tmp_path / "branched.keras")
    assert relative_error(model, fold_branches(loaded)) < 1e-5


def test_every_branch_trains():
    x = keras.Input((6, 6, 2))
    y = layers.Conv2D(2, 3, padding="same", name="conv")(x)
    branched = add_branches(keras.Model(x, layers.ReLU()(layers.BatchNormalization()(y))))
    before = {variable.path: np.array(variable) for variable in branched.trainable_variables}
    branched.compile("sgd", "mse", jit_compile=False)
    data = normal(8, 6, 6, 2)
    branched.fit(data, data**2, epochs=2, verbose=0)
    assert len(before) == 2 + 1 + 3 * 2
    moved = {x.path for x in branched.trainable_variables if np.any(before[x.path] != x)}
    assert moved >= {path for path in before if not path.endswith("conv/bias")}


def test_blocks_of_others_are_folded_and_residual_ones_stay():
    x = keras.Input((8, 8, 3))
    wide = layers.Conv2D(3, (1, 3), padding="same", name="wide")(x)
    high = layers.Conv2D(3, (3, 1), padding="same", name="high")(x)
    square = layers.Conv2D(3, 3, padding="same", name="square")(x)
    y = wide + high
    y = layers.Add(name="star")([y, square])  # of a sum and a convolution
    z = layers.Conv2D(3, 3, padding="same", activation="relu")(y)
    z = layers.Add(name="residual")([y, layers.Conv2D(3, 3, padding="same")(z)])
    cross = layers.Add(name="cross")([layers.Conv2D(3, 3, 1, "same", name="one")(z), z])
    model = trained(keras.Model(x, cross))
    folded = fold_branches(model)
    assert relative_error(model, folded) < 1e-5
    report = folded.surgery_report
    assert [str(change.layer) for change in report.changes] == ["one"]
    assert report.changes[0].detail == "takes in its input"
    assert [change.detail for change in report.kept] == [
        "the windows of 'wide' do not cover those of high"
    ]
    three = layers.Add(name="star")([wide, high, square])
    model = trained(keras.Model(x, three))
    folded = fold_branches(model)
    assert kinds(folded) == ["Conv2D"]
    assert relative_error(model, folded) < 1e-5


def test_what_gets_no_branches_is_told():
    x = keras.Input((None, None, 3))
    y = layers.Conv2D(3, 3, 2, padding="same", name="open")(x)
    shared = layers.Conv2D(3, 3, padding="same", name="shared")
    y = layers.Conv2D(4, 1, name="single")(shared(shared(y)))
    y = layers.Conv2D(4, 2, dilation_rate=2, padding="same", name="gap")(y)
    model = keras.Model(x, layers.Conv2D(4, 1, name="square")(y))
    with pytest.raises(ValueError, match="no layer can have branches: expected Conv1D, Conv2D"):
        add_branches(model)
    new = add_branches(model, ["*"])
    assert [x.layer for x in new.surgery_report.changes] == ["square"]
    assert {x.layer: x.detail for x in new.surgery_report.kept if "Input" not in x.detail} == {
        "open": "its strides leave out places that depend on the size of its input, not known",
        "shared": "is called 2 times",
        "single": "is pointwise, and its output is of another shape than its input",
        "gap": "its windows have no weight at their centre",
    }
    with pytest.raises(ValueError, match="scale must be a finite number, such as 0 or 1; received"):
        add_branches(model, scale=float("nan"))
