"""Methods beside magnitude that let pruned weights come back: RigL, and phases as of AC/DC."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfcompress as tfc
from tfcompress import Prune, schedules
from tfcompress.layers.compressed import Compressed
from tfcompress.techniques.masks import regrown


def test_regrown_by_hand():
    sizes = np.array([5.0, 1.0, 3.0, 2.0, 9.0, 8.0])
    gradients = np.array([0.0, 0.0, 9.0, 9.0, 2.0, 4.0])
    kept = np.array([1, 1, 1, 1, 0, 0], bool)
    scores = regrown(sizes, gradients, kept, survivors=2)
    # The largest kept ones, then pruned ones by gradient, then those that give way.
    np.testing.assert_array_equal(scores, [6.0, 0.0, 4.0, 0.0, 0.5, 1.0])
    # Without gradients nothing gives way.
    still = regrown(sizes, np.zeros(6), kept, survivors=2)
    np.testing.assert_array_equal(still, [6.0, 0.0, 4.0, 0.0, -1.0, -1.0])


def updated(prune, weights, gradients, masks, step):
    states = [
        {"mask": ops.convert_to_tensor(mask), "scores": ops.convert_to_tensor(gradient)}
        for mask, gradient in zip(masks, gradients, strict=True)
    ]
    new = prune.update_together([prune] * len(weights), weights, states, step)
    return [np.array(state["mask"]).astype(int).tolist() for state in new]


def test_rigl_exchanges_fewer_and_fewer_over_all_layers():
    prune = Prune(schedules.constant(0.5, end=10, frequency=5), score="rigl", floor=0.0)
    a = np.array([[9.0, 8.0, 7.0, 6.0, 5.0]], "float32")
    b = np.array([[4.0, 3.0, 2.0, 1.0, 0.5]], "float32")
    gradients = [np.zeros((1, 5), "float32"), np.array([[0, 1, 5, 2, 0]], "float32")]
    masks = [np.array([[1, 1, 1, 1, 0]], "uint8"), np.array([[1, 0, 0, 0, 0]], "uint8")]
    # 30% of 5 kept ones give way at first (round(3.5) survive), 15% half way, none at the end.
    first = updated(prune, [a, b], gradients, masks, 0)
    assert first == [[[1, 1, 1, 1, 0]], [[0, 0, 1, 0, 0]]]
    assert updated(prune, [a, b], gradients, masks, 5) == first  # round(4.25) survive
    assert updated(prune, [a, b], gradients, masks, 10) == [x.tolist() for x in masks]


def test_rigl_learns_the_gradients_of_what_is_pruned():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((2,))
    plain = keras.Model(inputs, layers.Dense(2, use_bias=False)(inputs))
    plain.layers[-1].set_weights([np.array([[4.0, 3.0], [2.0, 1.0]])])
    prune = Prune(schedules.constant(0.5, frequency=1), score="rigl", scope="layer")
    model = tfc.compress(plain, [tfc.Rule("*", [prune])])
    model.compile(keras.optimizers.SGD(0.0), lambda y, p: ops.sum(p * y, -1), jit_compile=False)
    x, y = np.array([[1.0, -2.0]]), np.array([[1.0, 3.0]])
    model.fit(x, y, verbose=0, callbacks=[tfc.UpdateCompression()])
    state = next(x for x in model.layers if isinstance(x, Compressed)).bound[0].states[0]
    np.testing.assert_allclose(state["scores"], 0.1 * np.abs(np.outer(x, y)), rtol=1e-6)
    # 4 and 3 are kept; round(0.7 * 2) = 1 survives, and the largest gradient comes in.
    np.testing.assert_array_equal(state["mask"], [[1, 0], [0, 1]])


def test_rigl_needs_what_it_exchanges():
    for wrong in ({"pattern": "2:4"}, {"threshold": 0.1}):
        with pytest.raises(ValueError, match="Take score='taylor'"):
            Prune(score="rigl", **wrong)
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2)])
    model.compile("sgd", "mse", jit_compile=False)
    with pytest.raises(ValueError, match="score='rigl' lets pruned weights come back"):
        model.fit(
            np.zeros((2, 2)),
            np.zeros((2, 2)),
            verbose=0,
            callbacks=[tfc.PruneCallback(Prune(0.5, score="rigl"))],
        )


def test_alternating_phases():
    turns = schedules.alternating(0.8, begin=10, end=50, phases=3)
    assert turns.points == ((10, 0.8), (20, 0.0), (30, 0.8), (40, 0.0), (50, 0.8))
    assert [turns.at(step) for step in (9, 10, 25, 39, 49, 50, 99)] == [0, 0.8, 0, 0.8, 0, 0.8, 0.8]
    shares = schedules.alternating(0.8, begin="10%", end="60%", phases=2)
    assert shares.points == (("10%", 0.8), ("35%", 0.0), ("60%", 0.8))
    assert shares.over(0, 100) == schedules.alternating(0.8, begin=10, end=60, phases=2)
    weight = np.array([[1.0, 2.0], [3.0, 4.0]], "float32")
    prune = Prune(schedules.alternating(0.5, end=4, phases=2), score="magnitude")
    zeros = [int(np.sum(~prune.mask(weight, None, step))) for step in range(6)]
    assert zeros == [2, 2, 0, 0, 2, 2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.alternating(0.8, end=9, phases=1), "phases must be .* 2 or more"),
        (lambda: schedules.alternating(0.8, end="9%", begin=5), "both be steps or shares"),
        (lambda: schedules.alternating(0.8, end=3, begin=5), "end must not come before begin=5"),
        (lambda: schedules.alternating(0.8, end=2, phases=4), "must grow"),
    ],
)
def test_errors_of_alternating(make, message):
    with pytest.raises(ValueError, match=message):
        make()
