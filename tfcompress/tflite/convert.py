"""convert: a Keras model in, a small .tflite and a report about it out."""

import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import keras
import tensorflow as tf

from tfcompress import data as samples_of
from tfcompress import files
from tfcompress.compression import is_compressed, require_advanced
from tfcompress.graph import flatten
from tfcompress.layers import Compressed, FakeQuant
from tfcompress.techniques import Quantize
from tfcompress.tflite import flatbuffer, lower, quantize, ranges, saved_model, signature
from tfcompress.tflite.inspect import inspect
from tfcompress.tflite.report import FloatOp, Report

IO_DTYPES = {
    "float32": ("float32",),
    "float16": ("float32",),
    "dynamic_int8": ("float32",),
    "int8": ("float32", "int8", "uint8"),
    "int16x8": ("float32", "int16"),
    "int4": ("float32", "int8", "uint8"),
}
PRECISIONS = tuple(IO_DTYPES)
_STATIC = ("int8", "int16x8", "int4")

Progress = Callable[[str, int, int | None], Any]


def convert(
    model,
    path,
    *,
    precision: str = "int8",
    io_dtype: str = "float32",
    calibration: Any = None,
    batch_size: int = 1,
    strict: bool = False,
    select_tf_ops: bool = False,
    samples: int | None = 500,
    progress: Progress | None = None,
) -> Report:
    """Writes a Keras model as a .tflite file.

    Args:
        model: a `keras.Model`, from `quantize_aware` or plain, or the path of a .keras, .h5 or
            SavedModel.
        path: where the file goes; it is written whole or not at all.
        precision: "float32"; "float16" (weights); "dynamic_int8" (int8 weights, activations
            quantized at run time); "int8"; "int16x8" (int16 activations); "int4" (4-bit weights of
            Conv2D and Dense, with int8 activations if their ranges are known, float otherwise).
        io_dtype: type of inputs and outputs: "float32", "int8", "uint8", or "int16" with int16x8.
        calibration: samples of the inputs, for int8, int16x8 or int4 of a model not trained with
            `quantize_aware`: a NumPy array, dict, generator or `tf.data.Dataset` of float values
            as in training; a few hundred samples serve.
        batch_size: fixed batch size of the file.
        strict: raise if an operation stays float although integers were asked for.
        select_tf_ops: allow operations of TensorFlow that LiteRT lacks (needs the Flex delegate).
        samples: how many calibration samples to use, the first ones; None uses all.
        progress: called as `progress(stage, done, total)`.

    Returns:
        A `Report`: sizes, operations, what stayed float and why, seconds.

    Raises:
        ValueError: if an argument, the model or the calibration data will not do.

    Example:
        >>> report = convert(qat, "model.tflite", precision="int8", io_dtype="int8")
    """
    _check_arguments(precision, io_dtype, batch_size)
    files.check_writable(path)
    job = _Job(precision, io_dtype, batch_size, strict, select_tf_ops, progress)
    if isinstance(model, str | bytes) or hasattr(model, "__fspath__"):
        model = job.timed("load", files.load_model, model)
    data = job.run(model, calibration, samples)
    report = job.report(path, data)
    files.atomic_write(path, data)
    return report


def float_file(model, *, batch_size: int = 1, select_tf_ops: bool = False, integer: bool = True):
    """The float .tflite of a model in the form that `int8` is made from, and its known ranges.

    Args:
        model: a `keras.Model`, compressed or not.
        batch_size: fixed batch size.
        select_tf_ops: see `convert`.
        integer: whether operations take the forms that have integer kernels.

    Returns:
        (a `ModelT` without markers, ranges by tensor index, indices of tensors of float ops).
    """
    prepared = _prepare(model) if integer else model
    names = lower.io_names(prepared)
    converter = lower.to_float(
        prepared,
        batch_size=batch_size,
        marked=integer,
        integer=integer,
        select_tf_ops=select_tf_ops,
    )
    parsed = flatbuffer.read(lower.run_converter(converter))
    known, floats = ranges.take_markers(parsed)
    signature.name_inputs_and_outputs(parsed, *names)
    return parsed, known, floats


class _Job:
    """One conversion: its settings, and what is found on the way."""

    def __init__(self, precision, io_dtype, batch_size, strict, select_tf_ops, progress):
        self.precision, self.io_dtype, self.batch_size = precision, io_dtype, batch_size
        self.strict, self.select_tf_ops = strict, select_tf_ops
        self.progress = progress or (lambda stage, done, total: None)
        self.seconds: dict[str, float] = {}
        self.reasons: dict[str, str] = {}
        self.notes: list[str] = []

    def timed(self, stage: str, function, *args, **kwargs):
        self.progress(stage, 0, None)
        start = time.perf_counter()
        result = function(*args, **kwargs)
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
        self.progress(stage, 1, 1)
        return result

    def run(self, model, calibration, samples) -> bytes:
        is_keras = isinstance(model, keras.Model)
        if not is_keras and not isinstance(model, files.SavedModel):
            raise TypeError(
                "model must be a keras.Model or the path of a .keras, .h5 or SavedModel; received "
                f"{type(model).__module__}.{type(model).__name__}."
            )
        if is_keras:
            require_advanced(model)
        if self.precision not in _STATIC:
            return self._by_converter(model)
        techniques = _quantize_techniques(model) if is_keras else []
        _require_storable(techniques)
        if any(technique.activation_bits is not None for technique in techniques):
            _require_started(model)
            _require_ranges(model)
            return self._integer(model, None, None)
        if calibration is not None:
            return self._integer(model, calibration, samples)
        if self.precision == "int4":
            self.notes.append("activations stay float: pass calibration= to make them int8")
            parsed, _, _ = self.timed("lower", self._float_file, model, False)
            trained = {technique.bits for technique in techniques}
            return self.timed("quantize", quantize.weight_only, parsed, 4, trained)
        raise ValueError(
            f"precision '{self.precision}' needs the ranges of activations: received a model "
            "without them and no calibration data. Pass calibration= (--calibration) a few hundred "
            "samples of the training inputs, or train tfcompress.quantize_aware(model) first."
        )

    def _by_converter(self, model) -> bytes:
        """float32, float16 and dynamic_int8 are TFLiteConverter's own modes."""
        converter, names = self.timed("lower", self._converter, model)
        if self.precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if self.precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        data = self.timed("convert", lower.run_converter, converter)
        parsed = flatbuffer.read(data)
        signature.name_inputs_and_outputs(parsed, *names)
        return flatbuffer.write(parsed)

    def _converter(self, model):
        if isinstance(model, files.SavedModel):
            return saved_model.converter(model.path, self.batch_size, self.select_tf_ops)
        options = {"batch_size": self.batch_size, "select_tf_ops": self.select_tf_ops}
        flat = flatten(model)
        converter = lower.to_float(flat, marked=False, integer=False, **options)
        return converter, lower.io_names(flat)

    def _float_file(self, model, integer: bool = True):
        if isinstance(model, files.SavedModel):
            converter, names = self._converter(model)
            parsed = flatbuffer.read(lower.run_converter(converter))
            known, floats = ranges.take_markers(parsed)
            signature.name_inputs_and_outputs(parsed, *names)
            return parsed, known, floats
        return float_file(
            model, batch_size=self.batch_size, select_tf_ops=self.select_tf_ops, integer=integer
        )

    def _integer(self, model, calibration, samples) -> bytes:
        parsed, known, floats = self.timed("lower", self._float_file, model)
        is_trained = isinstance(model, keras.Model) and _quantize_techniques(model) != []
        weight_bits = _weight_bits(model) if is_trained else None
        if calibration is not None:
            known = self.timed("calibrate", self._calibrate, parsed, calibration, samples)
        else:
            weight_bits = _weight_bits(model)  # 8 if nothing has weights
            self._check_bits(known)
            known = {**quantize.table_ranges(parsed, weight_bits), **known}
        known = ranges.spread(parsed, known)
        if self.precision == "int16x8":
            known = {i: ranges.Range(r.minimum, r.maximum, 16) for i, r in known.items()}
        ranges.drop_clipped_relus(parsed, known)
        self._explain(parsed, known, floats)
        return self.timed(
            "quantize",
            quantize.static,
            parsed,
            known,
            io_dtype=self.io_dtype,
            weight_bits=weight_bits,
            int4=self.precision == "int4",
            floats=floats,
        )

    def _check_bits(self, known) -> None:
        widest = max((r.bits for r in known.values()), default=8)
        if widest == 16 and self.precision != "int16x8":
            raise ValueError(
                f"the model was trained with activation_bits=16; received precision "
                f"'{self.precision}'. Convert it with precision='int16x8'."
            )

    def _calibrate(self, parsed, calibration, samples) -> dict[int, ranges.Range]:
        inputs = signature.inputs(parsed)
        data = self._counted(samples_of.batches(calibration, inputs, limit=samples))
        if self.batch_size != 1:
            data = _stacked(data, self.batch_size)
        found = quantize.calibrate(flatbuffer.write(parsed), data, "serve")
        known = {}
        for index, tensor in enumerate(parsed.subgraphs[0].tensors):
            name = tensor.name.decode()
            if name in found and tensor.type == 0 and not ranges.is_constant(parsed, index):
                low, high = min(found[name][0], 0.0), max(found[name][1], 0.0)
                known[index] = ranges.Range(low, max(high, low + 1e-6))
        return known

    def _counted(self, batches: Iterable):
        for number, batch in enumerate(batches):
            self.progress("calibrate", number, None)
            yield batch

    def _explain(self, parsed, known, floats) -> None:
        """Remembers why operations will stay float, by the name of their output."""
        tensors = parsed.subgraphs[0].tensors
        for op in parsed.subgraphs[0].operators:
            activations = ranges.floats_of(parsed, op)
            reason = "LiteRT has no integer kernel that is used for it"
            if any(i in floats for i in op.outputs):
                reason = "left out of the recipe, or without an integer kernel"
            elif any(i not in known for i in activations):
                reason = "the range of one of its tensors is not known"
            for index in op.outputs:
                self.reasons[tensors[index].name.decode()] = reason

    def report(self, path, data: bytes) -> Report:
        found = inspect(data)
        float_ops: list[FloatOp] = []
        if self.precision in _STATIC and not any("activations stay float" in n for n in self.notes):
            names = {(t.subgraph, t.index): t.name for t in found.tensors}
            for op in found.operators:
                if op.name in ("QUANTIZE", "DEQUANTIZE") or "float" not in op.dtype:
                    continue
                tensor = names.get((op.subgraph, op.outputs[0]), "") if op.outputs else ""
                reason = self.reasons.get(
                    tensor, "LiteRT has no integer kernel that is used for it"
                )
                float_ops.append(FloatOp(op.name, tensor, reason))
        if float_ops and self.strict:
            listed = "; ".join(f"{f.op} at '{f.tensor[:60]}' ({f.reason})" for f in float_ops[:5])
            raise ValueError(
                f"strict=True and {len(float_ops)} operations would stay float: {listed}. Replace "
                "those layers, or convert without strict. Nothing was written."
            )
        if any(op.name == "HARD_SWISH" and op.dtype == "int8" for op in found.operators):
            self.notes.append(
                "HARD_SWISH in int8 splits XNNPACK's delegation, which is slow on phones' CPUs: "
                "relu6 is faster"
            )
        return Report(
            path=str(path),
            precision=self.precision,
            io_dtype=self.io_dtype,
            file_bytes=len(data),
            zipped_bytes=found.zipped_bytes,
            ops=[(c.name, c.dtype, c.count) for c in found.op_counts],
            float_ops=float_ops,
            notes=self.notes,
            seconds={name: round(value, 3) for name, value in self.seconds.items()},
        )


def _prepare(model: keras.Model) -> keras.Model:
    """A plain float model with its layers opened into what has integer kernels."""
    if is_compressed(model):
        return model
    from tfcompress.compression import open_layers

    return open_layers(model)


def _quantizers(model) -> list[FakeQuant]:
    return [layer for layer in model._flatten_layers() if isinstance(layer, FakeQuant)]


def _quantize_techniques(model) -> list[Quantize]:
    """The `Quantize` of every layer with weights, and one for ranges that have no weights."""
    found = [
        technique
        for layer in model._flatten_layers()
        if isinstance(layer, Compressed)
        for technique in layer.techniques
        if isinstance(technique, Quantize)
    ]
    return found + [Quantize()] * bool(_quantizers(model) and not found)


def _require_storable(techniques: list[Quantize]) -> None:
    widest = max((technique.bits for technique in techniques), default=8)
    if widest > 8:
        raise ValueError(
            f"the model must be trained with weights of 8 bits or fewer; received bits={widest}. "
            "Train it with bits=8, or convert it with precision='float32'."
        )


def _require_started(model) -> None:
    """Raises if training ended before quantization set in."""
    for layer in model._flatten_layers():
        techniques = getattr(layer, "techniques", ())
        delay = max((t.delay for t in techniques if isinstance(t, Quantize)), default=0)
        if int(getattr(layer, "last_step", delay)) < delay:
            raise ValueError(
                f"layer '{layer.name}' is quantized from step {delay} on; received a model trained "
                f"for {int(layer.last_step)} steps. Train it longer, or with a smaller delay."
            )


def _require_ranges(model) -> None:
    unseen = [
        layer.name.removesuffix("_range")
        for layer in _quantizers(model)
        if layer.fixed is None and not (float(layer.limits()[1]) > float(layer.limits()[0]))
    ]
    if unseen and len(unseen) == len([q for q in _quantizers(model) if q.fixed is None]):
        raise ValueError(
            f"the activation ranges of model '{model.name}' were never observed: received an "
            "untrained model. Fit it for a few steps first, or convert the float model with "
            "calibration=."
        )
    if unseen:
        warnings.warn(
            f"these activations were always 0 while training: {', '.join(unseen[:10])}.",
            stacklevel=4,
        )


def _weight_bits(model) -> set[int]:
    return {technique.bits for technique in _quantize_techniques(model)} or {8}


def _stacked(samples: Iterable[dict], size: int):
    """Batches of `size` samples; the last one is filled up by repeating its last sample."""
    import numpy as np

    kept: list[dict] = []
    for sample in samples:
        kept.append(sample)
        if len(kept) == size:
            yield {name: np.concatenate([k[name] for k in kept]) for name in sample}
            kept = []
    if kept:
        kept += [kept[-1]] * (size - len(kept))
        yield {name: np.concatenate([k[name] for k in kept]) for name in kept[0]}


def _check_arguments(precision: str, io_dtype: str, batch_size: int) -> None:
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision must be one of {', '.join(PRECISIONS)}; received {precision!r}."
        )
    if io_dtype not in IO_DTYPES[precision]:
        raise ValueError(
            f"io_dtype must be one of {', '.join(IO_DTYPES[precision])} with precision "
            f"'{precision}'; received {io_dtype!r}."
        )
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be an integer of 1 or more; received {batch_size!r}.")
