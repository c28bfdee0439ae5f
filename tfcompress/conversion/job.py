"""One conversion, stage by stage: tune, lower, calibrate, quantize, report."""

from __future__ import annotations

import dataclasses
import fnmatch
import time
from typing import Any

import keras
import tensorflow as tf

from tfcompress.conversion import (
    assignment,
    extremes,
    float_files,
    forms,
    front_ends,
    grids,
    kernel_limits,
    lower,
    lstm,
    observation,
    quantize,
    ranges,
    states,
)
from tfcompress.conversion.calibration import (
    Calibration,
    inputs_of_model,
    sized,
    told,
    warn_unused,
)
from tfcompress.conversion.converters import Lowering
from tfcompress.conversion.layer_names import (
    fix_ranges,
    namer,
    require_none,
    shorten_names,
    skipped,
)
from tfcompress.conversion.precisions import FLOATS, bits_of
from tfcompress.conversion.report import (
    Report,
    float_reasons,
    listed,
    require_no_float_loops,
    require_no_loops,
)
from tfcompress.conversion.settings import (
    quantize_techniques,
    require_calibration,
    require_layers,
    require_ranges,
    require_started,
    require_storable,
    weight_bits_of,
)
from tfcompress.conversion.trial import Trial
from tfcompress.conversion.tuning import Tuned, require_no_tune, tuned
from tfcompress.conversion.versions import lower_versions
from tfcompress.dispatch import is_legacy, legacy
from tfcompress.export.microcontroller.compressed_weights import compress_weights
from tfcompress.files import models
from tfcompress.graph.front_end import FrontEnd
from tfcompress.graph.inputs import require_model
from tfcompress.layers.compressed import require_advanced
from tfcompress.quantization.opening import EVERYWHERE, sparing
from tfcompress.targets.check import check_parsed
from tfcompress.targets.targets import Target
from tfcompress.techniques import Quantize
from tfcompress.techniques.rules import Rule, Rules
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.inspect import inspect_parsed
from tfcompress.tflite.metadata import described
from tfcompress.tflite.signature import inputs as inputs_of

STATIC = ("int8", "int16x8", "int4")
# As `EVERYWHERE`, in 16 bits.
_WIDE = Rules([Rule("*", [Quantize(activation_bits=16)])])
_TUNABLE = "a float Keras 3 model that calibration data quantize"


def _takes_int4(target: Target | None) -> bool:
    """Whether files for a target may have weights of fewer than 8 bits."""
    return target is None or "int4" in target.precisions


def _lacks_spectra(target: Target | None) -> bool:
    """Whether nothing on a target runs the operator that LiteRT has for spectra in float."""
    if target is None or "RFFT2D" in target.operators:
        return False
    return target.elsewhere is None or "float32" not in target.precisions


class Job:
    """One conversion: its settings, and what is found on the way."""

    def __init__(self, settings, strict, select_tf_ops, progress):
        self.settle(settings)
        self.strict, self.select_tf_ops = strict, select_tf_ops
        self.progress = progress or (lambda stage, done, total: None)
        self.seconds: dict[str, float] = {}
        self.reasons: dict[str, str] = {}
        self.notes: list[str] = []
        self.weights_only = self.is_trained = False
        self.divisors: set[int] = set()  # that come near 0
        self.tuned: Tuned | None = None  # the model, where it is corrected before
        self.layers: dict[str, str] = {}  # what layers were given
        self.cells: dict[int, float] = {}  # greatest values of the cell states of LSTMs
        self.kept: set[str] = set()  # tensors that are float as they were asked to be
        self.trial = Trial()
        self.model: Any = None
        self.front: FrontEnd | None = None  # what makes features of sound
        self.spared: set[int] = set()  # its tensors
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
            self.is_trained = techniques != []
            self.notes.append("activations stay float: pass calibration= to make them int8")
            parsed = self.timed("lower", self._float_file, model, False)[0]
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
        if self.precision == "dynamic_int8":
            self.notes += front_ends.notes_of_dynamic(front_ends.front_of(model))
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
            rules = self._sparing()
            made = self.batch_size, self.select_tf_ops
            prepared = None if self.tuned is None else self.tuned.prepared()
            spectral = _lacks_spectra(self.settings.target)
            found = lower.to_float(
                model, *made, integer=integer, rules=rules, prepared=prepared, spectral=spectral
            )
        self.notes += [found.note] if found.note else []
        return found

    def _rules(self) -> Rules:
        """Rules that quantize the activations of what is opened, in the bits of the precision."""
        if self.settings.layers is not None:
            return self.settings.layers.opened
        return _WIDE if self.precision == "int16x8" else EVERYWHERE

    def _sparing(self) -> Rules:
        """The same, but for the front-end of sound."""
        return sparing(self._rules(), self.front)

    def _float_file(self, model, integer: bool = True):
        return float_files.marked(self._lowering(model, integer))

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

        rules = self._sparing()
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
        if isinstance(model, keras.Model) and self.settings.layers is None:
            bits = 16 if self.precision == "int16x8" else 8
            require_no_float_loops(model, self.settings.skip, self.io_dtype, bits)
        self.front = front_ends.front_of(model)
        self._tune(model)
        parsed, known, floats, told_of = self.timed("lower", self._float_file, model)
        require_no_loops(parsed, model, self.io_dtype)
        is_trained = isinstance(model, keras.Model) and quantize_techniques(model) != []
        widths = weight_bits_of(model) if is_trained or calibration is None else None
        assigned = self._assigned(parsed, model, widths)
        if calibration is not None:
            seen = self.seen or Calibration(calibration, inputs_of(parsed), samples)
            early, wide = samples is not None, assigned.wide
            known = self.timed("calibrate", self._calibrate, parsed, model, seen, early, wide)
            self.notes += told(seen, model)
            floats |= skipped(parsed, model, self.settings.skip)
            told_of = {i: (known[i], most) for i, most in self.cells.items() if i in known}
        else:
            self._check_bits(known)
            known = {**grids.table_ranges(parsed, widths or {8}), **known}
            known = {**{i: limits for i, (limits, _) in told_of.items()}, **known}
            self.notes += extremes.lost_scores(parsed, known)
            every = ranges.spread(parsed, known, assigned.wide)
            known = {**extremes.narrow_constants(parsed, every), **known}
            self.divisors = kernel_limits.unknown_divisors(parsed, known, floats)
        floats |= self._front_tensors(parsed, model)
        own = {i: limits for i, (limits, _) in told_of.items()}
        known = ranges.spread(parsed, {**own, **known}, assigned.wide) | own
        known = ranges.with_bits(parsed, known, assigned.wide)
        forms.slice_splits(parsed, known)
        kernel_limits.widen(parsed, known)
        ranges.drop_clipped_relus(parsed, known)
        quotients = kernel_limits.wrong_quotients(parsed, known)
        self.reasons = float_reasons(parsed, known, floats, self.divisors, quotients)
        names = (flatbuffer.text(parsed.subgraphs[0].tensors[i].name) for i in self.spared)
        self.reasons.update(dict.fromkeys(names, front_ends.REASON))
        scales = {} if self.tuned is None else self._handed(parsed, self.tuned)
        floats |= quotients
        return self.timed(
            "quantize",
            quantize.static,
            parsed,
            known,
            io_dtype=self.io_dtype,
            precisions=assigned.operations,
            trained=assigned.trained,
            tensorwise=self.settings.tensorwise,
            floats=floats,
            weight_observer=self.settings.weight_observer,
            scales=scales,
            cells={i: most for i, (_, most) in told_of.items()},
            widths=widths if self.is_trained else None,
        )

    def _front_tensors(self, parsed, model) -> set[int]:
        """What makes features of sound and stays float, which is told with how to split it off."""
        self.spared = front_ends.tensors_of(parsed, model, self.front, self._rules())
        if self.spared:
            self.notes += front_ends.notes_of(self.front, self.settings.target, self.io_dtype)
        return self.spared

    def _handed(self, parsed, tuned: Tuned) -> dict[int, Any]:
        """The scales of tuned weights, by the tensors that their operators give."""
        found = assignment.handed(parsed, tuned.grids)
        lost = sorted(tuned.scales.keys() - {layer for layer, _ in found.values()})
        if lost:
            self.notes.append(
                "weights that the converter changed after they were tuned are rounded to nearest: "
                f"{', '.join(lost[:8])}{', ...' if len(lost) > 8 else ''}"
            )
        return found

    def _assigned(self, parsed, model, widths: set[int] | None) -> assignment.Assignment:
        layers, precision = self.settings.layers, self.precision
        if widths is not None:
            self.is_trained = True
            if layers is not None and _takes_int4(self.settings.target):
                precision = "mixed"  # what no rule is for is stored as it was trained
            if min(widths) <= 4 and precision == "int8":
                few = f"the {min(widths)} bits that weights were trained for are stored in 8"
                mend = ": left out, precision stores them in fewer"
                self.notes.append(few + mend * _takes_int4(self.settings.target))
            return assignment.as_trained(parsed, model, widths, precision, layers)
        if layers is None:
            return assignment.one_for_all(parsed, precision)
        found = assignment.by_layer(parsed, model, layers)
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
        states.tie(parsed, found.ranges, ranges.same_scale, wide)
        held = lstm.states_of(parsed)
        known = {i: ranges.with_zero(*r) for i, r in found.ranges.items() if i not in held}
        self.divisors = kernel_limits.drop_small_divisors(parsed, known, seen)
        bits = 16 if self.precision == "int16x8" else 8
        extremes.narrow(parsed, known, batches, bits)
        self.cells = lstm.greatest_cells(parsed, batches)
        fix_ranges(parsed, model, known, self.settings.ranges)
        self.trial.remember(parsed, content, batches)
        if self.tuned is not None:
            self.trial.expect(self.tuned.give)
        return known

    def finish(self, file, metadata) -> bytes:
        """The bytes as they ship: with versions and names that the target needs, and metadata.

        Changes `file`, which then is the `ModelT` of these bytes.
        """
        target = self.settings.target
        if target is not None and target.lower_versions:
            self.timed("lower versions", lower_versions, file)
        if target is not None and target.get("short_names"):
            shorten_names(file, self.model)
        return flatbuffer.write(file) if metadata is None else described(file, metadata)

    def with_coded_weights(self, file, metadata, report: Report) -> tuple[bytes, Report]:
        """The bytes with weights in codes, as TFLite Micro runs them, and what is told of them."""
        settings = self.settings

        def pack(made: Any) -> bytes:
            return flatbuffer.write(made) if metadata is None else described(made, metadata)

        made, data, told = self.timed(
            "code weights",
            compress_weights,
            file,
            flash=settings.flash,
            ram=settings.ram,
            inputs=self.trial.codes(file),
            name_of=namer(self.model),
            pack=pack,
        )
        found = inspect_parsed(made, data, report.path)
        return data, dataclasses.replace(
            report,
            file_bytes=len(data),
            zipped_bytes=found.zipped_bytes,
            ops=[(c.name, c.dtype, c.count) for c in found.op_counts],
            check=check_parsed(made, data, settings.target, report.path),
            seconds=self.rounded_seconds(),
            notes=[note for note in report.notes if not note.startswith(assignment.FEW_VALUES)],
            compressed=told,
        )

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
        if self.is_trained:
            self.layers, told = assignment.stored(file, self.model)
            self.notes += told
        self.notes += assignment.zeros_notes(found.sparsity, asked)
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
