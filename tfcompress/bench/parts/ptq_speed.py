"""How long post-training quantization to int8 takes, against TensorFlow's own converter.

Both get the same model and the same calibration samples and take turns, so that a slow spell of
the machine hits both; the table shows medians over the rounds. Run it on an idle machine:

    python -m tfcompress.bench.ptq_speed --rounds 3
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfcompress.conversion.convert import convert
from tfcompress.conversion.layer_errors import Tally
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.run import Runner, quiet

SIZE = 96
TESTED = 64


def build(alpha: float) -> keras.Model:
    """MobileNetV2 for images of 96x96, with random weights.

    The statistics of BatchNormalization are set from random images, so that activations have the
    ranges that they have in a trained model.
    """
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2(
        (SIZE, SIZE, 3), alpha, weights=None, classifier_activation=None
    )
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.5
    for batch in np.split(images(64, 1), 4):
        model(batch, training=True)
    return model


def images(count: int, seed: int) -> np.ndarray:
    """Random images of coarse squares under tints of their own, float32 (count, 96, 96, 3)."""
    random = np.random.default_rng(seed)
    tint, contrast = random.normal(size=(count, 1, 1, 3)), random.uniform(size=(count, 1, 1, 1))
    coarse = tint + contrast * random.normal(size=(count, 6, 6, 3))
    return coarse.astype(np.float32).repeat(SIZE // 6, axis=1).repeat(SIZE // 6, axis=2)


def by_tfcompress(model: keras.Model, samples: np.ndarray, path: Path) -> dict[str, float]:
    """Writes an int8 file by `tfcompress.convert`; returns the seconds of its stages."""
    return convert(model, path, precision="int8", io_dtype="int8", calibration=samples).seconds


def by_tensorflow(model: keras.Model, samples: np.ndarray, path: Path) -> dict[str, float]:
    """Writes an int8 file by `TFLiteConverter` from an exported SavedModel."""
    with tempfile.TemporaryDirectory() as folder:
        archive = keras.export.ExportArchive()
        archive.track(model)
        specs = [tf.TensorSpec((1, SIZE, SIZE, 3), tf.float32, name="image")]
        archive.add_endpoint("serve", lambda x: model(x, training=False), specs)
        archive.write_out(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=["serve"])
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ({"image": x[None]} for x in samples)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
        with quiet():
            path.write_bytes(converter.convert())
    return {}


TOOLS = {"tfcompress": by_tfcompress, "TFLiteConverter": by_tensorflow}


def agreement(model: keras.Model, path: Path) -> tuple[float, float]:
    """How near a file is to the float model, on images that calibration has not seen."""
    content = path.read_bytes()
    runner = Runner(flatbuffer.read(content), content, path.name, reference=False)
    (entry,) = runner.inputs
    samples, tally = images(TESTED, 2), Tally()
    wanted = np.asarray(model.predict(samples, verbose=0))
    tally.add(wanted, np.concatenate([runner.run({entry.name: x[None]})[0] for x in samples]))
    found = tally.result(1.0)
    return found.agreement or 0.0, found.sqnr_db


def measure(alpha: float, rounds: int, samples: int, folder: Path) -> dict[str, Any]:
    """Converts one model several times with both tools."""
    model, calibration = build(alpha), images(samples, 0)
    times: dict[str, list[float]] = {name: [] for name in TOOLS}
    own: dict[str, float] = {}
    for _ in range(rounds):
        for name, tool in TOOLS.items():
            start = time.perf_counter()
            stages = tool(model, calibration, folder / f"{name}.tflite")
            own = stages or own
            times[name].append(time.perf_counter() - start)
    pairs = zip(times["TFLiteConverter"], times["tfcompress"], strict=True)
    result: dict[str, Any] = {"alpha": alpha}
    for name in TOOLS:
        equal, sqnr = agreement(model, folder / f"{name}.tflite")
        result[name] = {
            "seconds": round(statistics.median(times[name]), 3),
            "agreement": equal,
            "sqnr_db": round(sqnr, 1),
        }
    result["stages"] = own
    return {**result, "speedup": round(statistics.median(a / b for a, b in pairs), 2)}


def main(arguments: list[str] | None = None) -> int:
    """Prints the table, or one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=64, help="images to calibrate with")
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.35, 1.0])
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.samples < 1:
        parser.error("--rounds and --samples must be at least 1")
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            measure(alpha, options.rounds, options.samples, Path(folder))
            for alpha in options.alphas
        ]
    if options.json:
        settings = {"rounds": options.rounds, "samples": options.samples}
        print(json.dumps({**settings, "models": rows}))
        return 0
    print(f"{'MobileNetV2':<12}{'tool':<18}{'seconds':>9}{'argmax equal':>14}{'SQNR dB':>9}")
    for row in rows:
        for name in TOOLS:
            found = row[name]
            numbers = f"{found['seconds']:>9.2f}{found['agreement']:>14.1%}{found['sqnr_db']:>9.1f}"
            print(f"{row['alpha']:<12}{name:<18}{numbers}")
        stages = ", ".join(f"{name} {seconds:.2f}" for name, seconds in row["stages"].items())
        print(f"{'':<12}tfcompress is {row['speedup']} times as fast; its seconds: {stages}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
