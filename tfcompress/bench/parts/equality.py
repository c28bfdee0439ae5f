"""Whether the int8 file equals the model that was trained: 10,000 inputs through both.

Small nets of the operations that phones run are trained for a moment on smooth random images, and
converted; the largest difference at the output of LiteRT's reference kernels is counted in LSB:

    python -m tfcompress.bench.equality --samples 10000
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from tfcompress.compression.compress import quantize_aware
from tfcompress.conversion.convert import convert
from tfcompress.conversion.verify import verify
from tfcompress.tflite.inspect import inspect

SHAPE, CLASSES = (16, 16, 3), 10

# The reference kernels are slow, and slower still if they are called for each sample alone.
BATCH = 100
LIMITS = {"max_lsb": 1, "agreement": 0.999}


def _convolution(x, filters: int, depthwise: bool = False, strides: int = 1):
    if depthwise:
        x = layers.DepthwiseConv2D(3, strides, padding="same", use_bias=False)(x)
    else:
        x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def plain(x):
    """Convolutions, max pooling, Dense."""
    x = layers.MaxPooling2D()(_convolution(x, 8))
    x = layers.MaxPooling2D()(_convolution(x, 16))
    return layers.Dense(CLASSES)(layers.Flatten()(x))


def _block(x):
    y = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(_convolution(x, 8)))
    return layers.ReLU()(layers.Add()([x, y]))


def residual(x):
    """Convolutions with Add."""
    x = layers.MaxPooling2D()(_block(_convolution(x, 8, strides=2)))
    return layers.Dense(CLASSES)(layers.Flatten()(x))


def branched(x):
    """Concatenate of convolutions and pooling."""
    x = _convolution(x, 8, strides=2)
    branches = [_convolution(x, 8), layers.AveragePooling2D(3, 1, "same")(x), _convolution(x, 4)]
    x = _convolution(layers.Concatenate()(branches), 12)
    return layers.Dense(CLASSES)(layers.Flatten()(layers.AveragePooling2D(2)(x)))


def deep(x):
    """Depthwise and 1x1 convolutions as in MobileNet, two Adds, global average pooling."""
    x = _convolution(x, 8)
    for filters, strides in ((16, 2), (8, 1)):
        x = _convolution(x, 0, depthwise=True, strides=strides)
        x = layers.Conv2D(filters, 1, use_bias=False)(x)
        x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    return layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(_block(_block(x))))


def softmax(x):
    """All of them, and softmax at the end, which makes several LSB of one LSB of its input."""
    x = _convolution(x, 8, strides=2)
    y = _convolution(x, 8, depthwise=True)
    x = layers.Concatenate()([layers.Add()([x, y]), layers.MaxPooling2D(3, 1, "same")(x)])
    x = layers.Dense(24, activation="relu")(layers.GlobalAveragePooling2D()(x))
    return layers.Dense(CLASSES, activation="softmax")(x)


NETS: dict[str, Callable] = {f.__name__: f for f in (plain, residual, branched, deep, softmax)}

# Roundings that fall to the other side add up with depth: the last two are shown, not judged.
JUDGED = ("plain", "residual", "branched")


def smooth_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images whose neighbouring pixels are alike: ten patterns, each under much noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    coarse = rng.normal(size=(count, 5, 5, 3))
    coarse += np.random.default_rng(0).normal(size=(CLASSES, 5, 5, 3))[labels]
    position = np.linspace(0, 4, SHAPE[0])
    weights = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(5)))
    images = np.einsum("yi,nijc,xj->nyxc", weights, coarse, weights, optimize=True)
    return images.astype(np.float32), labels


def trained(net: Callable, seed: int) -> keras.Model:
    """A quantization-aware model of a net, trained to tell the patterns apart."""
    keras.utils.set_random_seed(seed)
    inputs = layers.Input(SHAPE, name="image")
    model = quantize_aware(keras.Model(inputs, net(inputs)))
    logits = net is not softmax
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"], jit_compile=False)
    model.fit(*smooth_images(4096, seed + 1), batch_size=32, epochs=8, verbose=0)
    return model


def measure(name: str, samples: int, seed: int, folder: Path, keep: bool = False) -> dict[str, Any]:
    """Trains and converts a net, and compares the file with the model."""
    start = time.perf_counter()
    model = trained(NETS[name], seed)
    path = folder / f"{name}_{seed}.tflite"
    convert(model, path, io_dtype="int8", batch_size=BATCH)
    if keep:
        model.save(path.with_suffix(".keras"))
    images, labels = smooth_images(samples, seed + 1000)
    accuracy = model.evaluate(images, labels, batch_size=BATCH, verbose=0, return_dict=True)
    found = verify(model, path, images).outputs[0]
    operators = inspect(path).operators
    return {
        "net": name,
        "seed": seed,
        "accuracy": round(accuracy["accuracy"], 4),
        "max_lsb": round(found.keras.max_lsb, 3),
        "mean_lsb": found.keras.mean_lsb,
        "agreement": found.keras.agreement,
        "sqnr_db": round(found.keras.sqnr_db, 1),
        "xnnpack_max_lsb": round(found.xnnpack.max_lsb, 3),
        "xnnpack_agreement": found.xnnpack.agreement,
        "ops_not_int8": sum(op.dtype != "int8" for op in operators),
        "requantize_ops": sum(op.name in ("QUANTIZE", "DEQUANTIZE") for op in operators),
        "seconds": round(time.perf_counter() - start, 1),
    }


def _print_table(rows: list[dict[str, Any]]) -> None:
    head = "accuracy,max LSB,mean LSB,SQNR dB,argmax equal,XNNPACK max LSB,not int8".split(",")
    print(f"{'net':<10}{'seed':>5}" + "".join(f"{h:>16}" for h in head))
    for row in rows:
        numbers = (
            f"{row['accuracy']:.3f}",
            f"{row['max_lsb']:.0f}",
            f"{row['mean_lsb']:.5f}",
            f"{row['sqnr_db']:.1f}",
            f"{row['agreement']:.3%}",
            f"{row['xnnpack_max_lsb']:.0f}",
            str(row["ops_not_int8"]),
        )
        print(f"{row['net']:<10}{row['seed']:>5}" + "".join(f"{n:>16}" for n in numbers))


def main(arguments: list[str] | None = None) -> int:
    """Prints the table, or one line of JSON; returns 1 if a net misses the limits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=1, help="how often, from different weights")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--folder", type=Path, help="keep files and models here")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [
            measure(name, options.samples, seed, folder, options.folder is not None)
            for name in options.nets
            for seed in range(options.seeds)
        ]
    passed = all(
        round(row["max_lsb"]) <= LIMITS["max_lsb"] and row["agreement"] >= LIMITS["agreement"]
        for row in rows
        if row["net"] in JUDGED
    )
    if options.json:
        print(json.dumps({"samples": options.samples, "passed": passed, "nets": rows}))
    else:
        _print_table(rows)
        print(
            "passed" if passed else "failed",
            f"on {options.samples} inputs: {LIMITS} for {', '.join(JUDGED)}",
        )
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
