"""What results say, against numbers worked out by hand."""

import pytest
from bench_rows import latency_row, run_row, seeds, vela_row
from report_rows import MACHINE

from tfcompress.bench import tables
from tfcompress.bench.comparison import contests, difference, pairs
from tfcompress.bench.methods.run import AEQ, OURS, TFMOT
from tfcompress.bench.summaries import Mean, mean_of, summarize

FLOAT = seeds("float32", 0.900, 1000, 1.0)
PEER = seeds("qat_int8_tfmot", 0.9, 900, 1.0, who=TFMOT, family="qat_int8", step=1.3)


def by_what(rows):
    return {each.what: each for each in contests(summarize(rows))}


def test_tasks_and_methods_come_in_the_order_of_the_list():
    tasks, methods = ("digits", "glyphs", "new"), ("float32", "qat_int8", "own")
    rows = [run_row(m, task=t, quality=0.9) for t in tasks[::-1] for m in methods[::-1]]
    found = [(each.task, each.method) for each in summarize(rows)]
    assert found == [(t, m) for t in tasks for m in methods]


def test_means_are_those_of_the_seeds():
    (summary,) = summarize(seeds("qat_int8", [0.8, 0.9, 0.7], [100, 101, 102], 0.5))
    quality = summary.mean("quality")
    assert (quality.mean, quality.std, quality.count) == (pytest.approx(0.8), pytest.approx(0.1), 3)
    assert (summary.mean("zipped").mean, summary.mean("zipped").std) == (101, 1)
    assert summary.mean("ratio").mean == 0.5
    assert summary.mean("no_amx_ratio") is None
    assert mean_of([7.0]) == Mean(7.0, 0.0, 1)
    assert mean_of([]) is None


def test_nested_figures_are_found():
    vela = {"cycles": 10, "sram_kib": 2.5, "flash_kib": 3, "cpu_ops": 0}
    row = run_row(measure="AUC")
    times = {**latency_row(row, 1.0), "threads": {"count": 2, "ms": 1.0, "ratio": 0.7}}
    times["no_amx"] = {"ms": 2.0, "ratio": 0.6}
    (summary,) = summarize([row, times, vela_row(row, vela)])
    found = {name: summary.mean(name).mean for name in summary.values}
    expected = {"cycles": 10, "sram_kib": 2.5, "flash_kib": 3, "ms": 1, "ratio": 1}
    assert found == {**expected, "cpu_ops": 0, "threads_ratio": 0.7, "no_amx_ratio": 0.6}
    assert summary.measure == "AUC"


def test_cycles_of_a_part_of_a_file_are_left_out():
    vela = {"cycles": 10, "sram_kib": 2.5, "flash_kib": 3, "cpu_ops": 2}
    run = run_row(quality=0.9)
    (summary,) = summarize([run, vela_row(run, vela)])
    assert summary.mean("cycles") is None
    assert summary.mean("cpu_ops").mean == 2


def test_a_failed_seed_is_told_and_not_counted():
    rows = seeds("qat_int8", 0.9, 100)
    rows[1] = {**rows[1], "status": "failed", "error": "crashed", "quality": None}
    (summary,) = summarize(rows)
    assert summary.mean("quality").count == 2
    assert summary.errors == ("crashed",)


@pytest.mark.parametrize(
    ("ours", "theirs", "mean", "winner"),
    [
        # Seed by seed +1, +2, +3 points: mean 2, standard deviation 1.
        ([0.91, 0.82, 0.73], [0.90, 0.80, 0.70], 0.02, OURS),
        ([0.90, 0.80, 0.70], [0.91, 0.82, 0.73], -0.02, TFMOT),
        # -1, +1, +3: mean 1, standard deviation 2.
        ([0.90, 0.80, 0.70], [0.91, 0.79, 0.67], 0.01, "even"),
        # -1, +2, +2: mean 1, standard error 1, of which two are too many.
        ([0.90, 0.82, 0.72], [0.91, 0.80, 0.70], 0.01, "even"),
        # +2, +3, +4: mean 3, standard error 0.58.
        ([0.92, 0.83, 0.74], [0.90, 0.80, 0.70], 0.03, OURS),
        # All the same, but less than can be read.
        ([0.9004] * 3, [0.9] * 3, 0.0004, "even"),
        ([0.9006] * 3, [0.9] * 3, 0.0006, OURS),
    ],
)
def test_quality_is_compared_seed_by_seed(ours, theirs, mean, winner):
    rows = seeds("qat_int8", ours, 100) + seeds("qat_int8_tfmot", theirs, 100, who=TFMOT)
    found = difference(*summarize(rows), "quality")
    assert found.value.mean == pytest.approx(mean)
    assert found.winner == winner


@pytest.mark.parametrize(("ours", "winner"), [(0.904, "even"), (0.906, OURS)])
def test_of_one_seed_half_a_point_is_no_difference(ours, winner):
    rows = [run_row("qat_int8", quality=ours), run_row("qat_int8_tfmot", quality=0.9)]
    assert difference(*summarize(rows), "quality").winner == winner


@pytest.mark.parametrize(
    ("figure", "ours", "theirs", "mean", "winner"),
    [
        ("zipped", 90, 100, 0.9, OURS),
        ("zipped", 100, 80, 1.25, TFMOT),
        ("zipped", 996, 1000, 0.996, "even"),
        ("zipped", [90, 100, 110], 100, 1.0, "even"),
        ("ratio", 0.5, 0.505, 0.990, "even"),
        ("ratio", 0.5, 0.55, 0.909, OURS),
        ("ratio", 0.5, 0.52, 0.962, "even"),
        ("step_cpu_ratio", 1.0, 1.05, 0.952, "even"),
        ("step_cpu_ratio", 1.0, 1.06, 0.943, OURS),
    ],
)
def test_less_is_better_of_other_figures(figure, ours, theirs, mean, winner):
    settings, name = {"zipped": 100, "quality": 0.9}, figure.partition("_cpu")[0]
    rows = seeds("qat_int8", **{**settings, name: ours})
    rows += seeds("qat_int8_tfmot", **{**settings, name: theirs}, who=TFMOT)
    found = difference(*summarize(rows), figure)
    assert found.value.mean == pytest.approx(mean, abs=1e-3)
    assert found.winner == winner


def test_without_a_common_seed_nothing_is_compared():
    rows = [run_row(seed=0, quality=0.9), run_row("qat_int8_tfmot", seed=1, quality=0.9)]
    assert difference(*summarize(rows), "quality") is None


def test_size_at_equal_quality_takes_what_is_half_a_point_below():
    rows = FLOAT + seeds("qat_int8", 0.896, 300) + seeds("pcqat_int8", 0.8951, 100)
    rows += seeds("ptq_int4", 0.8949, 50)
    rows += seeds("a", 0.91, 280, who=TFMOT) + seeds("b", 0.89, 60, who=AEQ)
    found = by_what(rows)["size at equal quality"]
    assert (found.ours, found.our_value.mean) == ("pcqat_int8", 100)
    assert (found.peer, found.who, found.peer_value.mean) == ("a", TFMOT, 280)
    assert found.winner == OURS


def test_exactly_half_a_point_below_is_equal():
    rows = FLOAT + seeds("qat_int8", 0.900 - 0.005, 300) + PEER
    assert by_what(rows)["size at equal quality"].ours == "qat_int8"


def test_a_peer_that_wins_is_told():
    rows = FLOAT + seeds("qat_int8", 0.9, 300, 0.6, step=1.5, no_amx=0.5, family="qat_int8")
    theirs = {"who": TFMOT, "family": "qat_int8", "step": 1.2, "no_amx": 0.3}
    rows += seeds("qat_int8_tfmot", 0.92, 200, 0.4, **theirs)
    found = by_what(rows)
    assert list(found) == [
        "size at equal quality",
        "latency at equal quality",
        "latency without AMX",
        "quality at equal size",
        "QAT step, to Keras's plain one",
        "QAT step, to its own plain one",
    ]
    assert {each.winner for each in found.values()} == {TFMOT}
    assert found["QAT step, to its own plain one"].peer_value.mean == pytest.approx(1.2)
    assert found["QAT step, to Keras's plain one"].peer_value.mean == pytest.approx(2.4)
    # No file of ours is as small as the peer's best.
    assert found["quality at equal size"].ours is None
    assert tables.tally(list(found.values())) == "tfcompress wins 0 of 6, TFMOT 6."
    text = tables.contest_table(list(found.values())).markdown()
    assert "| digits | QAT step, to its own plain one | qat_int8: 1.50 ± 0.00x |" in text
    assert (
        "| digits | quality at equal size | none | qat_int8_tfmot: 92.00 ± 0.00 | TFMOT |" in text
    )


def test_quality_at_equal_size_is_ours_within_the_size_of_the_best_peer_file():
    rows = FLOAT + seeds("big", 0.99, 500) + seeds("fits", 0.95, 200) + seeds("small", 0.90, 100)
    rows += seeds("best", 0.93, 200, who=TFMOT) + seeds("other", 0.92, 900, who=AEQ)
    rows += seeds("float16_converter", 0.97, 550, who="TFLiteConverter", family="float16")
    found = by_what(rows)["quality at equal size"]
    assert (found.ours, found.peer, found.winner) == ("fits", "best", OURS)
    assert (found.our_value.mean, found.peer_value.mean) == (
        pytest.approx(0.95),
        pytest.approx(0.93),
    )


@pytest.mark.parametrize(("zipped", "winner"), [(201, OURS), (202, TFMOT)])
def test_half_a_percent_more_is_an_equal_size(zipped, winner):
    rows = FLOAT + seeds("a", 0.95, zipped) + seeds("b", 0.93, 200, who=TFMOT)
    assert by_what(rows)["quality at equal size"].winner == winner


def test_nobody_wins_what_nobody_reaches():
    rows = FLOAT + seeds("a", 0.5, 100, 0.5) + seeds("b", 0.5, 100, 0.5, who=TFMOT)
    found = by_what(rows)
    assert found["size at equal quality"].winner == "nobody"
    assert found["latency at equal quality"].winner == "nobody"
    assert found["quality at equal size"].winner == "even"
    assert "latency without AMX" not in found


def broken(*arguments, **settings):
    """Lines of three seeds, the first of which failed."""
    first, *rest = seeds(*arguments, **settings)
    return [{**first, "status": "failed", "error": "crashed"}, *rest]


def test_ours_is_no_best_where_it_failed_on_a_seed_and_a_peer_s_is():
    rows = FLOAT + broken("pcqat_int8", 0.9, 10) + seeds("qat_int8", 0.9, 300)
    rows += broken("qat_int8_tfmot", 0.9, 200, who=TFMOT) + seeds("b", 0.9, 400, who=AEQ)
    found = by_what(rows)["size at equal quality"]
    assert (found.ours, found.peer, found.winner) == ("qat_int8", "qat_int8_tfmot", TFMOT)


def test_nobody_wins_against_those_who_did_not_run():
    ours, theirs = seeds("qat_int8", 0.9, 300, 0.5, step=1.1, family="qat_int8"), PEER
    assert by_what(FLOAT + ours) == {}
    # One that ran, and is not good enough, loses.
    bad = seeds("prune80_int8_tfmot", 0.5, 100, 0.4, who=TFMOT)
    found = by_what(FLOAT + ours + bad)
    assert list(found) == [
        "size at equal quality",
        "latency at equal quality",
        "quality at equal size",
    ]
    assert [each.winner for each in found.values()] == [OURS, OURS, TFMOT]
    # Without latency of the peer there is none to compare.
    untimed = [row for row in theirs if row["kind"] == "run"]
    assert "latency at equal quality" not in by_what(FLOAT + ours + untimed)


def test_pairs_are_of_one_family():
    rows = FLOAT + seeds("ptq_int8", 0.89, 90, 0.5, family="ptq_int8")
    rows += seeds("ptq_int8_converter", 0.88, 100, 0.5, who="TFLiteConverter", family="ptq_int8")
    rows += seeds("ptq_int8_aeq", 0.90, 80, 0.4, who=AEQ, family="ptq_int8")
    rows += seeds("qat_int8", 0.9, 100)
    first, second = pairs(summarize(rows))
    assert (first.ours, first.peer, first.who) == (
        "ptq_int8",
        "ptq_int8_converter",
        "TFLiteConverter",
    )
    assert (first.quality.winner, first.zipped.winner, first.ratio.winner) == (OURS, OURS, "even")
    assert (second.quality.winner, second.zipped.winner, second.ratio.winner) == (AEQ, AEQ, AEQ)
    assert first.step is None
    text = tables.pair_table([first, second]).markdown()
    row = "| digits | ptq_int8 | {} | {} ± 0.00 {} | {} ± 0.00x {} | {} ± 0.00x {} | – |"
    assert row.format("ptq_int8_converter", "+1.00", "▲", "0.90", "▲", "1.00", "=") in text
    assert row.format("ptq_int8_aeq", "-1.00", "▼", "1.12", "▼", "1.25", "▼") in text


def test_tables_show_means_and_how_much_seeds_scatter():
    rows = FLOAT + seeds("qat_int8", [0.91, 0.90, 0.92], 300, 0.5, step=1.25)
    (table,) = tables.task_tables(summarize(rows))
    text = table.markdown()
    assert text.splitlines()[0] == "digits (3 seeds):"
    assert "| method | accuracy % | zipped | latency | step CPU |" in text
    assert "| --- | ---: | ---: | ---: | ---: |" in text
    assert "| qat_int8 | 91.00 ± 1.00 | 300 | 0.50 ± 0.00x | 1.25 ± 0.00x |" in text
    assert "| float32 | 90.00 ± 0.00 | 1,000 | 1.00 ± 0.00x | – |" in text
    (narrow,) = tables.task_tables(summarize(rows), 80)
    assert "| qat_int8 | 91.00 ± 1.00 | 300 | 0.50x | 1.25x |" in narrow.markdown()
    (single,) = tables.task_tables(summarize([run_row(quality=0.5)]))
    assert "1 seed" in single.title
    assert "| qat_int8 | 50.00 |" in single.markdown()


def test_of_several_machines_their_tasks_are_told():
    line = tables.machine_line([MACHINE, run_row()])
    said = "Some Processor 9000 @ 2.90GHz, 2 cores, 7.8 GiB, AMX"
    software = line.removeprefix(f"{said}, ")
    assert software.startswith("Debian GNU/Linux 12 (bookworm), x86_64, Python 3.11.2, tfcompress ")
    other = {**MACHINE, "id": "other", "cpu": "Another", "amx": False}
    rows = [MACHINE, other, run_row(), run_row(task="glyphs", machine="other")]
    both = f"{said} (digits); Another, 2 cores, 7.8 GiB (glyphs), "
    assert tables.machine_line(rows) == both + software
    rows[1] = {**other, "python": "3.12.0"}
    older = f"{said} (digits), {software}; {both.partition('; ')[2]}"
    assert tables.machine_line(rows) == older + software.replace("3.11.2", "3.12.0")
