"""How drivers take their task and give their answer; runs in the environments of the tools."""

import json
import os
import tempfile

import numpy as np


class Log:
    """What the tool writes to standard error, from C++ too."""

    def __init__(self):
        self._file = tempfile.TemporaryFile()  # noqa: SIM115, open until the end
        os.dup2(self._file.fileno(), 2)

    def text(self):
        self._file.seek(0)
        return self._file.read().decode("utf-8", "replace")


def answer(run, logged=0):
    """Do the task in the current folder.

    Args:
        run: called as `run(samples, settings, log)` with a list of lists of arrays, a dict and a
            `Log`; returns (outputs as a list of lists of arrays, a dict of figures).
        logged: how many lines of the log are told with an error.
    """
    log = Log()
    with open("settings.json") as file:
        settings = json.load(file)
    try:
        outputs, figures = run(_samples(), settings, log)
        arrays = {
            f"{number}/{place}": np.asarray(value)
            for number, values in enumerate(outputs)
            for place, value in enumerate(values)
        }
        np.savez("outputs.npz", **arrays)
        found = {"figures": figures}
    except Exception as error:
        # A library that a tool loads by hand gives an OSError.
        if isinstance(error, ImportError) or "shared object" in str(error):
            return _write({"missing": _line(str(error))})
        said = [line for line in log.text().splitlines() if line.strip()]
        said = said[len(said) - logged :]
        found = {"refused": _line(" ".join([f"{type(error).__name__}: {error}", *said]))}
    return _write(found)


def _write(found):
    with open("answer.json", "w") as file:
        json.dump(found, file)


def _samples():
    samples = {}
    with np.load("inputs.npz", allow_pickle=False) as arrays:
        for key in arrays.files:
            number, place = map(int, key.split("/"))
            samples.setdefault(number, {})[place] = arrays[key]
    return [[s[place] for place in sorted(s)] for _, s in sorted(samples.items())]


def _line(text):
    return " ".join(text.split())[:400]
