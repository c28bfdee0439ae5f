"""A table of small CNNs for handwritten digits, trained once, on which searches are compared.

Tables make searches comparable over many seeds in seconds (Ying et al. 2019, NAS-Bench-101,
arXiv:1902.09635). 648 architectures read the 8x8 digits that scikit-learn brings: 1,200 to train
on, 597 to judge. `digits_table.csv` holds what one seed gave. To train all anew, which takes an
hour of one core, put it away and run

    PYTHONPATH=tests python -m measurements digits_table --seeds 1
"""

from __future__ import annotations

import csv
import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from measurements import parser_of, tell
from tfcompress.search.choices import Chooser, of_picks
from tfcompress.surgery.profile import profile

PATH = Path(__file__).with_suffix(".csv")
OPTIONS: dict[str, Sequence[Any]] = {
    "width": (4, 8, 16),
    "widen": (1, 2),
    "kernel1": (1, 3, 5),
    "kernel2": (1, 3, 5),
    "block": ("conv", "separable", "residual"),
    "depth": (1, 2),
    "pool": ("max", "average"),
}
COSTS = ("macs", "params", "peak_memory")
EPOCHS = 6


def build(choose: Chooser) -> keras.Model:
    """A CNN of two stages."""
    picked = {name: choose(name, options) for name, options in OPTIONS.items()}
    wide = picked["width"] * picked["widen"]
    pooling = {"max": layers.MaxPooling2D, "average": layers.AveragePooling2D}[picked["pool"]]
    inputs = keras.Input((8, 8, 1))
    x = pooling(2)(_conv(inputs, picked["width"], picked["kernel1"]))
    x = _conv(x, wide, 1)
    for _ in range(picked["depth"]):
        x = _block(x, wide, picked["kernel2"], picked["block"])
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, activation="softmax")(x))


def _block(x, filters: int, kernel: int, kind: str):
    if kind == "separable":
        x = layers.DepthwiseConv2D(kernel, padding="same", use_bias=False)(x)
        return _conv(x, filters, 1)
    y = _conv(x, filters, kernel)
    return layers.Add()([x, y]) if kind == "residual" else y


def _conv(x, filters: int, kernel: int):
    x = layers.Conv2D(filters, kernel, padding="same", use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))


def digits() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """(images of shape (n, 8, 8, 1) in [0, 1], labels) to train on, and to judge by."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x, order = x.reshape(-1, 8, 8, 1).astype("float32") / 16, np.random.default_rng(0)
    place = order.permutation(len(x))
    train, test = place[:1200], place[1200:]
    return (x[train], y[train]), (x[test], y[test])


def every_pick() -> Iterator[dict[str, int]]:
    """The indices of the options of each architecture."""
    for picks in itertools.product(*(range(len(options)) for options in OPTIONS.values())):
        yield dict(zip(OPTIONS, picks, strict=True))


def read(path: Path = PATH) -> dict[tuple[int, ...], dict[str, float]]:
    """{indices of the options: what was measured}, whose "accuracy" is the mean of the seeds."""
    table = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            picks = tuple(int(row.pop(name)) for name in OPTIONS)
            costs = {name: float(row.pop(name)) for name in COSTS}
            table[picks] = costs | {"accuracy": statistics.mean(map(float, row.values()))}
    return table


def trained_accuracy(picks: Mapping[str, int], seed: int) -> tuple[float, keras.Model]:
    """The accuracy on what was held out, and the trained model."""
    keras.utils.set_random_seed(seed)
    (x, y), held_out = digits()
    model = build(of_picks(picks))
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(x, y, epochs=EPOCHS, batch_size=32, verbose=0)
    found = np.argmax(model(held_out[0], training=False), axis=-1)
    return float(np.mean(found == held_out[1])), model


def digits_table(arguments: Sequence[str], path: Path = PATH) -> int:
    """Trains all architectures of the table; goes on where it was stopped."""
    counts = {"seeds": (1, "how often each is trained"), "part": (1, "do this one"),
              "parts": (1, "of so many")}  # fmt: skip
    options = parser_of(digits_table, counts, with_json=False).parse_args(arguments)
    if options.parts > 1:
        path = path.with_suffix(f".{options.part}.csv")
    _fill(path, list(every_pick())[options.part - 1 :: options.parts], options.seeds)
    return 0


def _fill(path: Path, wanted: list[dict[str, int]], seeds: int) -> None:
    heading = [*OPTIONS, *COSTS, *(f"seed{seed}" for seed in range(seeds))]
    done = 0
    if path.exists():
        done = len(path.read_text().splitlines()) - 1
    else:
        path.write_text(",".join(heading) + "\n")
    for number, picks in enumerate(wanted[done:], start=done + 1):
        found = [trained_accuracy(picks, seed) for seed in range(seeds)]
        costs = profile(found[0][1], bytes_per_value=1)
        row = [*picks.values(), costs.macs, costs.params, costs.peak_bytes]
        with path.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(row + [f"{a:.4f}" for a, _ in found])
        keras.backend.clear_session()
        tell(f"{number} of {len(wanted)}: {found[0][0]:.4f}")
