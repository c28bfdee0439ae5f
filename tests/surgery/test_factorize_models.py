"""factorize on whole models: what is kept of layers, shared ones, structures, files."""

import keras
import numpy as np
import pytest
from factor_models import normal, of_layer, outputs, relative_error, samples, small_cnn
from keras import layers, ops

import tfcompress as tfc
from tfcompress.surgery.factors.factorize import factorize


def settled(**settings):
    return layers.Dense(
        16,
        activation="gelu",
        name="wide",
        kernel_regularizer=keras.regularizers.L2(0.1),
        bias_regularizer=keras.regularizers.L1(0.2),
        kernel_constraint="non_neg",
        bias_constraint="non_neg",
        kernel_initializer="he_normal",
        **settings,
    )


def test_settings_of_a_layer_are_those_of_its_factors():
    new = factorize(of_layer(settled(dtype="mixed_bfloat16"), 24), rank=4)
    first, last = new.get_layer("wide_in"), new.get_layer("wide")
    assert first.bias is None
    assert first.activation is keras.activations.linear
    assert last.activation is keras.activations.gelu
    assert float(last.bias_regularizer.l1) == pytest.approx(0.2)
    assert isinstance(last.bias_constraint, keras.constraints.NonNeg)
    for layer in (first, last):
        assert layer.dtype_policy.name == "mixed_bfloat16"
        assert float(layer.kernel_regularizer.l2) == pytest.approx(0.1)
        assert isinstance(layer.kernel_initializer, keras.initializers.HeNormal)
        assert layer.kernel_constraint is None
        assert layer.trainable


def test_frozen_layers_stay_frozen():
    model = of_layer(settled(trainable=False), 24)
    new = factorize(model, rank=4)
    assert not new.trainable_variables
    assert len(new.non_trainable_variables) == 3
    model = of_layer(layers.Conv2D(16, 3), 8, 8, 8)
    model.layers[1].bias.trainable = False
    new = factorize(model, "tucker", rank=2)
    assert [v.name for v in new.non_trainable_variables] == ["bias"]
    assert len(new.trainable_variables) == 3


@pytest.mark.parametrize("method", ["svd", "kronecker", "block_diagonal"])
def test_activations_that_are_layers_or_functions_stay(method):
    def twice(x):
        return ops.relu(x) * 2

    for activation in (layers.PReLU(alpha_initializer="ones"), twice):
        model = of_layer(layers.Dense(16, activation=activation), 16)
        new = factorize(model, method, energy=1.0, allow_larger=True)
        assert relative_error(model, new) < 1e-5


def test_a_shared_layer_is_taken_apart_once():
    shared = layers.Dense(16, name="shared")
    a, b = keras.Input((16,), name="a"), keras.Input((5, 16), name="b")
    model = keras.Model([a, b], [shared(a), shared(shared(b))])
    new = factorize(model, energy=1.0, allow_larger=True)
    assert [layer.name for layer in new.layers if layer.weights] == ["shared_in", "shared"]
    assert len(new.weights) == 3
    assert relative_error(model, new) < 1e-5
    # Of 11 places, each of which the kernel is applied to.
    assert new.surgery_report.macs == (11 * 16 * 16, 11 * 2 * 16 * 16)
    assert len(new.surgery_report.changes) == 1


def test_blocks_in_any_order_are_exact():
    random = np.random.default_rng(0)
    rows, columns = random.permutation(24), random.permutation(16)
    kernel = np.zeros((3, 3, 24, 16), "float32")
    for i in range(4):
        kernel[:, :, i * 6 : i * 6 + 6, i * 4 : i * 4 + 4] = random.normal(size=(3, 3, 6, 4))
    kernel = kernel[:, :, rows][..., columns]
    conv = of_layer(layers.Conv2D(16, 3, activation="relu", strides=2, name="c"), 9, 9, 24)
    conv.layers[1].kernel.assign(kernel)
    dense = of_layer(layers.Dense(16, activation="softmax", name="c"), 5, 24)
    dense.layers[1].kernel.assign(kernel[1, 1] * 0.1)
    for model in (conv, dense):
        new = factorize(model, "block_diagonal", energy=1.0)
        assert "4 blocks, 100.0000%" in str(new.surgery_report)
        assert new.surgery_report.macs[1] * 4 == new.surgery_report.macs[0]
        assert new.count_params() == 16 + (model.count_params() - 16) // 4
        assert relative_error(model, new) < 1e-5
        assert new.layers[-1].name == "c"
    assert factorize(conv, "block_diagonal", rank=4).get_layer("c_groups").groups == 4


def test_blocks_without_a_structure_keep_the_best_of_the_kernel():
    model = of_layer(layers.Dense(8, use_bias=False), 8)
    new = factorize(model, "block_diagonal", rank=2)
    made = outputs(new, np.eye(8, dtype="float32"))[0]
    kernel = model.get_weights()[0]
    assert np.allclose(made[made != 0], kernel[made != 0], atol=1e-6)
    assert np.sum(made != 0) == 32
    assert np.sum(made**2) > 0.5 * np.sum(kernel**2)


def test_a_sum_of_kronecker_products_is_exact():
    model = of_layer(layers.Dense(64, activation="relu", name="d"), 36)
    first, second = normal(2, 6, 8), normal(2, 6, 8, seed=1)
    kernel = sum(np.kron(a, b) for a, b in zip(first, second, strict=True))
    model.layers[1].kernel.assign(kernel)
    new = factorize(model, "kronecker", energy=1.0)
    assert "rank 2 of 48" in str(new.surgery_report)
    assert new.count_params() == 2 * (48 + 48) + 64
    assert relative_error(model, new) < 1e-5


def test_names_are_unique_and_outputs_keep_theirs():
    x = keras.Input((16,))
    y = layers.Dense(16, name="wide_in")(layers.Dense(16, name="wide")(x))
    model = keras.Model(x, [layers.Dense(12, name="a")(y), layers.Dense(12, name="b")(y)])
    for method in ("svd", "kronecker", "block_diagonal"):
        new = factorize(model, method, energy=1.0, allow_larger=True)
        names = [operation.name for operation in new.operations]
        assert len(set(names)) == len(names)
        assert new.output_names == ["a", "b"]
        assert relative_error(model, new) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["svd", "tucker", "cp", "spatial_svd", "kronecker", "block_diagonal"]
)
def test_new_models_train_save_and_load(method, tmp_path):
    keras.utils.set_random_seed(0)
    model = small_cnn()
    new = factorize(model, method, rank=2)
    assert new.surgery_report.changes
    x, y = normal(16, 12, 12, 3), np.arange(16) % 10
    new.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
    before = [np.array(v) for v in new.trainable_variables]
    new.fit(x, y, verbose=0)
    changed = [
        not np.array_equal(a, b) for a, b in zip(before, new.trainable_variables, strict=True)
    ]
    assert all(changed)
    new.save(tmp_path / "new.keras")
    loaded = keras.saving.load_model(tmp_path / "new.keras")
    assert relative_error(new, loaded, x) == 0.0
    assert relative_error(factorize(new, energy=1, allow_larger=True), new, x) < 1e-5


def test_nested_models_are_opened_and_named_as_flatten_does():
    inner = keras.Sequential([keras.Input((16,)), layers.Dense(16, name="d")], name="inner")
    model = keras.Sequential([keras.Input((16,)), layers.Dense(16, name="d"), inner], name="m")
    new = factorize(model, rank={"d": 2, "inner_d": 3})
    units = {layer.name: layer.units for layer in new.layers[1:]}
    assert units == {"d_in": 2, "d": 16, "inner_d_in": 3, "inner_d": 16}


def wrapped():
    x = inputs = keras.Input((6, 16))
    x = layers.TimeDistributed(layers.Dense(16, name="timed"), name="td")(x)
    x = layers.MultiHeadAttention(2, 8, name="mha")(x, x)
    x = layers.Dense(16, name="free")(x)
    return keras.Model(inputs, layers.LSTM(4, name="lstm")(x))


def test_layers_inside_of_others_stay():
    report = factorize(wrapped(), rank=2).surgery_report
    assert [change.layer for change in report.changes] == ["free"]
    assert not report.kept
    new = factorize(wrapped(), rank=2, layers=["free", "timed", "query", "lstm"])
    kept = {change.layer: change.detail for change in new.surgery_report.kept}
    assert kept["timed"] == "it is inside of 'td' (TimeDistributed), which stays whole"
    assert "'mha' (MultiHeadAttention)" in kept["query"]
    assert kept["lstm"] == "method='svd' does not take LSTM apart"


def test_convolutions_that_cannot_are_kept_with_the_reason():
    x = inputs = keras.Input((8, 8, 8))
    x = layers.Conv2D(8, 3, groups=2, name="grouped")(x)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.Conv2DTranspose(8, 3, name="transposed")(x)
    model = keras.Model(inputs, layers.Conv2D(8, 3, name="plain")(x))
    model.get_layer("plain").kernel.assign(np.ones((3, 3, 8, 8)))
    for method in ("svd", "tucker", "cp", "spatial_svd", "block_diagonal"):
        report = factorize(model, method, rank=2).surgery_report
        kept = {change.layer: change.detail for change in report.kept}
        assert [change.layer for change in report.changes] == ["plain"]
        assert list(kept) == ["grouped", "depthwise", "transposed"]
        assert kept["grouped"] == "its 2 groups make it a structured one already"
        assert kept["depthwise"] == f"method='{method}' does not take DepthwiseConv2D apart"


@pytest.mark.parametrize(
    ("wanted", "changed"),
    [
        ("hidden", ["hidden"]),
        ("*i*d*", ["middle", "wide", "hidden", "kind"]),
        ("Dense", ["hidden", "kind"]),
        (layers.Dense, ["hidden", "kind"]),
        (lambda layer: layer.name < "j", ["hidden"]),
        (["stem", layers.Dense], ["stem", "hidden", "kind"]),
    ],
)
def test_layers_are_chosen_as_by_rules(wanted, changed):
    new = factorize(small_cnn(), rank=2, layers=wanted)
    assert [change.layer for change in new.surgery_report.changes] == changed


def test_int_ranks_above_full_are_clipped_where_another_layer_has_them():
    new = factorize(small_cnn(), rank=20, allow_larger=True)
    ranks = {change.layer: change.detail for change in new.surgery_report.changes}
    assert ranks["stem"].startswith("rank 16 of 16")
    assert ranks["kind"].startswith("rank 10 of 10")
    assert ranks["hidden"].startswith("rank 20 of 64")
    pairs = factorize(small_cnn(), "tucker", rank=(20, 4), allow_larger=True).surgery_report
    assert pairs.changes[0].detail.startswith("ranks 16 of 16 (out) and 3 of 3 (in)")
    assert pairs.changes[2].detail.startswith("ranks 20 of 32 (out) and 4 of 24 (in)")


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["svd", "tucker", "cp", "spatial_svd", "kronecker", "block_diagonal"]
)
def test_new_models_convert_to_files_that_compute_the_same(method, tmp_path):
    from conftest import run_tflite

    keras.utils.set_random_seed(0)
    new = factorize(small_cnn(), method, rank=2)
    assert new.surgery_report.changes
    x = samples(new, 8)
    tfc.convert(new, tmp_path / "new.tflite", precision="float32")
    y = run_tflite(tmp_path / "new.tflite", x, reference=False)
    assert np.max(np.abs(y - outputs(new, x)[0])) < 1e-5
