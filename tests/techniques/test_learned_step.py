"""Learned steps of weights and learned limits of activations, against the papers in NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from tfcompress import Quantize, schedules
from tfcompress.techniques.learned import quantize_between, quantize_learned
from tfcompress.techniques.scales import weight_scale

RANDOM = np.random.default_rng(0)


def lsq(w, step, levels, upstream, shared):
    """Equations 1 to 3 of LSQ with its gradient scale, from -levels to levels.

    Returns (weight on the grid, gradient of the weight, scaled gradient of the step).
    """
    position = w / step
    codes = np.clip(np.round(position), -levels, levels)
    inside = np.abs(position) <= levels
    slope = np.where(inside, np.round(position) - position, np.sign(position) * levels)
    count = w.size / step.size
    of_step = (upstream * slope).sum(axis=shared, keepdims=True) / np.sqrt(count * levels)
    return codes * step, upstream * inside, of_step


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("axes", [(), (3,), (2, 3)])
def test_weights_are_those_of_lsq(bits, axes):
    w = RANDOM.normal(0, 0.3, (3, 3, 2, 5)).astype("float32")
    upstream = RANDOM.normal(size=w.shape).astype("float32")
    shared = tuple(axis for axis in range(4) if axis not in axes)
    levels = 2 ** (bits - 1) - 1
    base = (weight_scale(w, shared, bits) * 0.7).astype("float32")  # some are clipped
    factor = tf.constant(RANDOM.uniform(0.8, 1.2, base.shape).astype("float32"))
    weight = tf.constant(w)
    with tf.GradientTape() as tape:
        tape.watch([weight, factor])
        y = quantize_learned(weight, tf.constant(base), factor, levels)
        loss = tf.reduce_sum(y * upstream)
    of_weight, of_factor = tape.gradient(loss, [weight, factor])
    value, expected, of_step = lsq(w, base * factor.numpy(), levels, upstream, shared)
    np.testing.assert_allclose(y, value, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(of_weight, expected)
    # The step is base * factor, and moves by as much as LSQ's would, relative to its size.
    np.testing.assert_allclose(of_factor, of_step / base, rtol=1e-4, atol=1e-5)


def test_a_step_of_sgd_moves_the_step_as_lsq_does():
    w = RANDOM.normal(0, 0.3, (4, 5)).astype("float32")
    upstream = RANDOM.normal(size=w.shape).astype("float32")
    technique = Quantize(bits=4, step="learned")
    state = technique.initial_state(w)
    factor = tf.Variable(state["factor"])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(technique.apply(w, {**state, "factor": factor}) * upstream)
    rate = 1e-3
    moved = np.array(state["base"] * (factor - rate * tape.gradient(loss, factor)))
    base = np.array(state["base"])
    *_, of_step = lsq(w, base, 7, upstream, (0, 1))
    np.testing.assert_allclose(moved, base - rate * of_step, rtol=1e-6)


def test_the_first_step_has_the_least_squared_error():
    w = np.array([[1.0, 1.0, -1.0, 0.9, 0.0, 3.0]] * 3, "float32")
    state = Quantize(bits=2, step="learned").initial_state(w)
    errors = [np.square(np.clip(np.round(w / s), -1, 1) * s - w).sum() for s in (3.0, 1.38)]
    found = np.array(Quantize(bits=2, step="learned").apply(w, state))
    assert np.square(found - w).sum() <= min(errors) + 1e-3
    zeros = Quantize(bits=2, step="learned", axes=(1,)).initial_state(np.zeros((4, 2), "float32"))
    np.testing.assert_array_equal(zeros["base"], [[1.0, 1.0]])


def test_damping_draws_weights_to_their_codes():
    w = tf.Variable([0.9, 0.2, -5.0])
    with tf.GradientTape() as tape:
        y = quantize_learned(w, tf.constant([0.5]), tf.constant([1.0]), 7, damping=0.1)
        loss = tf.reduce_sum(y) * 0.0
    # 2 * damping * (w - code * step); -5 is clipped at -3.5
    np.testing.assert_allclose(tape.gradient(loss, w), [0.2 * -0.1, 0.2 * 0.2, 0.0], atol=1e-7)


def test_zeros_stay_zeros():
    w = RANDOM.normal(size=(6, 5)).astype("float32")
    w[RANDOM.random(w.shape) < 0.5] = 0.0
    technique = Quantize(bits=4, step="learned", axes=(1,))
    found = np.array(technique.apply(w, technique.initial_state(w)))
    assert not found[w == 0].any()


def lsq_plus(x, low, high, upstream, levels=255.0):
    """Gradients of LSQ+ by its two limits: scale = (high - low) / levels, offset = low."""
    step = (high - low) / levels
    position = (x - low) / step
    inside = (position >= 0) & (position <= levels)
    rounding = (np.round(position) - position) / levels
    of_low = np.where(inside, -rounding, position < 0)
    of_high = np.where(inside, rounding, position > levels)
    return upstream * inside, (upstream * of_low).sum(), (upstream * of_high).sum()


def test_activations_are_those_of_lsq_plus():
    x = RANDOM.normal(0, 1.5, (8, 6, 5)).astype("float32")
    upstream = RANDOM.normal(size=x.shape).astype("float32")
    # Zero is on the grid: -51 and 204 steps.
    low, high, factors = -0.8, 3.2, np.array([1.25, 1.25], "float32")
    inputs, trained = tf.constant(x), tf.constant(factors)
    with tf.GradientTape() as tape:
        tape.watch([inputs, trained])
        y = quantize_between(inputs, low, high, trained)
        loss = tf.reduce_sum(y * upstream)
    of_x, of_factors = tape.gradient(loss, [inputs, trained])
    expected, *of_limits = lsq_plus(x, -1.0, 4.0, upstream)
    np.testing.assert_allclose(y, np.clip(np.round(x / (5 / 255)), -51, 204) * (5 / 255), atol=1e-5)
    np.testing.assert_allclose(of_x, expected)
    # LSQ+ scales the gradient of its step by 1 / sqrt(n * levels), n values a sample.
    step, scaling = (high - low) / 255, 1 / np.sqrt(30 * 255)
    np.testing.assert_allclose(of_factors, np.array(of_limits) * 255 * scaling / step, rtol=1e-3)


def test_a_limit_at_zero_does_not_move():
    x = tf.constant([[-1.0, 0.5, 9.0]])
    factors = tf.constant([1.0, 1.0])
    with tf.GradientTape() as tape:
        tape.watch(factors)
        loss = tf.reduce_sum(quantize_between(x, 0.0, 6.0, factors))
    found = tape.gradient(loss, factors).numpy()
    assert found[0] == 0.0
    assert found[1] > 0.0


def test_delay_finds_the_step_anew():
    technique = Quantize(bits=4, step="learned", delay=5)
    first, later = ops.array([0.25, 1.0]), ops.array([2.5, 7.0])
    state = technique.initial_state(first)
    np.testing.assert_array_equal(technique.apply(later, state), later)
    state = technique.update(later, state, 5)
    np.testing.assert_allclose(state["base"], weight_scale(later.numpy(), (0,), 4, "mse"))
    moved = {**state, "factor": ops.array([1.1])}
    np.testing.assert_allclose(technique.update(later, moved, 6)["factor"], [1.1])


@pytest.mark.parametrize("step", ["max", "learned"])
def test_falling_bits(step):
    w = RANDOM.normal(size=(40, 3)).astype("float32")
    widths = schedules.points([(0, 8), (10, 4), (20, 2)])
    technique = Quantize(bits=2, step=step, bits_schedule=widths)
    assert [technique.next_step(at) for at in (-1, 0, 10, 20)] == [0, 10, 20, None]
    assert technique.begins() == 20
    state, counts = technique.initial_state(w), []
    for at in (0, 9, 10, 20):
        state = technique.update(w, state, at)
        found = np.array(technique.apply(w, state))
        code = found / np.array(technique.step_of(found, state))
        np.testing.assert_allclose(code, np.round(code), atol=1e-4)
        counts.append(np.abs(np.round(code)).max())
    assert counts[0] == counts[1] > 64
    assert counts[2:] == [7, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step": "lsq"}, "step must be 'max' or 'learned'; received 'lsq'"),
        ({"activation_step": 1}, "activation_step must be 'max' or 'learned'; received 1"),
        ({"bits": 9, "step": "learned"}, "bits with step='learned' must be 2 to 8; received 9"),
        ({"damping": 0.1}, "damping must be 0 or, with step='learned', more; received 0.1"),
        ({"bits_schedule": schedules.constant(4)}, "the last of which is bits=8; received"),
        (
            {"bits": 4, "bits_schedule": schedules.points([(0, 4), (9, 2)])},
            r"the last of which is bits=4; received \[4.0, 2.0\]",
        ),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Quantize(**settings)
