"""What becomes of a model of the zoo: each stage measured, or the error that it ended with."""

import importlib
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree
from litert_quantizer import quantizer, recipe
from zoo.backbones import BUILDERS, Backbone

import tfcompress as tfc
from tfcompress.conversion.report import Report
from tfcompress.graph.inputs import inputs_of
from tfcompress.quantization.opening import output_names
from tfcompress.tflite.run import quiet

FOLDER = Path(__file__).parent
NAMES = sorted(path.stem for path in (FOLDER / "models").glob("[a-z]*.py"))

# Samples to calibrate and to set ranges with, and those that outputs are compared on.
CALIBRATION, TESTED = 32, 16


class Subject:
    """A model of the zoo with samples of its inputs; statistics of BatchNormalization are set."""

    def __init__(self, name: str):
        if name in BUILDERS:
            module: Any = Backbone(name)
            self.what = "KerasHub: the backbone"
        else:
            module = importlib.import_module(f"zoo.models.{name}")
            self.what = (module.__doc__ or "").rstrip(".")
        self.name = name
        keras.utils.set_random_seed(0)
        start = time.perf_counter()
        self.model: keras.Model = module.build()
        self.build_s = time.perf_counter() - start
        self.inputs = getattr(module, "STRUCT", None)
        self.batch = getattr(module, "BATCH", 8)
        rng = np.random.default_rng(0)
        self.samples = self._samples(module, CALIBRATION, rng)
        self.test = self._samples(module, TESTED, rng)
        self._set_statistics()
        self.expected = self.run(self.model)

    def _samples(self, module, count: int, rng) -> Any:
        if hasattr(module, "data"):
            return module.data(count, rng)
        struct = self.inputs if self.inputs is not None else inputs_of(self.model)[0]

        def values(tensor):
            shape = (count, *(d or getattr(module, "FREE", 16) for d in tensor.shape[1:]))
            if "float" in tensor.dtype:
                limits = getattr(module, "UNIFORM", None)
                drawn = rng.uniform(*limits, shape) if limits else rng.normal(size=shape)
                return drawn.astype("float32")
            bound = getattr(module, "INTS", {}).get(tensor.name, 50)
            return rng.integers(0, bound, shape).astype(tensor.dtype)

        return tree.map_structure(values, struct)

    def _set_statistics(self) -> None:
        """Activations get the ranges of a trained model."""
        norms = [
            layer
            for layer in self.model._flatten_layers()
            if isinstance(layer, keras.layers.BatchNormalization)
        ]
        momenta = [layer.momentum for layer in norms]
        for layer in norms:
            layer.momentum = 0.0
        if norms:
            self.model(tree.map_structure(lambda x: x[:16], self.samples), training=True)
        for layer, momentum in zip(norms, momenta, strict=True):
            layer.momentum = momentum

    def batches(self, data: Any, size: int) -> Iterator[Any]:
        """The samples, so many at once."""
        for start in range(0, len(tree.flatten(data)[0]), size):
            yield tree.map_structure(lambda x, i=start: x[i : i + size], data)

    def run(self, model: keras.Model) -> list[np.ndarray]:
        """Outputs on the samples for comparison."""
        found = [
            [np.asarray(y) for y in tree.flatten(model(batch, training=False))]
            for batch in self.batches(self.test, 4)
        ]
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]

    def listed(self, data: Any) -> Any:
        """Samples as `convert` and `verify` take them: one array, a dict, or a list."""
        return data if isinstance(data, dict | np.ndarray) else tree.flatten(data)


def measure(
    name: str, stages: Iterable[str] = (), tell: Callable[[dict[str, Any]], Any] = bool
) -> dict[str, Any]:
    """What each stage found: its figures, or {"error": what it raised}.

    Args:
        name: of a file in `models/`, or of a backbone.
        stages: which of `STAGES`, in their order; all by default.
        tell: called after each stage with what was found so far.
    """
    subject = Subject(name)
    found: dict[str, Any] = {"name": name, "what": subject.what, "build_s": subject.build_s}
    found["parameters"] = subject.model.count_params()
    with tempfile.TemporaryDirectory() as folder:
        state: dict[str, Any] = {"folder": Path(folder)}
        for stage in list(stages) or list(STAGES):
            start = time.perf_counter()
            try:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    found[stage] = STAGES[stage](subject, state)
                told = [str(w.message) for w in caught if "tfcompress" in str(w.filename)]
                found[stage]["told"] = told
            except Exception as error:  # What a stage ends with is what is measured.
                text = " ".join(str(error).split())
                found[stage] = {"error": f"{type(error).__name__}: {text[:300]}"}
            found[stage]["seconds"] = time.perf_counter() - start
            tell(found)
    return found


def _flatten(subject: Subject, state: dict[str, Any]) -> dict[str, Any]:
    """Whether the flat copy computes the same: greatest difference, relative to the outputs."""
    flat = state["flat"] = tfc.flatten(subject.model, inputs=subject.inputs)
    pairs = list(zip(subject.expected, subject.run(flat), strict=True))
    size = max(float(np.max(np.abs(wanted))) for wanted, _ in pairs)
    difference = max(float(np.max(np.abs(wanted - got))) for wanted, got in pairs)
    return {"difference": difference / max(size, 1e-12)}


def _qat(subject: Subject, state: dict[str, Any]) -> dict[str, Any]:
    """A step of quantization-aware training, and a pass over the samples for the ranges."""
    start = time.perf_counter()
    qat = tfc.quantize_aware(subject.model, inputs=subject.inputs)
    seconds = time.perf_counter() - start
    rng = np.random.default_rng(1)
    first = next(subject.batches(subject.samples, subject.batch))
    outputs = qat(first, training=False)
    wanted = tree.map_structure(lambda y: rng.normal(0, 0.1, y.shape).astype("float32"), outputs)
    loss = tree.map_structure(lambda y: "mse", outputs)
    qat.compile(keras.optimizers.Adam(1e-4), loss=loss, jit_compile=False)
    history = qat.fit(first, wanted, batch_size=subject.batch, verbose=0).history
    for batch in subject.batches(subject.samples, subject.batch):
        qat(batch, training=True)
    state["qat"] = qat
    return {"copy_s": seconds, "finite": bool(np.isfinite(history["loss"][0]))}


def _file(subject: Subject, state: dict[str, Any]) -> dict[str, Any]:
    """The int8 file of the trained model, and how far it is from what was trained."""
    path = state["folder"] / "qat.tflite"
    report = tfc.convert(state["qat"], path, precision="int8")
    return {**_operators(report), **_compared(state["qat"], path, subject)}


def _ptq(subject: Subject, state: dict[str, Any]) -> dict[str, Any]:
    """The int8 file of the plain model, and how far it is from that."""
    path = state["folder"] / "ptq.tflite"
    calibration = subject.listed(subject.samples)
    report = tfc.convert(_plain(subject, state), path, precision="int8", calibration=calibration)
    return {**_operators(report), **_compared(_plain(subject, state), path, subject)}


def _converter(subject: Subject, state: dict[str, Any]) -> dict[str, Any]:
    """The same by TensorFlow's own TFLiteConverter."""
    path = state["folder"] / "converter.tflite"
    converter = _tensorflow(subject, state)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    flat = tree.flatten(subject.samples)
    converter.representative_dataset = lambda: (
        {name: x[i : i + 1] for name, x in zip(_names(state["flat"]), flat, strict=True)}
        for i in range(CALIBRATION)
    )
    with quiet():
        path.write_bytes(converter.convert())
    return {**_inspected(path), **_compared(_plain(subject, state), path, subject)}


def _quantizer(subject: Subject, state: dict[str, Any]) -> dict[str, Any]:
    """The same by litert-quantizer, from TFLiteConverter's float file."""
    path = state["folder"] / "quantizer.tflite"
    with quiet():
        data = _tensorflow(subject, state).convert()
        other = quantizer.Quantizer(bytearray(data), recipe.static_wi8_ai8())
        flat = tree.flatten(subject.samples)
        names = _names(state["flat"])
        samples = [
            {name: x[i : i + 1] for name, x in zip(names, flat, strict=True)}
            for i in range(CALIBRATION)
        ]
        ranges = other.calibrate({"serving_default": samples})
        path.write_bytes(other.quantize(ranges).quantized_model)
    return {**_inspected(path), **_compared(_plain(subject, state), path, subject)}


def _prune(subject: Subject, state: dict[str, Any]) -> dict[str, Any]:
    """Half of the multiplications gone by removing channels."""
    pruned = tfc.prune_channels(_plain(subject, state), macs=0.5)
    shapes = [y.shape for y in subject.run(pruned)]
    parameters = pruned.count_params() / max(subject.model.count_params(), 1)
    before, after = pruned.surgery_report.macs
    same = shapes == [y.shape for y in subject.expected]
    return {"parameters": parameters, "macs": after / before, "same": same}


STAGES: dict[str, Callable[[Subject, dict[str, Any]], dict[str, Any]]] = {
    "flatten": _flatten,
    "qat": _qat,
    "file": _file,
    "ptq": _ptq,
    "prune": _prune,
    "quantizer": _quantizer,
    "converter": _converter,  # the last one: loops end its process
}


def _plain(subject: Subject, state: dict[str, Any]) -> keras.Model:
    """The model itself; its flat copy where only that knows the inputs."""
    return subject.model if subject.inputs is None else state["flat"]


def _names(flat: keras.Model) -> list[str]:
    return [tensor.name for tensor in tree.flatten(flat._inputs_struct)]


def _tensorflow(subject: Subject, state: dict[str, Any]) -> tf.lite.TFLiteConverter:
    """TFLiteConverter of a SavedModel with a batch of one."""
    flat = state["flat"]
    specs = [
        tf.TensorSpec((1, *x.shape[1:]), x.dtype, name=name)
        for name, x in zip(_names(flat), tree.flatten(subject.samples), strict=True)
    ]

    @tf.function(input_signature=specs, jit_compile=False)
    def serve(*values):
        packed = tree.pack_sequence_as(flat._inputs_struct, list(values))
        outputs = tree.flatten(flat(packed, training=False))
        return dict(zip(output_names(flat), outputs, strict=True))

    module = tf.Module()
    module.kept, module.serve = [v.value for v in flat.variables], serve
    folder = str(state["folder"] / "saved")
    tf.saved_model.save(module, folder, signatures={"serving_default": serve})
    return tf.lite.TFLiteConverter.from_saved_model(folder)


def _operators(report: Report) -> dict[str, Any]:
    """Operators that stayed float, with the reasons told, and whether there are loops."""
    floats = Counter(entry.op for entry in report.float_ops)
    told = sorted({f"{entry.op}: {entry.reason}" for entry in report.float_ops})
    loops = sum(count for name, _, count in report.ops if name in ("WHILE", "IF"))
    return {"floats": dict(floats), "reasons": told, "loops": loops}


def _inspected(path: Path) -> dict[str, Any]:
    idle = ("QUANTIZE", "DEQUANTIZE")
    operators = [op for op in tfc.inspect(path).operators if op.name not in idle]
    return {"floats": dict(Counter(op.name for op in operators if "float" in op.dtype))}


def _compared(model: keras.Model, path: Path, subject: Subject) -> dict[str, Any]:
    """The worst of the outputs; `kernels` is what LiteRT's own kernels differ by."""
    outputs = tfc.verify(model, path, subject.listed(subject.test)).outputs
    agreements = [o.keras.agreement for o in outputs if o.keras.agreement is not None]
    return {
        "sqnr_db": min(o.keras.sqnr_db for o in outputs),
        "steps": max(o.keras.max_lsb for o in outputs),
        "kernels": max(o.xnnpack.max_lsb for o in outputs),
        "agreement": min(agreements, default=None),
    }
