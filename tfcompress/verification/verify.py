"""verify: does a .tflite file compute what its Keras model computes?"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from tfcompress.conversion import lower, pointwise
from tfcompress.conversion.calibration import filled
from tfcompress.conversion.settings import weight_bits_of
from tfcompress.files import models
from tfcompress.files import samples as samples_of
from tfcompress.layers.compressed import is_compressed, require_advanced
from tfcompress.layers.fake_quant import FakeQuant
from tfcompress.results import Result, plain_fields, print_line, print_table
from tfcompress.tflite import flatbuffer, signature
from tfcompress.tflite.run import Port, Runner, port
from tfcompress.verification.criteria import (
    GOOD_AGREEMENT,
    GOOD_SQNR_DB,
    LEAST_AGREEMENT,
    LEAST_SQNR_DB,
    Kind,
    judge,
    kind_of,
)
from tfcompress.verification.differences import Difference, Tally
from tfcompress.verification.layer_errors import LayerError, layer_errors

if TYPE_CHECKING:
    from rich.console import Console

DEFAULT_TOLERANCE = 1.0

_CHUNK = 32
LAYER_SAMPLES = 16
Progress = Callable[[str, int, int | None], Any]


def verify(
    model: Any,
    path: str | os.PathLike[str],
    data: Any,
    *,
    layers: bool = False,
    tolerance: float | None = None,
    samples: int | None = None,
    trusted: bool = False,
    progress: Progress | None = None,
) -> Verification:
    """Compares a .tflite file with its Keras model, on the same samples.

    The file runs twice: on LiteRT's reference kernels, whose integers are the same on every
    machine, and on the default kernels (XNNPACK). Where the reference lacks an operator, LiteRT's
    optimized kernels stand in for it, which `Verification.notes` tells. Values for integer inputs
    are quantized by the file's own scales, and integer outputs dequantized.

    Args:
        model: the `keras.Model` that was converted, from `quantize_aware` or plain, or the path
            of a .keras, .h5 or SavedModel.
        path: the .tflite file.
        data: samples of the inputs, as real values: a NumPy array, a list or dict of arrays, a
            generator or a `tf.data.Dataset`, as for `convert`.
        layers: also find the error of each layer, over at most 16 samples.
        tolerance: how many LSB an output may differ from Keras (the kernels may differ from one
            another by as much, and by 1). None judges each output by what it is. If the model
            simulates the file's quantization or the file is float, it asks for 1 LSB, or an SQNR
            of 30 dB (6 dB of what moves), or what LiteRT's own kernels differ from one another by.
            Of a file quantized after training, where the difference is the price of quantization,
            it asks for 10 dB of what moves: the deviations from the mean of each place of the last
            axis, in the worst part of what a concatenation puts together. Scores of classes have
            to decide alike, too: in 99%, or 90% after training, where choices that are not 1 LSB
            apart count as equal; logits after training either so or by 20 dB, as numbers of another
            use look the same. Whole numbers have to be equal in 90%.
        samples: at most so many samples; all by default.
        trusted: as for `convert`.
        progress: called as `progress("verify", done, total)`.

    Returns:
        A `Verification`; `.passed` tells the verdict.

    Raises:
        ValueError: the file or the data cannot be read, do not belong to the model, the data is
            empty, or Keras itself gives NaN.

    Example:
        >>> verify(qat, "model.tflite", x_test).passed  # doctest: +SKIP
        True
    """
    if tolerance is not None and not (isinstance(tolerance, int | float) and tolerance >= 0):
        raise ValueError(f"tolerance must be 0 LSB or more; received {tolerance!r}. Try 1.")
    where, content = flatbuffer.describe(path), flatbuffer.load(path)
    file = flatbuffer.read(content, name=where)
    first_of = signature.first_signature(file)
    reference = Reference(model, first_of and flatbuffer.text(first_of.signatureKey), trusted)
    runners = [Runner(file, content, where, reference=kind) for kind in (True, False)]
    match = _Match(reference, runners[0], where)
    kinds = [kind_of(file, entry) for entry in match.outputs]
    tallies = [tuple(Tally(k.parts, halves=k.halves) for _ in range(2)) for k in kinds]
    first: list[dict[str, np.ndarray]] = []
    done = 0
    batches = samples_of.batches(data, reference.inputs, limit=samples)
    # All of one size, so that the Keras model is traced once.
    size = math.lcm(match.batch_size, reference.batch_size or 1)
    size *= max(1, _CHUNK // size)
    with pointwise.as_in(file, reference.model):
        for count, chunk in filled(batches, size):
            parts = match.split(chunk, count)
            first += parts[: max(0, math.ceil(LAYER_SAMPLES / match.batch_size) - len(first))]
            _compare(reference(chunk), runners, match, parts, count, tallies)
            done += count
            if progress is not None:
                progress("verify", done, samples)
        errors = layer_errors(reference.model, file, content, first) if layers else ()
    strict = tolerance is not None
    if not strict and is_simulated(reference.model, file):
        tolerance = DEFAULT_TOLERANCE
    rows = zip(match.outputs, kinds, tallies, strict=True)
    checks = tuple(_check(file, *row, tolerance, strict) for row in rows)
    name = os.fspath(path) if isinstance(path, str | os.PathLike) else where
    notes = tuple(runner.note for runner in runners if runner.note)
    return Verification(name, done, tolerance, strict, checks, errors, notes)


class _Match:
    """Which input and output of the file is which of the model's.

    By name where the file has the model's names, else by position.
    """

    def __init__(self, reference: Reference, runner: Runner, where: str):
        self.inputs = _pair([e.name for e in reference.inputs], runner.inputs, "input", where)
        self.outputs = _pair(reference.outputs, runner.outputs, "output", where)
        self.order = [runner.outputs.index(entry) for entry in self.outputs]
        for wanted, entry in zip(reference.inputs, self.inputs, strict=True):
            fits = len(wanted.shape) == len(entry.shape) and all(
                a in (None, b) for a, b in zip(wanted.shape[1:], entry.shape[1:], strict=True)
            )
            if not fits or not entry.shape:
                raise ValueError(
                    f"input '{entry.name}' of {where} has shape {entry.shape}, the model's "
                    f"{tuple(wanted.shape)}; expected a file that was made from this model. "
                    "Convert the model again, or name the model that the file came from."
                )
        self.names = [e.name for e in reference.inputs]
        self.batch_size = self.inputs[0].shape[0]

    def split(self, chunk: dict[str, np.ndarray], count: int) -> list[dict[str, np.ndarray]]:
        """A chunk as batches for the file, by the file's input names."""
        pairs = list(zip(self.names, self.inputs, strict=True))
        return [
            {entry.name: chunk[name][i : i + self.batch_size] for name, entry in pairs}
            for i in range(0, count, self.batch_size)
        ]


def _pair(names: list[str], entries: list[Port], what: str, where: str) -> list[Port]:
    if len(names) != len(entries):
        raise ValueError(
            f"{where} has {len(entries)} {what}(s), the model {len(names)}; expected a file that "
            "was made from this model. Convert the model again, or name the model that the file "
            "came from."
        )
    by_name = {entry.name: entry for entry in entries}
    return [by_name[n] for n in names] if set(names) == set(by_name) else entries


def _compare(
    expected: list[np.ndarray],
    runners: list[Runner],
    match: _Match,
    parts: list[dict[str, np.ndarray]],
    count: int,
    tallies: list[tuple[Tally, ...]],
) -> None:
    found = [list(zip(*(runner.run(part) for part in parts), strict=True)) for runner in runners]
    for position, wanted, tally in zip(match.order, expected, tallies, strict=True):
        golden, fast = (np.concatenate(outputs[position])[:count] for outputs in found)
        if golden.shape != wanted[:count].shape:
            name = match.outputs[tallies.index(tally)].name
            raise ValueError(
                f"output '{name}' of the file has shape {golden.shape[1:]} for a sample, the "
                f"model's {wanted.shape[1:]}; expected a file that was made from this model. "
                "Convert the model again, or name the model that the file came from."
            )
        tally[0].add(wanted[:count], golden)
        tally[1].add(golden, fast)


def _check(
    file: Any,
    entry: Port,
    kind: Kind,
    tallies: tuple[Tally, ...],
    tolerance: float | None,
    strict: bool,
) -> OutputCheck:
    scale, whole = _scale(file, entry), entry.scale is None and entry.dtype[:1] in "iub"
    width = tallies[0].high - tallies[0].low
    lsb = scale or (1.0 if whole else width / 255 if width > 0 else 1 / 255)
    keras, xnnpack = (tally.result(lsb) for tally in tallies)
    found = judge(kind, keras, xnnpack, tolerance, strict)
    return OutputCheck(
        entry.name,
        entry.dtype,
        lsb,
        scale is not None,
        keras,
        xnnpack,
        found.passed,
        kind.name,
        found.criterion,
        found.value,
        found.limit,
    )


def _scale(file: Any, entry: Port) -> float | None:
    """The scale of an output's integers: its own, or that of what the last op dequantizes."""
    if entry.scale is not None:
        return entry.scale
    for op in file.subgraphs[0].operators:
        if entry.index in op.outputs and flatbuffer.op_name(file, op) == "DEQUANTIZE":
            return port(file, op.inputs[0]).scale
    return None


class Reference:
    """A Keras model or SavedModel in inference, with the names that its .tflite uses.

    Args:
        model: a `keras.Model`, or the path of a .keras, .h5 or SavedModel.
        key: the signature of a SavedModel, if it has it; else the usual one.

    Attributes:
        model: the `keras.Model`; None for a SavedModel.
        inputs: descriptions with `name`, `shape` (batch first) and `dtype`.
        batch_size: the one that the model is fixed to; None if it takes any.
        outputs: names.
    """

    def __init__(self, model: Any, key: str | None = None, trusted: bool = False):
        if isinstance(model, str | bytes) or hasattr(model, "__fspath__"):
            model = models.load_model(model, trusted=trusted)
        lower.require_convertible(model)
        if isinstance(model, models.SavedModel):
            self.model = None
            self._load(model.path, model.signature or key)
        else:
            self.model = model
            require_advanced(model)
            self._trace(model)

    def _trace(self, model: keras.Model) -> None:
        (_, self.outputs), struct, run = lower.interface(model)
        self.inputs: list[Any] = tree.flatten(struct)

        def step(values):
            return tree.flatten(run(tree.pack_sequence_as(struct, values)))

        graph = tf.function(step, jit_compile=False)

        def call(values):
            try:
                return graph(values)
            except (TypeError, ValueError):  # as Keras's scans, which have no shape in a graph
                self._call = step
                return step(values)

        self._call = call

    def _load(self, path, key: str | None) -> None:
        # A signature does not keep its variables alive.
        self._loaded, key = lower.load_signature(path, key, strict=False)
        function = self._loaded.signatures[key]
        specs = sorted(function.structured_input_signature[1].items())
        self.inputs = [
            signature.Input(name, (None, *spec.shape.as_list()[1:]), spec.dtype.name)
            for name, spec in specs
        ]
        self.outputs = sorted(function.structured_outputs)

        def call(values):
            given = function(**{e.name: v for e, v in zip(self.inputs, values, strict=True)})
            return [given[name] for name in self.outputs]

        self._call = call

    @property
    def batch_size(self) -> int | None:
        return self.inputs[0].shape[0] if self.inputs[0].shape else None

    def _parts(self, batch: dict[str, np.ndarray]) -> list[list[tf.Tensor]]:
        """The inputs in batches of the size that the model takes."""
        arrays = [np.asarray(batch[entry.name]) for entry in self.inputs]
        size = self.batch_size or len(arrays[0])
        starts = range(0, len(arrays[0]), size)
        return [[tf.convert_to_tensor(a[i : i + size]) for a in arrays] for i in starts]

    def __call__(self, batch: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Runs the model."""
        runs = [self._call(part) for part in self._parts(batch)]
        results = []
        for name, values in zip(self.outputs, zip(*runs, strict=True), strict=True):
            array = np.asarray(values[0]) if len(values) == 1 else np.concatenate(values)
            results.append(array if array.dtype.kind in "iub" else array.astype(np.float32))
            bad = int(array.size - np.isfinite(results[-1]).sum())
            if bad:
                raise ValueError(
                    f"the Keras model gives {bad} value(s) that are NaN or infinite at output "
                    f"'{name}'; expected finite numbers. Look for a division by 0, or for a "
                    "training that diverged."
                )
        return results


def is_simulated(model: keras.Model | None, file: Any) -> bool:
    """Whether a file should give what the model gives, up to rounding.

    True for float files of plain models, and for integer files of models that were trained to
    round as the file does. Else the difference holds the price of quantization.
    """
    activations: set[str] = set()
    constants: set[str] = set()
    for tensor in (t for graph in file.subgraphs for t in graph.tensors):
        if flatbuffer.scales_of(tensor)[0]:
            kind = constants if flatbuffer.is_constant(file, tensor) else activations
            kind.add(flatbuffer.dtype_name(tensor))
    simulated = model is not None and is_compressed(model)
    layers = list(model._flatten_layers()) if simulated and model is not None else []
    bits = {layer.bits for layer in layers if isinstance(layer, FakeQuant)}
    if not bits:
        return not activations and not constants
    if "int4" in constants and min(weight_bits_of(model)) > 4:
        return False
    # 16-bit steps are too fine for the float32 that simulates them.
    return bits == {8} and bool(activations) and "int16" not in activations


@dataclasses.dataclass(frozen=True)
class OutputCheck:
    """One output: how the file's values differ from the Keras model's.

    Attributes:
        name: of the output in the signature.
        dtype: of the output in the file.
        lsb: the real difference that counts as one LSB: the scale of the output's integers; 1 for
            whole numbers; 1/255 of the range of the Keras model's outputs where there are none.
        has_scale: whether `lsb` is a scale of the file.
        keras: Keras against LiteRT's reference kernels (BUILTIN_REF).
        xnnpack: the reference kernels against the default ones, XNNPACK where it can.
        passed: whether both are near enough.
        kind: what it is judged as: "scores", "logits", "values" or "whole numbers".
        criterion, value, limit: what decided, what was found and how much was asked for.
    """

    name: str
    dtype: str
    lsb: float
    has_scale: bool
    keras: Difference
    xnnpack: Difference
    passed: bool
    kind: str
    criterion: str
    value: float
    limit: float


@dataclasses.dataclass(frozen=True)
class Verification(Result):
    """What `verify` found.

    Attributes:
        path: the file.
        samples: how many samples were run.
        tolerance: the most LSB that are let pass; None if SQNR and agreement alone decide.
        strict: whether the tolerance was asked for, and alone decides.
        outputs: in the order of the Keras model's outputs.
        layers: the error of each layer, worst first, if it was asked for.
        notes: other things worth knowing, such as kernels that the reference lacks.
    """

    path: str
    samples: int
    tolerance: float | None
    strict: bool
    outputs: tuple[OutputCheck, ...]
    layers: tuple[LayerError, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every output is within the tolerance."""
        return all(output.passed for output in self.outputs)

    @property
    def rule(self) -> str:
        """What was asked of the outputs, in words."""
        scores = "of scores {:.0%} equal decisions"
        if self.tolerance is None:
            moving = f"an SQNR of {LEAST_SQNR_DB:g} dB of what moves"
            return f"at least {moving}, and {scores.format(LEAST_AGREEMENT)}"
        within = f"at most {self.tolerance:g} LSB"
        if self.strict:
            return within
        good = f"an SQNR of {GOOD_SQNR_DB:g} dB, and {scores.format(GOOD_AGREEMENT)}"
        return f"{within}, or {good}, or as near as the kernels of LiteRT are to one another"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `json.dumps`; NaN and infinity (no error at all) become None."""
        return {"passed": self.passed, "rule": self.rule, **plain_fields(self)}

    def _print(self, console: Console) -> None:
        rows: list[tuple[Any, ...]] = []
        for output in self.outputs:
            for pair, found in (("Keras, REF", output.keras), ("REF, XNNPACK", output.xnnpack)):
                agreement = "" if found.agreement is None else f"{found.agreement:.2%}"
                numbers = (f"{found.max_lsb:.2f}", f"{found.mean_lsb:.4f}", f"{found.max_abs:.3g}")
                rows.append((output.name, pair, *numbers, agreement, f"{found.sqnr_db:.1f}"))
        columns = "output,compared,max LSB >,mean LSB >,max diff >,same choice >,SQNR dB >"
        print_table(console, f"{self.path}: {self.samples} samples", columns, rows)
        if self.layers:
            columns = "layer,operator,SQNR dB >,of its inputs >,alone LSB >,values >"
            rows = [
                (
                    e.layer or e.tensor[:60],
                    e.op,
                    f"{e.sqnr_db:.1f}",
                    f"{e.input_sqnr_db:.1f}",
                    "" if e.steps is None else f"{e.steps:.0f}",
                    "" if e.share is None else f"{e.share:.2%}",
                )
                for e in self.layers
            ]
            print_table(console, "Error by layer, worst first", columns, rows)
        for output in self.outputs:
            print_line(
                console,
                f"{output.name} ({output.kind}): {output.criterion} {output.value:.4g}, limit "
                f"{output.limit:.4g}: {'passed' if output.passed else 'failed'}",
            )
        for note in self.notes:
            print_line(console, f"note: {note}")
        verdict = "[green]passed[/]" if self.passed else "[red]failed[/]"
        console.print(f"{verdict}: {self.rule}")
