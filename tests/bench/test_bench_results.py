"""The results file of the benchmark: cut off, taken by another, written over by later lines."""

import json

import pytest
from bench_rows import latency_row, layers_row, run_row, write
from refusals import refused
from report_rows import MACHINE

from tfcompress.bench.running.results import ResultsFile, latest, machines, of_form, read_rows

LINE = json.dumps(MACHINE)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "results.jsonl"
    rows = [MACHINE, run_row(quality=0.5), latency_row(run_row(), 2.0)]
    with ResultsFile(path) as file:
        for row in rows:
            file.append(row)
            assert read_rows(path)[-1] == row  # On the disk at once.
        assert file.rows == rows
    with ResultsFile(path) as file:
        file.append(layers_row(run_row()))
    assert read_rows(path) == [*rows, layers_row(run_row())]


def test_no_number_of_json_is_none(tmp_path):
    with ResultsFile(tmp_path / "results.jsonl") as file:
        file.append(run_row(quality=float("nan"), vela={"cycles": float("inf")}))
    (row,) = read_rows(tmp_path / "results.jsonl")
    assert row["quality"] is None
    assert row["vela"] == {"cycles": None}


@pytest.mark.parametrize("cut", [1, 10, -2])
def test_a_last_line_that_is_cut_off_is_left_out_and_mended(tmp_path, cut):
    path = tmp_path / "results.jsonl"
    write(path, MACHINE, run_row())
    last = json.dumps(run_row("ptq_int8"))
    path.write_text(path.read_text() + last[:cut])
    with pytest.warns(UserWarning, match="line 3 of .* was cut off, and is left out"):
        assert read_rows(path) == [MACHINE, run_row()]
    with pytest.warns(UserWarning, match="line 3 of .* was cut off"):
        file = ResultsFile(path)
    with file:
        file.append(run_row("float16"))
    assert read_rows(path) == [MACHINE, run_row(), run_row("float16")]


@pytest.mark.parametrize("length", [1, 7, 20])
def test_the_only_line_may_be_cut_off(tmp_path, length):
    path = tmp_path / "results.jsonl"
    path.write_text(LINE[:length])
    with pytest.warns(UserWarning, match="line 1 of .* was cut off"):
        file = ResultsFile(path)
    with file:
        assert file.rows == []
        file.append(MACHINE)
    assert read_rows(path) == [MACHINE]


def test_a_last_line_that_only_lacks_its_end_is_kept(tmp_path, recwarn):
    path = tmp_path / "results.jsonl"
    write(path, MACHINE, run_row(), end="")
    with ResultsFile(path) as file:
        file.append(run_row("float16"))
    assert read_rows(path) == [MACHINE, run_row(), run_row("float16")]
    assert not recwarn.list


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{\n", "line 1 of .* is no JSON"),
        ("a,b,c", "line 1 of .* is no JSON"),
        (f"{LINE}\nno\n", "line 2 of .* is no JSON"),
        ("\n", "line 1 of .* is no JSON"),
        ("[1]\n", "line 1 of .* is of no known kind"),
        ('{"kind": "machine"}\n', "has no text 'id'"),
        ('{"kind": "run"}\n', "has no text 'form'"),
        (json.dumps(run_row(form="endless")) + "\n", "is of no known form"),
        (json.dumps(run_row(seed="0")) + "\n", "has no number 'seed'"),
        (json.dumps(run_row(quality="good")) + "\n", "has 'good' as 'quality', which is no"),
        (json.dumps(run_row(data=None)) + "\n", "does not say which data"),
        (json.dumps(run_row(data="digest")) + "\n", "does not say which data"),
        (json.dumps({**layers_row(run_row()), "layers": 3}) + "\n", "has no list 'layers'"),
        (f"{LINE}\nno\n{LINE}\n", "line 2 of .* is no JSON"),
        (LINE.replace("7.8", "NaN") + "\n", "NaN is no number"),
        (LINE.replace('"versions"', '"packages"') + "\n", "has no versions"),
    ],
)
def test_other_files_are_refused_and_stay_as_they_are(tmp_path, text, message):
    path = tmp_path / "results.jsonl"
    path.write_text(text)
    refused(f"{message}.*Expected the results of", lambda: read_rows(path))
    refused(message, lambda: ResultsFile(path))
    assert path.read_text() == text


def test_a_missing_file_is_told(tmp_path):
    refused("no file at .*none.jsonl'; expected the results", lambda: read_rows("none.jsonl"))
    assert ResultsFile(tmp_path / "new.jsonl").rows == []


def test_two_benchmarks_do_not_write_to_one_file(tmp_path):
    path = tmp_path / "results.jsonl"
    with ResultsFile(path):
        refused("another benchmark is writing to", lambda: ResultsFile(path))
    with ResultsFile(path) as file:
        file.append(MACHINE)


def test_a_later_line_takes_the_place_of_an_earlier_one():
    first, other, again = run_row(quality=0.1), run_row(seed=1), run_row(quality=0.2)
    assert latest([MACHINE, first, other, MACHINE, again]) == [MACHINE, again, other]


def test_latency_and_layers_of_an_earlier_run_are_left_out():
    first, again = run_row(quality=0.1), run_row(quality=0.2)
    old, new = latency_row(first, 1.0), latency_row(first, 2.0)
    assert latest([first, old, layers_row(first)]) == [first, old, layers_row(first)]
    assert latest([first, old, layers_row(first), again]) == [again]
    assert latest([first, old, again, new]) == [again, new]
    assert latest([old]) == []


def test_what_was_measured_on_other_data_is_left_out():
    made, real = run_row("float32", digest="a"), run_row("qat_int8", digest="b")
    elsewhere = run_row(task="glyphs", digest="a")
    short = run_row("float32", form="short", digest="a")
    rows = [made, latency_row(made, 1.0), elsewhere, short, real]
    assert latest(rows) == [elsewhere, short, real]
    assert latest(latest(rows)) == latest(rows)


def test_what_came_from_another_float_model_is_left_out():
    def of(method, seed, checkpoint, **more):
        return run_row(method, seed=seed, checkpoint=checkpoint, **more)

    old = [of("float32", 0, "a"), of("qat_int8", 0, "a"), latency_row(of("qat_int8", 0, "a"), 1.0)]
    other = of("float32", 1, "b")
    new = of("qat_int4", 0, "c")
    assert latest([*old, other, new]) == [other, new]
    # What failed has none.
    failed = run_row("pcqat_int8", status="failed")
    assert latest([*old, other, failed]) == [*old, other, failed]
    assert latest(latest([*old, other, failed])) == [*old, other, failed]


def test_what_had_another_fine_tuning_is_left_out():
    plain = run_row("float32", tuning=None)
    old, new = run_row("ptq_int8", tuning={"steps": 5}), run_row("qat_int8", tuning={"steps": 7})
    assert latest([plain, old, new]) == [plain, new]
    assert latest([plain, new, old]) == [plain, old]
    assert latest([old, new, plain]) == [new, plain]


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 400])
def test_numbers_beyond_all_reason_are_refused(tmp_path, number):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(run_row(zipped=0)).replace('"zipped": 0', f'"zipped": {number}'))
    refused("as 'zipped', which is no number", lambda: read_rows(path))


def test_forms_are_kept_apart_with_their_machines():
    full, short = run_row(), run_row(form="short", machine="other")
    other = {**MACHINE, "id": "other"}
    rows = [MACHINE, other, short, full]
    assert of_form(rows) == of_form(rows, "full") == [MACHINE, full]
    assert of_form(rows, "short") == [other, short]
    assert of_form([other, short]) == [other, short]
    long = run_row(form="long")
    assert of_form([MACHINE, long]) == [MACHINE, long]
    assert of_form([MACHINE, long, full]) == [MACHINE, full]
    assert of_form([MACHINE], "full") == []


def test_machines_tell_which_tasks_they_measured():
    other = {**MACHINE, "id": "other"}
    runs = [run_row(), run_row(task="glyphs", machine="other"), run_row(task="anomaly")]
    older = {name: value for name, value in layers_row(runs[0]).items() if name != "machine"}
    rows = [MACHINE, other, *runs, latency_row(runs[0], 1.0), older]
    first, second = machines(rows)
    assert first == {**MACHINE, "tasks": ["digits", "anomaly"]}
    assert second == {**other, "tasks": ["glyphs"]}
