"""A teacher's cache among threads and processes: killed, on a full disk, in little memory."""

import concurrent.futures
import signal
import subprocess
import sys

import numpy as np
import pytest
from teacher_samples import SPECS, fill, filled, listing, require_found, samples, take

from tfcompress.distillation.cache import TeacherCache

# The package beside the cache imports Keras, which takes seconds and memory.
ONLY_THE_CACHE = """
import sys, types
import tfcompress
package = sys.modules["tfcompress.distillation"] = types.ModuleType("tfcompress.distillation")
package.__path__ = [tfcompress.__path__[0] + "/distillation"]
"""


@pytest.fixture(params=["memory", "file"])
def path(request, tmp_path):
    return tmp_path / "teacher.h5" if request.param == "file" else None


@pytest.fixture
def target(tmp_path):
    return tmp_path / "teacher.h5"


def test_a_full_disk_while_samples_come_is_told(target):
    """Files of this process are limited to 100 kB, as a full disk would."""
    program = """
import resource, signal, sys
import numpy as np
from tfcompress.distillation.cache import TeacherCache
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
cache = TeacherCache(sys.argv[1])
cache.begin("teacher", [((64,), "float32")], whole_epochs=True)
try:
    for i in range(1000):
        cache.store([np.full((8, 1), i)], [np.zeros((8, 64), "float32")])
except OSError as error:
    print(error, "|", cache.error is error)
cache.close()
"""
    run = subprocess.run(
        [sys.executable, "-c", ONLY_THE_CACHE + program, str(target)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "teacher.h5' (rows of new samples): file too large" in run.stdout
    assert run.stdout.endswith("| True\n")
    assert not listing(target.parent)


@pytest.mark.parametrize("moment", ["filling", "writing"])
def test_a_killed_training_leaves_everything_as_it_was(target, moment):
    filled(target, *samples(8), whole_epochs=False).close()
    before = listing(target.parent)
    program = """
import os, sys, time
import numpy as np
from tfcompress.distillation.cache import TeacherCache
def wait(*arguments):
    print("now", flush=True)
    time.sleep(60)
os.fsync = wait
cache = TeacherCache(sys.argv[1])
cache.begin("teacher", [((3,), "float32"), ((2, 2), "float16")], whole_epochs=True)
outputs = [np.ones((5000, 3), "float32"), np.ones((5000, 2, 2), "float16")]
cache.store([np.arange(5000)], outputs)
wait() if sys.argv[2] == "filling" else cache.end_epoch()
"""
    with subprocess.Popen(
        [sys.executable, "-c", ONLY_THE_CACHE + program, str(target), moment],
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == b"now\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert listing(target.parent) == before


def test_of_two_writers_the_last_one_stays_and_both_read_their_own(target):
    first, second = samples(20), samples(30, seed=1)
    caches = [TeacherCache(target), TeacherCache(target)]
    for cache, data in zip(caches, (first, second), strict=True):
        cache.begin("teacher", SPECS, whole_epochs=True)
        fill(cache, *data)
    for cache in caches:
        cache.end_epoch()
    require_found(caches[0], *first)
    require_found(caches[1], *second)
    last = TeacherCache(target)
    last.begin("teacher", SPECS, whole_epochs=True)
    assert last.samples == 30
    require_found(last, *second)


def test_threads_may_share_a_cache(path):
    inputs, outputs = samples(4000)
    cache = TeacherCache(path)
    cache.begin("teacher", SPECS, whole_epochs=True)
    parts = [slice(start, start + 8) for start in range(0, 4000, 8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda p: cache.store(take(inputs, p), take(outputs, p)), parts))
        cache.end_epoch()
        found = list(pool.map(lambda p: cache.lookup(take(inputs, p)), parts))
    assert cache.samples == 4000
    assert all(hit for hit, _ in found)
    for i, output in enumerate(outputs):
        np.testing.assert_array_equal(np.concatenate([rows[i] for _, rows in found]), output)


def test_memory_does_not_grow_with_the_data(tmp_path):
    """200,000 rows of 64 floats are 51 MB; what a process owns grows by less than half of it."""
    program = """
import sys, threading, time
import numpy as np
from tfcompress.distillation.cache import TeacherCache

def owned():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("RssAnon"))

def run(path, count):
    cache = TeacherCache(path)
    cache.begin("teacher", [((64,), "float32")], whole_epochs=True)
    for store in (True, False):
        for start in range(0, count, 100):
            numbers = np.arange(start, start + 100)
            rows = np.repeat(numbers[:, None], 64, 1).astype("float32")
            if store:
                cache.store([numbers], [rows])
            else:
                hit, found = cache.lookup([numbers])
                assert hit and (found[0] == rows).all()
            if start % 10_000 == 0:
                peak.append(owned())
        if store:
            cache.end_epoch()
    cache.close()

def watch():
    while not done.wait(0.002):
        peak.append(owned())

peak, done = [], threading.Event()
watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
run(sys.argv[1] + "/small.h5", 1000)
base = owned()
peak.clear()
run(sys.argv[1] + "/large.h5", 200_000)
done.set()
watcher.join()
print(max(peak) - base)
"""
    run = subprocess.run(
        [sys.executable, "-c", ONLY_THE_CACHE + program, str(tmp_path)],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert (tmp_path / "large.h5").stat().st_size > 51_000_000
    assert float(run.stdout) < 25
