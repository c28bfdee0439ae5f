"""Recurrent and streaming nets: quality in float and int8, and how equal files are."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
from conftest import run_tflite
from keras import layers

import tfcompress as tfc
from measurements import parser_of, show, spread, tell
from tfcompress.bench.models import compile_for
from tfcompress.bench.running.child import file_quality, keras_quality
from tfcompress.bench.tasks import TASKS, Data, Task, Training
from tfcompress.export.microcontroller.c_array import measure_arena
from tfcompress.tflite import flatbuffer, run

INT8: dict[str, Any] = {"precision": "int8", "io_dtype": "int8"}
# Samples that a file is compared with its simulation on.
COMPARED = 64


_TRAINING = Training(1500, 32, 2e-3)


@dataclasses.dataclass(frozen=True)
class Net:
    """A net that has to work.

    Attributes:
        task: what it is trained for; None for one of the data of `made`.
        build: the untrained model.
        made: samples and labels, by a seed: to train with, then to test with.
        training: of the float model; quantized ones get a quarter of its steps at a quarter rate.
        ctc: whether what it gives is read by CTC's best path.
        chunk, windows: of the step model that its int8 files are; None for files over windows.
    """

    build: Callable[[], keras.Model]
    task: str | None = None
    made: Callable[[], tuple[np.ndarray, np.ndarray]] | None = None
    training: Training = _TRAINING
    ctc: bool = False
    chunk: int | None = None
    windows: Any = None


def _spotter(recurrent: Callable[[], Any]) -> keras.Model:
    inputs = keras.Input((49, 10, 1), name="mfcc")
    x = layers.Reshape((49, 10))(inputs)
    x = layers.BatchNormalization()(x)
    return keras.Model(inputs, layers.Dense(12, activation="softmax")(recurrent()(x)))


def _ds_cnn() -> keras.Model:
    """The benchmark's DS-CNN without frames of padding."""
    x = inputs = keras.Input((49, 10, 1), name="mfcc")
    x = layers.ZeroPadding2D(((0, 0), (1, 2)))(x)
    x = layers.Conv2D(64, (10, 4), strides=2, use_bias=False)(x)
    x = layers.Dropout(0.2)(layers.ReLU()(layers.BatchNormalization()(x)))
    for _ in range(4):
        x = layers.DepthwiseConv2D(3, use_bias=False)(layers.ZeroPadding2D(((0, 0), (1, 1)))(x))
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(64, 1, use_bias=False)(x)))
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Dropout(0.4)(x))
    return keras.Model(inputs, layers.Dense(12, activation="softmax")(x))


def _svdf() -> keras.Model:
    """SVDF: filters over features, then one over time for each."""
    inputs = keras.Input((30, 1, 40), name="bands")
    x = layers.Reshape((30, 40))(inputs)
    for units, memory in ((96, 8), (64, 10), (48, 14)):
        x = layers.DepthwiseConv1D(memory)(layers.Dense(units)(x))
        x = layers.Dropout(0.1)(layers.ReLU()(layers.BatchNormalization()(x)))
    x = layers.Flatten(name="window")(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


def _wake_gru() -> keras.Model:
    inputs = keras.Input((30, 1, 40), name="bands")
    x = layers.ReLU()(layers.Dense(32)(layers.Reshape((30, 40))(inputs)))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.GRU(40)(x)))


def _texts() -> tuple[np.ndarray, np.ndarray]:
    """Whether "not" stands before the last of two moods, in sentences of 4 to 24 words."""
    random = np.random.default_rng(0)
    x, y = np.zeros((5000, 24), "int32"), np.zeros(5000, int)
    for row in range(len(x)):
        length = random.integers(4, 25)
        x[row, :length] = random.integers(10, 200, length)
        place, mood, negated = random.integers(1, length), random.integers(2), random.integers(2)
        x[row, place], x[row, place - 1] = 1 + mood, 3 if negated else 4
        y[row] = mood ^ negated
    return x, y


def _text_net() -> keras.Model:
    inputs = keras.Input((24,), dtype="int32", name="words")
    x = layers.Embedding(200, 16, mask_zero=True)(inputs)
    x = layers.Bidirectional(layers.LSTM(16))(x)
    return keras.Model(inputs, layers.Dense(2, activation="softmax")(x))


def _heart_beats() -> tuple[np.ndarray, np.ndarray]:
    """Waves P, Q, R, S, T as bumps: well, without P, with a wide R, with a raised ST."""
    random = np.random.default_rng(0)
    time = np.linspace(0, 1, 128)
    y = random.integers(4, size=3000)
    waves = (
        (0.2, 0.03, 0.2),
        (0.36, 0.01, -0.15),
        (0.4, 0.015, 1),
        (0.44, 0.012, -0.3),
        (0.65, 0.05, 0.35),
    )
    x = np.zeros((len(y), len(time)))
    for number, (place, width, height) in enumerate(waves):
        at = place + random.normal(0, 0.02, (len(y), 1))
        wide = (
            width
            * random.uniform(0.8, 1.2, (len(y), 1))
            * np.where((y == 2) & (number == 2), 2.2, 1)[:, None]
        )
        high = (
            height
            * random.uniform(0.7, 1.3, (len(y), 1))
            * np.where((y == 1) & (number == 0), 0, 1)[:, None]
        )
        x += high * np.exp(-(((time - at) / wide) ** 2) / 2)
    x += 0.18 * ((y == 3)[:, None] & (time > 0.46) & (time < 0.6)) + random.normal(0, 0.08, x.shape)
    return x[..., None].astype("float32"), y


def _tcn() -> keras.Model:
    x = inputs = keras.Input((128, 1), name="signal")
    x = layers.Conv1D(16, 3, padding="causal")(x)
    for dilation in (1, 2, 4, 8, 16):
        y = layers.Conv1D(16, 3, padding="causal", dilation_rate=dilation)(x)
        y = layers.ReLU()(layers.BatchNormalization()(y))
        x = layers.Add()([x, layers.Conv1D(16, 1)(y)])
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(x))


def _lines() -> tuple[np.ndarray, np.ndarray]:
    """Three handwritten digits beside one another; 0 is CTC's blank, digits are 1 to 10."""
    from sklearn.datasets import load_digits

    digits, random = load_digits(), np.random.default_rng(0)
    rows = random.integers(len(digits.target), size=(4000, 3))
    images = np.concatenate([digits.images[rows[:, i]] for i in range(3)], axis=2) / 16
    return np.repeat(images, 2, 2)[..., None].astype("float32"), digits.target[rows] + 1


def _crnn() -> keras.Model:
    x = inputs = keras.Input((8, 48, 1), name="line")
    for filters in (24, 48):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.MaxPooling2D()(layers.ReLU()(layers.BatchNormalization()(x)))
    x = layers.Reshape((12, 96))(layers.Permute((2, 1, 3))(x))
    x = layers.Bidirectional(layers.LSTM(32, return_sequences=True))(x)
    return keras.Model(inputs, layers.Dense(11)(x))


def _words() -> tuple[np.ndarray, np.ndarray]:
    """Words of six letters and, behind them, what was said of their reverse; that."""
    words = np.random.default_rng(0).integers(1, 10, (6000, 6))
    said = np.pad(words[:, :0:-1], ((0, 0), (1, 0)))
    return np.concatenate([words, said], 1).astype("int32"), words[:, ::-1]


def _translator() -> keras.Model:
    """An encoder whose states a decoder begins with."""
    inputs = keras.Input((12,), dtype="int32", name="letters")
    letters = layers.Embedding(10, 16)(inputs)
    *_, h, c = layers.LSTM(64, return_state=True)(letters[:, :6])
    x = layers.LSTM(64, return_sequences=True)(letters[:, 6:], initial_state=[h, c])
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(x))


NETS: dict[str, Net] = {
    "LSTM spotter": Net(lambda: _spotter(lambda: layers.LSTM(64)), "keywords"),
    "GRU spotter": Net(lambda: _spotter(lambda: layers.GRU(64)), "keywords"),
    "DS-CNN, streaming": Net(_ds_cnn, "keywords", chunk=2, windows="pool"),
    "SVDF wake word, streaming": Net(_svdf, "wake_word", chunk=1, windows="window"),
    "GRU wake word": Net(_wake_gru, "wake_word"),
    "masked BiLSTM on texts": Net(_text_net, made=_texts),
    "TCN on heart beats, streaming": Net(_tcn, made=_heart_beats, chunk=1, windows="pool"),
    "CRNN reader, CTC": Net(_crnn, made=_lines, ctc=True),
    "LSTM encoder-decoder": Net(_translator, made=_words, training=Training(4000, 64, 5e-3)),
}


def recurrent_quality(arguments: list[str] | None = None) -> int:
    """Recurrent and streaming nets: quality in float and int8, and how equal files are."""
    parser = parser_of(recurrent_quality, {"seeds": (3, "trainings of each net")})
    parser.add_argument("--nets", nargs="+", choices=NETS, default=[*NETS])
    options = parser.parse_args(arguments)
    rows = [
        _row(name, [_measured(name, seed) for seed in range(options.seeds)])
        for name in options.nets
    ]
    columns = dict.fromkeys(
        "net,float,PTQ,QAT,QAT - float,float operators,steps,operators,bytes,arena,MACs".split(","),
        "",
    )
    show(options, rows, "Quality in percent; steps of the output that a file is off", columns, rows)
    return 0


def _row(name: str, found: list[dict[str, Any]]) -> list[str]:
    qualities = [spread(100 * each[key] for each in found) for key in ("float", "ptq", "qat")]
    lost = spread(100 * (each["qat"] - each["float"]) for each in found)
    worst = [max(each[key] for each in found) for key in ("float_ops", "steps")]
    last = [found[0][key] for key in ("operators", "bytes", "arena", "macs")]
    return [name, *qualities, lost, *(f"{value:,}" for value in (*worst, *last))]


@functools.cache
def _data(name: str) -> tuple[Task, Data]:
    net = NETS[name]
    if net.task:
        return TASKS[net.task], TASKS[net.task].generate()
    assert net.made is not None
    x, y = net.made()
    split = len(x) * 4 // 5
    data = Data(x[:split], y[:split], x[split:], y[split:], int(y.max()) + 1, "generated", "")
    task = dataclasses.replace(TASKS["digits"], name=name, build=lambda kit, classes: net.build())
    return task, data


def _measured(name: str, seed: int) -> dict[str, Any]:
    """Trains a net in float, then for integers, and writes the files of both."""
    net, data = NETS[name], _data(name)[1]
    keras.utils.set_random_seed(seed)
    model = net.build()
    _fit(model, name, data, net.training, seed)
    found: dict[str, Any] = {"float": _quality(name, model)}
    qat = tfc.quantize_aware(model)
    short = dataclasses.replace(
        net.training, steps=net.training.steps // 4, rate=net.training.rate / 4
    )
    _fit(qat, name, data, short, seed + 1)
    with tempfile.TemporaryDirectory() as folder:
        for key, each in (("ptq", model), ("qat", qat)):
            path, kept = Path(folder, f"{key}.tflite"), each
            given: dict[str, Any] = {}
            if key == "ptq":
                given = {"calibration": _inputs(data, slice(200))}
            if net.chunk:
                kept = tfc.streaming(each, net.chunk, windows=net.windows)
                if given:
                    given = {"calibration": tfc.Stream(kept).samples(given["calibration"][:50])}
            report = tfc.convert(kept, path, **INT8, **given)
            found[key] = _quality(name, path)
        found["float_ops"], found["operators"] = (
            len(report.float_ops),
            len(tfc.inspect(path).operators),
        )
        found["bytes"], found["arena"] = (
            path.stat().st_size,
            measure_arena(path.read_bytes(), str(path))[0],
        )
        found["steps"] = _steps(name, qat, path)
        found["macs"] = tfc.profile(tfc.finalize(kept)).macs
    tell(f"{name}, seed {seed}: {found}")
    return found


def _fit(model: Any, name: str, data: Data, training: Training, seed: int) -> None:
    loss = "sparse_categorical_crossentropy"
    compile_for(
        model, training.steps, training.rate, keras.losses.CTC() if NETS[name].ctc else loss
    )
    model.fit(_batches(data, training.batch, seed), steps_per_epoch=training.steps, verbose=0)


def _batches(data: Data, batch: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(seed)
    assert data.y_train is not None
    while True:
        rows = random.permutation(len(data.x_train))[:batch]
        yield _inputs(data, rows), data.y_train[rows]


def _inputs(data: Data, rows: Any) -> np.ndarray:
    """Some of the samples to train with, as the model takes them."""
    x = data.x_train[rows]
    return x * np.float32(data.scale) if x.dtype == np.uint8 else x


def _tested(data: Data) -> np.ndarray:
    """The samples to test with, as the model takes them: words are whole numbers."""
    return data.x_test if data.x_test.dtype == np.int32 else data.test_inputs()


def _quality(name: str, model: Any) -> float:
    """The share of right answers, or what the benchmark's task counts."""
    task, data = _data(name)
    if task.streams:
        return (keras_quality if isinstance(model, keras.Model) else file_quality)(
            task, data, model
        )
    outputs = _outputs(name, model, _tested(data))
    if NETS[name].ctc:
        read = [_read(line) for line in outputs.argmax(-1)]
        return float(
            np.mean([found == list(line) for found, line in zip(read, data.y_test, strict=True)])
        )
    return float(np.mean(outputs.argmax(-1) == data.y_test))


def _read(codes: np.ndarray) -> list[int]:
    """What CTC's best path says: no blanks, and nothing twice in a row."""
    return [
        int(code)
        for code, before in zip(codes, [0, *codes[:-1]], strict=True)
        if code not in (0, before)
    ]


def _outputs(name: str, model: Any, x: np.ndarray, reference: bool = False) -> np.ndarray:
    """What a model over windows, or a file over windows or the next frames, gives for windows."""
    net = NETS[name]
    if isinstance(model, keras.Model):
        return np.concatenate(
            [np.asarray(model(x[i : i + 256], training=False)) for i in range(0, len(x), 256)]
        )
    if not net.chunk:
        return run_tflite(model, x, reference)
    stream, reach = tfc.Stream(model), _reach(name)
    if reference:
        content = model.read_bytes()
        runner = run.Runner(flatbuffer.read(content), content, model.name, reference=True)
        files: Any = stream._runs
        files.runner = runner
    found = []
    for window in x:
        stream.reset()
        # A stride may leave frames at the end unread; those behind the window change nothing.
        behind = np.zeros((max(0, reach - len(window)), *window.shape[1:]), "float32")
        frames = np.concatenate([window[:reach], behind])
        found.append([*stream.run(frames[None])][-1][0])
    return np.array(found)


@functools.cache
def _reach(name: str) -> int:
    """How many frames a stream needs from a window's first on."""
    net = NETS[name]
    step = tfc.streaming(net.build(), net.chunk or 1, windows=net.windows)
    (reach,) = step.stream_report.delays.values()
    return reach


def _steps(name: str, qat: keras.Model, path: Path) -> int:
    """How many steps of the output a file is off on LiteRT's reference kernels."""
    x = _tested(_data(name)[1])[:COMPARED]
    ports = run.ports(flatbuffer.read(path))[1]
    scale = next(port.scale or 1.0 for port in ports if "_state" not in port.name)
    apart = np.abs(_outputs(name, path, x, reference=True) - _outputs(name, qat, x))
    return round(float(apart.max()) / scale)
