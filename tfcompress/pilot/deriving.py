"""The space of recipes that a model, a target and what layers lose allow."""

from __future__ import annotations

import dataclasses
import glob
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from keras import tree

from tfcompress.files import models
from tfcompress.fine_tuning import data as datasets
from tfcompress.fine_tuning.data import Arrays
from tfcompress.fine_tuning.options import Settings, saved_settings
from tfcompress.graph.flatten import flatten
from tfcompress.kinds import DEPTHWISE, is_of
from tfcompress.pilot.judging import is_crossentropy
from tfcompress.pilot.space import Space
from tfcompress.results import Change
from tfcompress.search import scan
from tfcompress.search.assignment import assign
from tfcompress.search.outputs import BITS, Simulation
from tfcompress.surgery.shrink import Shrink
from tfcompress.targets.targets import load_target

# Samples by which layers are judged.
_SAMPLES = 200
# A layer with fewer than this part of the weights keeps 8 bits.
_FEW = 200
# Shares of the bytes of int8 for which bits are shared out among layers.
_SHARES = (0.75, 0.5)
# Momentum of the ranges of activations in trainings of some hundred steps.
_MOMENTUM = 0.95
# Shares of the learning rate; weights that are trained already mostly do better with less.
_RATES = (0.3, 1.0, 0.1)
_MICRO = "microcontroller"

Option = dict[str, Any]
Options = dict[str, Option]


@dataclasses.dataclass(frozen=True)
class Derived:
    """A space, and what of it a model does not allow.

    Attributes:
        left_out: parts, or options, and why.
    """

    space: Space
    left_out: tuple[Change, ...]


def derive(model: str, data: str, target: str | None, training: Mapping[str, Any]) -> Derived:
    """The space for a model in a file: each option is one that was tried on it, or always works.

    Args:
        model, data: the files.
        target: that the file is for.
        training: of `fine_tune`.
    """
    flat = flatten(models.load_model(model))
    samples = Arrays(datasets.read(data), flat, data).match(labelled=False)
    x = [array.astype("float32") for array in samples.drawn(_SAMPLES, training["seed"]).inputs]
    made = _Deriving(flat, x, target)
    parts = {
        "channels": made.surgery("channels", "macs", (0.75, 0.5, 0.35, 0.25)),
        "low rank": made.surgery("factorize", "params", (0.7, 0.5, 0.35)),
        "separable": made.separable(),
        "zeros": made.zeros(),
        "weights": made.weights(),
        "teacher": _teachers(flat, model, training),
        "learning rate": {f"x{rate:g}": {"training": {"rate": rate}} if rate != 1 else {}
                          for rate in _RATES},
    }  # fmt: skip
    parts = {name: options for name, options in parts.items() if len(options) > 1}
    return Derived(Space(parts, tuple(_first(parts))), tuple(made.left_out))


class _Deriving:
    """Tries what a model allows.

    Args:
        x: samples by input.
    """

    def __init__(self, flat: Any, x: list[np.ndarray], target: str | None):
        self.flat, self.x, self.target = flat, x, target
        self.left_out: list[Change] = []
        precisions = None if target is None else load_target(target).precisions
        self.few_bits = precisions is None or "int4" in precisions
        self.codes = target == _MICRO
        self.kernels = scan.kernels_to_try(flat, "*", ["int8"])

    def surgery(self, step: str, amount: str, shares: tuple[float, ...]) -> Options:
        """Nothing, and a step for each share that it can be asked for."""
        found: Options = {"none": {}}
        for share in shares:
            if (why := self._refused({step: {amount: share}})) is not None:
                self.left_out.append(Change(f"{step}: {amount} {share:g}", why))
                break
            found[f"{amount} {share:g}"] = {"shrink": {step: {amount: share}}}
        return found

    def separable(self) -> Options:
        """Nothing, and convolutions made depthwise and pointwise, if there are any."""
        why = self._refused({"separable": {}})
        if why is None:
            return {"none": {}, "all": {"shrink": {"separable": {}}}}
        self.left_out.append(Change("separable", why))
        return {"none": {}}

    def _refused(self, steps: Mapping[str, Any]) -> str | None:
        """Why a model does not allow surgery, or is not changed by it; None if it does."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                given = self.x[0][:32] if len(self.x) == 1 else [a[:32] for a in self.x]
                small = Shrink(steps).apply(self.flat, given)
        except (ValueError, TypeError) as error:
            return str(error)
        before, after = small.surgery_report.params
        return None if after < before else "it changes nothing"

    def zeros(self) -> Options:
        """Weights of zero, where the file gets smaller by them."""
        found: Options = {"none": {}}
        if not self.codes or not self.kernels:
            return found
        held = {"prune": {"preserve": True, "depthwise": True}}
        for share in (0.5, 0.7, 0.8, 0.9):
            found[f"{share:g} before training"] = {
                "shrink": {"prune": {"sparsity": share}},
                "before": [held],
            }
        for share in (0.8, 0.9):
            trained = {"prune": {"sparsity": share, "depthwise": True}}
            found[f"{share:g} while training"] = {"before": [trained]}
        return found

    def weights(self) -> Options:
        """What weights become: from 8 bits to few, after training and in it."""
        found: Options = {"int8 after training": {"precision": {"*": "int8"}}}
        assigned = self._assigned() if self.few_bits and self.kernels else {}
        for share, names in assigned.items():
            rules = {"*": "int8"} | {glob.escape(n): p for n, p in names.items() if p != "int8"}
            found[f"{share:g} of int8 after training"] = {"precision": rules}
        if self.few_bits:
            found["int4 after training"] = {"precision": {"*": "int4"}}
        found["int8"] = _rules([{"quantize": {"bits": 8, "momentum": _MOMENTUM}}])
        if not self.kernels:
            return found
        if self.codes:
            found |= {f"{n} values": self._values(n) for n in (32, 16)}
        if self.few_bits:
            for share, names in assigned.items():
                bits = {name: BITS[precision][0] or 8 for name, precision in names.items()}
                found[f"{share:g} of int8, by layer"] = self._learned(8, bits)
            found["4 bits"] = self._learned(4, {})
        if self.codes:
            found["codebook of 4 values"] = self._codebook("4")
            found["3 bits"] = self._learned(3, self._depthwise(4))
            found["ternary"] = self._codebook("ternary")
            found["2 bits"] = self._learned(2, self._depthwise(4))
        elif self.few_bits and any(type(k.layer).__name__ == "Dense" for k in self.kernels):
            dense = [k.name for k in self.kernels if type(k.layer).__name__ == "Dense"]
            found["4 bits, 2 of Dense"] = self._learned(4, dict.fromkeys(dense, 2))
        return found

    def _values(self, count: int) -> Option:
        cluster = {"cluster": {"clusters": count, "frequency": "5%"}}
        return _rules([cluster, {"quantize": {"bits": 8, "momentum": _MOMENTUM}}])

    def _codebook(self, values: str) -> Option:
        quantize = {"quantize": {"bits": 8, "momentum": _MOMENTUM}}
        found = _rules([{"codebook": {"values": values}}, quantize])
        found["rules"].append({"layers": "first_and_last", "techniques": [quantize]})
        return found

    def _depthwise(self, bits: int) -> dict[str, int]:
        return {k.name: bits for k in self.kernels if is_of(k.layer, DEPTHWISE)}

    def _learned(self, bits: int, others: Mapping[str, int]) -> Option:
        """Steps that train from the codes of GPTQ; small layers keep 8 bits."""
        every = sum(kernel.value.size for kernel in self.kernels)
        small = {k.name: 8 for k in self.kernels if k.value.size < every / _FEW}
        widths = {name: n for name, n in {**others, **small}.items() if n != bits}
        dense = "per_tensor" if self.codes else "per_channel"

        def quantize(n: int) -> dict[str, Any]:
            told = {"bits": n, "step": "learned", "dense": dense, "momentum": _MOMENTUM}
            return {"quantize": told}

        found = _rules([quantize(bits)])
        for name, n in widths.items():
            found["rules"].append({"layers": glob.escape(name), "techniques": [quantize(n)]})
        # From 4 bits training finds better weights of 2 than GPTQ does.
        first = {k.name: max(widths.get(k.name, bits), 3) for k in self.kernels}
        step = {"bits": {name: 4 if n < 3 else n for name, n in first.items()}, "dense": dense}
        return {"shrink": {"gptq": step}, **found}

    def _assigned(self) -> dict[float, dict[str, str]]:
        """By share of the bytes of int8: the precisions of layers by which outputs lose least."""
        names = [p for p in ("int8", "int4", "int2") if p == "int8" or self.few_bits]
        simulation = Simulation(self.flat, self.kernels, self.x)
        rows: dict[str, list[Any]] = {}
        for row in scan.rows_of(simulation, names, "outputs"):
            rows.setdefault(row.layer, []).append(row)
        bits = {p: BITS[p][0] or 8 for p in names}
        costs = {
            "loss": [[row.drop for row in each] for each in rows.values()],
            "bytes": [[row.size * bits[row.value] / 8 for row in each] for each in rows.values()],
        }
        whole = math.fsum(each[0] for each in costs["bytes"])
        found = {}
        for share in _SHARES:
            picks, holds = assign(costs, "loss", {"bytes": share * whole})
            if holds:
                pairs = zip(rows.items(), picks, strict=True)
                found[share] = {name: str(each[pick].value) for (name, each), pick in pairs}
        return found


def _rules(techniques: list[dict[str, Any]]) -> Option:
    return {"rules": [{"layers": "*", "techniques": techniques}]}


def _teachers(flat: Any, path: str, training: Mapping[str, Any]) -> Options:
    """Labels alone, and the float model as a teacher beside them or alone."""
    settings = Settings(
        saved_settings(path),
        training.get("loss"),
        training.get("from_logits", False),
        training.get("optimizer"),
    )
    classes = is_crossentropy(settings.arguments().get("loss"))
    if not classes and len(tree.flatten(flat.outputs)) > 1:
        return {"none": {}}
    how: dict[str, Any] = {} if classes else {"losses": ["mse"]}
    alone = {"alpha": 0.0, **({"temperature": 4.0} if classes else {})}
    return {"none": {}, "float model": {"distill": how}, "float model alone": {
        "distill": {**how, **alone}}}  # fmt: skip


def _first(parts: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, str]]:
    """What is tried before all else: what is known to be good, and what is smallest."""
    few = {"teacher": "float model alone"}
    wanted = [
        *({"weights": name} for name in parts["weights"] if "after training" in name),
        {"weights": "int8"},
        {"weights": "4 bits", **few, "learning rate": "x0.1"},
        {"weights": "3 bits", **few},
        {"weights": "int8", "zeros": "0.8 before training"},
        {"weights": "4 bits", "zeros": "0.8 before training", "teacher": "float model"},
        {"weights": "codebook of 4 values", "teacher": "float model"},
        {"weights": "int8", "channels": "macs 0.5", "teacher": "float model"},
        {"weights": "3 bits", "channels": "macs 0.75", **few},
        {"weights": "3 bits", "channels": "macs 0.75", "teacher": "float model"},
        {part: list(options)[-1] for part, options in parts.items()},
    ]
    for picks in wanted:
        if all(option in parts.get(part, {}) for part, option in picks.items()):
            yield picks
