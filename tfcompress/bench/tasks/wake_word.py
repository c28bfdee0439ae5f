"""A wake word in a stream, the streaming benchmark of MLPerf Tiny: "marvin" among other words.

A model sees a second of sound; on a device it is asked again with every frame of 32 ms. What counts
is how sure it gets at most within seconds that hold the word, and within others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tfcompress.bench.tasks import cache, keywords, sounds
from tfcompress.bench.tasks.sounds import HOP, LENGTH, WINDOW, Utterance
from tfcompress.bench.tasks.task import Data, Task, Training, architecture, require

WORD = "marvin"
CLASSES = (WORD, "unknown", "silence")
WAKE, UNKNOWN, SILENCE = range(3)

# Raised when other data come of the same settings.
_GENERATOR = 1
_SEED = 0

# Frames of a window, and the samples that they reach over.
FRAMES = 30
REACH = WINDOW + (FRAMES - 1) * HOP

# Seconds of a stream, and the windows that it has, one for each frame.
SECONDS = 3
WINDOWS = (SECONDS * LENGTH - REACH) // HOP + 1

# How many streams have the word, how many seconds of all others have one; windows of a stream that
# are trained with.
_WAKES, _SPEAKS, _TAKEN = 0.4, 0.6, 3

# What is said beside the words of `keywords`: much like the wake word, some only in tests.
_LIKE, _LIKE_UNHEARD = ("martin", "carving", "marble", "driven"), ("marlin", "marvel", "starving")

# Decibels of streams: what is softer than -52 in a band is not seen.
_LEVELS = (-25.0, -5.0)

_COUNTS = {"train": 4000, "test": 300}


class Streams(NamedTuple):
    """Streams of some seconds.

    Attributes:
        bands: float32 (streams, frames, 40), see `sounds.log_mels`.
        spans: int (streams, seconds, 2): where in the stream a second's word begins and ends.
        labels: int (streams, seconds): WAKE, UNKNOWN, or SILENCE where there is none.
    """

    bands: np.ndarray
    spans: np.ndarray
    labels: np.ndarray


def generate() -> Data:
    """12,000 windows to train with, and 300 streams of 63 windows to test with."""
    require("sklearn", "wake_word is scored by the area under the ROC curve of scikit-learn")
    said = {"train": keywords.TRAIN._asdict(), "test": keywords.TEST._asdict()}
    settings = {
        **said,
        "counts": _COUNTS,
        "like": [_LIKE, _LIKE_UNHEARD],
        "shares": [_WAKES, _SPEAKS, _TAKEN],
        "espeak-ng": sounds.version(),
        "louder": keywords.LOUDER,
        "levels": _LEVELS,
        "generator": _GENERATOR,
        "seed": _SEED,
    }
    keywords.require_voices()
    arrays = cache.cached("wake_word", settings, lambda: make(_COUNTS, _SEED))
    return Data.of(arrays, len(CLASSES), scale=1 / 255)


def make(counts: dict[str, int], seed: int) -> cache.Arrays:
    """Speaks streams, and cuts the windows that are trained and tested with."""
    randoms = np.random.default_rng(seed).spawn(3)
    train = streams(keywords.TRAIN, _LIKE, counts["train"], randoms[0])
    test = streams(keywords.TEST, (*_LIKE, *_LIKE_UNHEARD), counts["test"], randoms[1])
    x_train, y_train = _windows_of(train, randoms[2])
    x_test = _windows(_bytes(test.bands))
    y_test = (test.labels == WAKE).any(1)
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def streams(
    part: keywords.Part, like: Sequence[str], count: int, random: np.random.Generator
) -> Streams:
    """Streams in rooms and noise of their own, a word in some of their seconds."""
    labels = np.where(random.uniform(size=(count, SECONDS)) < _SPEAKS, UNKNOWN, SILENCE)
    wakes = np.flatnonzero(random.uniform(size=count) < _WAKES)
    labels[wakes, random.integers(SECONDS, size=len(wakes))] = WAKE
    others = [word for word in (*keywords.WORDS, *part.unknown) if word != WORD] + [*like]
    voices = [f"{accent}+{variant}" for accent in part.accents for variant in part.variants]

    def spoken(label: int, voice: str) -> Utterance:
        word = WORD if label == WAKE else str(random.choice(others))
        return Utterance(word, voice, int(random.integers(110, 260)), int(random.integers(10, 90)))

    talks = np.repeat(random.choice(voices, count), SECONDS)
    rows = np.flatnonzero(labels.ravel() != SILENCE)
    words = sounds.speak([spoken(labels.flat[row], str(talks[row])) for row in rows])
    spans = np.zeros((count * SECONDS, 2), int)
    clips = np.zeros((count * SECONDS, LENGTH), "float32")
    for row, word in zip(rows, words, strict=True):
        [clips[row]] = sounds.placed([word], random)
        heard = np.flatnonzero(clips[row])
        spans[row] = (row % SECONDS) * LENGTH + heard[[0, -1]] + [0, 1]
    sound = clips.reshape(count, -1)
    bands = [
        sounds.log_mels(keywords.among_noise(sound[i : i + keywords.PIECE], random, levels=_LEVELS))
        for i in range(0, count, keywords.PIECE)
    ]
    return Streams(np.concatenate(bands), spans.reshape(count, SECONDS, 2), labels)


def labels_of(spans: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What each window of a stream is: -1 if it has more than half of the wake word, not all.

    Args:
        spans, labels: of one stream, see `Streams`.

    Returns int (windows,).
    """
    starts = np.arange(WINDOWS)[:, None] * HOP
    inside = np.minimum(spans[:, 1], starts + REACH) - np.maximum(spans[:, 0], starts)
    share = np.maximum(inside, 0) / np.maximum(spans[:, 1] - spans[:, 0], 1)
    wake, other = share * (labels == WAKE), share * (labels == UNKNOWN)
    found = np.where((other >= 0.5).any(1) | (wake > 0).any(1), UNKNOWN, SILENCE)
    found[(wake > 0.5).any(1)] = -1
    found[(wake >= 1).any(1)] = WAKE
    return found


def _windows_of(given: Streams, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Some windows of each stream and their labels: of those with the word one at least has it."""
    windows = _windows(_bytes(given.bands))
    x, y = [], []
    for stream, spans, labels in zip(windows, given.spans, given.labels, strict=True):
        found = labels_of(spans, labels)
        with_word = random.permutation(np.flatnonzero(found == WAKE))[: _TAKEN - 1]
        others = random.permutation(np.flatnonzero(found > WAKE))
        chosen = [*with_word, *others][:_TAKEN]
        x.append(stream[chosen])
        y.append(found[chosen])
    order = random.permutation(sum(map(len, y)))
    return np.concatenate(x)[order], np.concatenate(y)[order]


def _bytes(bands: np.ndarray) -> np.ndarray:
    """uint8: a quarter of a decibel is a step."""
    return np.round(bands * 255).astype("uint8")


def _windows(bands: np.ndarray) -> np.ndarray:
    """(streams, frames, 40) -> (streams, windows, 30, 1, 40)."""
    found = np.lib.stride_tricks.sliding_window_view(bands, FRAMES, axis=1)
    return np.moveaxis(found, -1, 2)[:, :, :, None]


TASK = Task(
    name="wake_word",
    title="Streaming wake word",
    build=architecture("wake_word"),
    published=(len(CLASSES), 47_707, 826_368),
    generate=generate,
    training=Training(steps=2000, batch=32, rate=4e-3),
    tuning=Training(steps=256, batch=32, rate=1e-3),
    short=(Training(600, 32, 4e-3), Training(80, 32, 1e-3)),
    streams=True,
)
