"""Speech Commands v0.02, a real data set of spoken words."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tfcompress.bench.tasks import cache
from tfcompress.bench.tasks.cache import data_folder, fingerprint
from tfcompress.bench.tasks.sounds import RATE, mfcc, read_wav
from tfcompress.bench.tasks.task import Data

EXPECTED = (
    "Speech Commands v0.02: yes/*.wav, no/*.wav ... for each word, _background_noise_/*.wav, "
    "testing_list.txt and validation_list.txt"
)
_SOURCE = (
    "Get it from http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz and unpack it "
    "into a folder of its own."
)
WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
CLASSES = (*WORDS, "unknown", "silence")
UNKNOWN, SILENCE = len(WORDS), len(WORDS) + 1
_NOISE, _TESTING, _VALIDATION = "_background_noise_", "testing_list.txt", "validation_list.txt"
_GENERATOR, _SEED = 1, 0

# How many clips are in memory at a time.
_PIECE = 512

# Of MLPerf Tiny's training: how loud noise may be, how often there is some, and shifts in samples.
_VOLUME, _NOISY, _SHIFT = 0.1, 0.8, RATE // 10

# Of each noise the end is for testing.
_TRAIN_SHARE = 0.8

# A file of a word, or None for silence, and its class.
Clip = tuple[Path | None, int]


def read(folder: Path) -> Data:
    """Ten words, others and silence: speakers of the testing list to test with, others to train.

    Speakers of the validation list are left out. Of other words there are as many clips as of a
    word on average, and as many of silence, which is background noise.
    """
    root = data_folder(folder, _is_root, EXPECTED, _SOURCE)
    _check(root)
    parts = _parts(root)
    noises = sorted((root / _NOISE).glob("*.wav"))
    files = [path for part in parts for path, _ in part if path is not None]
    settings = {
        "files": fingerprint(root, [*noises, *files]),
        "generator": _GENERATOR,
        "seed": _SEED,
    }

    def make() -> cache.Arrays:
        randoms = np.random.default_rng(_SEED).spawn(2)
        sounds = [read_wav(path) for path in noises]
        cuts = [int(_TRAIN_SHARE * len(sound)) for sound in sounds]
        train = [sound[:cut] for sound, cut in zip(sounds, cuts, strict=True)]
        test = [sound[cut:] for sound, cut in zip(sounds, cuts, strict=True)]
        x_train, y_train = _clips(parts[0], train, randoms[0], train=True)
        x_test, y_test = _clips(parts[1], test, randoms[1], train=False)
        return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}

    arrays = cache.cached("speech_commands", settings, make)
    return word_data(arrays, "Speech Commands v0.02")


def word_data(arrays: cache.Arrays, source: str) -> Data:
    """MFCCs of words and their classes."""
    digest = cache.digest(arrays)
    return Data(**arrays, classes=len(CLASSES), source=source, digest=digest, scale=1.0)


def _is_root(folder: Path) -> bool:
    return (folder / _TESTING).is_file() or all((folder / word).is_dir() for word in WORDS)


def _check(root: Path) -> None:
    missing = [name for name in (_TESTING, _VALIDATION) if not (root / name).is_file()]
    folders = (*WORDS, _NOISE)
    missing += [f"{name}/*.wav" for name in folders if not any((root / name).glob("*.wav"))]
    if missing:
        raise ValueError(f"'{root}' lacks {', '.join(missing)}; expected {EXPECTED}. {_SOURCE}")


def _parts(root: Path) -> tuple[list[Clip], list[Clip]]:
    """What to train with and what to test with."""
    tested, validated = _listed(root / _TESTING), _listed(root / _VALIDATION)
    found: tuple[list[Clip], list[Clip]] = ([], [])
    for path in sorted(root.glob("[!_]*/*.wav")):
        name, word = f"{path.parent.name}/{path.name}", path.parent.name
        if name not in validated:
            label = WORDS.index(word) if word in WORDS else UNKNOWN
            found[name in tested].append((path, label))
    random = np.random.default_rng(_SEED)
    train, test = (_balanced(clips, random) for clips in found)
    for clips, what in ((train, "train with"), (test, f"test with, by {_TESTING}")):
        counts = np.bincount([label for _, label in clips], minlength=len(CLASSES))
        if not counts.all():
            lacking = ", ".join(CLASSES[i] for i in np.flatnonzero(counts == 0))
            raise ValueError(
                f"'{root}' has no clips of {lacking} to {what}; expected {EXPECTED}. {_SOURCE}"
            )
    return train, test


def _balanced(clips: list[Clip], random: np.random.Generator) -> list[Clip]:
    """All clips of the ten words, as many others as of one word, and as many of silence."""
    words = [clip for clip in clips if clip[1] != UNKNOWN]
    others = [clip for clip in clips if clip[1] == UNKNOWN]
    each = -(-len(words) // len(WORDS))
    chosen = random.permutation(len(others))[:each]
    return [*words, *(others[i] for i in chosen), *[(None, SILENCE)] * each]


def _listed(path: Path) -> set[str]:
    try:
        return set(path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"'{path}' cannot be read: {error}. {_SOURCE}") from None


def _clips(
    clips: list[Clip], noises: list[np.ndarray], random: np.random.Generator, train: bool
) -> tuple[np.ndarray, np.ndarray]:
    """MFCCs and labels, shuffled."""
    clips = [clips[i] for i in random.permutation(len(clips))]
    x = []
    for first in range(0, len(clips), _PIECE):
        piece = clips[first : first + _PIECE]
        samples = np.zeros((len(piece), RATE), "float32")
        for row, (path, _) in zip(samples, piece, strict=True):
            if path is None:
                row[:] = _noise(noises, random) * random.uniform()
                continue
            word = read_wav(path)[:RATE]
            row[: len(word)] = word
            if train:
                row[:] = _disturbed(row, noises, random)
        x.append(mfcc(np.clip(samples, -1, 1)))
    return np.concatenate(x), np.array([label for _, label in clips])


def _disturbed(
    word: np.ndarray, noises: list[np.ndarray], random: np.random.Generator
) -> np.ndarray:
    """A word that is shifted by up to 100 ms, mostly among soft noise."""
    shift = int(random.integers(-_SHIFT, _SHIFT + 1))
    moved = np.zeros_like(word)
    moved[max(shift, 0) : RATE + min(shift, 0)] = word[max(-shift, 0) : RATE - max(shift, 0)]
    if random.uniform() < _NOISY:
        moved += _noise(noises, random) * random.uniform(0, _VOLUME)
    return moved


def _noise(noises: list[np.ndarray], random: np.random.Generator) -> np.ndarray:
    """A second of noise; what is shorter is repeated."""
    sound = noises[random.integers(len(noises))]
    start = random.integers(max(1, len(sound) - RATE + 1))
    return np.resize(sound[start:], RATE)
