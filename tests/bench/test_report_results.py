"""The report on results: what is in the file, what it may run, what names in it cannot do."""

import base64
import hashlib
import html
import json
import re

import pytest
from refusals import refused
from report_pages import cells_of, data_of, run, without_scripts
from report_rows import MACHINE, make_rows, write_rows

from tfcompress.bench.methods import METHODS
from tfcompress.bench.report import said, write_results_report
from tfcompress.bench.summaries import summarize
from tfcompress.bench.tasks import TASKS
from tfcompress.report import page

FOR_DIGITS = [method for method in METHODS.values() if method.suits(TASKS["digits"])]
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def rows():
    return make_rows(("digits", "keywords"))


@pytest.fixture(scope="module")
def report(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    size = write_results_report(rows, path)
    assert path.stat().st_size == size
    return path.read_text()


def test_it_is_small_enough_and_asks_the_network_for_nothing(report):
    assert len(report) < 8e6
    outside = without_scripts(report)
    # Neither in attributes nor in the style.
    links = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]*)""", outside)
    assert links
    assert all(link.startswith("#") or link == "data:," for link in links)
    assert not re.search(r"url\(|@import", outside)
    assert report.count("plotly.js v") == 1


def check_policy(report):
    """Scripts of a report run, and no others."""
    policy = re.search(r'http-equiv="Content-Security-Policy" content="(.*?)"', report)[1]
    rules = dict(rule.split(" ", 1) for rule in html.unescape(policy).split("; "))
    assert rules["default-src"] == "'none'"
    assert "connect-src" not in rules
    scripts = re.findall(r"<script>(.*?)</script>", report, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert rules["script-src"].split() == [f"'sha256-{digest}'" for digest in digests]
    assert report.index("Content-Security-Policy") < report.index("<style>")


def test_only_the_scripts_of_the_report_may_run(report):
    check_policy(report)


def test_tables_hold_every_method_with_mean_and_deviation(report, rows):
    summaries = [s for s in summarize(rows) if s.task == "digits"]
    heading, *found = cells_of(report, "Digits: mean")
    assert found[0][0] == "float32 float32"  # Its title and its name.
    assert len(found) == len(summaries) == len(FOR_DIGITS)
    for summary, row in zip(summaries, found, strict=True):
        mean = summary.mean("quality")
        column = next(i for i, title in enumerate(heading) if title.startswith("Quality"))
        assert row[column] == f"{100 * mean.mean:.2f} ± {100 * mean.std:.2f}"
        size = summary.mean("zipped")
        column = next(i for i, title in enumerate(heading) if title.startswith("Zipped"))
        assert row[column] == f"{size.mean / 1024:.1f} ± {size.std / 1024:.1f}"


def test_against_float32_is_paired_by_seed(report, rows):
    heading, *found = cells_of(report, "Digits: mean")
    column = next(i for i, title in enumerate(heading) if title.startswith("Against"))
    assert found[0][column] == "0.00 ± 0.00"
    runs = [r for r in rows if r["kind"] == "run" and r["task"] == "digits"]
    quality = {(r["method"], r["seed"]): 100 * r["quality"] for r in runs}
    lost = [quality["float16", seed] - quality["float32", seed] for seed in (0, 1, 2)]
    assert found[2][column].split()[0] == f"{sum(lost) / 3:+.2f}".replace("-", "−")


def test_halves_of_characters_do_not_stop_the_report(tmp_path):
    rows = make_rows(["digits"], ["float32"], seeds=[0])
    for row in rows:
        row |= {"title": "a\ud800b"} if "title" in row else {}
    size = write_results_report(rows, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert (tmp_path / "r.html").stat().st_size == size
    assert cells_of(text, "Digits: one")[1][0].startswith("a?b")
    check_policy(text)


def test_each_task_has_its_plots_and_its_place_in_the_navigation(report):
    figures = data_of(report)["figures"]
    assert set(figures) == {f"plot-{i}-{f}" for i in (0, 1) for f in ("zipped", "ms")}
    for name in figures:
        assert report.count(f'data-figure="{name}"') == 1
    for target in re.findall(r'href="#([\w-]+)"', without_scripts(report)):
        assert f'id="{target}"' in report
    assert re.search(r'<a href="#task-1">Keywords</a>', report)


def test_layers_of_all_methods_are_there_with_their_counterparts(report, rows):
    tasks = data_of(report)["layers"]
    assert [task["title"] for task in tasks] == ["Digits", "Keywords"]
    lines = [r for r in rows if r["kind"] == "layers" and r["task"] == "digits"]
    assert len(tasks[0]["files"]) == len(lines) == len(FOR_DIGITS)
    assert tasks[0]["files"][3]["layers"] == lines[3]["layers"]
    assert tasks[0]["before"] == lines[0]["layers"]
    assert tasks[0]["files"][3]["before"] == [0, 1, 2, 3, 4, 5, None]


@pytest.mark.parametrize(
    "field", ["task", "method", "who", "title", "family", "measure", "error", "cpu", "layer"]
)
def test_names_from_results_are_texts_and_nothing_else(field, tmp_path):
    rows = make_rows(["digits"], ["float32", "qat_int8", "qat_int8_tfmot"], seeds=[0])
    rows[2] |= {"status": "failed", "error": EVIL if field == "error" else "no"}
    for row in rows:
        if field in row and field != "error" and (field != "method" or row[field] != "float32"):
            row[field] = EVIL
        if field == "layer" and row["kind"] == "layers":
            row["layers"][0]["name"] = row["layers"][0]["op"] = EVIL
    write_results_report(rows, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert text.count("<script>") == 2  # plotly.js and ours
    assert text.count("<script ") == 1
    assert "<img src=x" not in without_scripts(text)
    if field not in ("family", "measure"):
        assert "alert(1)" in without_scripts(text)
    if field in ("cpu", "error", "who"):
        assert html.escape(EVIL) in text
    data_of(text)


def test_a_method_that_failed_is_told(tmp_path):
    rows = make_rows(["digits"], ["float32", "ptq_int8", "ptq_int8_aeq"], seeds=[0, 1])
    bad = next(r for r in rows if r.get("method") == "ptq_int8_aeq" and r["seed"] == 1)
    bad |= {"status": "failed", "error": "out of luck", "quality": None}
    write_results_report(rows, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "failed 1×" in text
    assert "out of luck" in text
    # Where nothing but failures is left, there is no plot to draw.
    for row in rows:
        if row["kind"] == "run":
            row |= {"status": "failed", "error": "no", "quality": None}
    rows = [row for row in rows if row["kind"] != "latency"]
    write_results_report(rows, tmp_path / "report.html")
    assert data_of((tmp_path / "report.html").read_text())["figures"] == {}


def test_each_machine_tells_what_it_measured(tmp_path):
    rows = [MACHINE, {**MACHINE, "id": "other", "cpu": "Another"}]
    for task, machine in (("digits", MACHINE["id"]), ("glyphs", "other")):
        made = make_rows([task], ["float32"], seeds=[0])[1:]
        rows += [{**row, "machine": machine} if "machine" in row else row for row in made]
    write_results_report(rows, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    here = text[text.index('id="machines"') :]
    first, second = here.index("Some Processor"), here.index("Another")
    assert first < here.index("<dt>Tasks</dt><dd>digits</dd>") < second
    assert second < here.index("<dt>Tasks</dt><dd>glyphs</dd>")


def test_only_what_is_known_is_shown(tmp_path):
    rows = make_rows(["digits"], ["float32", "ptq_int8"], seeds=[0])
    rows = [row for row in rows if row["kind"] == "run"]
    write_results_report(rows, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    heading = cells_of(text, "Digits: one")[0]
    assert not [title for title in heading if "Vela" in title or "Latency" in title]
    assert "±" not in cells_of(text, "Digits: one")[1][2]  # One seed does not scatter.
    assert 'id="standing"' not in text  # No peers.
    assert 'id="layers"' not in text
    assert list(data_of(text)["figures"]) == ["plot-0-zipped"]


def test_the_full_form_is_shown_unless_there_is_none_of_it(tmp_path):
    rows = make_rows(["digits"], ["float32"], seeds=[0])
    short = [{**row, "form": "short", "task": "keywords"} for row in rows if "form" in row]
    path = tmp_path / "report.html"
    write_results_report(rows + short, path)
    assert "Keywords" not in without_scripts(path.read_text())
    write_results_report(rows + short, path, "short")
    assert "short form" in path.read_text()
    write_results_report([{**row, "form": "long"} for row in short], path)
    assert "the long form: half of" in path.read_text()
    write_results_report([MACHINE, *short], path)
    assert "Keywords" in without_scripts(path.read_text())


def test_without_results_there_is_no_report(tmp_path):
    path = tmp_path / "report.html"
    refused("no run of a method.*Let it finish", lambda: write_results_report([MACHINE], path))
    refused("no run of a method", lambda: write_results_report([], path))
    assert not path.exists()
    assert said("wake_vision") == "Wake vision"


def test_a_script_cannot_end_the_element_it_stands_in():
    script = page._inline("a = '</script><!--';\r\nb")
    assert "</script" not in script
    assert "<!--" not in script
    assert "\r" not in script


# The command ------------------------------------------------------------------------------------


def test_command_writes_a_report_on_results(tmp_path, capsys):
    rows = make_rows(["digits"], ["float32", "ptq_int8", "ptq_int8_aeq"], seeds=[0])
    file = write_rows(tmp_path / "results.jsonl", rows)
    status, out, err = run(capsys, "report", file, "-o", tmp_path / "r.html", "--json")
    assert (status, err) == (0, "")
    size = (tmp_path / "r.html").stat().st_size
    assert json.loads(out) == {"path": str(tmp_path / "r.html"), "bytes": size}
    status, out, _ = run(capsys, "report", file, "-o", tmp_path / "r.html")
    assert out == f"{tmp_path / 'r.html'}: {size / 1e6:.1f} MB, one file that needs no network\n"


def test_command_leaves_out_a_line_that_was_cut_off(tmp_path, capsys):
    file = write_rows(tmp_path / "results.jsonl", make_rows(["digits"], ["float32"], seeds=[0]))
    file.write_bytes(file.read_bytes()[:-40])
    status, _, err = run(capsys, "report", file, "-o", tmp_path / "r.html")
    assert status == 0
    assert err.count("\n") == 1
    assert re.search(r"Warning: line 5 of .* was cut off", err)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["no.jsonl"], "no file at '.*no.jsonl'"),
        (["empty.jsonl"], "is empty; expected the results"),
        (["machine.jsonl"], "no run of a method"),
        (["text.jsonl"], "line 1 of .* is no JSON"),
        (["text.txt"], "received '.*text.txt'; expected the results of"),
        (["a.keras"], "alone; expected .*Name both files"),
        (["a.tflite"], "alone; expected .*Name both files"),
        (["a.tflite", "a.keras"], "Swap the two"),
        (["a.keras", "a.tflite"], "needs --data"),
        (["text.txt", "a.tflite"], "'.*text.txt' is no Keras model"),
        (["one.jsonl", "two.jsonl"], "received 2 files of results"),
        (["a.keras", "a.tflite", "b.tflite"], "expected the results of"),
        (["machine.jsonl", "--target", "edge_tpu"], "--target go with a model.*Leave them out"),
        (["machine.jsonl", "-o", "machine.jsonl"], "--output is one of the files to read"),
        (["machine.jsonl", "-o", "no/r.html"], "no folder"),
        (["a.keras", "a.tflite", "--data", "no.npy"], "no file at '.*a.tflite'"),
    ],
)
def test_command_tells_bad_input_in_one_line(files, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "text.jsonl").write_text("not json\n")
    (tmp_path / "text.txt").write_text("text")
    write_rows(tmp_path / "machine.jsonl", [MACHINE])
    output = [] if "-o" in files else ["-o", "r.html"]
    status, out, err = run(capsys, "report", *files, *output)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert re.search(message, err)
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("missing", ["jinja2", "plotly"])
def test_command_says_what_to_install(missing, tmp_path, capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, missing, None)
    file = write_rows(tmp_path / "results.jsonl", make_rows(["digits"], ["float32"], seeds=[0]))
    status, _, err = run(capsys, "report", file, "-o", tmp_path / "r.html")
    assert status == 2
    assert f"needs {missing}, which is not installed" in err
    assert "pip install 'tfcompress[report]'" in err
