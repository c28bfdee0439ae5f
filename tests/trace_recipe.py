"""How long the way of a recipe is: what `tfcompress compress --recipe sparse-cluster-int8` passes.

    python tests/trace_recipe.py

prints how many files of the package ran, the hops from one to another, and how often YAML was
parsed, a model flattened and a .tflite file read.
"""

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np


def make_files(folder):
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(8, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    model.save(folder / "model.keras")
    random = np.random.default_rng(0)
    x, y = random.uniform(size=(64, 8, 8, 1)).astype("float32"), random.integers(0, 3, 64)
    np.savez(folder / "train.npz", x_train=x, y_train=y)


def trace(run):
    """What `run()` passes: {"files": names, "hops": count, "calls": {"file:function": count}}."""
    import tfcompress

    package = str(Path(tfcompress.__path__[0])) + "/"
    passed, calls, hops, last, importing = set(), Counter(), 0, None, 0

    def profile(frame, event, _):
        nonlocal hops, last, importing
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(package):
            return
        if code.co_name == "<module>":  # An import, which passes nothing on.
            importing += 1 if event == "call" else -1
        elif event == "call" and not importing:
            name = code.co_filename.removeprefix(package)
            passed.add(name)
            calls[f"{name}:{code.co_name}"] += 1
            hops += name != last
            last = name

    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
    return {"files": sorted(passed), "hops": hops, "calls": calls}


def measure(recipe="sparse-cluster-int8"):
    """The figures of one run of the command."""
    import yaml

    from tfcompress.cli.app import main

    parsed = Counter()
    scan = yaml.compose

    def compose(*arguments, **settings):
        parsed["yaml"] += 1
        return scan(*arguments, **settings)

    yaml.compose = compose
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        make_files(folder)
        words = ["compress", str(folder / "model.keras"), "--recipe", recipe, "--epochs", "2"]
        words += [
            "--data",
            str(folder / "train.npz"),
            "-o",
            str(folder / "small.tflite"),
            "--quiet",
        ]
        found = trace(lambda: main([*words, "--quiet"]))
    yaml.compose = scan
    calls = found["calls"]
    return {
        "files": len(found["files"]),
        "hops": found["hops"],
        "YAML parsed": parsed["yaml"],
        "flattened": calls["graph/flatten.py:flatten"],
        ".tflite read": calls["tflite/flatbuffer.py:read"],
    }, found["files"]


if __name__ == "__main__":
    figures, names = measure()
    print(json.dumps(figures, indent=1))
    print("\n".join(names), file=sys.stderr)
