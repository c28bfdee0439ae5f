"""What layers become, and that they are exact at full rank."""

import keras
import numpy as np
import pytest
from factor_models import kinds, normal, of_layer, relative_error, samples, small_cnn
from keras import layers

from tfcompress.surgery.factors.factorize import factorize
from tfcompress.surgery.factors.maths import cp, cp_error, spatial_matrix
from tfcompress.surgery.macs import count

CONVOLUTIONS = {
    "plain": (lambda: layers.Conv2D(9, 3), (8, 9, 4)),
    "same": (lambda: layers.Conv2D(9, 3, padding="same", activation="relu"), (8, 9, 4)),
    "strided": (lambda: layers.Conv2D(9, 3, strides=2, padding="same"), (8, 9, 4)),
    "strided_valid": (lambda: layers.Conv2D(5, (3, 5), strides=3), (13, 14, 4)),
    "even": (lambda: layers.Conv2D(5, (2, 4), strides=2, padding="same"), (9, 11, 4)),
    "dilated": (lambda: layers.Conv2D(6, 3, dilation_rate=(1, 2), padding="same"), (8, 9, 4)),
    "no_bias": (lambda: layers.Conv2D(9, 5, use_bias=False), (8, 9, 4)),
    "free_size": (lambda: layers.Conv2D(6, 3), (None, None, 4)),
    "conv1d": (lambda: layers.Conv1D(6, 5, padding="same", activation="tanh"), (9, 4)),
    "strided1d": (lambda: layers.Conv1D(6, 4, strides=2), (9, 4)),
}
MORE = {
    "uneven": (lambda: layers.Conv2D(6, 3, strides=(1, 2)), (8, 9, 4)),
    "causal": (lambda: layers.Conv1D(6, 3, padding="causal", dilation_rate=2), (9, 4)),
    "conv3d": (lambda: layers.Conv3D(6, (2, 3, 1), strides=2, padding="same"), (5, 6, 4, 3)),
}
LINEAR = {
    "dense": (lambda: layers.Dense(6, activation="relu"), (8,)),
    "wide": (lambda: layers.Dense(20, use_bias=False), (6,)),
    "dense_in_time": (lambda: layers.Dense(6, activation="softmax"), (5, 8)),
    "dense_in_image": (lambda: layers.Dense(6), (4, 7, 8)),
    "dense_in_any_time": (lambda: layers.Dense(6), (None, 8)),
    "pointwise": (lambda: layers.Conv2D(6, 1, strides=2), (8, 9, 4)),
    "query": (lambda: layers.EinsumDense("abc,cde->abde", (None, 2, 6), bias_axes="de"), (5, 8)),
    "output": (lambda: layers.EinsumDense("abcd,cde->abe", (None, 7), "gelu", "e"), (5, 2, 4)),
    "dots": (lambda: layers.EinsumDense("...x,xy->...y", 7, bias_axes="y"), (5, 8)),
    "dots_last": (lambda: layers.EinsumDense("ab...,bc->ac...", 7), (8, 5)),
    "turned": (lambda: layers.EinsumDense("abc,dc->adb", (7, None)), (5, 8)),
}


def exact(case, method):
    build, shape = case
    model = of_layer(build(), *shape)
    new = factorize(model, method, energy=1.0, allow_larger=True)
    assert len(new.surgery_report.changes) == 1
    assert relative_error(model, new) < 1e-5
    assert new.surgery_report.macs == (count(model)[0], count(new)[0])
    assert new.surgery_report.params == (model.count_params(), new.count_params())
    return new


def test_the_pointwise_part_of_a_separable_convolution():
    """A shared one is taken apart once; others stay where only some are wanted."""
    shared = layers.SeparableConv2D(
        12, 3, padding="same", depth_multiplier=2, activation="relu", name="shared"
    )
    x = inputs = keras.Input((5, 6, 12))
    x = layers.SeparableConv2D(8, 3, strides=2, name="last")(shared(shared(x)))
    model = keras.Model(inputs, x)
    new = factorize(model, rank={"shared": 12}, allow_larger=True)
    assert relative_error(model, new) < 1e-5
    assert [x.name for x in new.layers[1:]] == ["shared_depthwise", "shared_in", "shared", "last"]
    before, after = factorize(model, rank=3, layers=layers.SeparableConv2D).surgery_report.params
    own = 12 * 2 * 9 + 24 * 12 + 12, 12 * 9 + 12 * 8 + 8
    assert (before, after) == (sum(own), sum(own) - 24 * 12 + 36 * 3 - 12 * 8 + 20 * 3)


@pytest.mark.parametrize("case", [*CONVOLUTIONS, *MORE, *LINEAR])
def test_svd_is_exact_at_full_rank(case):
    new = exact((CONVOLUTIONS | MORE | LINEAR)[case], "svd")
    assert kinds(new)[0] == kinds(new)[1]


@pytest.mark.parametrize("case", [*CONVOLUTIONS, *MORE])
def test_tucker_is_exact_at_full_rank(case):
    new = exact((CONVOLUTIONS | MORE)[case], "tucker")
    assert len(set(kinds(new))) == 1
    assert [layer.kernel_size[0] for layer in new.layers[1:]][::2] == [1, 1]


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_cp_is_exact_at_full_rank(case):
    names = kinds(exact(CONVOLUTIONS[case], "cp"))
    assert names[1] == f"Depthwise{names[0]}"


@pytest.mark.parametrize("case", [x for x in [*CONVOLUTIONS, "uneven"] if "1d" not in x])
def test_spatial_svd_is_exact_at_full_rank(case):
    new = exact((CONVOLUTIONS | MORE)[case], "spatial_svd")
    assert [layer.kernel_size.index(1) for layer in new.layers[1:]] == [1, 0]


@pytest.mark.parametrize("case", ["dense", "wide", "dense_in_time", "dense_in_image"])
def test_kronecker_is_exact_at_full_rank(case):
    exact(LINEAR[case], "kronecker")


def test_blocks_of_a_dense_keep_the_axes_of_an_uneven_image():
    model = of_layer(layers.Dense(6), 4, 7, 8)
    blocks = np.kron(np.eye(2), np.ones((4, 3))) * model.get_weights()[0]
    model.layers[1].kernel.assign(blocks)
    new = factorize(model, "block_diagonal", rank=2)
    assert new.output_shape == (None, 4, 7, 6)
    assert relative_error(model, new) < 1e-5


@pytest.mark.parametrize("shapes", [[(4, 7, 8), (5, 3, 8)], [(8,), (5, 8)]])
def test_a_dense_on_inputs_of_several_shapes_is_not_reshaped(shapes):
    dense, inputs = layers.Dense(6, name="d"), [keras.Input(shape) for shape in shapes]
    model = keras.Model(inputs, [dense(x) for x in inputs])
    for method in ("kronecker", "block_diagonal"):
        with pytest.raises(ValueError, match="'d': its inputs are of several shapes"):
            factorize(model, method, rank=1)


def test_a_dense_on_sequences_of_several_lengths_is_taken_apart_once():
    dense, inputs = layers.Dense(6, name="d"), [keras.Input((5, 8)), keras.Input((3, 8))]
    model = keras.Model(inputs, [dense(x) for x in inputs])
    for method in ("kronecker", "block_diagonal"):
        new = factorize(model, method, energy=1, allow_larger=True)
        assert relative_error(model, new) < 1e-5


@pytest.mark.parametrize("energy", [0.5, 0.9])
def test_cp_takes_about_the_least_rank_that_keeps_enough(energy):
    model = of_layer(layers.Conv2D(16, 3, use_bias=False, name="c"), 8, 8, 12)
    kernel = model.get_weights()[0].astype("float64").reshape(9, 12, 16)
    new = factorize(model, "cp", energy=energy)
    rank = new.get_layer("c_in").filters
    assert cp_error(kernel, cp(kernel, rank)) <= 1 - energy
    assert cp_error(kernel, cp(kernel, int(rank * 0.85))) > 1 - energy


def test_cp_of_a_kernel_of_low_rank_is_exact():
    low = np.einsum("hr,wr,ir,or->hwio", *(normal(n, 2, seed=n) for n in (3, 3, 12, 16)))
    model = of_layer(layers.Conv2D(16, 3), 8, 8, 12)
    model.layers[1].kernel.assign(low)
    new = factorize(model, "cp", energy=1.0)
    assert new.count_params() < model.count_params()
    assert relative_error(model, new) < 1e-5


def test_embedding_is_exact_at_full_rank_and_keeps_its_mask():
    layer = layers.Embedding(10, 6, mask_zero=True, name="tokens")
    x = keras.Input((5,), dtype="int32")
    model = keras.Model(x, layers.LSTM(3)(layer(x)))
    new = factorize(model, rank={"tokens": 6}, allow_larger=True)
    ids = np.array([[1, 2, 0, 0, 0], [3, 4, 9, 1, 0]])
    assert relative_error(model, new, ids) < 1e-5
    assert [layer.name for layer in new.layers[1:3]] == ["tokens_in", "tokens"]
    assert kinds(new)[:2] == ["Embedding", "Dense"]
    assert new.get_layer("tokens_in").mask_zero


def test_the_factors_of_a_dense_are_its_best_of_that_rank():
    model = of_layer(layers.Dense(16, name="wide"), 24)
    kernel, bias = model.get_weights()
    new = factorize(model, rank=5)
    left, right, same = new.get_weights()
    u, s, v = np.linalg.svd(kernel.astype("float64"), full_matrices=False)
    assert np.allclose(left @ right, u[:, :5] * s[:5] @ v[:5], atol=1e-5)
    assert np.array_equal(bias, same)
    energy = np.sum(s[:5] ** 2) / np.sum(s**2)
    assert str(new.surgery_report).splitlines() == [
        f"wide  rank 5 of 16, {energy:.1%} of its energy",
        "MACs: 384 -> 200 (52.1%)",
        "params: 400 -> 216 (54.0%)",
    ]


def test_the_factors_of_a_convolution_are_its_best_of_that_rank():
    model = of_layer(layers.Conv2D(16, 3, use_bias=False), 8, 8, 6)
    kernel = model.get_weights()[0].astype("float64")
    column, row = factorize(model, "spatial_svd", rank=4).get_weights()
    made = np.einsum("hxir,ywro->hwio", column, row)
    left = np.linalg.svd(spatial_matrix(kernel), compute_uv=False)[4:]
    assert np.sum((kernel - made) ** 2) == pytest.approx(np.sum(left**2), rel=1e-4)
    first, core, last = factorize(model, "tucker", rank=(5, 4)).get_weights()
    assert (first.shape, core.shape, last.shape) == ((1, 1, 6, 4), (3, 3, 4, 5), (1, 1, 5, 16))


@pytest.mark.parametrize("energy", [0.3, 0.8, 0.99])
def test_energy_is_kept_by_the_least_rank(energy):
    model = of_layer(layers.Dense(16, name="wide"), 24)
    new = factorize(model, energy=energy, allow_larger=True)
    values = np.linalg.svd(model.get_weights()[0], compute_uv=False) ** 2
    wanted = int(np.argmax(np.cumsum(values) / values.sum() >= energy)) + 1
    assert new.get_layer("wide_in").units == wanted


@pytest.mark.parametrize("method", ["tucker", "cp", "spatial_svd", "block_diagonal", "svd"])
def test_energy_is_kept_by_every_method(method):
    low = np.einsum("hr,wr,ir,or->hwio", *(normal(n, 3, seed=n) for n in (3, 3, 8, 16)))
    model = of_layer(layers.Conv2D(16, 3, use_bias=False, name="c"), 8, 8, 8)
    model.layers[1].kernel.assign(low + 0.1 * normal(3, 3, 8, 16))
    new = factorize(model, method, energy=0.8, allow_larger=True)
    kept = float(new.surgery_report.changes[0].detail.split("%")[0].split()[-1])
    assert kept >= 80
    # On white noise, what is left of the kernel is what is left of the outputs.
    x = normal(64, 8, 8, 8, seed=5)
    y, z = model.predict(x, verbose=0), new.predict(x, verbose=0)
    assert np.sum((y - z) ** 2) / np.sum(y**2) == pytest.approx(1 - kept / 100, abs=0.03)


def test_evbmf_finds_the_rank_of_layers():
    model = of_layer(layers.Dense(80, name="d"), 60)
    random = np.random.default_rng(0)
    signal = random.normal(size=(60, 5)) @ random.normal(size=(5, 80))
    model.layers[1].kernel.assign(signal + 0.3 * random.normal(size=(60, 80)))
    assert factorize(model, rank="evbmf").get_layer("d_in").units == 5
    model = of_layer(layers.Conv2D(32, 3, name="c"), 8, 8, 24)
    core = random.normal(size=(3, 3, 4, 6))
    kernel = np.einsum(
        "hwab,ia,ob->hwio", core, random.normal(size=(24, 4)), random.normal(size=(32, 6))
    )
    model.layers[1].kernel.assign(kernel + 0.3 * random.normal(size=kernel.shape))
    new = factorize(model, "tucker", rank="evbmf")
    assert tuple(new.get_layer("c_core").kernel.shape) == (3, 3, 4, 6)


@pytest.mark.parametrize("method", ["svd", "tucker", "spatial_svd", "cp"])
@pytest.mark.parametrize("goal", ["macs", "params"])
def test_budgets_are_met_closely(method, goal):
    keras.utils.set_random_seed(0)
    share = 0.7 if goal == "macs" else 0.85  # most parameters are those of `hidden`, a Dense
    new = factorize(small_cnn(), method, **{goal: share})
    before, after = getattr(new.surgery_report, goal)
    assert (share - 0.03) * before <= after <= share * before
    assert new.surgery_report.macs[1] == count(new)[0]
    assert new.surgery_report.params[1] == new.count_params()


def test_budget_goes_where_the_energy_is():
    x = inputs = keras.Input((64,))
    for name in ("low", "flat"):
        x = layers.Dense(64, use_bias=False, name=name)(x)
    model = keras.Model(inputs, x)
    model.get_layer("low").kernel.assign(normal(64, 4) @ normal(4, 64))
    model.get_layer("flat").kernel.assign(normal(64, 64, seed=1))
    new = factorize(model, macs=0.57)
    assert new.get_layer("low_in").units in (4, 5)
    assert [change.layer for change in new.surgery_report.kept] == ["flat"]
    assert relative_error(model, new) < 1e-5


def test_a_layer_never_gets_larger():
    keras.utils.set_random_seed(0)
    model = small_cnn()
    new = factorize(model, energy=0.9999)
    assert not new.surgery_report.changes
    assert "would make it no smaller" in new.surgery_report.kept[0].detail
    assert relative_error(model, new) == 0.0
    for method in ("svd", "tucker", "cp", "spatial_svd", "kronecker", "block_diagonal"):
        report = factorize(model, method, energy=0.8).surgery_report
        assert report.macs[1] <= report.macs[0]
        assert report.params[1] <= report.params[0]


def test_the_users_model_is_left_alone():
    model = small_cnn()
    x, before = samples(model), [np.array(v) for v in model.weights]
    y = model(x, training=False)
    nodes = [len(layer._inbound_nodes) for layer in model.layers]
    factorize(model, macs=0.5)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.weights, strict=True))
    assert np.array_equal(y, model(x, training=False))
    assert nodes == [len(layer._inbound_nodes) for layer in model.layers]
