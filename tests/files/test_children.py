"""Processes that end with the one that started them, and folders that go with it."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tfcompress.files import children, temporary

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs sessions")

# Starts one that starts another, says which they are, and waits.
KEEPING = """
import signal, sys, time
from tfcompress.files import children
from tfcompress.files import temporary
signal.signal(signal.SIGINT, signal.default_int_handler)  # which jobs in the background ignore
with temporary.folder() as folder, children.child(["sh", "-c", sys.argv[1]], stdout=-1) as process:
    open(folder + "/a", "w").close()
    print(folder, process.stdout.readline().decode(), flush=True)
    time.sleep(60)
"""


def lives(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # What has ended and is not yet collected lives no more.
    state = Path(f"/proc/{process}/stat")
    return not state.exists() or state.read_text().rpartition(")")[2].split()[0] != "Z"


def gone(processes, seconds=5):
    until = time.monotonic() + seconds
    while any(map(lives, processes)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(lives, processes))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_what_a_process_started_ends_with_it(number):
    started = "sleep 61 & echo $$ $!; sleep 62"
    command = [sys.executable, "-c", KEEPING, started]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as keeper:
        folder, *processes = keeper.stdout.readline().split()
        assert all(lives(int(process)) for process in processes)
        assert Path(folder, "a").exists()
        keeper.send_signal(number)
        keeper.wait(10)
    assert gone(map(int, processes))
    assert len(processes) == 2
    # Whatever could not remove its folder, the next one does.
    with temporary.folder():
        assert not Path(folder).exists()


def test_folders_of_processes_that_live_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "other").mkdir()
    with temporary.folder() as one, temporary.folder() as other:
        assert one != other
        assert Path(one).is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    with temporary.folder(tmp_path / "other") as inner:
        assert Path(inner).parent == tmp_path / "other"


def test_a_program_gives_what_it_prints_and_how_it_ended():
    done = children.finished(["sh", "-c", "echo out; echo bad >&2; exit 3"], 10, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "bad\n", 3)
    done = children.finished(["sh", "-c", "kill -ABRT $$"], 10)
    assert done.returncode == -signal.SIGABRT
    assert children.ended(done.returncode) == "crashed: ended by SIGABRT"
    with pytest.raises(subprocess.TimeoutExpired):
        children.finished(["sleep", "60"], 0.2)
    with pytest.raises(FileNotFoundError):
        children.finished(["no-such-program"], 1)
