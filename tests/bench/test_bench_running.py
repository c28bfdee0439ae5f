"""The benchmark as it runs: resumed, killed, with methods that fail; and what it measures."""

import dataclasses
import getpass
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import bench_fakes
import pytest
from bench_fakes import METHODS, noted, work
from refusals import refused

from tfcompress.bench.running import latency, turns
from tfcompress.bench.running.bench import bench, report_only
from tfcompress.bench.running.results import latest, read_rows
from tfcompress.bench.running.turns import make_plan
from tfcompress.bench.tasks import TASKS, Training
from tfcompress.files.processes import Failed, run_apart
from tfcompress.tflite import machine
from tfcompress.tools.environments import Unavailable

ALL = ["float32", *METHODS]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to be in, with a cache of its own, so that Vela is not there."""
    monkeypatch.setenv("TFCOMPRESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def log(place):
    return place / "log"


def run(log, methods=METHODS, tasks=("digits",), seeds=1, data_dir=None, **troubles):
    settings = {"seeds": seeds, "results": "r.jsonl", "data_dir": data_dir}
    return bench(tasks, methods, **settings, work=work(log, **troubles))


def ran(log):
    return [line.split()[-1] for line in noted(log)]


def of_kind(kind):
    return {row["method"]: row for row in latest(read_rows("r.jsonl")) if row["kind"] == kind}


def test_every_task_seed_and_method_runs_once(log):
    found = run(log, ["qat_int8"], seeds=2)
    assert noted(log) == [f"digits {seed} {m}" for seed in (0, 1) for m in ("float32", "qat_int8")]
    kinds = [row["kind"] for row in read_rows("r.jsonl")]
    # Layers of the first seed; latency after the methods of each.
    assert (
        kinds
        == ["machine", *["run", "layers"] * 2, *["latency"] * 2, *["run"] * 2] + ["latency"] * 2
    )
    assert found.failed == 0
    assert Path(found.report).read_text().startswith("<!")
    assert "qat_int8" in Path("r.html").read_text()
    written = {path: path.read_bytes() for path in Path().glob("r.*l")}
    run(log, ["qat_int8"], seeds=2)
    assert noted(log) == []
    assert Path("r.jsonl").read_bytes() == written[Path("r.jsonl")]


def test_what_is_added_runs_and_all_is_timed_together(log):
    run(log, ["qat_int8"])
    noted(log)
    run(log, ["ptq_int8", "qat_int8"])
    assert ran(log) == ["ptq_int8"]
    times = {method: row["ms"] for method, row in of_kind("latency").items()}
    assert times == {"float32": 1.0, "qat_int8": 2.0, "ptq_int8": 3.0}
    run(log, ["qat_int8"])
    assert ran(log) == []


def test_a_lost_file_is_made_again(log):
    run(log)
    noted(log)
    (lost,) = Path("cache").rglob("qat_int8/model.tflite")
    lost.unlink()
    run(log)
    assert ran(log) == ["qat_int8"]
    assert set(of_kind("latency")) == set(ALL)


def test_other_data_or_steps_are_measured_anew(log, monkeypatch):
    run(log, ["qat_int8", "ptq_int8"])
    noted(log)
    run(log, ["qat_int8"], digests=[("digits", "new")])
    assert ran(log) == ["float32", "qat_int8"]
    assert set(of_kind("run")) == {"float32", "qat_int8"}  # ptq_int8 is of the old data.
    other = dataclasses.replace(TASKS["digits"], tuning=Training(7, 8, 0.1))
    monkeypatch.setattr(turns, "TASKS", {"digits": other})
    run(log, ["qat_int8"], digests=[("digits", "new")])
    assert ran(log) == ["qat_int8"]  # float32 has no fine-tuning.
    assert of_kind("run")["qat_int8"]["tuning"] == {"steps": 7, "batch": 8, "rate": 0.1}


def test_other_versions_are_measured_anew(log, monkeypatch):
    run(log, ["qat_int8"])
    noted(log)
    described = machine.describe()
    versions = {**described["versions"], "keras": "4.0.0"}
    new = {**described, "id": "new", "versions": versions}
    monkeypatch.setattr(machine, "describe", lambda: new)
    run(log, ["qat_int8"])
    assert ran(log) == ["float32", "qat_int8"]
    assert {row["machine"] for row in of_kind("run").values()} == {"new"}
    run(log, ["qat_int8"])
    assert ran(log) == []


def test_vela_is_asked_once_where_it_is_installed_since(log, monkeypatch):
    run(log, ["qat_int8"], seeds=2)
    assert of_kind("vela") == {}
    noted(log)
    monkeypatch.setattr(latency, "is_ready", lambda: True)
    found = run(log, ["qat_int8"], seeds=2)
    assert ran(log) == ["asked", "asked"]
    cycles = {method: row["vela"] for method, row in of_kind("vela").items()}
    assert cycles == {"float32": None, "qat_int8": {"cycles": 8}}
    assert found.to_dict()["methods"][1]["values"]["cycles"] == {0: 8.0}
    run(log, ["qat_int8", "ptq_int8"], seeds=2)
    assert ran(log) == ["ptq_int8", "asked", "ptq_int8"]


def test_a_killed_benchmark_goes_on_where_it_was(log, place):
    command = [sys.executable, bench_fakes.__file__, "r.jsonl", str(log), "qat_int8"]
    process = subprocess.Popen(command, cwd=place, stderr=subprocess.DEVNULL)
    hanging = log.with_suffix(".pid")
    try:
        wait_for(lambda: hanging.exists() and hanging.read_text())
    finally:
        process.kill()
        process.wait()
    # It does not outlive the command.
    wait_for(lambda: not Path("/proc", hanging.read_text()).exists())
    before = of_kind("run")
    assert set(before) == {"float32", "ptq_int8", "ptq_int8_converter"}
    assert ran(log) == [*before, "qat_int8"]
    found = run(log)
    assert ran(log) == ["qat_int8", "qat_int8_tfmot"]
    after = of_kind("run")
    assert set(after) == set(of_kind("latency")) == set(ALL)
    assert all(after[method] == row for method, row in before.items())
    assert found.failed == 0


def wait_for(happens, seconds=60):
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("trouble", "error"),
    [
        ("raises", "ValueError: two lines"),
        ("crashes", "crashed: ended by SIGSEGV"),
        ("hangs", "did not end within 3 s"),
    ],
)
def test_a_method_that_fails_is_a_line_and_not_the_end(log, trouble, error):
    seconds = 3 if trouble == "hangs" else 60
    with pytest.warns(UserWarning, match=f"digits, seed 0, ptq_int8 failed: {error}"):
        found = run(log, troubles=[("ptq_int8", trouble)], seconds=seconds)
    assert ran(log) == ALL
    runs = of_kind("run")
    assert {m: r["status"] for m, r in runs.items() if r["status"] != "ok"} == {
        "ptq_int8": "failed"
    }
    assert runs["ptq_int8"]["error"] == error
    assert set(of_kind("latency")) == set(ALL) - {"ptq_int8"}
    assert found.failed == 1
    assert f"digits, seed 0, ptq_int8 failed: {error}" in rendered(found)
    # It is tried again.
    assert run(log).failed == 0
    assert ran(log) == ["ptq_int8"]
    assert set(of_kind("latency")) == set(ALL)


def rendered(found):
    from tfcompress.results import as_text

    return re.sub(r"\s+", " ", as_text(found.render))


def test_a_float_model_that_fails_is_told(log):
    with pytest.warns(UserWarning, match="failed: the float model: ValueError: no loss"):
        found = run(log, ["qat_int8"], fails=True)
    assert (found.failed, noted(log)) == (2, [])


def test_what_methods_print_is_kept_off_standard_output(log, capfd):
    run(log, ["qat_int8"])
    assert "this must not come out" not in capfd.readouterr().out


def test_a_task_without_data_is_left_out(log, two_tasks):
    with pytest.warns(
        UserWarning, match="'other' is left out: install what makes other. These still run: digits"
    ):
        run(log, ["qat_int8"], tasks=None, missing=["other"])
    assert {line.split()[0] for line in noted(log)} == {"digits"}


def test_a_task_without_data_that_was_named_is_an_error_before_anything_runs(log, two_tasks):
    message = "task 'other' cannot run: install what makes other"
    refused(message, lambda: run(log, tasks=["digits", "other"], missing=["other"]), Unavailable)
    message = "no task can run: 'digits': install what makes digits"
    missing = ["digits", "other"]
    refused(message, lambda: run(log, tasks=None, missing=missing), Unavailable)
    assert noted(log) == []


@pytest.fixture
def two_tasks(monkeypatch):
    """Digits and another task, both of which could read real data."""
    reading = dataclasses.replace(TASKS["digits"], read=lambda folder: None, real="Set: a.bin")
    other = dataclasses.replace(reading, name="other", real="Other: b.bin")
    monkeypatch.setattr(turns, "TASKS", {"digits": reading, "other": other})


def test_real_data_are_taken_where_they_are(log, two_tasks, tmp_path):
    with pytest.warns(UserWarning, match="task 'other' takes generated data: no other in it"):
        run(log, [], tasks=None, data_dir=tmp_path, real=["digits"])
    data = {r["task"]: r["data"] for r in read_rows("r.jsonl") if r["kind"] == "run"}
    assert data["digits"] == {"source": "real", "digest": "real digits"}
    assert data["other"]["source"] == "generated"


def test_a_folder_without_data_is_an_error_before_anything_runs(log, two_tasks, tmp_path):
    message = "has no data set of these tasks: looked for digits: Set: a.bin; other: Other: b.bin"
    refused(message, lambda: run(log, tasks=None, data_dir=tmp_path))
    message = "data set of task 'other' cannot be read: cut off"
    refused(
        message,
        lambda: run(log, tasks=None, data_dir=tmp_path, real=["digits"], broken=["other"]),
    )
    # Of one task, its own reason.
    refused("no digits in it", lambda: run(log, data_dir=tmp_path))
    refused("is not there; expected a folder", lambda: run(log, data_dir=tmp_path / "none"))
    (tmp_path / "file").touch()
    refused("is a file; expected a folder", lambda: run(log, data_dir=tmp_path / "file"))
    assert noted(log) == []


def test_places_that_cannot_be_written_are_told_before_anything_runs(log):
    made = work(log)
    refused(
        "no folder 'none'", lambda: bench(["digits"], results="none/r.jsonl", work=made), OSError
    )
    refused("no folder 'none'", lambda: bench(["digits"], report="none/r.html", work=made), OSError)
    assert noted(log) == []


def test_a_report_does_not_take_the_place_of_the_results(log):
    made = work(log)
    for results, report in (("r.html", None), ("r.jsonl", "./r.jsonl")):
        message = f"would take the place of the results, '{results}'. Name another file with"
        refused(message, lambda r=results, p=report: bench(results=r, report=p, work=made))
        assert not Path(results).exists()
    assert noted(log) == []
    run(log, ["qat_int8"])
    before = Path("r.jsonl").read_bytes()
    Path("link.html").symlink_to("r.jsonl")
    refused("take the place of the results", lambda: report_only("r.jsonl", "link.html"))
    assert Path("r.jsonl").read_bytes() == before


def test_the_report_is_drawn_anew(log, capsys):
    run(log, ["qat_int8"])
    Path("r.html").unlink()
    found = report_only("r.jsonl")
    assert Path("r.html").exists()
    assert found.to_dict()["methods"][1]["values"]["quality"] == {0: 0.9}
    refused("has no results of the short form", lambda: report_only("r.jsonl", form="short"))
    refused("no file at", lambda: report_only("none.jsonl"))


def test_plans():
    named = make_plan(["digits"], ["qat_int8"])
    assert (list(named.methods), named.seeds, named.form) == (["float32", "qat_int8"], 1, "full")
    short = make_plan(form="short")
    assert (list(short.tasks), short.seeds, short.form) == (["digits"], 1, "short")
    assert {"float32", "qat_int8", "qat_int8_tfmot"} <= set(short.methods)
    assert len(make_plan().methods) > len(short.methods)
    assert make_plan(form="long") == dataclasses.replace(make_plan(), form="long")
    assert not make_plan().named
    refused("unknown task 'digit'.*Did you mean 'digits'?", lambda: make_plan(["digit"]))
    refused("unknown method 'xyz'.*See `tfcompress bench --list`", lambda: make_plan(None, ["xyz"]))
    said = "'stream_qat_int8' is for tasks whose data are streams; received digits. Add --task wake"
    refused(said, lambda: make_plan(["digits"], ["stream_qat_int8"]))
    assert "stream_qat_int8" in make_plan(["digits", "wake_word"], ["stream_qat_int8"]).methods
    refused("seeds must be a whole number of at least 1; received 0", lambda: make_plan(seeds=0))


def test_names_cost_no_tensorflow():
    code = (
        "import sys, tfcompress.bench.running.bench; "
        "print([m for m in ('tensorflow', 'keras', 'tf_keras', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n"


def test_processes_of_their_own():
    assert run_apart(os.path.join, "a", "b", seconds=60) == "a/b"
    assert run_apart(os.getpid, seconds=60) != os.getpid()
    refused("ended with status 3", lambda: run_apart(os._exit, 3, seconds=60), Failed)
    start = time.monotonic()
    refused("did not end within 1 s", lambda: run_apart(time.sleep, 60, seconds=1), Failed)
    assert time.monotonic() - start < 30


def test_the_machine_is_described_without_whose_it_is():
    found = machine.describe()
    assert found["cores"] >= 1
    assert found["memory_gb"] > 0.5
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert re.fullmatch("[0-9a-f]{8}", found["id"])
    assert found["id"] == machine.describe()["id"]
    assert {"tensorflow", "keras", "ai-edge-litert", "tfcompress"} <= set(found["versions"])
    said = json.dumps(found)
    for name in (socket.gethostname(), getpass.getuser(), str(Path.home()).strip(os.sep)):
        assert not re.search(rf"\b{re.escape(name)}\b", said)
