"""`tfcompress bench` and what writes the README's tables."""

import json
import re
import resource
import subprocess
import sys

import pytest
from bench_rows import seeds, write
from refusals import refused
from report_rows import MACHINE, make_rows, write_rows

from tfcompress.bench import tables
from tfcompress.bench.methods import METHODS
from tfcompress.bench.methods.run import TFMOT
from tfcompress.bench.running.bench import BenchResult
from tfcompress.bench.running.results import latest, read_rows
from tfcompress.bench.tasks import TASKS
from tfcompress.cli.app import main


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Results of a method of ours and of TFMOT's, which is ahead."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFCOMPRESS_CACHE", str(tmp_path / "cache"))
    rows = seeds("float32", 0.9, 1000, 1.0)
    rows += seeds("qat_int8", 0.9, 300, 0.5, family="qat_int8", step=1.1)
    rows += seeds("qat_int8_tfmot", 0.9, 250, 0.5, family="qat_int8", step=1.4, who=TFMOT)
    write(tmp_path / "tfcompress-bench.jsonl", MACHINE, *rows)
    return tmp_path / "tfcompress-bench.jsonl"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "digit"], "unknown task 'digit'; expected .* Did you mean 'digits'?"),
        (["--method", "qat_int"], "unknown method 'qat_int'; expected .* Did you mean 'qat_int8'?"),
        (["--data-dir", "none"], "'none' is not there; expected a folder of real data sets"),
        (["--results", "none/r.jsonl"], "no folder 'none'"),
        (["--report-only", "--results", "no.jsonl"], "no file at 'no.jsonl'"),
        (["--report-only", "--short"], "has no results of the short form"),
        (["--report-only", "--long"], "has no results of the long form"),
        (["--short", "--long"], "received --short and --long; expected one form. Leave one"),
        (["--report-only", "--task", "digits"], "expected no --task, --method, --seeds"),
        (["--seeds", "0"], "Invalid value for '--seeds'"),
    ],
)
def test_slips_are_told_in_one_line_before_anything_runs(results, capsys, arguments, message):
    assert main(["bench", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.match(f"Error: .*{message}", shown.err)
    assert shown.err.count("\n") == 1


def test_help_names_what_its_examples_take(capsys):
    assert main(["bench", "--help"]) == 0
    text = capsys.readouterr().out
    examples = re.findall(r"^ +tfcompress bench (.+)$", text, re.M)
    options = set(re.findall(r"^  (?:-q, )?(--[a-z-]+)", text, re.M))
    assert len(examples) >= 5
    assert {word for line in examples for word in line.split() if word[0] == "-"} <= options


def children_seconds():
    """CPU time of processes that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_slip_costs_no_seconds():
    command = [sys.executable, "-X", "importtime", "-m", "tfcompress"]
    start = children_seconds()
    done = subprocess.run(
        [*command, "--debug", "bench", "--task", "nope"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "unknown task 'nope'" in done.stderr
    imported = set(re.findall(r"^import time:.*\| +(\w+)$", done.stderr, re.M))
    assert "tfcompress" in imported
    assert not imported & {"tensorflow", "keras", "tf_keras"}
    assert 0 < children_seconds() - start < 2.5


def test_tasks_and_methods_are_listed(capsys):
    assert main(["bench", "--list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [row["task"] for row in listed["tasks"]] == list(TASKS)
    assert [row["method"] for row in listed["methods"]] == list(METHODS)
    sizes = {
        row["task"]: (row["classes"], row["parameters"], row["MACs"]) for row in listed["tasks"]
    }
    # Those of generated data: CIFAR-10 has fewer classes.
    assert sizes["glyphs"] == ("36", "80,356", "12,503,296")
    assert sizes["anomaly"] == ("none", "269,992", "264,192")
    assert main(["bench", "--list"]) == 0
    text = capsys.readouterr().out
    assert "digits" in text
    assert "qat_int8_tfmot" in text


def test_table_and_report_are_drawn_from_the_results(results, capsys):
    assert main(["bench", "--report-only"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "qat_int8_tfmot: 250 bytes" in text
    assert "tfcompress wins 2 of 5, TFMOT 2, 1 even." in text
    assert "Measured on Some Processor 9000 @ 2.90GHz, 2 cores, 7.8 GiB, AMX, Debian" in text
    assert "qat_int8_tfmot" in results.with_suffix(".html").read_text()
    assert main(["bench", "--report-only", "--json", "--report", "other.html"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["report"] == "other.html"
    assert [c["winner"] for c in found["contests"]] == [TFMOT, "even", TFMOT, *["tfcompress"] * 2]
    assert found["machines"][0]["cpu"] == MACHINE["cpu"]


def test_a_method_that_failed_is_in_the_exit_status(results, capsys, monkeypatch):
    failed = {**seeds("ptq_int8", None, None)[0], "status": "failed", "error": "no [loss]"}
    rows = (MACHINE, *seeds("float32", 0.9, 1000, 1.0), failed)
    found = BenchResult(rows, "r.jsonl", failed=1)
    monkeypatch.setattr("tfcompress.bench.running.bench.bench", lambda *a, **settings: found)
    assert main(["bench"]) == 1
    text = capsys.readouterr().out
    assert "digits, seed 0, ptq_int8 failed: no [loss]" in text
    assert re.search(r"│ ptq_int8 +│ +failed │", text)


def test_who_interrupts_is_told_how_to_go_on(results, capsys, monkeypatch):
    def interrupted(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("tfcompress.bench.running.bench.bench", interrupted)
    assert main(["bench"]) == 130
    told = capsys.readouterr().err
    assert "kept in 'tfcompress-bench.jsonl': the same command goes on from there." in told


def test_a_cut_off_line_is_a_warning(results, capsys):
    results.write_text(results.read_text() + '{"kind": "ru')
    assert main(["bench", "--report-only"]) == 0
    assert re.search("Warning: line 20 of .* was cut off", capsys.readouterr().err)


def test_the_readme_says_what_the_results_hold(results, tmp_path, capsys):
    page = tmp_path / "README.md"
    page.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    arguments = ["--readme", str(page), "--results", str(results)]
    assert tables.main(["--check", *arguments]) == 1
    assert "old" in page.read_text()
    assert tables.main(arguments) == 0
    text = page.read_text()
    assert text.startswith(f"before\n{tables.BEGIN}\n\ntfcompress beside the best peer:\n\n| ")
    assert text.endswith(f"\n\n{tables.END}\nafter\n")
    assert "old" not in text
    assert "| digits | size at equal quality | qat_int8: 300 bytes |" in text
    assert tables.main(["--check", *arguments]) == 0
    assert tables.main(arguments) == 0
    assert page.read_text() == text
    page.write_text("no marks")
    capsys.readouterr()
    assert tables.main(arguments) == 2
    assert "lacks the lines <!-- bench: begin -->" in capsys.readouterr().err


def test_post_training_quantization_has_a_table_of_its_own(tmp_path):
    rows = make_rows(("digits",), ["float32", "ptq_int8"])
    for row in rows:
        if row["kind"] == "run":
            row |= {"quality": 0.9 - 0.002 * (row["method"] != "float32"), "convert_s": 1.25}
    path = write_rows(tmp_path / "post_training.jsonl", rows)
    text = tables.written_own(
        "a <!-- post-training: begin --> old <!-- post-training: end --> b", path
    )
    assert text.startswith(
        "a <!-- post-training: begin -->\n\nPoints of quality to float32, KiB of the file"
    )
    assert text.endswith("<!-- post-training: end --> b")
    assert "| ptq_int8 | -0.20 ± 0.00, 16.1, 1.2 |" in text


def test_the_long_form_has_tables_of_its_own(tmp_path):
    rows = [MACHINE, *seeds("float32", [0.90, 0.91, 0.92], 10240)]
    rows += seeds("prune80_distill_int8", [0.898, 0.909, 0.918], 2048)
    rows += seeds("prune80_int8_tfmot", [0.80, 0.81, 0.85], 2304, who=TFMOT)
    rows += seeds("qat_int8_tfmot", 0.91, 4608, who=TFMOT)
    rows += [{**row, "task": "glyphs"} for row in rows if row.get("who") == TFMOT]
    path = tmp_path / "long_form.jsonl"
    write(path, *({**row, "form": "long"} if "form" in row else row for row in rows))
    text = tables.written_own("a <!-- long-form: begin --> old <!-- long-form: end --> b", path)
    assert text.startswith("a <!-- long-form: begin -->\n\nQuality of float32 in percent, ")
    assert "| float32 | 91.00 ± 1.00, 10.0 | – |" in text
    assert "| prune80_distill_int8 | -0.17 ± 0.06, 2.0 | – |" in text
    assert "| prune80_int8_tfmot | -9.00 ± 1.73, 2.2 | – |" in text
    # The worse files count for nothing, however small.
    fits = "| digits | prune80_distill_int8: 2,048 bytes | qat_int8_tfmot: 4,608 bytes | 2.25x |"
    assert fits in text
    write(path, *rows)
    refused("has no results of the long form", lambda: tables.written_own("", path))


@pytest.mark.skipif(not tables.RESULTS.exists(), reason="no results are kept yet")
def test_the_readme_is_up_to_date():
    assert tables.main(["--check"]) == 0


@pytest.mark.slow
def test_the_short_form_for_real(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tf_keras")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFCOMPRESS_CACHE", str(tmp_path / "cache"))
    methods = ["--method", "qat_int8", "--method", "qat_int8_tfmot"]
    arguments = ["bench", "--short", *methods, "--json"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    by_name = {each["method"]: each for each in found["methods"]}
    assert list(by_name) == ["float32", "qat_int8", "qat_int8_tfmot"]
    rows = latest(read_rows("tfcompress-bench.jsonl"))
    runs = {row["method"]: row for row in rows if row["kind"] == "run"}
    check_float(runs["float32"])
    for name in ("qat_int8", "qat_int8_tfmot"):
        check_qat(runs[name], runs["float32"])
    assert [r["method"] for r in rows if r["kind"] == "latency"] == list(by_name)
    assert all(row["layers"] for row in rows if row["kind"] == "layers")
    assert len([row for row in rows if row["kind"] == "layers"]) == 3
    assert (tmp_path / "tfcompress-bench.html").stat().st_size > 100_000
    before = (tmp_path / "tfcompress-bench.jsonl").read_bytes()
    assert main(arguments) == 0
    assert (tmp_path / "tfcompress-bench.jsonl").read_bytes() == before


def check_float(row):
    assert (row["params"], row["macs"]) == TASKS["digits"].published[1:]
    assert row["quality"] == row["quality_keras"] > 0.95
    assert row["tuning"] is None
    assert row["step_cpu_ratio"] is None


def check_qat(row, plain):
    assert (row["form"], row["steps"]) == ("short", 84)
    assert row["tuning"] == {"steps": 84, "batch": 32, "rate": 3e-3}
    assert (row["params"], row["macs"]) == (plain["params"], plain["macs"])
    assert row["quality"] > 0.9
    assert abs(row["quality"] - row["quality_keras"]) < 0.02
    assert row["zipped"] < 0.5 * plain["zipped"]
    assert 0.3 < row["step_cpu_ratio"] < 4
    assert row["peak_mb"] > 10
    assert row["convert_s"] > 0.1
