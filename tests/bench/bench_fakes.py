"""Stands for what the benchmark runs in processes of its own, so that its course is tested fast.

Run as a program it is a benchmark that hangs, to be killed: RESULTS LOG METHOD.
"""

import functools
import os
import signal
import sys
import time
from pathlib import Path

from tfcompress.bench.running.bench import bench
from tfcompress.bench.running.turns import Work

METHODS = ["ptq_int8", "ptq_int8_converter", "qat_int8", "qat_int8_tfmot"]


def prepare(task, data_dir, digests=(), missing=(), real=(), broken=()):
    """The data of a task: of a digest, missing, or not in the folder of real data."""
    if data_dir is not None:
        if task in real:
            return {"source": "real", "digest": f"real {task}"}
        return {"unreadable": "cut off"} if task in broken else {"absent": f"no {task} in it"}
    if task in missing:
        return {"missing": f"install what makes {task}"}
    return {"source": "generated", "digest": dict(digests).get(task, "0")}


def train(task, seed, form, data_dir, fails=False):
    """A float model, or none."""
    if fails:
        raise ValueError("no loss")
    return Path(f"{task}-{seed}.keras")


def measure(job, log, troubles=()):
    """Notes that a method ran; then it gives figures, or the trouble that it is in."""
    _note(log, f"{job.task} {job.seed} {job.method}")
    trouble = dict(troubles).get(job.method)
    if trouble == "raises":
        raise ValueError("two\nlines")
    if trouble == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    if trouble == "hangs":
        log.with_suffix(".pid").write_text(str(os.getpid()))
        time.sleep(600)
    print("this must not come out")
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / "model.tflite").write_bytes(job.method.encode())
    found = {"quality": 0.9, "zipped": len(job.method), "layers": None, "notes": []}
    return {**found, "layers": [{"name": "a"}]} if job.layers else found


def latencies(paths):
    """Times in the order of the files."""
    assert paths[0].read_bytes() == b"float32"
    return [
        {"ms": float(i + 1), "ratio": float(i + 1), "threads": None, "no_amx": None}
        for i in range(len(paths))
    ]


def vela(paths, log):
    """Cycles of int8 files, which the name of the method in them tells."""
    found = []
    for path in paths:
        _note(log, "asked")
        method = path.read_text()
        found.append({"cycles": len(method)} if "int8" in method else None)
    return found


def work(log, troubles=(), seconds=60.0, fails=False, **data):
    """A `Work` of the functions above."""
    return Work(
        functools.partial(prepare, **data),
        functools.partial(train, fails=fails),
        functools.partial(measure, log=log, troubles=troubles),
        latencies,
        functools.partial(vela, log=log),
        measure_seconds=seconds,
        preloaded=["tfcompress.bench.running.bench", "pytest"],
    )


def noted(log):
    """What was noted, and an empty log from then on."""
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


def _note(log, line):
    with open(log, "a") as file:
        file.write(f"{line}\n")


if __name__ == "__main__":
    results, log, method = sys.argv[1:]
    made = work(Path(log), [(method, "hangs")])
    bench(["digits"], METHODS, seeds=1, results=results, work=made)
