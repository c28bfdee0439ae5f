"""What distillation costs: its step against the student's own step and the teacher's forward pass.

Variants take turns in one process, as in `training_cost`. Run it on an idle machine:

    python -m tfcompress.bench.distillation_cost --rounds 7
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

import tfcompress as tfc
from tfcompress.bench.parts.training_cost import WARM_UP, compiled, measure, mobile_net, summarize
from tfcompress.distillation import Features, SoftLabels

VARIANTS = ("plain", "teacher", "distill", "features", "memory", "file", "keras")
TEACHER_WIDTH = 3


class _Forward:
    """A model whose `fit` only predicts: what a teacher's forward pass costs by itself."""

    def __init__(self, model: keras.Model):
        self.model = model

    def fit(self, x, y, *, batch_size, verbose, shuffle, callbacks):
        self.model.predict(x, batch_size=batch_size, verbose=verbose, callbacks=callbacks)


def build(variant: str, folder: Path) -> Any:
    """One of the `VARIANTS`: something with a `fit`."""
    student = mobile_net(keras)
    if variant == "plain":
        return compiled(keras, student, jit_compile=False)
    teacher = mobile_net(keras, TEACHER_WIDTH)
    if variant == "teacher":
        return _Forward(teacher)
    middle = [layer.name for layer in student.layers].index(student.layers[-6].name)
    names = teacher.layers[middle].name, student.layers[middle].name
    if variant == "keras":
        soft_labels = keras.distillation.LogitsDistillation(temperature=4.0)
        by_keras = keras.distillation.Distiller(teacher, student, soft_labels)
        return compiled(keras, by_keras, jit_compile=False)
    losses: list[Any] = [SoftLabels()]
    if variant == "features":
        losses.append(Features(*names))
    cache = {"memory": "memory", "file": folder / "teacher.h5"}.get(variant)
    distiller = tfc.Distiller(student, teacher, losses, cache=cache)
    return compiled(keras, distiller, jit_compile=False)


def main(arguments: list[str] | None = None) -> int:
    """Measures, and prints a table or, with --json, one line of JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m tfcompress.bench.parts.distillation_cost",
        description=__doc__.split("\n")[0],
    )
    parser.add_argument("--rounds", type=int, default=7, help="paired rounds (7)")
    parser.add_argument("--steps", type=int, default=60, help="steps of a round (60)")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    options = parser.parse_args(arguments)
    if options.steps <= WARM_UP or options.rounds < 1:
        parser.error(f"--steps must be more than {WARM_UP} and --rounds at least 1")

    def progress(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        models: dict[str, tuple[Any, Callable[[], list]]] = {
            name: (build(name, Path(folder)), list) for name in VARIANTS
        }
        found = measure(models, keras, options.rounds, options.steps, progress)
    # What distillation may cost at most: both models, one after the other.
    pairs = zip(found["plain"], found["teacher"], strict=True)
    found["plain + teacher"] = [(a[0] + b[0], a[1] + b[1]) for a, b in pairs]
    summary = summarize(found, "plain")
    both = summarize(found, "plain + teacher")
    if options.json:
        print(json.dumps({"to_plain": summary, "to_plain_and_teacher": both}))
        return 0
    print(f"{'variant':16s} {'CPU ms':>8s} {'wall ms':>8s} {'to plain':>9s} {'to both':>8s}")
    for name, row in summary.items():
        ratios = f"{row['cpu_ratio']:9.3f} {both[name]['cpu_ratio']:8.3f}"
        print(f"{name:16s} {row['cpu_ms']:8.1f} {row['wall_ms']:8.1f} {ratios}")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.exit(main())
