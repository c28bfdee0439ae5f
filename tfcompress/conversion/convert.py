"""One conversion, stage by stage: lower, calibrate, quantize, report."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfcompress.conversion import (
    assignment,
    constants,
    exchange,
    extremes,
    forms,
    grids,
    lower,
    markers,
    observation,
    pointwise,
    quantize,
    ranges,
)
from tfcompress.conversion.calibration import (
    Calibration,
    inputs_of_model,
    sized,
    told,
    warn_unused,
)
from tfcompress.conversion.converters import Lowering
from tfcompress.conversion.layer_names import fix_ranges, require_none, skipped
from tfcompress.conversion.precisions import FLOATS, bits_of
from tfcompress.conversion.report import Report, float_reasons, listed, require_no_loops
from tfcompress.conversion.settings import (
    quantize_techniques,
    require_calibration,
    require_layers,
    require_ranges,
    require_started,
    require_storable,
    settle,
    settle_format,
    settle_trained,
    weight_bits_of,
)
from tfcompress.conversion.trial import Trial
from tfcompress.conversion.tuning import Tuned, require_no_tune, tuned
from tfcompress.conversion.versions import lower_versions
from tfcompress.dispatch import is_legacy, legacy
from tfcompress.files import models, writing
from tfcompress.graph.inputs import require_model
from tfcompress.graph.pixels import normalization_in_front
from tfcompress.layers.compressed import require_advanced
from tfcompress.quantization.opening import EVERYWHERE
from tfcompress.targets.check import check_parsed, mapped
from tfcompress.targets.targets import Target
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.inspect import inspect_parsed
from tfcompress.tflite.metadata import Metadata, TensorMetadata, described, load_metadata
from tfcompress.tflite.pixels import normalization_of
from tfcompress.tflite.signature import inputs as inputs_of

STATIC = ("int8", "int16x8", "int4")
_TUNABLE = "a float Keras 3 model that calibration data quantize"


def float_file(model, *, batch_size: int = 1, select_tf_ops: bool = False, integer: bool = True):
    """The float .tflite of a model in the form that `int8` is made from, and its known ranges.

    Returns (a `ModelT` without markers, ranges by tensor index, indices of tensors of float ops).
    """
    return _marked(lower.to_float(model, batch_size, select_tf_ops, integer=integer))


def _marked(lowering: Lowering):
    """What a converter writes: the named file without its markers, and what they said."""
    parsed = lowering.run()
    known, floats = markers.take_markers(parsed)
    constants.fold(parsed, known, floats)
    forms.rewrite(parsed, known, floats)
    constants.part(parsed, known)
    lowering.name(parsed)
    return parsed, known, floats


class Job:
    """One conversion: its settings, and what is found on the way."""

    def __init__(self, settings, strict, select_tf_ops, progress):
        self.settle(settings)
        self.strict, self.select_tf_ops = strict, select_tf_ops
        self.progress = progress or (lambda stage, done, total: None)
        self.seconds: dict[str, float] = {}
        self.reasons: dict[str, str] = {}
        self.notes: list[str] = []
        self.weights_only = False
        self.divisors: set[int] = set()  # that come near 0
        self.tuned: Tuned | None = None  # the model, where it is corrected before
        self.layers: dict[str, str] = {}  # what layers were given
        self.kept: set[str] = set()  # tensors that are float as they were asked to be
        self.trial = Trial()
        self.model: Any = None
        self.seen: Calibration | None = None

    def settle(self, settings) -> None:
        """Takes settings, which may be other ones once the model is known."""
        self.settings, self.precision = settings, settings.precision
        self.io_dtype, self.batch_size = settings.io_dtype, settings.batch_size

    def timed(self, stage: str, function, *args, **kwargs):
        self.progress(stage, 0, None)
        start = time.perf_counter()
        result = function(*args, **kwargs)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
        self.progress(stage, 1, 1)
        return result

    def run(self, model, calibration, samples) -> Any:
        """The file as a `ModelT`."""
        require_none(self.settings.skip, model, calibration is not None)
        self.model = model
        require_layers(self.settings.layers, model, calibration is not None)
        if is_legacy(model):
            return legacy("convert")(self, model, calibration, samples)
        lower.require_convertible(model)
        is_keras = isinstance(model, keras.Model)
        if is_keras:
            require_model(model)
            require_advanced(model)
        given = model
        if is_keras and calibration is not None:
            model, calibration = sized(model, calibration)
            if model is not given:
                self.notes.append("made for inputs of the sizes that the first sample has")
        if calibration is None:
            weights = ["weight_observer"] if self.precision == "int4" else []
            require_calibration(self.settings, but=weights)
            require_no_tune(self.settings.tune, _TUNABLE)
        if self.precision not in STATIC:
            if calibration is not None and model is given:
                warn_unused(f"precision '{self.precision}' needs no ranges of activations")
            return self._by_converter(model)
        techniques = quantize_techniques(model) if is_keras else []
        require_storable(techniques)
        if any(technique.activation_bits is not None for technique in techniques):
            require_started(model)
            require_ranges(model, self.settings.ranges)
            require_calibration(self.settings)
            if calibration is not None and model is given:
                warn_unused("the model was trained for quantization, and has ranges of its own")
            require_none(self.settings.skip, model, False)
            return self._integer(model, None, None)
        if calibration is not None:
            if is_keras:
                self.seen = Calibration(calibration, inputs_of_model(model), samples)
            return self._integer(model, calibration, samples)
        if self.precision == "int4":
            self.weights_only = True
            self.notes.append("activations stay float: pass calibration= to make them int8")
            parsed, _, _ = self.timed("lower", self._float_file, model, False)
            widths = {technique.bits for technique in techniques}
            chosen = self.settings.weight_observer
            return self.timed("quantize", quantize.weight_only, parsed, 4, widths, chosen)
        raise ValueError(
            f"precision '{self.precision}' needs the ranges of activations: received a model "
            "without them and no calibration data. Pass calibration= (--calibration) a few hundred "
            "samples of the training inputs, or train tfcompress.quantize_aware(model) first."
        )

    def _by_converter(self, model) -> Any:
        """float32, float16 and dynamic_int8 are TFLiteConverter's own modes."""
        lowering = self.timed("lower", self._lowering, model, False)
        converter = lowering.converter
        if self.precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if self.precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        parsed = self.timed("convert", lowering.run)
        lowering.name(parsed)
        return parsed

    def _lowering(self, model, integer: bool) -> Lowering:
        if isinstance(model, models.SavedModel):
            found = lower.from_saved_model(model, self.batch_size, self.select_tf_ops)
        else:
            layers = self.settings.layers
            rules = EVERYWHERE if layers is None else layers.opened
            made = self.batch_size, self.select_tf_ops
            prepared = None if self.tuned is None else self.tuned.prepared()
            found = lower.to_float(model, *made, integer=integer, rules=rules, prepared=prepared)
        self.notes += [found.note] if found.note else []
        return found

    def _float_file(self, model, integer: bool = True):
        return _marked(self._lowering(model, integer))

    def _tune(self, model) -> None:
        """Corrects the model for what its weights will be, as far as that is asked for."""
        settings, steps = self.settings, self.settings.steps
        if self.seen is None:
            require_no_tune(settings.tune, _TUNABLE)
        if steps == "none" or self.seen is None:
            return

        def bits(layer, source) -> int | None:
            if any(fnmatch.fnmatchcase(source.name, pattern) for pattern in settings.skip):
                return None
            if settings.layers is None:
                return bits_of(layer, self.precision, quantize.INT4_OPS)
            return bits_of(layer, settings.layers.of_layer(source))

        rules = EVERYWHERE if settings.layers is None else settings.layers.opened
        try:
            self.tuned = self.timed(
                "tune",
                tuned,
                model,
                rules,
                iter(self.seen.rows),
                steps,
                bits,
                lambda done, total: self.progress("tune", done, total),
                dense=settings.dense,
                convolution=settings.convolution,
            )
        except Exception as error:  # What users' layers raise is of any kind.
            require_no_tune(settings.tune, f"a model that can be flattened: {error}")
            self.notes.append(f"weights are rounded to nearest: {models.reason_of(error)}")

    def _integer(self, model, calibration, samples) -> Any:
        self._tune(model)
        parsed, known, floats = self.timed("lower", self._float_file, model)
        require_no_loops(parsed, model, self.io_dtype)
        assigned = self._assigned(parsed, model)
        is_trained = isinstance(model, keras.Model) and quantize_techniques(model) != []
        weight_bits = weight_bits_of(model) if is_trained else None
        if calibration is not None:
            seen = self.seen or Calibration(calibration, inputs_of(parsed), samples)
            early, wide = samples is not None, assigned.wide
            known = self.timed("calibrate", self._calibrate, parsed, model, seen, early, wide)
            self.notes += told(seen, model)
            floats |= skipped(parsed, model, self.settings.skip)
        else:
            weight_bits = weight_bits_of(model)  # 8 if nothing has weights
            self._check_bits(known)
            if min(weight_bits) <= 4 and self.precision != "int4":
                few = f"the {min(weight_bits)} bits that weights were trained for are stored in 8"
                self.notes.append(f"{few}: precision='int4' stores them in 4")
            known = {**grids.table_ranges(parsed, weight_bits), **known}
            self.notes += extremes.lost_scores(parsed, known)
            every = ranges.spread(parsed, known, assigned.wide)
            known = {**extremes.narrow_constants(parsed, every), **known}
            self.divisors = ranges.unknown_divisors(parsed, known, floats)
        known = ranges.spread(parsed, known, assigned.wide)
        known = ranges.with_bits(parsed, known, assigned.wide)
        ranges.widen_softmax_inputs(parsed, known)
        ranges.widen_sums(parsed, known)
        ranges.make_kernels_symmetric(parsed, known)
        ranges.drop_clipped_relus(parsed, known)
        self.reasons = float_reasons(parsed, known, floats, self.divisors)
        return self.timed(
            "quantize",
            quantize.static,
            parsed,
            known,
            io_dtype=self.io_dtype,
            weight_bits=weight_bits,
            precisions=assigned.operations,
            tensorwise=self.settings.tensorwise,
            floats=floats,
            weight_observer=self.settings.weight_observer,
            scales=None if self.tuned is None else assignment.handed(parsed, self.tuned.grids),
        )

    def _assigned(self, parsed, model) -> assignment.Assignment:
        if self.settings.layers is None:
            return assignment.one_for_all(parsed, self.precision)
        found = assignment.by_layer(parsed, model, self.settings.layers)
        self.layers, self.kept = found.layers, found.floats_in(parsed)
        self.notes += found.notes
        return found

    def _check_bits(self, known) -> None:
        widest = max((r.bits for r in known.values()), default=8)
        if widest == 16 and self.precision != "int16x8":
            raise ValueError(
                f"the model was trained with activation_bits=16; received precision "
                f"'{self.precision}'. Convert it with precision='int16x8'."
            )

    def _calibrate(self, parsed, model, data: Calibration, early: bool, wide: set[int]):
        """The ranges of activations by tensor index."""
        content = flatbuffer.write(parsed)
        batches = data.batches(inputs_of(parsed), self.batch_size)
        found = observation.observe(
            parsed,
            content,
            batches,
            self.settings.observer,
            early,
            wide,
            progress=lambda done, total: self.progress("calibrate", done, total),
        )
        batches = batches[: found.batches]
        data.found(found, self.batch_size)
        seen = found.limits
        known = {i: ranges.with_zero(*limits) for i, limits in found.ranges.items()}
        self.divisors = ranges.drop_small_divisors(parsed, known, seen)
        bits = 16 if self.precision == "int16x8" else 8
        extremes.narrow(parsed, known, batches, bits)
        fix_ranges(parsed, model, known, self.settings.ranges)
        self.trial.remember(parsed, content, batches)
        if self.tuned is not None:
            self.trial.expect(self.tuned.give)
        return known

    def with_narrow_kernels(self, file) -> Any:
        """The file as kernels of 4 bits take it, where the target has these."""
        found, target = pointwise.as_dense(file), self.settings.target
        if found is None or self.settings.dense == "per_tensor":
            return file
        if target is not None and mapped(found, target) <= mapped(file, target):
            return file
        self.notes.append(
            "pointwise convolutions with int4 weights are FULLY_CONNECTED in the file, which "
            "XNNPACK runs in 4 bits; dense='per_tensor', as TFLite Micro needs, leaves them"
        )
        return found

    def finish(self, file, metadata) -> bytes:
        """The bytes as they ship: with versions that the target's compiler knows, and metadata.

        Changes `file`, which then is the `ModelT` of these bytes.
        """
        target = self.settings.target
        if target is not None and target.lower_versions:
            self.timed("lower versions", lower_versions, file)
        return flatbuffer.write(file) if metadata is None else described(file, metadata)

    def rounded_seconds(self) -> dict[str, float]:
        """What each stage took so far."""
        return {name: round(value, 3) for name, value in self.seconds.items()}

    def report(self, path, file, data: bytes) -> Report:
        """What came out; raises if it is not what `strict` demands."""
        found = inspect_parsed(file, data, path)
        # Operations that stayed float although integers were asked for.
        asked = self.precision in STATIC and not self.weights_only
        remaining = listed(found, self.reasons, self.model) if asked else []
        # With integers at the edge an output is called otherwise.
        kept = {name for name, given in self.layers.items() if given in FLOATS}
        remaining = [op for op in remaining if not {op.tensor, op.layer} & (self.kept | kept)]
        if remaining and self.strict:
            named = "; ".join(
                f"{f.op} at '{f.layer or f.tensor[:60]}' ({f.reason})" for f in remaining[:5]
            )
            raise ValueError(
                f"strict=True and {len(remaining)} operations would stay float: {named}. Replace "
                "those layers, or convert without strict. Nothing was written."
            )
        if any(op.name == "HARD_SWISH" and op.dtype == "int8" for op in found.operators):
            self.notes.append(
                "HARD_SWISH in int8 splits XNNPACK's delegation, which is slow on phones' CPUs: "
                "relu6 is faster"
            )
        target = self.settings.target
        return Report(
            path=str(path),
            precision=self.precision if self.settings.layers is None else "mixed",
            io_dtype=self.io_dtype,
            file_bytes=len(data),
            zipped_bytes=found.zipped_bytes,
            check=None
            if target is None
            else self.timed("check", check_parsed, file, data, target, path),
            ops=[(c.name, c.dtype, c.count) for c in found.op_counts],
            float_ops=remaining,
            notes=self.notes,
            seconds=self.rounded_seconds(),
            layers=self.layers,
            sqnr=self.trial.sqnr,
            tuning=() if self.tuned is None else self.tuned.steps,
        )


Progress = Callable[[str, int, int | None], Any]


def convert(
    model,
    path,
    *,
    precision: str | Mapping[Any, str] | None = None,
    io_dtype: str | Sequence[str] | None = None,
    calibration: Any = None,
    batch_size: int | None = None,
    dense: str | None = None,
    convolution: str | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    skip: str | Sequence[str] = (),
    observer: str | None = None,
    weight_observer: str | None = None,
    tune: str | Sequence[str] | None = None,
    target: str | os.PathLike[str] | Target | None = None,
    metadata: Any = None,
    format: str | None = None,
    strict: bool = False,
    select_tf_ops: bool = False,
    samples: int | None = 500,
    trusted: bool = False,
    signature: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Writes a Keras model as a .tflite file, or on from there as ONNX or OpenVINO IR.

    Args:
        model: a `keras.Model`, from `quantize_aware` or plain, or the path of a .keras, .h5 or
            SavedModel; also a model of tf_keras, plain or under TFMOT's wrappers.
        path: where the file goes; it is written whole or not at all.
        precision: "float32"; "float16" (weights); "dynamic_int8" (int8 weights, activations
            quantized at run time); "int8"; "int16x8" (int16 activations); "int4" (4-bit weights of
            Conv2D and Dense, with int8 activations if their ranges are known, float otherwise).
            None: what the model was trained for (`Quantize(bits=4)` gives "int4",
            `activation_bits=16` "int16x8") if the target takes that; or what the target prefers, or
            "int8". Or {pattern: precision}, for a model that calibration data quantize: a pattern
            is the name or class of layers as in `Rule` ("*", "block_1*", "Dense"), a type such as
            `keras.layers.Dense`, or a predicate `f(layer) -> bool`; a precision is "int8", "int4"
            (Dense, convolutions and depthwise ones), "int2" or "int4_blockwise" (Dense; the latter
            with float activations and a scale for each 32 weights of a row), "int16x8", "float16"
            or "float32". The last pattern that matches a layer decides, and those without are int8,
            as are layers that a wide pattern gives a precision that LiteRT has no kernel of for
            them. Between layers that differ values are quantized anew.
        io_dtype: type of inputs and outputs: "float32", "int8", "uint8", or "int16" with int16x8;
            or that of the inputs and that of the outputs, as ("uint8", "float32").
            None: what the target prefers, or "float32".
        calibration: samples of the inputs, for int8, int16x8 or int4 of a model not trained with
            `quantize_aware`: a NumPy array, dict, generator or `tf.data.Dataset` of float values
            as in training; a few hundred samples serve. Sizes that inputs leave open, in any
            precision, are those of the first sample.
        batch_size: fixed batch size of the file. None: what the target asks for, or 1.
        dense: "per_channel" or "per_tensor" scales of the weights of Dense layers that were not
            trained for quantization. None: what the target takes, or "per_channel".
        convolution: the same for the weights of convolutions. None: "per_channel".
        ranges: (least, greatest) value by the name of an input, an output or a layer, for its
            output, in place of what calibration finds.
        skip: names (or shell patterns) of layers that stay float, with calibration. Those of a
            model from `quantize_aware` are named there.
        observer: which range activations get from calibration samples, in 8 bits: "min_max" keeps
            all values; "moving_average" (0.95, of batches), "percentile" (99.99), "mse", "kl" or
            "octav" clip some of them for smaller steps. Inputs, outputs and scores keep all.
            None: "min_max".
        weight_observer: which scale weights get that were not trained for quantization: "max" keeps
            all values; "mse" has the least squared error, "octav" expects it (for int4, above
            all). None: "max". Where it is another and `tune` is left out, nothing is tuned, as
            that chooses scales of its own.
        tune: what is done to a plain Keras model before its weights are rounded, with calibration
            data: "fast" gives kernels of fewer than 8 bits the codes and scales with which layers
            give what they gave (`post_training.gptq`), in seconds; "best" tries all of the
            following on all kernels, for up to a minute; "none" rounds to nearest. Or a list of
            "batch_norm", "equalize" (for "per_tensor"), "gptq", "adaround" and "bias", the
            functions of `tfcompress.post_training`. What does not help on samples that are kept
            aside is left out; the report tells what each was worth. None: "fast".
        target: a name from `list_targets()`, or the path of a target file of your own: fills in
            what is None above and checks the file at the end, see `check`. What contradicts it is
            an error. For targets whose compilers reject new op versions, these are lowered.
        metadata: a `Metadata`, a dict or a JSON file: names, descriptions, normalization and labels
            that go into a .tflite file. Where the file could not tell that its model has the
            preprocessing of pixels inside, the normalization is filled in.
        format: "tflite", "onnx" or "openvino" (an .xml file and a .bin file beside it), made from
            the .tflite file by tf2onnx and OpenVINO in environments of their own. None: by the
            path's ending.
        strict: raise if an operation stays float although integers were asked for.
        select_tf_ops: allow operations of TensorFlow that LiteRT lacks (needs the Flex delegate).
        samples: how many calibration samples to use at most, the first ones: fewer once the ranges
            have settled, of which the report tells; None uses all.
        trusted: take a SavedModel although it has operators that read or write files or run code
            when it is loaded or run. Whoever made it can then do what you can.
        signature: which signature of a SavedModel; the file keeps its name. None: "serve",
            "serving_default", or the only one.
        progress: called as `progress(stage, done, total)`.

    Returns:
        A `Report`: sizes, operations, what stayed float and why, the target's check, seconds.

    Raises:
        ValueError: if an argument, the model, the calibration data or the metadata will not do.

    Example:
        >>> report = convert(qat, "model.tflite", precision="int8", io_dtype="int8")
        >>> report = convert(qat, "model.tflite", target="edge_tpu")
    """
    settings = settle(
        precision,
        io_dtype,
        batch_size,
        dense,
        target,
        convolution,
        ranges,
        skip,
        observer,
        weight_observer,
        tune,
    )
    format = settle_format(settings, format, path, metadata)
    known = None if metadata is None else load_metadata(metadata)
    writing.check_writable(path)
    job = Job(settings, strict, select_tf_ops, progress)
    if isinstance(model, str | bytes) or hasattr(model, "__fspath__"):
        model = job.timed("load", models.load_model, model, trusted=trusted)
    if signature is not None:
        model = models.with_signature(model, signature)
    if precision is None:
        job.settle(settle_trained(settings, model))
        format = settle_format(job.settings, format, path, metadata)
    file = job.with_narrow_kernels(job.run(model, calibration, samples))
    data = job.finish(file, _with_pixels(model, file, known))
    job.notes += job.timed("run", job.trial.passed_by, file, data)
    report = job.report(path, file, data)
    if format == "tflite":
        writing.atomic_write(path, data)
        return report
    # An iterator is used up by now.
    kept = None if isinstance(calibration, Iterator) else calibration
    exchanged = job.timed(format, exchange.exchange, format, data, path, samples=kept)
    return dataclasses.replace(
        report, format=format, exchanged=exchanged, seconds=job.rounded_seconds()
    )


def _with_pixels(model: Any, file: Any, known: Metadata | None) -> Metadata | None:
    """The metadata, and how the model takes pixels if that is known but cannot be seen in the file.

    The converter folds a preprocessing into the first convolution.
    """
    inputs = file.subgraphs[0].inputs
    shape = list(file.subgraphs[0].tensors[inputs[0]].shape) if len(inputs) == 1 else []
    given = known.inputs[0] if known is not None and known.inputs else TensorMetadata()
    if len(shape) != 4 or shape[-1] not in (1, 3) or given.mean or normalization_of(file, None, 0):
        return known
    told = normalization_in_front(model)
    if told is None:
        return known
    entry = dataclasses.replace(given, mean=told.mean, std=told.std)
    return dataclasses.replace(known or Metadata(), inputs=(entry,))
