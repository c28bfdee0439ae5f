"""Trials on the machines of Ray: here processes of one."""

import collections
import os
import signal
import threading
import time

import pilot_fakes as fakes
import pytest
from pilot_trials import figures_of, run

from tfcompress.pilot.job import Job
from tfcompress.pilot.nodes import on_node, packed, unpack
from tfcompress.pilot.workers import OnRay, stopped

LITTLE = ("tfcompress.files.tied",)


def test_a_node_needs_no_files_of_its_own(tmp_path):
    model = tmp_path / "model.keras"
    model.write_bytes(b"weights")
    job = Job(str(tmp_path / "trial"), str(model), str(model), "a: b", (1,), {"seed": 0})
    sent = [str(model)], {"kept/state": b"123"}, 60.0, None, LITTLE, b"weights"
    figures, error, files = on_node(run, job, *sent)
    assert error is None
    assert figures["flash"] == figures_of("a: b[('seed', 0)]", 1)["flash"]
    assert files["kept/state"] == b"123"
    assert files["model.tflite"] == b"a: b[('seed', 0)]"
    assert not (tmp_path / "trial").exists()
    figures, error, _ = on_node(run, Job(**{**vars(job), "io_dtype": "a: b"}), *sent)
    assert figures is None
    assert error.startswith("crashed: ended by SIGKILL")


def test_files_of_a_trial_are_as_they_were_sent(tmp_path):
    unpack(tmp_path, {"a": b"1", "b/c": b"2"})
    unpack(tmp_path, {"b/c": b"3", "d": b"4"})
    assert packed(tmp_path) == {"b/c": b"3", "d": b"4"}


@pytest.fixture
def two(monkeypatch):
    pytest.importorskip("ray")
    # What Ray's processes import tests from.
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(fakes.__file__))
    with stopped(OnRay(run, None, None, 2, preloaded=LITTLE)) as workers:
        yield workers


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_no_trial(two, tmp_path):
    workers, killed = two, []

    def kill():
        while len(killed) < 2:
            time.sleep(1.5)
            for process in os.listdir("/proc"):
                try:
                    name = open(f"/proc/{process}/cmdline").read()  # noqa: SIM115
                except OSError:
                    continue
                if name.startswith("ray::on_node"):
                    os.kill(int(process), signal.SIGKILL)
                    killed.append(process)
                    break

    killing = threading.Thread(target=kill, daemon=True)
    killing.start()
    _, records = fakes.searched(tmp_path, trials=16, workers=workers, wait=0.5)
    assert killed
    assert [r.status for r in records] == ["done"] * 17
    assert max(collections.Counter((r.key, r.turn) for r in records).values()) == 1
    for record in records[1:]:
        told = record.recipe + repr(sorted(record.training.items()))
        assert record.figures["flash"] == figures_of(told, record.turn)["flash"]


def test_an_address_where_no_cluster_is():
    pytest.importorskip("ray")
    with pytest.raises(ValueError, match=r"ray must be the address of a cluster that runs"):
        OnRay(run, None, "127.0.0.1:1", preloaded=LITTLE)
