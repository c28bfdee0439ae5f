"""Markers in float files: what they tell, and that they leave the file as it was."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from float_files import float_model, ops_of, run

from tfcompress.conversion import constants, kernel_limits, markers, quantize, ranges
from tfcompress.conversion.ranges import Range
from tfcompress.tflite import flatbuffer, signature


def fake_quant(x, low, high, bits=8, name=None):
    limits = {"min": low, "max": high}
    return tf.raw_ops.FakeQuantWithMinMaxVars(inputs=x, num_bits=bits, name=name, **limits)


def mark(x, low, high, bits=8, wider=markers.MARKED, node=None):
    name = None if node is None else f"a/{markers.named_for(node)}"
    first = fake_quant(x, low, high, bits, name)
    return fake_quant(first, wider * low, wider * high, bits, name)


def limits(known: Range) -> tuple[float, float]:
    return round(known.minimum, 4), round(known.maximum, 4)


def test_markers_are_read_and_taken_out():
    def function(x):
        x = mark(x, -1.0, 127 / 128)
        return mark(tf.exp(x), 0.0, 2.55)

    model = float_model(function, (1, 4))
    known, floats = markers.take_markers(model)
    graph = model.subgraphs[0]
    assert ops_of(model) == ["EXP"]
    assert floats == set()
    assert limits(known[graph.inputs[0]]) == (-1.0, round(127 / 128, 4))
    assert limits(known[graph.outputs[0]]) == (0.0, 2.55)
    assert len(graph.tensors) == 2
    x = np.linspace(-2, 2, 4, dtype="float32")[None]
    np.testing.assert_allclose(run(model, x)[0], np.exp(x), rtol=1e-6)  # not rounded any more


def test_sixteen_bits():
    model = float_model(lambda x: mark(tf.exp(x), -1.0, 32767 / 32768, 16), (1, 4))
    known, _ = markers.take_markers(model)
    (found,) = known.values()
    assert found.bits == 16
    assert limits(found) == (-1.0, 1.0)


def test_another_width_says_float():
    model = float_model(lambda x: mark(tf.sin(x), -1.0, 1.0, wider=markers.MARKED_FLOAT), (1, 4))
    known, floats = markers.take_markers(model)
    assert floats == set(model.subgraphs[0].outputs)
    assert known[model.subgraphs[0].outputs[0]].maximum == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize("high", [2e-4, 3e-6, 1e-6])
def test_ranges_that_the_converter_takes_for_zeros(high, floats):
    *wide, wider = markers.told_as(-0.5 * high, high, floats)
    model = float_model(lambda x: mark(tf.sin(x), *wide, wider=wider), (1, 4))
    known, found = markers.take_markers(model)
    (said,) = known.values()
    assert said.maximum == pytest.approx(high, rel=0.01)
    assert said.minimum == pytest.approx(-0.5 * said.maximum, rel=0.03)
    assert bool(found) == floats


def test_equal_operations_that_are_rounded_to_several_ranges():
    def function(x):  # the converter takes the two for one
        return mark(tf.sin(x), -1.0, 1.0), mark(tf.sin(x), -4.0, 4.0), mark(tf.sin(x), -4.0, 4.0)

    model = float_model(function, (1, 4))
    known, _ = markers.take_markers(model)
    outputs = model.subgraphs[0].outputs
    assert sorted(round(known[i].maximum) for i in outputs) == [1, 4, 4]
    x = np.linspace(-2, 2, 4, dtype="float32")[None]
    for found in run(model, x):
        np.testing.assert_allclose(found, np.sin(x), rtol=1e-6)


def test_what_the_converter_adds_is_no_marker():
    def function(x):  # it moves the reshape before the marker, and takes the mean's range for x's
        return tf.reshape(mark(tf.reduce_mean(mark(x, -1.0, 1.0), 1), -0.1, 0.1), (1, 6))

    model = float_model(function, (1, 5, 2, 3))
    known, floats = markers.take_markers(model)
    assert ops_of(model) == ["MEAN", "RESHAPE"]
    graph = model.subgraphs[0]
    assert floats == set()
    assert {limits(known[i])[1] for i in graph.inputs} == {0.9961}
    spread = ranges.spread(model, known)
    assert {limits(spread[i])[1] for op in graph.operators for i in op.outputs} == {0.0996}


def test_reshapes_of_marked_constants_are_folded():
    weight = np.arange(6, dtype="float32")

    def function(x):
        return tf.reshape(mark(weight, 0.0, 5.1), (2, 3)) * x

    model = float_model(function, (2, 3))
    known, floats = markers.take_markers(model)
    constants.fold(model, known, floats)
    assert ops_of(model) == ["MUL"]
    (constant,) = [i for i in known if ranges.is_constant(model, i)]
    assert ranges.constant(model, constant).shape == (2, 3)
    x = np.ones((2, 3), "float32")
    np.testing.assert_allclose(run(model, x)[0], weight.reshape(2, 3))


def test_ranges_spread_both_ways_over_what_keeps_the_scale():
    def function(x, y):
        x = tf.nn.max_pool2d(tf.exp(x), 2, 2, "VALID")
        return tf.reshape(mark(tf.concat([x, tf.exp(y)], -1), 0.0, 2.55), (1, -1))

    model = float_model(function, (1, 4, 4, 2), (1, 2, 2, 2))
    known, _ = markers.take_markers(model)
    assert len(known) == 1
    spread = ranges.spread(model, known)
    graph = model.subgraphs[0]
    of_inputs = {i for i in graph.inputs if i in spread}
    assert of_inputs == set()  # EXP has another scale
    written = {i for op in graph.operators for i in op.outputs}
    assert {limits(spread[i]) for i in written} == {(0.0, 2.55)}


def test_fixed_ranges_do_not_depend_on_markers():
    model = float_model(lambda x: tf.nn.softmax(mark(tf.sin(x), -1.0, 1.0)), (1, 4))
    known, _ = markers.take_markers(model)
    spread = ranges.spread(model, known)
    assert limits(spread[model.subgraphs[0].outputs[0]]) == (0.0, round(255 / 256, 4))


def test_a_relu_whose_range_clips_is_dropped():
    def function(x):
        hidden = tf.nn.relu(tf.reshape(x, (2, 2)) + 1.0)
        return mark(tf.nn.relu(mark(hidden, 0.0, 2.55) * 2.0 - 1.0), 0.0, 5.1)

    model = float_model(function, (1, 4))
    known, _ = markers.take_markers(model)
    before = ops_of(model)
    ranges.drop_clipped_relus(model, ranges.spread(model, known))
    assert "RELU" not in ops_of(model)
    assert len(ops_of(model)) <= len(before)


def test_a_relu_that_does_not_clip_by_its_range_stays():
    def function(x, y):  # read twice, so that the sum may not be clipped
        total = tf.add(x, y)
        return mark(tf.nn.relu(total), 0.0, 2.55), total

    model = float_model(function, (1, 4), (1, 4))
    known, _ = markers.take_markers(model)
    ranges.drop_clipped_relus(model, known)
    assert "RELU" in ops_of(model)


def test_an_output_that_is_marked_keeps_its_signature():
    x = keras.Input((4,), name="x")
    model = keras.Model(x, keras.layers.Dense(2, name="y")(x))

    def function(x):
        return {"y": mark(model(x), -1.0, 1.0)}

    parsed = float_model(function, (1, 4))
    markers.take_markers(parsed)
    graph = parsed.subgraphs[0]
    for entry in parsed.signatureDefs or []:
        assert [e.tensorIndex for e in entry.outputs] == list(graph.outputs)
    assert ops_of(parsed) == ["FULLY_CONNECTED"]


@pytest.mark.parametrize("bits", [8, 16])
def test_a_sum_that_vanishes_gets_steps_that_litert_does_not_abort_at(bits):
    zeros = tf.zeros((1, 4))
    model = float_model(lambda x: tf.reshape(x + zeros + x, (4,)), (1, 4))
    signature.name_inputs_and_outputs(model, ["x"], ["y"])
    known = {i: Range(-1e-9, 1e-9, bits) for i, _ in enumerate(model.subgraphs[0].tensors)}
    known[model.subgraphs[0].inputs[0]] = Range(-1.0, 1.0, bits)
    kernel_limits.widen_sums(model, known)
    integers = quantize.static(model, known, io_dtype="float32")
    (found,) = run(integers, np.zeros((1, 4), np.float32))
    np.testing.assert_allclose(found, 0, atol=1e-3)


def test_sums_whose_scales_litert_takes_for_powers_of_two():
    model = float_model(lambda x: tf.sigmoid(x) + (1.0 - tf.tanh(x)), (1, 4))
    signature.name_inputs_and_outputs(model, ["x"], ["y"])
    known = {i: Range(-1.0, 1.0, 16) for i, _ in enumerate(model.subgraphs[0].tensors)}
    for op in model.subgraphs[0].operators[-2:]:
        known[op.outputs[0]] = Range(0.0, 2.0, 16)
    kernel_limits.widen_sums(model, known)
    x = np.linspace(-2, 2, 4, dtype="float32")[None]
    integers = quantize.static(model, known, io_dtype="float32")
    x = np.clip(x, -1, 1)
    wanted = np.minimum(1 / (1 + np.exp(-x)) + 1 - np.tanh(x), 2.0)
    np.testing.assert_allclose(run(integers, x)[0], wanted, atol=1e-3)


def test_a_range_that_a_kernel_fixes_goes_no_further_than_it_must():
    def function(x):
        return tf.concat([tf.sigmoid(mark(x, -4.0, 4.0)), mark(tf.exp(x), -2.0, 6.0)], -1)

    model = float_model(function, (1, 4))
    known, _ = markers.take_markers(model)
    spread = ranges.spread(model, known)
    assert limits(spread[model.subgraphs[0].outputs[0]]) == (-2.0078, 5.9922)
    alone = float_model(lambda x: tf.transpose(tf.sigmoid(mark(x, -4.0, 4.0))), (1, 4))
    spread = ranges.spread(alone, markers.take_markers(alone)[0])
    assert limits(spread[alone.subgraphs[0].outputs[0]]) == (0.0, round(255 / 256, 4))


@pytest.mark.parametrize("operation", [tf.tanh, tf.exp, lambda x: x * x])
@pytest.mark.parametrize("way", ["in a row", "before what keeps one scale"])
def test_what_is_rounded_to_two_grids_is_so_in_the_file(way, operation):
    def function(x):
        x = mark(x, -1.0, 127 / 128)
        y = mark(operation(x), -1.0, 127 / 128, node=1)
        if way == "in a row":
            return mark(y, -1.5, 1.5 * 127 / 128, node=2)
        return mark(tf.concat([y, mark(x + x, -1.5, 1.5 * 127 / 128)], 1), -1.5, 1.5 * 127 / 128)

    model = float_model(function, (1, 64))
    signature.name_inputs_and_outputs(model, ["x"], ["y"])
    known, _ = markers.take_markers(model)
    integers = quantize.static(model, known, io_dtype="float32", trained={}, widths={8})
    graph = integers.subgraphs[0]
    written = [op for op in graph.operators if flatbuffer.op_name(integers, op) == "QUANTIZE"]
    made = [flatbuffer.scales_of(graph.tensors[op.outputs[0]])[0] for op in written]
    scales = {round(128 * scale, 4) for (scale,) in made}
    assert scales == {1.0, 1.5}  # of the input, and of what was rounded before
    assert {"TANH", "EXP", "MUL"}.intersection(ops_of(integers))
    x = np.linspace(-1, 0.9, 64, dtype="float32")[None]
    wanted = np.clip(operation(tf.constant(x)).numpy(), -1.0, 127 / 128)
    np.testing.assert_allclose(run(integers, x)[0][:, :64], wanted, atol=1.8 / 128)


def test_a_share_of_truths_is_on_its_grid():
    model = float_model(lambda x: tf.reduce_mean(tf.cast(x > 0.0, "float32"), 1), (1, 6))
    known = {model.subgraphs[0].inputs[0]: Range(-1.0, 1.0)}
    spread = ranges.spread(model, known)
    assert limits(spread[model.subgraphs[0].outputs[0]]) == (0.0, round(255 / 252, 4))
