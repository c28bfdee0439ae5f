"""What the report draws and writes: numbers, axes, the Pareto front, layers before and after."""

import itertools
import math

import plotly.graph_objects as graph_objects
import pytest
from report_rows import make_rows

from tfcompress.bench import plots
from tfcompress.bench.plots import makers
from tfcompress.bench.summaries import COLUMNS, LATENCY, QUALITY, ZIPPED, Summary, known, summarize
from tfcompress.report import axes, page
from tfcompress.report.layer_data import match, task_entry


def summary(method, quality, zipped, who="tfcompress"):
    """A method of one seed or several: qualities in percent, sizes in KiB."""
    values = {
        "quality": {seed: q / 100 for seed, q in enumerate(quality)},
        "zipped": {seed: 1024.0 * size for seed, size in enumerate(zipped)},
    }
    return Summary("task", method, who, method, method, "accuracy", values)


def drawn(*summaries, column=ZIPPED):
    return plots.pareto(summaries, column, makers(s.who for s in summaries))


def test_numbers_are_written_with_thousands_apart_and_a_true_minus():
    assert page.number(-1234.567, 1) == "−1,234.6"
    assert page.number(0.25, 2, sign=True) == "+0.25"
    assert page.number(-0.001, 2, sign=True) == "0.00"
    assert page.number(None) == page.number(math.nan) == "–"
    assert page.significant(0.0123456) == "0.0123"
    assert page.significant(1234.5) == "1,234"
    assert page.spread(91.234, 0.151, 3, 2) == "91.23 ± 0.15"
    assert page.spread(91.234, 0.0, 1, 2) == "91.23"


def test_means_are_over_seeds_in_the_units_of_the_column():
    one = summary("a", [90, 92], [10, 12])
    assert QUALITY.text(one.mean("quality")) == "91.00 ± 1.41"
    assert ZIPPED.said(one.mean("zipped")) == "11.0 ± 1.4 KiB"
    assert ZIPPED.text(None) == "–"
    assert [c.figure for c in known(COLUMNS, [one])] == ["quality", "zipped"]


def test_the_front_is_what_nothing_else_beats():
    small, equal = summary("small", [80], [10]), summary("equal", [80], [12])
    worse, best = summary("worse", [79], [20]), summary("best", [90], [30])
    found = drawn(best, worse, equal, small)
    assert [p.summary.method for p in found.front] == ["small", "best"]
    line = found.figure["data"][0]
    assert line["name"] == "Pareto front"
    assert line["line"]["shape"] == "hv"
    assert line["x"][:2] == [10, 30]
    assert line["y"] == [80, 90, 90]  # On to the right edge.


def test_points_bear_means_and_standard_deviations():
    found = drawn(summary("a", [90, 92], [10, 12]), summary("b", [80, 80], [9, 9], "TFMOT"))
    trace = next(t for t in found.figure["data"] if t["name"] == "tfcompress")
    assert trace["x"] == [11]
    assert trace["y"] == pytest.approx([91])
    assert trace["error_y"]["array"] == pytest.approx([math.sqrt(2)])
    assert trace["error_x"]["array"] == pytest.approx([math.sqrt(2)])
    assert "91.00 ± 1.41 %" in trace["hovertext"][0]


def test_makers_differ_in_colour_and_in_marker():
    names = ["ours", "TFMOT", "tfcompress", "TFLiteConverter", "ai-edge-quantizer"]
    found = makers(names)
    assert len({each.number for each in found.values()}) == len(names)
    assert len({each.marker for each in found.values()}) == len(names)
    assert makers(["TFMOT"])["TFMOT"] == found["TFMOT"]  # The same in every report.
    many = makers([*names, *"abcdefgh"])
    assert all(each.marker for each in many.values())


def test_float32_is_a_line_and_a_marker_of_its_own():
    found = drawn(summary("float32", [90], [40]), summary("a", [89], [10]))
    line, marker = (t for t in found.figure["data"] if t["name"] == "float32")
    assert line["y"] == [90, 90]
    assert line["mode"] == "lines"
    assert line["x"][0] < 10
    assert line["x"][1] > 40
    assert (marker["x"], marker["y"]) == ([40], [90])
    assert not any(40 in t["x"] for t in found.figure["data"] if t["name"] == "tfcompress")


def test_a_failed_file_does_not_press_the_others_together():
    good = [summary(f"m{i}", [90 - i / 10], [10 + i]) for i in range(6)]
    found = drawn(*good, summary("broken", [12], [9]))
    low, high = found.figure["layout"]["yaxis"]["range"]
    assert 80 < low < 89
    assert 90 < high < 91
    assert [p.summary.method for p in found.below] == ["broken"]
    # It stays in the plot, for who zooms out.
    assert any(12 in t["y"] for t in found.figure["data"])


def test_methods_without_a_figure_are_named():
    unknown = summary("unknown", [90], [])
    found = drawn(summary("a", [90], [10]), unknown)
    assert [each.method for each in found.missing] == ["unknown"]
    assert drawn(unknown) is None


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (9, 120, ["10", "20", "50", "100"]),
        (0.9, 12000, ["1", "10", "100", "1,000", "10,000"]),
        (0.0045, 0.022, ["0.005", "0.01", "0.02"]),
        (0.0086, 0.0205, ["0.01", "0.015", "0.02"]),
    ],
)
def test_logarithmic_axes_have_a_few_round_ticks(low, high, texts):
    places, found = axes.ticks(low, high)
    assert found == texts
    assert [float(text.replace(",", "")) for text in found] == pytest.approx(places)


@pytest.mark.parametrize("ratio", [1.05, 1.1, 1.5, 3, 20, 1e3, 1e7])
def test_any_axis_has_ticks_that_lie_apart(ratio):
    for low in (0.0013, 0.7, 33.0):
        places, _ = axes.ticks(low, low * ratio)
        assert 3 <= len(places) <= 6
        assert all(low <= place <= low * ratio for place in places)
        steps = [math.log(b / a) / math.log(ratio) for a, b in itertools.pairwise(places)]
        assert min(steps) > 0.18


@pytest.mark.parametrize("column", [ZIPPED, LATENCY])
def test_figures_are_ones_that_plotly_knows(column):
    summaries = [s for s in summarize(make_rows(["digits"])) if s.task == "digits"]
    found = drawn(*summaries, column=column)
    figure = graph_objects.Figure(found.figure)  # It refuses names and values that are none.
    markers = [t for t in figure.data if t.mode == "markers"]
    assert sum(len(t.x) for t in markers) == len(summaries)
    assert len({t.marker.symbol for t in markers}) == len(markers) == 5
    for trace in markers:
        for text in trace.hovertext:
            assert "Accuracy" in text
            assert "Zipped" in text
            assert "Latency" in text


def test_names_are_no_markup_of_plotly():
    evil = "<b>x</b> & <a href='javascript:1'>y</a>"
    text = plots.hover(summary(evil, [90], [10], evil))
    assert "<a" not in text
    assert "&lt;b&gt;x&lt;/b&gt; &amp; &lt;a" in text


def layer(name, op="CONV_2D", params=9, histogram=True):
    counts = {"edges": [-1, 1], "counts": [1, 2, 1]} if histogram else None
    return {"name": name, "op": op, "params": params, "histogram": counts}


def test_layers_are_matched_by_name():
    before = [layer("a"), layer("relu", "RELU", 0, False), layer("b"), layer("c")]
    assert match([layer("c", params=4), layer("a", params=3)], before) == [3, 0]
    assert match([layer("c"), layer("new")], before) == [3, None]
    # One that was taken apart has the name, but not the form.
    assert match([layer("a", "FULLY_CONNECTED"), layer("b")], before) == [None, 2]
    factors = [layer("a_in", params=3), layer("a", params=4), layer("b"), layer("c")]
    assert match(factors, before) == [None, None, 2, 3]


def test_layers_are_matched_by_place_where_names_disagree():
    before = [layer("a"), layer("pool", "MEAN", 0, False), layer("b", "FULLY_CONNECTED", 4)]
    other = [layer("x"), layer("y", "FULLY_CONNECTED", 4), layer("z", "SOFTMAX", 0, False)]
    assert match(other, before) == [0, 2, None]
    assert match(other[:1], before) == [None]
    assert match([layer("x"), layer("y", "FULLY_CONNECTED", 5)], before) == [None, None]


def test_layers_that_were_numbered_anew_are_matched_by_place():
    before = [layer("dense_1"), layer("dense_2"), layer("head", "FULLY_CONNECTED", 4)]
    other = [layer("dense"), layer("dense_1"), layer("head", "FULLY_CONNECTED", 4)]
    assert match(other, before) == [0, 1, 2]


def test_layers_of_one_name_are_matched_in_turn():
    before = [layer("query"), layer("query"), layer("out", params=2)]
    assert match([layer("query"), layer("query")], before) == [0, 1]
    assert match([layer("out", params=2), layer("query"), layer("query")], before) == [2, 0, 1]


def test_layers_of_any_origin_have_what_the_page_needs():
    strange = [
        None,
        {"name": 3, "bytes": "many", "range": [1], "sparsity": math.nan},
        {"name": "a", "histogram": {"edges": [1, 1], "counts": [1]}},
        {"name": "b", "histogram": {"edges": [0, 1], "counts": [1, "x"]}},
        {"name": "c", "histogram": {"edges": [0, 1], "counts": [1] * 200_000}},
    ]
    found = task_entry("t", [("file", "who", strange)], None)["files"][0]["layers"]
    assert [each["name"] for each in found] == ["", "3", "a", "b", "c"]
    assert found[1]["bytes"] is None
    assert found[1]["range"] is None
    assert found[1]["sparsity"] is None
    assert found[2]["histogram"] is None
    assert found[3]["histogram"] == {"edges": [0, 1], "counts": [1, 0]}
    assert found[4]["histogram"] is None  # A browser would draw it for minutes.
