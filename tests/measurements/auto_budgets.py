"""`auto` on the nets of MLPerf Tiny: half of what int8 takes, beside the rows of the benchmark.

    python -m measurements auto_budgets [--tasks keywords,...] [--minutes 45] [--seed 0]

What is chosen is judged once more on the test set, which no search has seen.
"""

import argparse
import dataclasses
import json
import os
import statistics
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

from measurements import parser_of

TASKS = ("keywords", "glyphs", "wake_vision", "anomaly")
ROWS = ("results", "few_bits", "post_training", "long_form")


def auto_budgets(options: list[str]) -> int:
    """Searches for each net, and prints its file beside int8 and the rows of the benchmark."""
    parser = parser_of(auto_budgets, {"workers": (2, "trials at a time")}, with_json=False)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--minutes", type=float, default=45.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("auto_budgets"))
    parser.add_argument("--epochs", default=None, help="of turns, as 1+2+6")
    parser.add_argument("--share", type=float, default=0.5, help="of the int8 file, for flash")
    parser.add_argument("--resume", action="store_true")
    given = parser.parse_args(options)
    for name in given.tasks.split(","):
        found = measured(name, given)
        print(json.dumps(found), flush=True)
        with open(given.folder / "found.jsonl", "a") as stream:
            stream.write(json.dumps(found) + "\n")
    return 0


def measured(name: str, given: argparse.Namespace) -> dict:
    """A search on one task, and what its file is worth on the test set."""
    import tfcompress as tfc
    from tfcompress.bench.tasks import TASKS as KNOWN

    task, folder = KNOWN[name], given.folder / f"{name}-{given.seed}"
    model, train, held, test = files_of(name, given.seed, folder)
    int8 = int8_bytes(model, train, folder)
    # Inputs are rebuilt by the autoencoder: quality is how well errors tell anomalies.
    metric = _auc(task, held) if task.loss == "mse" else None
    turns = given.epochs and tuple(map(int, given.epochs.split("+")))
    start = time.perf_counter()
    found = tfc.auto(
        model,
        train,
        folder / "best.tflite",
        budget=f"flash={int(int8 * given.share)},quality=-0.5",
        target="microcontroller",
        time=60 * given.minutes,
        metric=metric,
        epochs=turns,
        validation_data=folder / "held.npz",
        batch_size=task.training.batch,
        seed=given.seed,
        workers=given.workers if given.workers > 1 else None,
        resume=given.resume,
        overwrite=not given.resume,
        progress=lambda stage, done, total: print(f"{time.perf_counter() - start:7.1f} {stage}",
                                                  flush=True),
    )  # fmt: skip
    took = time.perf_counter() - start
    print(found, flush=True)
    float_quality, quality = (
        file_quality(task, test, path)
        for path in (
            folder / "best.tflite.auto/trials/float/0/model.tflite",
            folder / "best.tflite",
        )
    )
    return {
        "task": name,
        "seed": given.seed,
        "minutes": round(took / 60, 1),
        "trials": len(found.tried),
        "int8": int8,
        **found.best.costs,
        "epochs": found.best.epochs,
        "recipe": found.best.words,
        "held out": [found.float_file["quality"], found.best.quality],
        "test": [float_quality, quality],
        "not beaten by": not_beaten(name, found.best.costs["flash"], quality - float_quality),
    }


def files_of(name: str, seed: int, folder: Path):
    """Model and data of a task: (model, training data, data to choose by, data to test with)."""
    import keras

    from tfcompress.bench.running import child
    from tfcompress.bench.tasks import TASKS as KNOWN

    task = KNOWN[name]
    folder.mkdir(parents=True, exist_ok=True)
    child.prepare(name, None)
    data = child.load(task, None)
    # Half of the test set chooses, the other half is what no search has seen.
    half = np.random.default_rng(0).permutation(len(data.x_test))
    held, test = (
        dataclasses.replace(data, x_test=data.x_test[rows], y_test=data.y_test[rows])
        for rows in (np.sort(half[: len(half) // 2]), np.sort(half[len(half) // 2 :]))
    )
    model, train, judged = folder / "model.keras", folder / "train.npz", folder / "held.npz"
    if not model.exists():
        rebuilds, frames = task.loss == "mse", held.test_inputs()
        np.savez(judged, x=frames, y=frames if rebuilds else held.y_test)
        x = data.x_train.astype("float32") * np.float32(data.scale)
        np.savez(train, x=x, y=x if data.y_train is None else data.y_train)
        trained = keras.saving.load_model(child.train(name, seed, "full", None))
        how = {} if rebuilds else {"metrics": ["accuracy"]}
        optimizer = keras.optimizers.Adam(task.training.rate)
        trained.compile(optimizer, task.loss, jit_compile=False, **how)
        trained.save(model)
    return model, train, held, test


def _auc(task, held):
    def auc(labels, outputs):
        return task.score(lambda x: outputs[_rows(held, x)], held)

    starts = {"at": 0}

    def _rows(held, x):
        # `score` asks for all samples in their order.
        first = starts["at"]
        starts["at"] = (first + len(x)) % held.x_test[..., 0].size
        return slice(first, first + len(x))

    return auc


def int8_bytes(model: Path, train: Path, folder: Path) -> int:
    """Bytes of the plain int8 file."""
    import tfcompress as tfc

    with np.load(train) as arrays:
        x = arrays["x"][:300]
    tfc.convert(model, folder / "int8.tflite", target="microcontroller", calibration=x)
    return os.path.getsize(folder / "int8.tflite")


def file_quality(task, data, path: Path) -> float:
    """The quality of a file, with its weights decoded if they are in codes."""
    from tfcompress.tflite import flatbuffer
    from tfcompress.tflite.plain_weights import has_codes, plain_twin
    from tfcompress.tflite.predictor import predictor
    from tfcompress.tflite.run import ports

    parsed = flatbuffer.read(path)
    if has_codes(parsed):
        parsed = plain_twin(parsed)
    (taken,), (given,) = ports(parsed)
    predict = predictor(flatbuffer.write(parsed), {taken.name: data.test_inputs(0, 4)})
    return task.score(lambda x: predict({taken.name: x})[given.name], data)


def not_beaten(name: str, flash: float, loss: float) -> dict:
    """The rows of the benchmark that are smaller and better, and how much smaller than TFMOT's.

    The smallest file of a row is its weights in codes, or zipped where no such file was made.
    """
    import tfcompress.bench

    rows = defaultdict(list)
    for file in ROWS:
        for line in (
            (Path(tfcompress.bench.__file__).parent / f"{file}.jsonl").read_text().splitlines()
        ):
            row = json.loads(line)
            if row.get("kind") == "run" and row["status"] == "ok" and row["task"] == name:
                rows[row["who"], row["method"], row["form"]].append(row)
    means = {
        key: (statistics.fmean(r.get("flash") or r["zipped"] for r in each),
              statistics.fmean(r["quality"] for r in each))
        for key, each in rows.items()
    }  # fmt: skip
    plain = next(v for k, v in means.items() if k[1] == "float32")[1]
    better = [
        (*key, round(size), round(100 * (quality - plain), 2))
        for key, (size, quality) in means.items()
        if size <= flash and quality - plain >= loss
    ]
    peers = [size for key, (size, quality) in means.items()
             if key[0] == "TFMOT" and quality - plain >= min(loss, -0.005)]  # fmt: skip
    return {"better": better, "smaller than TFMOT by": round(min(peers) / flash, 2)}
