"""What tools are compared with: samples, reference outputs, differences, operators alone."""

import dataclasses

import numpy as np
import pytest
from acceptance_files import BIAS, WEIGHTS, floats, two_layers, two_layers_of_floats
from tflite_by_hand import build, graph

from tfcompress.tflite import flatbuffer
from tfcompress.tools import comparison
from tfcompress.tools.comparison import compare, difference, operators_alone
from tfcompress.tools.driving import Answer, Refused
from tfcompress.tools.subject import read_subject, with_other_kernels


@pytest.fixture(scope="module")
def layers():
    return read_subject(two_layers(), {})


def hidden(x):
    """By hand: half of weights @ x + bias, rounded half up; no value is near the ends of int8."""
    return np.floor((WEIGHTS.astype(int) @ x.ravel() + BIAS) * 0.5 + 0.5)


def exact(file):
    return [[np.array(v) for v in sample.values()] for sample in file.expected]


def test_drawn_samples_are_codes_and_the_same_again(layers):
    assert len(layers.inputs) == 8
    codes = np.concatenate([sample["x"].ravel() for sample in layers.inputs])
    assert codes.dtype == np.int8
    assert codes.min() < -64
    assert codes.max() > 64
    again = read_subject(two_layers(), {})
    assert all((a["x"] == b["x"]).all() for a, b in zip(layers.inputs, again.inputs, strict=True))


def test_expected_is_what_the_arithmetic_says():
    rows = np.array([[1, 2, 3], [-4, 0.5, 6], [0, -3, 2.5]], np.float32)
    file = read_subject(two_layers(), {}, rows)
    for row, sample, made in zip(rows, file.inputs, file.expected, strict=True):
        assert sample["x"].tolist() == [(row / 0.5).tolist()]  # The scale is 0.5.
        assert made["y"].ravel().tolist() == np.maximum(hidden(sample["x"]), 0).tolist()
    assert file.units == {"y": 1.0}


def test_given_values_are_rounded_and_kept_within_the_codes():
    rows = np.array([[100, -100, 0.3]], np.float32)
    (sample,) = read_subject(two_layers(), {}, rows).inputs
    assert sample["x"].tolist() == [[127, -128, 1]]


def test_a_file_without_outputs_is_nothing_to_compare():
    with pytest.raises(ValueError, match="has no outputs; expected at least one"):
        read_subject(build([], [graph([], [], [], [])], []), {})


def test_unit_of_a_dequantized_output_is_its_scale():
    file = read_subject(floats(), {})
    assert file.units == {"y": 0.25}
    lows = [sample["x"].min() for sample in file.inputs]
    assert min(lows[0::2]) >= 0
    assert min(lows[1::2]) < 0
    for sample, made in zip(file.inputs, file.expected, strict=True):
        assert np.abs(made["y"] - sample["x"]).max() <= 0.125


def test_equal_outputs(layers):
    found = difference(layers, exact(layers))
    assert (found.lsb, found.relative, found.sqnr) == (0, None, np.inf)


def test_largest_difference_in_steps():
    file = read_subject(floats(), {})
    outputs = exact(file)
    outputs[3][0] = outputs[3][0] + np.float32([0, 0.5, -0.75])
    assert difference(file, outputs).lsb == 3
    wanted = np.concatenate([sample["y"].ravel() for sample in file.expected])
    signal = (wanted**2).sum()  # Real numbers: the zero point is no signal.
    assert difference(file, outputs).sqnr == pytest.approx(
        10 * np.log10(signal / (0.5**2 + 0.75**2))
    )


def test_the_zero_point_is_no_signal(layers):
    outputs = [[v.astype(int) + 1 for v in sample] for sample in exact(layers)]
    wanted = np.concatenate([sample["y"].ravel() for sample in layers.expected]).astype(int)
    shifted = dataclasses.replace(layers, zeros={"y": -100})
    for file, zero in ((layers, 0), (shifted, -100)):
        sqnr = 10 * np.log10(((wanted - zero) ** 2).sum() / wanted.size)
        assert difference(file, outputs).sqnr == pytest.approx(sqnr)


def test_float_outputs_are_relative_to_the_largest():
    file = read_subject(floats(), {})
    file = dataclasses.replace(file, units={"y": None})
    largest = max(np.abs(sample["y"]).max() for sample in file.expected)
    outputs = exact(file)
    outputs[0][0] = outputs[0][0] + np.float32(0.01 * largest)
    found = difference(file, outputs)
    assert found.lsb is None
    assert found.relative == pytest.approx(0.01, rel=1e-3)
    outcome = compare(file, lambda f: Answer(outputs, {}, {}), lsb=1)
    assert outcome.status == "failed"
    assert "1.0e-02 of the largest; expected at most 0.0001" in outcome.reason


def test_nan_is_no_agreement():
    file = read_subject(floats(), {})
    outputs = exact(file)
    outputs[0][0] = np.full((1, 3), np.nan, np.float32)
    assert difference(file, outputs).lsb == np.inf


def test_missing_outputs_are_told(layers):
    outputs = exact(layers)
    assert difference(layers, outputs[1:]) == "gave outputs for 7 samples; expected 8"
    assert difference(layers, [[*sample, *sample] for sample in outputs]) == (
        "gave 2 outputs; expected 1"
    )
    wide = [[np.zeros(3)] for _ in outputs]
    assert difference(layers, wide) == "output 'y' has shape (3,); expected (1, 2)"


def test_operators_alone_are_fed_what_litert_feeds_them():
    rows = np.array([[1, 2, 3], [-4, 0.5, 6]], np.float32)
    alone = operators_alone(read_subject(two_layers(), {}, rows))
    model = flatbuffer.read(alone.data)
    assert len(model.subgraphs[0].inputs) == len(model.subgraphs[0].outputs) == 2
    for row, sample, made in zip(rows, alone.inputs, alone.expected, strict=True):
        x, between = row / 0.5, hidden(row / 0.5)
        assert sample["fed_0"].ravel().tolist() == x.tolist()
        assert sample["fed_3"].ravel().tolist() == between.tolist()
        assert made["made_3"].ravel().tolist() == between.tolist()
        assert made["made_4"].ravel().tolist() == np.maximum(between, 0).tolist()
    # The cut file computes just that, and the relu reads its own input.
    again = read_subject(alone.data, {})
    for sample, made in zip(again.inputs, again.expected, strict=True):
        relu = np.maximum(sample["fed_3"].astype(int), 0).ravel()
        assert made["made_4"].ravel().tolist() == relu.tolist()


def test_operators_alone_of_a_file_with_float_edges_have_them_too():
    rows = np.array([[1, 2, 3], [-4, 0.5, 6]], np.float32)
    alone = operators_alone(read_subject(two_layers_of_floats(), {}, rows))
    model = flatbuffer.read(alone.data)
    names = [flatbuffer.op_name(model, op) for op in model.subgraphs[0].operators]
    assert names == ["QUANTIZE", "FULLY_CONNECTED", "DEQUANTIZE"]
    assert alone.units == {"made_4": 1.0}
    for row, sample, made in zip(rows, alone.inputs, alone.expected, strict=True):
        assert sample["fed_3"].dtype == np.float32
        assert sample["fed_3"].ravel().tolist() == row.tolist()
        assert made["made_4"].ravel().tolist() == hidden(row / 0.5).tolist()
    again = read_subject(alone.data, {}, rows)
    for wanted, made in zip(alone.expected, again.expected, strict=True):
        assert (wanted["made_4"] == made["made_4"]).all()


def off_by(steps):
    """A tool whose every operator is off by so many steps, which add up."""

    def run(file):
        depth = 1 if "made_3" in file.units else 2
        return Answer([[v + depth * steps for v in sample] for sample in exact_real(file)], {}, {})

    return run


def exact_real(file):
    return [[v.astype(float) for v in sample.values()] for sample in file.expected]


def test_steps_of_single_operators_may_add_up(layers):
    found = compare(layers, off_by(1), lsb=1)
    assert found.status == "passed"
    assert found.figures == {"max LSB": 2, "max LSB of an op": 1}
    assert "adds up to 2 LSB" in found.reason


def test_other_kernels_of_litert_run_the_file_too(layers):
    others = with_other_kernels(layers)
    assert sorted(others) == ["XNNPACK", "optimized"]
    for other in others.values():
        assert difference(layers, exact(other)).lsb <= 1


def test_rounding_as_other_kernels_of_litert_do_passes(layers, monkeypatch):
    def shifted(by):
        samples = [{k: v.astype(int) + by for k, v in s.items()} for s in layers.expected]
        return dataclasses.replace(layers, expected=samples)

    others = {"XNNPACK": shifted(3), "optimized": shifted(7)}
    monkeypatch.setattr(comparison, "with_other_kernels", lambda file: others)
    for by, name, lsb in ((3, "XNNPACK", 0), (4, "XNNPACK", 1), (8, "optimized", 1)):
        found = compare(layers, lambda f, by=by: Answer(exact(shifted(by)), {}, {}), lsb=1)
        assert (found.status, found.reason) == ("passed", "")
        assert found.figures == {"max LSB": lsb, "kernels": name, "LSB to reference": by}
    # Two steps from the nearest are too many, and its operators cannot be right.
    found = compare(layers, lambda f: Answer(exact(shifted(5)), {}, {}), lsb=1)
    assert found.status == "failed"


def test_an_operator_off_by_two_steps_fails(layers):
    found = compare(layers, off_by(2), lsb=1)
    assert found.status == "failed"
    assert found.figures == {"max LSB": 4, "max LSB of an op": 2}
    assert "Operators alone differ by up to 2 LSB" in found.reason


def test_wrong_wiring_fails_although_operators_are_right(layers):
    def run(file):
        outputs = exact_real(file)
        if "made_3" not in file.units:
            outputs = outputs[::-1]  # The outputs of other samples.
        return Answer(outputs, {}, {})

    found = compare(layers, run, lsb=1)
    assert found.status == "failed"
    assert "dB; expected at least 20" in found.reason


def test_refusal_of_the_cut_file_does_not_hide_the_difference(layers):
    def run(file):
        if "made_3" in file.units:
            raise Refused("int8 is not supported")
        return off_by(1)(file)

    found = compare(layers, run, lsb=0)
    assert found.status == "failed"
    assert found.reason == (
        "outputs differ from LiteRT's by 2 LSB; expected at most 0; its operators alone: "
        "int8 is not supported"
    )


def test_figures_of_the_tool_are_kept(layers):
    found = compare(
        layers, lambda f: Answer(exact(f), {"arena": 7, "x": 1}, {}), lsb=0, figures=["arena"]
    )
    assert (found.status, found.reason, found.figures) == ("passed", "", {"max LSB": 0, "arena": 7})
