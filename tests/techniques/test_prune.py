"""Prune: masks of layers, their scores and gradients, by hand."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfcompress as tfc
from tfcompress import Prune, schedules
from tfcompress.layers.compressed import Compressed
from tfcompress.schedules import constant

RANDOM = np.random.default_rng(0)


def bound(prune, layer, shape, name="kernel"):
    """A layer built, and the technique bound to one of its weights."""
    layer.build(shape)
    return prune.bind(layer, name)


def gone(mask, axes):
    """Which groups are pruned whole; none in part."""
    rest = tuple(i for i in range(mask.ndim) if i not in axes)
    assert (mask.any(rest) == mask.all(rest)).all()
    return ~mask.any(rest)


KINDS = [
    (lambda: layers.Conv2D(6, 3), (None, 8, 8, 4), (2,), (3,)),
    (lambda: layers.Conv1D(6, 3), (None, 8, 4), (1,), (2,)),
    (lambda: layers.Conv2DTranspose(6, 3), (None, 8, 8, 4), (3,), (2,)),
    (lambda: layers.Dense(6), (None, 4), (0,), (1,)),
    (lambda: layers.EinsumDense("abc,cde->abde", (5, 2, 3)), (None, 5, 4), (0,), (1, 2)),
    (lambda: layers.EinsumDense("abcd,cde->abe", (5, 6)), (None, 5, 2, 2), (0, 1), (2,)),
    (lambda: layers.EinsumDense("abx,yx->aby", (5, 6)), (None, 5, 4), (1,), (0,)),
]


@pytest.mark.parametrize(("make", "shape", "inputs", "outputs"), KINDS)
def test_filters_and_channels_by_layer(make, shape, inputs, outputs):
    for pattern, axes, count in (("filters", outputs, 6), ("channels", inputs, 4)):
        layer = make()
        prune = bound(Prune(constant(0.5), pattern=pattern), layer, shape)
        assert (prune.inputs, prune.outputs) == (inputs, outputs)
        weight = RANDOM.normal(size=layer.kernel.shape).astype("float32")
        pruned = gone(prune.mask(weight, None, 0), axes)
        rest = tuple(i for i in range(weight.ndim) if i not in axes)
        norms = np.abs(weight).mean(rest)
        np.testing.assert_array_equal(pruned, norms < np.sort(norms.ravel())[count // 2])


def test_n_of_m_runs_along_the_inputs():
    for make, shape, inputs, _ in KINDS:
        layer = make()
        prune = bound(Prune(pattern="1:2"), layer, shape).over(0, 0)
        weight = RANDOM.normal(size=layer.kernel.shape).astype("float32")
        mask = np.moveaxis(prune.mask(weight, None, 0), inputs[-1], 0)
        pairs = mask.reshape(mask.shape[0] // 2, 2, -1).sum(1)
        assert set(pairs.ravel()) == {1}


def test_embedding_rows_are_channels():
    layer = layers.Embedding(6, 4)
    prune = bound(Prune(constant(0.5), pattern="channels"), layer, (None, 3), "embeddings")
    weight = np.array([[6.0 - i] * 4 for i in range(6)])
    assert prune.mask(weight, None, 0).any(1).tolist() == [True] * 3 + [False] * 3


def test_which_weights_are_refused():
    depthwise = layers.DepthwiseConv2D(3)
    depthwise.build((None, 8, 8, 4))
    separable = layers.SeparableConv2D(6, 3)
    separable.build((None, 8, 8, 4))
    dense = layers.Dense(3)
    dense.build((None, 4))
    prune = Prune(constant(0.5))
    assert "depthwise=True" in prune.refuses(depthwise, depthwise.kernel)
    assert "depthwise=True" in prune.refuses(separable, separable.depthwise_kernel)
    assert prune.refuses(separable, separable.pointwise_kernel) is None
    assert prune.refuses(dense, dense.kernel) is None
    assert prune.refuses(dense, dense.bias) == "a vector"
    willing = Prune(constant(0.5), depthwise=True)
    assert willing.refuses(depthwise, depthwise.kernel) is None
    assert "input channels" in Prune(pattern="2:4", depthwise=True).refuses(
        depthwise, depthwise.kernel
    )
    mask = willing.bind(depthwise, "kernel").mask(np.array(depthwise.kernel), None, 0)
    assert np.count_nonzero(~mask) == 18
    filters = Prune(constant(0.5), pattern="filters", depthwise=True).bind(depthwise, "kernel")
    assert gone(filters.mask(np.array(depthwise.kernel), None, 0), (2, 3)).sum() == 2


def test_number_of_zeros_follows_the_schedule():
    weight = RANDOM.normal(size=(10, 10)).astype("float32")
    found = []
    for sparsity in [0, 0.1, 0.1, 0.3, 0.3, 0.5]:
        mask = Prune(constant(sparsity), inputs=(0,), outputs=(1,)).mask(weight, None, 0)
        found.append(np.count_nonzero(mask))
    assert found == [100, 90, 90, 70, 70, 50]
    assert np.count_nonzero(Prune(constant(0.9999)).mask(weight, None, 0)) == 1
    growing = Prune(schedules.linear(0.0, 0.5, end=10, frequency=2))
    counts = [np.count_nonzero(~growing.mask(weight, None, step)) for step in range(12)]
    assert counts == [0, 0, 10, 10, 20, 20, 30, 30, 40, 40, 50, 50]


def test_weights_that_are_all_equal():
    for value in (0.0, 0.5):
        mask = Prune(constant(0.3)).mask(np.full((4, 5), value, "float32"), None, 0)
        assert mask.ravel().tolist() == [True] * 14 + [False] * 6


def test_n_of_m_grows_on_a_schedule():
    prune = Prune(schedules.linear(0.0, 0.5, end=4, frequency=1), "2:4", inputs=(0,), outputs=(1,))
    weight = RANDOM.normal(size=(8, 5)).astype("float32")
    final, before = prune.mask(weight, None, 4), np.ones((8, 5), bool)
    assert set(final.reshape(2, 4, 5).sum(1).ravel()) == {2}
    for step, zeros in enumerate([0, 5, 10, 15, 20]):
        mask = prune.mask(weight, None, step)
        assert np.count_nonzero(~mask) == zeros
        assert (mask <= before).all()  # each prunes some of what the last one prunes
        assert (mask >= final).all()
        before = mask


def test_scores():
    weight = np.array([[3.0, -1.0], [0.5, -2.0]], "float32")
    np.testing.assert_array_equal(Prune(constant(0.5)).scores(weight, None), np.abs(weight))
    np.testing.assert_array_equal(
        Prune(constant(0.5), score="l1").scores(weight, None), np.abs(weight)
    )
    np.testing.assert_array_equal(Prune(constant(0.5), score="l2").scores(weight, None), weight**2)
    own = Prune(constant(0.5), score=lambda weight: -weight)
    assert own.mask(weight, None, 0).tolist() == [[False, True], [False, True]]
    wrong = Prune(constant(0.5), score=lambda weight: weight.sum(0))
    with pytest.raises(ValueError, match=r"weight's shape \(2, 2\); received one of shape \(2,\)"):
        wrong.mask(weight, None, 0)


def test_groups_by_mean_square_or_largest():
    # Filters: mean 1, 1.25, 0.9; mean of squares 2, 1.5625, 0.81; largest 2, 1.25, 0.9.
    weight = np.array([[2.0, 1.25, 0.9], [0.0, -1.25, -0.9]], "float32")
    first = {}
    for score in ("magnitude", "l1", "l2", "max"):
        prune = Prune(constant(0.6), "filters", score=score, inputs=(0,), outputs=(1,))
        first[score] = int(np.flatnonzero(prune.mask(weight, None, 0)[0])[0])
    assert first == {"magnitude": 1, "l1": 1, "l2": 0, "max": 0}


def test_random_masks_are_nested_and_repeat():
    layer = layers.Dense(20)
    layer.build((None, 30))
    weight = np.array(layer.kernel)
    masks = [
        Prune(constant(s), score="random").bind(layer, "kernel").mask(weight + s, None, 0)
        for s in (0.2, 0.5, 0.9)
    ]
    assert [np.count_nonzero(~mask) for mask in masks] == [120, 300, 540]
    assert (masks[1] <= masks[0]).all()
    assert (masks[2] <= masks[1]).all()
    other = Prune(constant(0.5), score="random", seed=1).bind(layer, "kernel").mask(weight, None, 0)
    assert (other != masks[1]).any()
    magnitude = Prune(constant(0.5)).mask(weight, None, 0)
    assert (magnitude != masks[1]).any()


def test_threshold():
    weight = np.array([[3.0, -1.0, 0.1], [0.5, -2.0, 0.2]], "float32")
    prune = Prune(threshold=0.5)
    assert prune.mask(weight, None, 0).tolist() == [[True, True, False], [True, True, False]]
    # The most important weight stays.
    assert Prune(threshold=9.0).mask(weight, None, 0).sum() == 1
    filters = Prune(threshold=1.6, pattern="filters", inputs=(0,), outputs=(1,))
    assert filters.mask(weight, None, 0).any(0).tolist() == [True, False, False]
    growing = Prune(threshold=schedules.linear(0.0, 1.0, begin=2, end=4, frequency=1))
    zeros = [np.count_nonzero(~growing.mask(weight, None, step)) for step in range(6)]
    assert zeros == [0, 0, 0, 2, 3, 3]
    assert Prune(constant(0.5), score="l2").mask(np.zeros((2, 2)), None, 0).sum() == 2


def test_threshold_of_zeros_keeps_one():
    assert Prune(threshold=0.1).mask(np.zeros((3, 3), "float32"), None, 0).sum() == 1


def globally(weights, sparsity, **kwargs):
    given = {"scope": "global", "score": "magnitude", "floor": 0.0, **kwargs}
    prune = Prune(constant(sparsity), inputs=(0,), outputs=(1,), **given)
    states = [prune.initial_state(ops.convert_to_tensor(w)) for w in weights]
    new = prune.update_together([prune] * len(weights), weights, states, 0)
    return [np.array(state["mask"]).astype(bool) for state in new]


def test_global_scope_has_one_threshold():
    weights = [RANDOM.normal(size=s).astype("float32") * f for s, f in [((9, 7), 1), ((5, 8), 3)]]
    pooled = np.sort(np.abs(np.concatenate([w.ravel() for w in weights])))
    for sparsity in (0.0, 0.25, 0.7):
        masks = globally(weights, sparsity)
        zeros = sum(np.count_nonzero(~mask) for mask in masks)
        assert zeros == 103 - round(103 * (1 - sparsity))
        if zeros:
            for mask, weight in zip(masks, weights, strict=True):
                np.testing.assert_array_equal(mask, np.abs(weight) > pooled[zeros - 1])
    shares = [mask.mean() for mask in globally(weights, 0.7)]
    assert shares[0] < 0.2 < 0.5 < shares[1]


def test_global_scope_keeps_one_weight_of_each_layer():
    weights = [np.full((4, 5), 1e-6, "float32"), 1 + np.arange(20, dtype="float32").reshape(4, 5)]
    masks = globally(weights, 0.9)
    assert [mask.sum() for mask in masks] == [1, 3]
    assert masks[1].ravel().tolist() == [False] * 17 + [True] * 3
    assert [mask.sum() for mask in globally(weights, 0.99)] == [1, 1]


def test_global_scope_with_groups_counts_weights():
    # Filters of 2 and of 8 weights: half of 20 + 32 weights are at most 26.
    weights = [RANDOM.random((2, 10)).astype("float32"), RANDOM.random((8, 4)).astype("float32")]
    masks = globally(weights, 0.5, pattern="filters")
    pruned = [(mask.sum(0) == 0).sum() for mask in masks]
    assert [mask.all(0).sum() for mask in masks] == [10 - pruned[0], 4 - pruned[1]]
    assert 26 - 8 < 2 * pruned[0] + 8 * pruned[1] <= 26
    means = np.concatenate([w.mean(0) for w in weights])
    kept = np.concatenate([mask.any(0) for mask in masks])
    assert means[kept].min() > means[~kept].max()


def one_weight(prune, rows=3, columns=2, run_eagerly=True):
    """A compressed Dense layer whose loss is the sum of its outputs: gradients are known."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((rows,))
    model = keras.Model(inputs, layers.Dense(columns, use_bias=False, name="dense")(inputs))
    kernel = np.arange(1.0, rows * columns + 1).reshape(rows, columns) * [1, -1]
    model.get_layer("dense").set_weights([kernel])
    model = tfc.compress(model, [tfc.Rule("*", [prune])])
    settings = {"jit_compile": False, "run_eagerly": run_eagerly}
    model.compile(keras.optimizers.SGD(0.5), lambda y, p: ops.sum(p * y, -1), **settings)
    wrapper = next(x for x in model.layers if isinstance(x, Compressed))
    return model, wrapper.bound[0].variable, wrapper.bound[0].states[0], kernel


def train(model, x, y, epochs=1):
    """One step an epoch, on one sample: the kernel's gradient is the outer product of x and y."""
    model.fit(
        np.array([x]), np.array([y]), epochs=epochs, verbose=0, callbacks=[tfc.UpdateCompression()]
    )


def test_zeros_that_are_there_are_held():
    prune = Prune(preserve=True)
    weight = np.array([[0.0, 2.0], [-1.0, 0.0]], "float32")
    (mask,) = prune.initial_state(ops.convert_to_tensor(weight)).values()
    np.testing.assert_array_equal(mask, [[0, 1], [1, 0]])
    np.testing.assert_array_equal(prune.mask(weight, None, 7), weight != 0)
    assert prune.mask(np.zeros((2, 2)), None, 0).all()
    assert (prune.scheduled, prune.together) == (False, False)
    assert prune.scored(taylor=True) == prune
    assert Prune.from_config(prune.get_config()) == prune


def test_pruned_weights_get_no_gradient():
    model, variable, state, kernel = one_weight(Prune(constant(0.5), score="magnitude"))
    train(model, [1.0, 2.0, 3.0], [1.0, 1.0])
    mask = np.array([[0, 0], [0, 1], [1, 1]])
    np.testing.assert_array_equal(state["mask"], mask)
    gradient = np.array([[1.0, 1], [2, 2], [3, 3]])
    np.testing.assert_allclose(variable, kernel - 0.5 * gradient * mask)
    np.testing.assert_array_equal(tfc.finalize(model).layers[-1].kernel, variable * mask)


SCORING = {
    "taylor": lambda scores, product: 0.9 * scores + 0.1 * np.abs(product),
    "movement": lambda scores, product: scores - 0.5 * product,  # trained by SGD as any weight
}


@pytest.mark.parametrize("score", SCORING)
def test_learned_scores_by_hand(score):
    prune = Prune(schedules.constant(0.5, begin=2, frequency=1), score=score)
    model, variable, state, kernel = one_weight(prune, run_eagerly=False)
    scores, follow = np.zeros((3, 2)), SCORING[score]
    for x, y in [([1.0, 2.0, 0.1], [1.0, 3.0]), ([1.0, -1.0, 0.1], [0.5, 1.0])]:
        gradient = np.outer(x, y)
        scores = follow(scores, gradient * kernel)
        train(model, x, y)
        kernel = kernel - 0.5 * gradient
        np.testing.assert_allclose(variable, kernel, rtol=1e-5)
        np.testing.assert_allclose(state["scores"], scores, rtol=1e-5)
    expected = scores >= np.sort(scores.ravel())[3]
    np.testing.assert_array_equal(np.array(state["mask"]).astype(bool), expected)
    # The gradient of what is pruned still counts, so that it may come back.
    gradient = np.outer([2.0, 1.0, 1.0], [1.0, 1.0])
    train(model, [2.0, 1.0, 1.0], [1.0, 1.0])
    scores = follow(scores, gradient * kernel)
    np.testing.assert_allclose(state["scores"], scores, rtol=1e-5)
    np.testing.assert_allclose(variable, kernel - 0.5 * gradient * expected, rtol=1e-5)


@pytest.mark.parametrize("score", ["taylor", "movement"])
def test_scores_that_nothing_was_learned_of_count_as_magnitudes(score):
    model, _, state, kernel = one_weight(Prune(constant(0.5), score=score))
    train(model, [0.0, 0.0, 0.0], [0.0, 0.0])
    expected = np.abs(kernel) > 3
    np.testing.assert_array_equal(np.array(state["mask"]).astype(bool), expected)


def test_movement_leaves_the_effective_weight_as_it_is():
    prune = Prune(0.5, score="movement")
    weight = ops.convert_to_tensor(RANDOM.normal(size=(50, 50)).astype("float32"))
    state = {**prune.initial_state(weight), "scores": ops.ones((50, 50)) * 1e6 + weight}
    np.testing.assert_array_equal(prune.apply(weight, state), weight)


def test_config_round_trip():
    prune = Prune(schedules.cosine(0, 0.8, end=9), "1x4", score="l2", scope="global", seed=3)
    load, serialize = keras.saving.deserialize_keras_object, keras.saving.serialize_keras_object
    assert load(serialize(prune)) == prune
    assert load(serialize(Prune(threshold=0.1))) == Prune(threshold=0.1)


@keras.saving.register_keras_serializable("test_prune")
def cubed(weight):
    return np.abs(weight) ** 3


def test_own_score_survives_saving(tmp_path):
    model, _, state, _ = one_weight(Prune(constant(0.5), score=cubed))
    train(model, [1.0, 2.0, 3.0], [1.0, 1.0])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    wrapper = next(x for x in loaded.layers if isinstance(x, Compressed))
    assert wrapper.techniques[0] == Prune(constant(0.5), score=cubed)
    np.testing.assert_array_equal(wrapper.bound[0].states[0]["mask"], state["mask"])


def test_numbers_of_numpy_are_numbers():
    assert Prune(np.float32(0.5)) == Prune(0.5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Prune(80), ValueError, r"in \[0, 1\); received 80.* Did you mean 0\.8\?"),
        (lambda: Prune(1.0), ValueError, "0.5 to 0.9 is usual"),
        (lambda: Prune(-0.1), ValueError, "received -0.1"),
        (lambda: Prune(schedules.linear(0, 50, end=9)), ValueError, r"Did you mean 0\.5\?"),
        (lambda: Prune(schedules.points([(0, 0.2), (5, 2), (9, 0.5)])), ValueError, "received 2"),
        (lambda: Prune(), ValueError, r"sparsity must be in \[0, 1\); received None"),
        (lambda: Prune("0.5"), TypeError, "sparsity must be a number or a schedule"),
        (lambda: Prune(True), TypeError, "sparsity must be a number or a schedule"),
        (lambda: Prune(0.5, threshold=0.1), ValueError, "sparsity or threshold, not both"),
        (lambda: Prune(threshold=-1), ValueError, "threshold must be 0 or more"),
        (lambda: Prune(threshold=0.1, scope="global"), ValueError, "Leave scope out"),
        (lambda: Prune(0.75, pattern="2:4"), ValueError, "ends with sparsity 0.5"),
        (lambda: Prune(pattern="2:4", scope="global"), ValueError, "Leave them out"),
        (lambda: Prune(pattern="2:4", threshold=0.1), ValueError, "Leave them out"),
        (lambda: Prune(0.5, pattern="4:2"), ValueError, "n less than m"),
        (lambda: Prune(0.5, pattern="rows"), ValueError, "received 'rows'"),
        (lambda: Prune(0.5, score="size"), ValueError, "score must be one of magnitude"),
        (lambda: Prune(0.5, preserve=True), ValueError, "received sparsity=.* Leave out either"),
        (lambda: Prune(preserve=True, pattern="2:4"), ValueError, "received pattern='2:4' with it"),
        (lambda: Prune(0.5, scope="model"), ValueError, "'layer' or 'global'"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()
