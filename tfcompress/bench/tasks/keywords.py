"""Keyword spotting, DS-CNN: words of Speech Commands v0.02, or spoken by eSpeak NG in noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tfcompress.bench.tasks import cache, sounds
from tfcompress.bench.tasks.sounds import RATE, Utterance, mfcc, read_wav
from tfcompress.bench.tasks.task import Data, DataSet, Task, Training, architecture, fingerprint
from tfcompress.tools.environments import Unavailable

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
CLASSES = (*WORDS, "unknown", "silence")
UNKNOWN, SILENCE = len(WORDS), len(WORDS) + 1

# Raised when other data come of the same settings.
_GENERATOR = 2
_SEED = 0

# By how much words are louder than noise, in decibels.
LOUDER = (8.0, 36.0)

# How many clips are in memory at a time.
PIECE = 256


class Part(NamedTuple):
    """What training or testing has of its own: no voice is in both.

    Attributes:
        accents, variants: of voices; each accent is spoken with each variant.
        unknown: words of that class.
        each: how many clips of each class.
        unknowns: how many of the class "unknown", as it has many words.
    """

    accents: Sequence[str]
    variants: Sequence[str]
    unknown: Sequence[str]
    each: int
    unknowns: int

    @property
    def counts(self) -> list[int]:
        """How many clips of each class."""
        return [self.each] * len(WORDS) + [self.unknowns, self.each]


_UNKNOWN = """
    zero one two three four five six seven eight nine bed bird cat dog happy house marvin sheila
    tree wow backward forward follow learn visual light play music open
    """.split()
_UNHEARD = "stock laugh ride yellow first boat".split()

_TRAIN_VARIANTS = """
    Alex Alicia Andy Annie AnxiousAndy anika aunty belinda boris caleb croak Demonic Denis ed edward
    edward2 f1 f2 f4 grandpa gustave Henrique iven iven2 iven3 iven4 john kaukovalta klatt2 klatt3
    klatt4 klatt5 Lee Marco marcelo m1 m3 m4 m5 m7 m8 Mike miguel michel Nguyen pablo paul pedro rob
    robert robosoft robosoft4 robosoft6 robosoft8 sandro Storm travis Tweaky victor whisper
    """.split()

_TEST_VARIANTS = """
    adam Andrea antonio benjamin david Diogo f3 f5 Gene Gene2 grandma Hugo Jacky linda m2 m6 Mario
    max Michael norbert quincy RicishayMax RicishayMax2 shelby steph steph2 steph3 whisperf zac
    """.split()
_TRAIN_ACCENTS = ("en-us", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbcwmd", "en-029")
_TEST_ACCENTS = ("en-gb", "en-gb-x-gbclan")
TRAIN = Part(_TRAIN_ACCENTS, _TRAIN_VARIANTS, _UNKNOWN, 1000, 1500)
TEST = Part(_TEST_ACCENTS, _TEST_VARIANTS, [*_UNKNOWN, *_UNHEARD], 200, 200)


def generate() -> Data:
    """12,500 clips to train with and 2,400 to test with."""
    said = {"train": TRAIN._asdict(), "test": TEST._asdict(), "espeak-ng": sounds.version()}
    require_voices()
    settings = {**said, "louder": LOUDER, "generator": _GENERATOR, "seed": _SEED}
    arrays = cache.cached("keywords", settings, lambda: make(TRAIN, TEST, _SEED))
    return Data.of(arrays, len(CLASSES))


def require_voices() -> None:
    """Raises an `Unavailable` unless eSpeak NG has the voices of all parts."""
    if missing := sorted({*TRAIN.variants, *TEST.variants} - sounds.variants()):
        raise Unavailable(
            f"espeak-ng {sounds.version()} lacks the voices {', '.join(missing)}: 1.50 or later "
            "is needed, with all of its data (espeak-ng-data)"
        )


def make(train: Part, test: Part, seed: int) -> cache.Arrays:
    """Speaks words and computes MFCCs."""
    randoms = np.random.default_rng(seed).spawn(2)
    (x_train, y_train), (x_test, y_test) = map(_clips, (train, test), randoms)
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def utterances(part: Part, random: np.random.Generator) -> list[list[Utterance]]:
    """What is spoken of each class; of silence nothing."""
    voices = [f"{accent}+{variant}" for accent in part.accents for variant in part.variants]
    words = [*((word,) for word in WORDS), part.unknown]

    def spoken(word: str) -> Utterance:
        speed, pitch = random.integers(110, 260), random.integers(10, 90)
        return Utterance(word, str(random.choice(voices)), int(speed), int(pitch))

    return [
        [spoken(words[kind][i % len(words[kind])]) for i in range(count)]
        for kind, count in enumerate(part.counts[:SILENCE])
    ]


def _clips(part: Part, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """MFCCs and labels, shuffled."""
    planned = utterances(part, random)
    words = sounds.speak([each for kind in planned for each in kind])
    # Clips of silence have words, too, until all but the noise is taken away.
    rows = [*range(len(words)), *random.integers(len(words), size=part.counts[SILENCE])]
    labels = np.repeat(np.arange(len(CLASSES)), part.counts)
    order = random.permutation(len(labels))
    x = []
    for first in range(0, len(order), PIECE):
        piece = order[first : first + PIECE]
        x.append(mfcc(heard([words[rows[i]] for i in piece], labels[piece], random)))
    return np.concatenate(x), labels[order]


def heard(
    spoken: Sequence[np.ndarray], labels: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Words as a microphone hears them, among noise.

    Args:
        spoken: words, float32 (samples,) at 16 kHz.
    """
    return among_noise(sounds.placed(spoken, random), random, labels == SILENCE)


def among_noise(
    words: np.ndarray,
    random: np.random.Generator,
    silent: np.ndarray | None = None,
    levels: tuple[float, float] = (-40, -15),
) -> np.ndarray:
    """Clips of words in rooms, among noise that is softer.

    Args:
        words: float32 (count, samples).
        silent: bool (count,): whether all but the noise is taken away.
        levels: between which each clip has its own, in decibels.
    """
    words = sounds.in_rooms(words, random)
    noise = sounds.noises(words, random)
    if silent is not None:
        words[silent] = 0
    clips = sounds.mixed(words, noise, random.uniform(*LOUDER, len(words)))
    level = 10 ** (random.uniform(*levels, (len(words), 1)) / 20)
    return np.clip(clips * level, -1, 1).astype("float32")


SPEECH_COMMANDS = DataSet(
    "Speech Commands v0.02",
    "Speech Commands v0.02: yes/*.wav, no/*.wav ... for each word, _background_noise_/*.wav, "
    "testing_list.txt and validation_list.txt",
    "Get it from http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz and unpack it "
    "into a folder of its own.",
)
_NOISE, _TESTING, _VALIDATION = "_background_noise_", "testing_list.txt", "validation_list.txt"
_READER = 1

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
    root = SPEECH_COMMANDS.find(folder, _is_root)
    _check(root)
    parts = _parts(root)
    noises = sorted((root / _NOISE).glob("*.wav"))
    files = [path for part in parts for path, _ in part if path is not None]
    settings = {
        "files": fingerprint(root, [*noises, *files]),
        "generator": _READER,
        "seed": _SEED,
    }

    def make() -> cache.Arrays:
        randoms = np.random.default_rng(_SEED).spawn(2)
        whole = [read_wav(path) for path in noises]
        train = [sound[: int(_TRAIN_SHARE * len(sound))] for sound in whole]
        test = [sound[int(_TRAIN_SHARE * len(sound)) :] for sound in whole]
        x_train, y_train = _recorded(parts[0], train, randoms[0], train=True)
        x_test, y_test = _recorded(parts[1], test, randoms[1], train=False)
        return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}

    arrays = cache.cached("speech_commands", settings, make)
    return Data.of(arrays, len(CLASSES), SPEECH_COMMANDS.name)


def _is_root(folder: Path) -> bool:
    return (folder / _TESTING).is_file() or all((folder / word).is_dir() for word in WORDS)


def _check(root: Path) -> None:
    missing = [name for name in (_TESTING, _VALIDATION) if not (root / name).is_file()]
    folders = (*WORDS, _NOISE)
    missing += [f"{name}/*.wav" for name in folders if not any((root / name).glob("*.wav"))]
    SPEECH_COMMANDS.require(root, missing)


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
            raise ValueError(SPEECH_COMMANDS.told(f"'{root}' has no clips of {lacking} to {what}"))
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
        raise ValueError(f"'{path}' cannot be read: {error}. {SPEECH_COMMANDS.source}") from None


def _recorded(
    clips: list[Clip], noises: list[np.ndarray], random: np.random.Generator, train: bool
) -> tuple[np.ndarray, np.ndarray]:
    """MFCCs and labels, shuffled."""
    clips = [clips[i] for i in random.permutation(len(clips))]
    x = []
    for first in range(0, len(clips), PIECE):
        piece = clips[first : first + PIECE]
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


TASK = Task(
    name="keywords",
    title="Keyword spotting",
    build=architecture("ds_cnn"),
    published=(12, 24_908, 2_656_768),
    generate=generate,
    training=Training(steps=2000, batch=32, rate=4e-3),
    tuning=Training(steps=256, batch=32, rate=1e-3),
    short=(Training(600, 32, 4e-3), Training(80, 32, 1e-3)),
    read=read,
    real=SPEECH_COMMANDS.expected,
)
