"""What a teacher is worth: a student trained alone and with soft labels, in float32 and in int8.

One teacher; for each seed one small student, trained alone and distilled with the same steps from
the same initial weights, and int8 files of quantization-aware training with and without the
teacher, from the same float student:

    python -m tfcompress.bench.distillation_quality --seeds 5
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

import tfcompress as tfc
from tfcompress.bench import demo
from tfcompress.bench.parts.joint_quality import train
from tfcompress.tflite.flatbuffer import zipped_size

TEACHER, STUDENT = (32, 64, 64), (6, 8, 12)
EPOCHS, TUNING_EPOCHS, RATE, TUNING_RATE = 30, 10, 5e-3, 2e-3
ALPHA, TEMPERATURE = 0.1, 4.0


def cnn(widths: tuple[int, ...], name: str) -> keras.Model:
    """A CNN for the digits: convolutions of some widths, two poolings, average, softmax."""
    x = inputs = keras.Input((8, 8, 1))
    for index, width in enumerate(widths):
        x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.MaxPooling2D(2)(x) if index < 2 else x
    x = layers.Dense(10)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Softmax()(x), name=name)


def distill(student: keras.Model, teacher: keras.Model, data: Any, epochs: int, rate: float):
    """Trains a student as `train` does, but with soft labels."""
    distiller = tfc.Distiller(
        student, teacher, alpha=ALPHA, temperature=TEMPERATURE, cache="memory"
    )
    train(keras, distiller, data, epochs, rate, [tfc.UpdateCompression()] * _is_scheduled(student))


def _is_scheduled(model: keras.Model) -> bool:
    return any(getattr(layer, "scheduled", False) for layer in model._flatten_layers())


def accuracy(model: keras.Model, data: Any, folder: Path, precision: str) -> dict[str, float]:
    """Accuracy of the .tflite file of a model, and its size."""
    path = folder / "model.tflite"
    tfc.convert(model, path, precision=precision)
    return {
        "accuracy": 100 * demo.accuracy(path, *data),
        "bytes": path.stat().st_size,
        "zipped": zipped_size(path.read_bytes()),
    }


def run(seed: int, teacher: keras.Model, data: Any, test: Any) -> dict[str, dict[str, float]]:
    """All ways to make a small model with one seed: way -> figures."""
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keras.utils.set_random_seed(seed)
        alone = cnn(STUDENT, "student")
        taught = tfc.flatten(alone)
        train(keras, alone, data, EPOCHS, RATE)
        rows["student alone"] = accuracy(alone, test, folder, "float32")
        keras.utils.set_random_seed(seed)
        distill(taught, teacher, data, EPOCHS, RATE)
        rows["with soft labels"] = accuracy(taught, test, folder, "float32")
        for start, model in (("alone", alone), ("taught", taught)):
            for way in ("int8 QAT", "int8 QAT with soft labels"):
                keras.utils.set_random_seed(seed)
                small = tfc.quantize_aware(model)
                if way == "int8 QAT":
                    train(keras, small, data, TUNING_EPOCHS, TUNING_RATE)
                else:
                    distill(small, teacher, data, TUNING_EPOCHS, TUNING_RATE)
                rows[f"{way}, from the student {start}"] = accuracy(small, test, folder, "int8")
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Measures, and prints a table or, with --json, one line of JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m tfcompress.bench.parts.distillation_quality",
        description=__doc__.split("\n")[0],
    )
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each kind (5)")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    options = parser.parse_args(arguments)
    data, test = demo.load_digits()
    keras.utils.set_random_seed(0)
    teacher = cnn(TEACHER, "teacher")
    train(keras, teacher, data, 20, RATE)
    with tempfile.TemporaryDirectory() as name:
        best = accuracy(teacher, test, Path(name), "float32")
    seeds = []
    for seed in range(options.seeds):
        seeds.append(run(seed, teacher, data, test))
        print(f"seed {seed}: {seeds[-1]}", file=sys.stderr, flush=True)
    sizes = teacher.count_params(), cnn(STUDENT, "student").count_params()
    if options.json:
        print(json.dumps({"parameters": sizes, "teacher": best, "seeds": seeds}))
        return 0
    print(f"teacher {sizes[0]:,} parameters, student {sizes[1]:,}: {sizes[0] / sizes[1]:.0f} times")
    print(f"{'way':44s} {'accuracy':>16s} {'bytes':>8s} {'zipped':>8s}")
    print(f"{'teacher':44s} {best['accuracy']:9.2f} {best['bytes']:15.0f} {best['zipped']:8.0f}")
    for way in seeds[0]:
        found = [each[way]["accuracy"] for each in seeds]
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        size, zipped = (np.median([each[way][k] for each in seeds]) for k in ("bytes", "zipped"))
        print(f"{way:44s} {statistics.mean(found):9.2f} ±{spread:5.2f} {size:8.0f} {zipped:8.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
