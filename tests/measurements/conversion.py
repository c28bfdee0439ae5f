"""What conversion to int8 takes, and whether the file equals the model.

Run them on an idle machine:

    PYTHONPATH=tests python -m measurements ptq_speed --rounds 3
    PYTHONPATH=tests python -m measurements equality --samples 10000
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from measurements import interleaved, parser_of, seconds_of, show
from tfcompress.compression.compress import quantize_aware
from tfcompress.conversion.convert import convert
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.inspect import inspect
from tfcompress.tflite.run import Runner, quiet
from tfcompress.verification.differences import Tally
from tfcompress.verification.verify import verify

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


def compare(name: str, samples: int, seed: int, folder: Path, keep: bool = False) -> dict[str, Any]:
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


def equality(arguments: list[str] | None = None) -> int:
    """Whether the int8 file equals the model that was trained: 10,000 inputs through both.

    Small nets of the operations that phones run are trained for a moment on smooth random images,
    and converted; the largest difference at the output of LiteRT's reference kernels is counted in
    LSB. Returns 1 if a net misses the limits.
    """
    counts = {"samples": (10_000, "inputs"), "seeds": (1, "how often, from different weights")}
    parser = parser_of(equality, counts)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--folder", type=Path, help="keep files and models here")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [
            compare(name, options.samples, seed, folder, options.folder is not None)
            for name in options.nets
            for seed in range(options.seeds)
        ]
    passed = all(
        round(row["max_lsb"]) <= LIMITS["max_lsb"] and row["agreement"] >= LIMITS["agreement"]
        for row in rows
        if row["net"] in JUDGED
    )
    verdict = f"{'passed' if passed else 'failed'} on {options.samples} inputs"
    title = f"{verdict}: {LIMITS} for {', '.join(JUDGED)}"
    plain = {"samples": options.samples, "passed": passed, "nets": rows}
    cells = [[row[name] for name in _EQUALITY] for row in rows]
    show(options, plain, title, dict(_EQUALITY.values()), cells)
    return 0 if passed else 1


# figure -> column, see `show`
_EQUALITY = {
    "net": ("net", ""),
    "seed": ("seed", "d"),
    "accuracy": ("accuracy", ".3f"),
    "max_lsb": ("max LSB", ".0f"),
    "mean_lsb": ("mean LSB", ".5f"),
    "sqnr_db": ("SQNR dB", ".1f"),
    "agreement": ("argmax equal", ".3%"),
    "xnnpack_max_lsb": ("XNNPACK max LSB", ".0f"),
    "ops_not_int8": ("not int8", "d"),
}


SIZE = 96
TESTED = 64


def mobile_net(alpha: float) -> keras.Model:
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


def _timed(alpha: float, rounds: int, samples: int, folder: Path) -> dict[str, Any]:
    """Converts one model several times with both tools."""
    model, calibration = mobile_net(alpha), images(samples, 0)
    paths = {name: folder / f"{name}.tflite" for name in TOOLS}
    stages: dict[str, float] = {}

    def job(name: str) -> Callable[[], float]:
        return seconds_of(lambda: stages.update(TOOLS[name](model, calibration, paths[name])))

    times = interleaved({name: job(name) for name in TOOLS}, rounds)
    result: dict[str, Any] = {"alpha": alpha}
    for name, path in paths.items():
        equal, sqnr = agreement(model, path)
        seconds = round(statistics.median(times[name]), 3)
        result[name] = {"seconds": seconds, "agreement": equal, "sqnr_db": round(sqnr, 1)}
    pairs = zip(times["TFLiteConverter"], times["tfcompress"], strict=True)
    speedup = round(statistics.median(a / b for a, b in pairs), 2)
    return {**result, "stages": stages, "speedup": speedup}


def ptq_speed(arguments: list[str] | None = None) -> int:
    """How long post-training quantization to int8 takes, against TensorFlow's own converter.

    Both get the same model and the same calibration samples; the table shows medians.
    """
    counts = {"rounds": (3, "paired rounds"), "samples": (64, "images to calibrate with")}
    parser = parser_of(ptq_speed, counts)
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.35, 1.0])
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = [
            _timed(alpha, options.rounds, options.samples, Path(folder)) for alpha in options.alphas
        ]
    plain = {"rounds": options.rounds, "samples": options.samples, "models": found}
    rows = []
    for row in found:
        rows += [(row["alpha"], name, *row[name].values()) for name in TOOLS]
        told = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in row["stages"].items())
        rows.append(("", f"{row['speedup']} times as fast: {told}", None, None, None))
    columns = {"MobileNetV2": "", "tool": "", "seconds": ".2f", "argmax equal": ".1%"}
    show(options, plain, "Conversion to int8", {**columns, "SQNR dB": ".1f"}, rows)
    return 0
