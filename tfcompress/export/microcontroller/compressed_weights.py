"""A .tflite file for TFLite Micro whose weights stay in codes in flash, within budgets.

What is written was run by TFLite Micro against the plain file, and gave the same bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tfcompress.errors import check, is_whole
from tfcompress.export.microcontroller.c_array import measure_arena
from tfcompress.export.microcontroller.decoding import Weight, slim, weights_of, with_decoding
from tfcompress.export.microcontroller.parting import with_parts
from tfcompress.results import plain_fields
from tfcompress.tflite import flatbuffer
from tfcompress.tools import runtimes

_RANDOM = 8  # inputs that are compared besides those that are given
_NAMED = 8  # layers in an error
_PARTS = (2, 4, 8)  # of the largest weight, where there is too little RAM to decode it
_FEW = 16  # values, for which there are kernels and tables of 4 bits
_SMALL = 100  # a weight that takes less than this part of the file is not told of


@dataclasses.dataclass(frozen=True)
class StoredWeight:
    """A weight as the file has it: its layer, its code, bytes stored and once it is decoded."""

    layer: str
    code: str
    bytes: int
    decoded: int


@dataclasses.dataclass(frozen=True)
class CompressedWeights:
    """What was stored in codes, and what it costs.

    Attributes:
        plain_bytes: of the file without codes, and with all that TFLite Micro does not read.
        file_bytes: of the file.
        plain_arena, arena: RAM of both as TFLite Micro measured it.
        compared: inputs for which both gave the same bits.
        weights: those in codes.
        plain: layers whose weights are as they were, but for small ones, and why.
    """

    plain_bytes: int
    file_bytes: int
    plain_arena: int
    arena: int
    compared: int
    weights: tuple[StoredWeight, ...]
    plain: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return plain_fields(self)

    def rows(self) -> list[tuple[str, str]]:
        """What is printed of it: (what, value)."""
        share = self.plain_bytes / self.file_bytes
        same = f"equal bit for bit in TFLite Micro on {self.compared} inputs"
        found = [
            ("flash", f"{self.plain_bytes:,} bytes without codes, {share:.2f} times as much"),
            ("arena (RAM)", f"{self.arena:,} bytes, {self.plain_arena:,} without codes"),
            ("weights in codes", f"{len(self.weights)}; {same}"),
        ]
        for weight in self.weights:
            sizes = f"{weight.bytes:,} bytes instead of {weight.decoded:,}"
            found.append((f"  {weight.layer[:40]}", f"{weight.code}, {sizes}"))
        return found + [(f"  {layer[:40]}", f"plain: {why}") for layer, why in self.plain.items()]


def check_budgets(flash: Any, ram: Any) -> None:
    """Raises a ValueError unless budgets are numbers of bytes or left out."""
    for name, value in (("flash", flash), ("ram", ram)):
        check(value is None or is_whole(value), name, "None or bytes, 1 or more", value)


def compress_weights(
    model: Any,
    *,
    flash: int | None = None,
    ram: int | None = None,
    inputs: Sequence[Sequence[np.ndarray]] = (),
    name_of: Callable[[str], str],
    pack: Callable[[Any], bytes] = flatbuffer.write,
) -> tuple[Any, bytes, CompressedWeights]:
    """Store weights of a file in codes, and run it.

    Args:
        model: the `ModelT` of a file that TFLite Micro runs.
        flash: the most bytes of the file; as decoding takes time, weights get the fastest codes
            with which it keeps within them, or none. None: the smallest file.
        ram: the most bytes of the arena; Dense layers whose weights need more while they are
            decoded are computed in parts, others stay plain.
        inputs: codes to run both files on, besides random ones, in the order of the file.
        name_of: the layer that a tensor's name tells; '' if none.
        pack: what makes bytes of the file, such as with metadata.

    Returns:
        (its `ModelT`, its bytes, what was done).

    Raises:
        ValueError: a budget cannot be met, no weight gets smaller, or the outputs differ.
        Unavailable: TFLite Micro cannot be had here.
    """
    check_budgets(flash, ram)
    plain = flatbuffer.write(model)
    plain_arena, _ = measure_arena(plain, "the file")
    slimmed = slim(model, name_of)
    choice, chosen = _smallest(slimmed, pack, ram)
    if flash is None or len(choice.data(chosen)) > flash:
        _require_codes(choice, flash)
    if flash is not None:
        if len(choice.data(chosen)) > flash:
            raise ValueError(_too_large(choice, chosen, flash, _Choice(slimmed, pack, None)))
        chosen = choice.within_flash(chosen, flash)
    data = choice.data(chosen)
    arena = choice.arena(chosen)
    made = flatbuffer.read(data)
    told = CompressedWeights(
        plain_bytes=len(plain),
        file_bytes=len(data),
        plain_arena=plain_arena,
        arena=arena,
        compared=_require_equal(model, plain, data, inputs),
        weights=tuple(_told(weight) for weight in chosen),
        plain={
            weight.layer: choice.reason(weight)
            for weight in choice.weights
            if weight.buffer not in {w.buffer for w in chosen}
            and weight.stored * _SMALL > len(data)
        },
    )
    return made, data, told


def _told(weight: Weight) -> StoredWeight:
    assert weight.coded is not None
    return StoredWeight(weight.layer, weight.coded.code, weight.coded.bytes, weight.values.nbytes)


def _smallest(
    model: Any, pack: Callable[[Any], bytes], ram: int | None
) -> tuple[_Choice, list[Weight]]:
    """The choice of the smallest file within RAM, with Dense layers in parts if that helps."""
    whole = _Choice(model, pack, ram)
    if ram is None or whole.arena(whole.worth) <= ram:
        return whole, whole.worth
    # The kernels of few bits widen their weights in the arena, too.
    large = [w for w in whole.weights if w in whole.worth or w.stored < w.values.nbytes]
    choices, largest = [whole], max((weight.values.nbytes for weight in large), default=0)
    for parts in _PARTS:
        parted = with_parts(model, -(-largest // parts), {weight.buffer for weight in large})
        if _operators(parted) > _operators(choices[-1].model):
            choices = [whole, _Choice(parted, pack, ram)]
            if choices[1].arena(choices[1].worth) <= ram:
                break
    pairs = [(choice, choice.within_ram()) for choice in choices]
    fitting = [pair for pair in pairs if pair[0].arena(pair[1]) <= ram]
    if not fitting:
        least = min(choice.arena(chosen) for choice, chosen in pairs)
        raise ValueError(
            f"ram: received {ram:,} bytes; the arena takes {least:,} as measured by TFLite Micro, "
            f"whichever weights are decoded. Give ram={least} or more, or make activations "
            "smaller: smaller inputs, fewer channels, earlier pooling."
        )
    return min(fitting, key=lambda pair: len(pair[0].data(pair[1])))


def _operators(model: Any) -> int:
    return sum(len(graph.operators) for graph in model.subgraphs)


_Key = frozenset[tuple[int, str]]  # buffers and their codes


class _Choice:
    """Which weights are coded: what the file and the arena are for each choice."""

    def __init__(self, model: Any, pack: Callable[[Any], bytes], ram: int | None):
        self.model, self.pack, self.ram = model, pack, ram
        self.weights = weights_of(model)
        self.worth = [weight for weight in self.weights if weight.saved > 0]
        self.limit: int | None = None  # demands above it there is no RAM for
        self._files: dict[_Key, bytes] = {}
        self._arenas: dict[_Key, int] = {}
        if len(self.data(self.worth)) >= len(self.data([])):  # what is saved is an estimate
            self.worth = []

    def data(self, chosen: Collection[Weight]) -> bytes:
        """The bytes of the file."""
        key = frozenset((w.buffer, w.code) for w in chosen)
        if key not in self._files:
            self._files[key] = self.pack(with_decoding(self.model, chosen))
        return self._files[key]

    def arena(self, chosen: Collection[Weight]) -> int:
        """RAM that TFLite Micro measures."""
        key = frozenset((w.buffer, w.code) for w in chosen)
        if key not in self._arenas:
            self._arenas[key], _ = measure_arena(self.data(chosen), "the file with coded weights")
        return self._arenas[key]

    def within_ram(self) -> list[Weight]:
        """As many weights as there is RAM to decode, those that demand least first, or none."""
        if self.ram is None or self.arena(self.worth) <= self.ram:
            return self.worth
        demands = [0, *sorted({weight.demand for weight in self.worth})]
        low, high = 0, len(demands) - 1  # low keeps within, high does not
        while high - low > 1:
            middle = (low + high) // 2
            kept = self._up_to(demands[middle])
            low, high = (middle, high) if self.arena(kept) <= self.ram else (low, middle)
        self.limit = demands[low]
        return self._up_to(self.limit)

    def _up_to(self, demand: int) -> list[Weight]:
        return [weight for weight in self.worth if weight.demand <= demand]

    def within_flash(self, chosen: list[Weight], flash: int) -> list[Weight]:
        """The same weights in faster codes, or plain, as far as the file keeps within flash.

        Those come first that save most time for the bytes that they cost.
        """
        kept = {weight.buffer: weight for weight in chosen}
        size, taken = len(self.data(chosen)), list[Weight]()
        while steps := [s for w in kept.values() if (s := _faster(w)) and size + s[1] <= flash]:
            _, added, weight, then = max(steps, key=lambda step: step[0] / max(step[1], 1))
            kept[weight.buffer], size = then, size + added
            taken.append(weight)
        made = _coded(kept.values())
        while len(self.data(made)) > flash:  # what codes save is an estimate
            weight = taken.pop()
            kept[weight.buffer] = weight
            made = _coded(kept.values())
        return made

    def reason(self, weight: Weight) -> str:
        """Why a weight stays plain."""
        if weight.saved <= 0:
            few = weight.stored < weight.values.nbytes
            return "in so few bits that a code takes no less" if few else _values(weight)
        if self.limit is not None and weight.demand > self.limit:
            return f"decoded it takes {weight.values.nbytes:,} bytes of RAM"
        return "the file keeps within flash as it is"


def _coded(weights: Iterable[Weight]) -> list[Weight]:
    return [weight for weight in weights if weight.coded is not None]


def _faster(weight: Weight) -> tuple[float, int, Weight, Weight] | None:
    """What the next faster code of a weight, or none, spares: time, the bytes it costs, both."""
    if weight.coded is None:
        return None
    faster = [c for c in weight.codings if c.slowness < weight.coded.slowness]
    ways = [dataclasses.replace(weight, coded=coded) for coded in faster]
    plain = dataclasses.replace(weight, coded=None)
    then = next((way for way in ways if way.saved > 0), plain)
    slowness = then.coded.slowness if then.coded else 0.0
    time = (weight.coded.slowness - slowness) * weight.values.size
    return time, weight.saved - then.saved, weight, then


def _too_large(choice: _Choice, chosen: list[Weight], flash: int, whole: _Choice) -> str:
    """The error of a budget of flash, with the nearest that there is."""
    text = (
        f"flash: received {flash:,} bytes; the nearest is {len(choice.data(chosen)):,}, with an "
        f"arena of {choice.arena(chosen):,} bytes."
    )
    least = len(whole.data(whole.worth))
    if least <= flash:
        ram = whole.arena(whole.worth)
        return f"{text} It is the RAM to decode that is short: ram={ram} gives {least:,} bytes."
    return f"{text} {_mend(whole.weights)}"


def _values(weight: Weight) -> str:
    kind = "values" if weight.unique > 1 else "value"
    return f"{weight.unique} {kind} in {weight.values.size:,} weights"


def _layers(weights: Sequence[Weight], told: Callable[[Weight], str] | None = None) -> str:
    largest = sorted(weights, key=lambda weight: -weight.stored)
    named = [f"'{w.layer:.60}'" + (f" ({told(w)})" if told else "") for w in largest[:_NAMED]]
    more = len(largest) - _NAMED
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")


def _mend(weights: Sequence[Weight]) -> str:
    """What would make a file smaller, by its largest weights that are not few already."""
    largest = sorted(weights, key=lambda weight: -weight.stored)
    many = [w for w in largest if w.unique > _FEW and w.stored * _SMALL > largest[0].stored]
    recipe = "[Cluster(16), Quantize()] or [Quantize(bits=4)]"
    if not many:
        many, recipe = largest, "[Prune(0.7), Cluster(16), Quantize()] or [Quantize(bits=3)]"
        if np.mean(largest[0].values == 0) > 0.5:
            recipe = "[Prune(0.9), Cluster(4), Quantize()], or fewer channels"
    return f"Most is taken by {_layers(many, _values)}: train with fewer values, such as {recipe}."


def _require_codes(choice: _Choice, flash: int | None) -> None:
    """Raises unless some weight is few values, or is stored in fewer bits already."""
    if choice.worth or any(weight.stored < weight.values.nbytes for weight in choice.weights):
        return
    if not choice.weights:
        raise ValueError(
            "compressed_weights: received a model without weights of layers that could be decoded; "
            "expected kernels of convolutions or Dense. Leave compressed_weights out."
        )
    size = len(choice.data([]))
    budget = "" if flash is None else f" flash={flash:,} is not met: the nearest is {size:,} bytes."
    raise ValueError(
        "compressed_weights: no weight has so few values that a code of it is smaller."
        f"{budget} {_mend(choice.weights)}"
    )


def _require_equal(
    model: Any, plain: bytes, data: bytes, inputs: Sequence[Sequence[np.ndarray]]
) -> int:
    """Run both files; returns how many inputs were compared."""
    samples = [*inputs, *_random_inputs(model)]
    wanted, given = (runtimes.tflm_outputs(content, samples) for content in (plain, data))
    for number, (ours, theirs) in enumerate(zip(wanted, given, strict=True)):
        for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            if one.tobytes() != other.tobytes():
                raise ValueError(
                    f"TFLite Micro gives another output {place} for input {number} once weights "
                    "are in codes: expected the same bits. Nothing was written; leave "
                    "compressed_weights out, and report the model."
                )
    return len(samples)


def _random_inputs(model: Any) -> list[list[np.ndarray]]:
    graph, random = model.subgraphs[0], np.random.default_rng(0)

    def values(tensor: Any) -> np.ndarray:
        dtype = flatbuffer.dtype_name(tensor)
        if dtype == "float32":
            return random.normal(size=tensor.shape).astype(np.float32)
        if flatbuffer.scales_of(tensor)[0]:
            limits = np.iinfo(dtype)
            return random.integers(limits.min, limits.max + 1, tensor.shape).astype(dtype)
        return np.zeros(tensor.shape, dtype)  # an index, of which 0 is always one

    tensors = [graph.tensors[i] for i in graph.inputs]
    return [[values(tensor) for tensor in tensors] for _ in range(_RANDOM)]
