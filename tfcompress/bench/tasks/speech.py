"""Words spoken by eSpeak NG, a program that Debian and Ubuntu have."""

from __future__ import annotations

import dataclasses
import io
import os
import re
import subprocess
import wave
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import gcd

import numpy as np
import scipy

from tfcompress.environments import Unavailable, program, run_tool

RATE = 16_000
_NAME = "espeak-ng"
_SECONDS = 30
# Softer than this share of the loudest sample is silence.
_SILENCE = 0.01


@dataclasses.dataclass(frozen=True)
class Utterance:
    """A word, and how it is spoken.

    Attributes:
        word: in English.
        voice: an accent and a variant: "en-us+m3".
        speed: about words per minute, 80 to 450.
        pitch: 0 to 99.
    """

    word: str
    voice: str
    speed: int = 175
    pitch: int = 50


def version() -> str:
    """The version of eSpeak NG: "1.51".

    Raises:
        Unavailable: it is not installed.
    """
    said = run_tool([_program(), "--version"], what=_NAME, seconds=_SECONDS).strip()
    found = re.search(r"text-to-speech: (\S+)", said)
    return found[1] if found else said


def variants() -> set[str]:
    """The names of the variants that there are: "m3", "whisper" ...

    Raises:
        Unavailable: eSpeak NG is not installed.
    """
    said = run_tool([_program(), "--voices=variant"], what=_NAME, seconds=_SECONDS)
    # A name may have single spaces in it.
    return {found.strip() for found in re.findall(r"!v/(\S+(?: \S+)*)", said)}


def speak(utterances: Sequence[Utterance]) -> list[np.ndarray]:
    """What utterances sound like, each of them with a process of its own.

    Args:
        utterances: what to speak.

    Returns:
        For each float32 (samples,) in [-1, 1], at 16 kHz, without the silence around it.

    Raises:
        Unavailable: eSpeak NG is not installed, or does not speak one of them.

    Example:
        >>> [sound] = speak([Utterance("yes", "en-us+f2")])  # doctest: +SKIP
    """
    path = _program()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda each: _spoken(path, each), utterances))


def _program() -> str:
    return program(_NAME, _NAME)


def _spoken(path: str, each: Utterance) -> np.ndarray:
    options = ["-z", "-v", each.voice, "-s", str(each.speed), "-p", str(each.pitch)]
    command = [path, *options, "--stdout", each.word]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS)
        with wave.open(io.BytesIO(done.stdout)) as file:
            # The header is written before the length is known.
            samples = np.frombuffer(file.readframes(len(done.stdout)), "<i2")
            rate = file.getframerate()
    except (OSError, subprocess.TimeoutExpired, wave.Error, EOFError, ValueError) as error:
        raise Unavailable(f"{_NAME} does not speak {each}: {error or 'it said nothing'}") from error
    loud = np.flatnonzero(np.abs(samples) > _SILENCE * np.abs(samples).max(initial=1))
    if not len(loud):
        raise Unavailable(f"{_NAME} does not speak {each}: it was silent")
    samples = samples[loud[0] : loud[-1] + 1].astype("float32") / np.float32(32768)
    shared = gcd(RATE, rate)
    return scipy.signal.resample_poly(samples, RATE // shared, rate // shared).astype("float32")
