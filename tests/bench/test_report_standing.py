"""What the report says of tfcompress beside its peers, and what it counts as even."""

import re

import pytest
from report_pages import cells_of, without_scripts
from report_rows import make_rows

from tfcompress.bench import comparison
from tfcompress.bench.comparison import contests
from tfcompress.bench.report import write_results_report
from tfcompress.bench.running.results import latest, of_form
from tfcompress.bench.summaries import Summary, summarize


@pytest.fixture(scope="module")
def rows():
    return make_rows(("digits", "keywords"))


@pytest.fixture(scope="module")
def report(rows, tmp_path_factory):
    return text_of(rows, tmp_path_factory.mktemp("standing"))


def text_of(rows, folder):
    write_results_report(rows, folder / "r.html")
    return (folder / "r.html").read_text()


def test_the_standing_says_who_is_ahead(report, rows):
    expected = contests(summarize(of_form(latest(rows))))
    found = cells_of(report, "Our best file")[1:]
    assert [row[-1] for row in found] == [contest.winner for contest in expected]
    won = sum(contest.winner == "tfcompress" for contest in expected)
    assert f"<b>{won}</b> ahead" in report
    assert f"of {len(expected)}</p>" in report


def test_the_standing_adds_up_where_nobody_has_a_file(tmp_path):
    rows = make_rows(["digits"], ["float32", "ptq_int8", "ptq_int8_aeq"])
    for row in rows:
        if row.get("method") in ("ptq_int8", "ptq_int8_aeq") and row["kind"] == "run":
            row["quality"] -= 0.2
    text = text_of(rows, tmp_path)
    found = [row[-1] for row in cells_of(text, "Our best file")[1:]]
    assert found.count("nobody") >= 2
    score = re.search(r'<p class="score">(.*?), of (\d+)</p>', text)
    parts = [int(number) for number in re.findall(r"<b>(\d+)</b>", score[1])]
    assert len(parts) == 4
    assert sum(parts) == int(score[2]) == len(found)
    assert parts[3] == found.count("nobody")


def winner(figure, differences):
    """Who is ahead where ours differs by so many points or percent from a peer, seed by seed."""
    base = 0.5 if figure == "quality" else 1.0
    sides = [{}, {}]
    for seed, difference in enumerate(differences):
        sides[0][seed], sides[1][seed] = base + difference / 100, base
    ours, peer = (
        Summary("digits", who, who, "ptq_int8", who, "accuracy", {figure: values})
        for who, values in zip(("tfcompress", "peer"), sides, strict=True)
    )
    return comparison.difference(ours, peer, figure).winner


def test_what_is_told_to_count_as_even_does(report):
    told = re.search(r'<div id="even"><dt>Even</dt><dd>(.*?)</dd>', report, re.DOTALL)[1]
    several = [float(number) for number in re.findall(r"[\d.]+(?=%| points)", told)]
    one = several.pop()
    figures = ("quality", "zipped", "ratio", "step_cpu_ratio")
    for figure, most in zip(figures, several, strict=True):
        assert winner(figure, [most] * 3) == "even"
        assert winner(figure, [1.1 * most] * 3) != "even"
    assert winner("quality", [one]) == "even"
    assert winner("quality", [1.1 * one]) == "tfcompress"
    assert "at most two standard errors" in told
    assert winner("quality", [1.9 - 3**0.5, 1.9, 1.9 + 3**0.5]) == "even"  # The error is 1.
    assert winner("quality", [2.1 - 3**0.5, 2.1, 2.1 + 3**0.5]) == "tfcompress"
    assert f"that of float32 minus {100 * comparison.EQUAL:g} points" in report


def test_one_seed_is_told_to_leave_scatter_open(report, tmp_path):
    rows = make_rows(["digits"], ["float32", "ptq_int8", "ptq_int8_aeq"], seeds=[0])
    text = text_of(rows, tmp_path)
    assert "<caption>Digits: one seed, which does not tell how much others scatter" in text
    assert "± standard deviation" not in without_scripts(text)
    assert "<caption>Digits: mean ± standard deviation over the seeds" in report
    for each in (report, text):
        assert "the noise of the seeds" not in each
