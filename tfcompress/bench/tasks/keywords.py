"""Keyword spotting: ten words, other words and none, spoken by eSpeak NG in noise; DS-CNN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tfcompress.bench.tasks import acoustics, cache, speech_commands
from tfcompress.bench.tasks.acoustics import Utterance
from tfcompress.bench.tasks.sounds import mfcc
from tfcompress.bench.tasks.speech_commands import CLASSES, SILENCE, WORDS
from tfcompress.bench.tasks.task import Data, Task, Training
from tfcompress.tools.environments import Unavailable

# Raised when other data come of the same settings.
_GENERATOR = 2
_SEED = 0

# By how much words are louder than noise, in decibels.
_LOUDER = (8.0, 36.0)

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
    said = {"train": TRAIN._asdict(), "test": TEST._asdict(), "espeak-ng": acoustics.version()}
    missing = sorted({*TRAIN.variants, *TEST.variants} - acoustics.variants())
    if missing:
        raise Unavailable(
            f"espeak-ng {said['espeak-ng']} lacks the voices {', '.join(missing)}: 1.50 or later "
            "is needed, with all of its data (espeak-ng-data)"
        )
    settings = {**said, "louder": _LOUDER, "generator": _GENERATOR, "seed": _SEED}
    arrays = cache.cached("keywords", settings, lambda: make(TRAIN, TEST, _SEED))
    return speech_commands.word_data(arrays, "generated")


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
    sounds = acoustics.speak([each for kind in planned for each in kind])
    # Clips of silence have words, too, until all but the noise is taken away.
    rows = [*range(len(sounds)), *random.integers(len(sounds), size=part.counts[SILENCE])]
    labels = np.repeat(np.arange(len(CLASSES)), part.counts)
    order = random.permutation(len(labels))
    x = []
    for first in range(0, len(order), PIECE):
        piece = order[first : first + PIECE]
        x.append(mfcc(heard([sounds[rows[i]] for i in piece], labels[piece], random)))
    return np.concatenate(x), labels[order]


def heard(
    sounds: Sequence[np.ndarray], labels: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Words as a microphone hears them, among noise.

    Args:
        sounds: of words, float32 (samples,) at 16 kHz.
    """
    words = acoustics.in_rooms(acoustics.placed(sounds, random), random)
    noise = acoustics.noises(words, random)
    words[labels == SILENCE] = 0
    clips = acoustics.mixed(words, noise, random.uniform(*_LOUDER, len(words)))
    level = 10 ** (random.uniform(-40, -15, (len(words), 1)) / 20)
    return np.clip(clips * level, -1, 1).astype("float32")


def build(kit: Any, classes: int) -> Any:
    """The model of `tfcompress.bench.models`."""
    # Here, as it imports Keras, for which those who ask for names do not wait.
    from tfcompress.bench.models import ds_cnn

    return ds_cnn(kit, classes)


TASK = Task(
    name="keywords",
    title="Keyword spotting",
    build=build,
    published=(12, 24_908, 2_656_768),
    generate=generate,
    training=Training(steps=2000, batch=32, rate=4e-3),
    tuning=Training(steps=256, batch=32, rate=1e-3),
    short=(Training(600, 32, 4e-3), Training(80, 32, 1e-3)),
    read=speech_commands.read,
    real=speech_commands.EXPECTED,
)
