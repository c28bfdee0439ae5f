"""Runs a .tflite file with another tool, in the environment of that tool; needs NumPy alone.

    python run.py FUNCTION

FUNCTION is one of `RUNS`. It finds its task in the current folder and leaves its answer there, see
`tfcompress.tools.driving.drive`.
"""

import contextlib
import json
import os
import platform
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

MODEL = "model.tflite"
SECONDS = 60


class Log:
    """What a tool writes to standard error, from C++ too."""

    def __init__(self):
        self._file = tempfile.TemporaryFile()  # noqa: SIM115, open until the end
        os.dup2(self._file.fileno(), 2)

    def text(self):
        self._file.seek(0)
        return self._file.read().decode("utf-8", "replace")


# Each takes samples as lists of arrays, a dict of settings and the log, and returns the outputs as
# a list of lists of arrays, and a dict of figures.


def run_litert(samples, settings, log):
    """LiteRT with its reference kernels, and with the kernels that it takes by itself."""
    made = {}
    for kind in ("BUILTIN_REF", "AUTO"):
        interpreter = _interpreter(kind)
        made[kind] = [_interpret(interpreter, sample) for sample in samples]
    kernels = "XNNPACK" if "XNNPACK delegate" in log.text() else "optimized"
    # Both after one another; the caller takes them apart.
    outputs = [[*a, *b] for a, b in zip(made["BUILTIN_REF"], made["AUTO"], strict=True)]
    return outputs, {"machine": platform.machine(), "kernels": kernels, "numpy": np.__version__}


def _interpreter(kind):
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(MODEL, experimental_op_resolver_type=getattr(OpResolverType, kind))
    interpreter.allocate_tensors()
    return interpreter


def _interpret(interpreter, sample):
    for entry, value in zip(interpreter.get_input_details(), sample, strict=True):
        interpreter.set_tensor(entry["index"], value)
    interpreter.invoke()
    return [interpreter.get_tensor(entry["index"]) for entry in interpreter.get_output_details()]


def run_mediapipe(samples, settings, log):
    """MediaPipe's image classifier, which takes normalization and labels from the metadata."""
    import mediapipe
    from mediapipe.tasks.python import BaseOptions, vision

    options = vision.ImageClassifierOptions(base_options=BaseOptions(model_asset_path=MODEL))
    outputs, labels = [], {}
    with vision.ImageClassifier.create_from_options(options) as classifier:
        for (pixels,) in samples:
            image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=pixels[0])
            found = classifier.classify(image).classifications[0].categories
            scores = np.full(settings["classes"], np.nan)
            for category in found:
                scores[category.index] = category.score
                labels[category.index] = category.category_name
            outputs.append([scores])
    return outputs, {"labels": json.dumps(labels)}


def run_tflite_support(samples, settings, log):
    """A file's metadata as tflite-support reads it."""
    from tflite_support import metadata

    shown = metadata.MetadataDisplayer.with_model_file(MODEL)
    names = shown.get_packed_associated_file_list()
    files = {name: shown.get_associated_file_buffer(name).decode() for name in names}
    return [], {"metadata": shown.get_metadata_json(), "files": json.dumps(files)}


def run_onnx(samples, settings, log):
    """ONNX Runtime, on the file as tf2onnx brings it to ONNX."""
    # tf2onnx imports TensorFlow.
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="")
    import onnx
    import onnxruntime
    from tf2onnx import convert

    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        convert.from_tflite(MODEL, opset=settings["opset"], output_path="model.onnx")
    model = onnx.load("model.onnx")
    if settings["half"]:
        _store_halves(onnx, model)
        onnx.save(model, "model.onnx")
    onnx.checker.check_model(model)
    ops = Counter(node.op_type for node in model.graph.node)
    stored = Counter()
    for tensor in model.graph.initializer:
        if len(tensor.dims) > 1:
            stored[onnx.TensorProto.DataType.Name(tensor.data_type).lower()] += 1
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    outputs = [session.run(None, dict(zip(names, sample, strict=True))) for sample in samples]
    figures = {"ops": sum(ops.values()), "bytes": os.path.getsize("model.onnx")}
    figures["QuantizeLinear"] = ops["QuantizeLinear"]
    figures["DequantizeLinear"] = ops["DequantizeLinear"]
    figures["weights"] = " ".join(sorted(stored))
    return outputs, figures


def _store_halves(onnx, model):
    """Store what 16 bits hold in 16 bits; the runtime widens it when it loads the file."""
    graph, casts = model.graph, []
    for tensor in graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < 2:
            continue
        halves = values.astype(np.float16)
        if np.array_equal(halves.astype(np.float32), values):
            name, stored = tensor.name, f"{tensor.name}_float16"
            tensor.CopyFrom(onnx.numpy_helper.from_array(halves, stored))
            casts.append(onnx.helper.make_node("Cast", [stored], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def run_openvino(samples, settings, log):
    """OpenVINO, which can save the file as OpenVINO IR."""
    import openvino

    core = openvino.Core()
    model = core.read_model(MODEL)
    if settings["save"]:
        # Weights stay as they are; the default would round floats to 16 bits.
        openvino.save_model(model, "model.xml", compress_to_fp16=False)
        # What is run is what was saved.
        model = core.read_model("model.xml")
    # Without it some processors compute in bfloat16.
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    outputs = []
    for sample in samples:
        result = compiled(sample)
        outputs.append([result[port] for port in compiled.outputs])
    ops = model.get_ops()
    kinds = [op.get_type_name() for op in ops]
    figures = {"ops": sum(k not in ("Constant", "Parameter", "Result") for k in kinds)}
    figures["FakeQuantize"] = kinds.count("FakeQuantize")
    if settings["save"]:
        figures["bytes"] = sum(os.path.getsize(f"model.{end}") for end in ("xml", "bin"))
        constants = [op for op, kind in zip(ops, kinds, strict=True) if kind == "Constant"]
        weights = [op for op in constants if sum(n > 1 for n in op.shape) > 1]
        stored = {str(op.get_element_type().to_string()) for op in weights}
        figures["weights"] = " ".join(sorted(stored))
    return outputs, figures


def run_tflm(samples, settings, log):
    """TFLite Micro."""
    from tflite_micro.python.tflite_micro import runtime

    data = Path(MODEL).read_bytes()
    interpreter = runtime.Interpreter.from_bytes(data, arena_size=settings["arena"])
    outputs = []
    for sample in samples:
        for place, value in enumerate(sample):
            interpreter.set_input(value, place)
        interpreter.invoke()
        outputs.append([interpreter.get_output(i) for i in range(settings["outputs"])])
    return outputs, {}


def measure_tflm(samples, settings, log):
    """The smallest arena in which TFLite Micro plans and runs a file.

    What an allocator has handed out at the end is no answer: planning needs memory that it gives
    back, sometimes more than all the tensors.
    """
    from tflite_micro.python.tflite_micro import runtime

    data = Path(MODEL).read_bytes()

    def try_out(size):
        interpreter = runtime.Interpreter.from_bytes(data, arena_size=size)
        for i in range(settings["inputs"]):
            details = interpreter.get_input_details(i)
            interpreter.set_input(np.zeros(details["shape"], details["dtype"]), i)
        interpreter.invoke()

    low, high = 16, settings["arena"]
    if not _works(try_out, high):
        raise RuntimeError(log.text()[:400] or f"it crashes, or takes more than {SECONDS} s")
    while low < high:
        middle = (low + high) // 32 * 16
        low, high = (low, middle) if _works(try_out, middle) else (middle + 16, high)
    return [], {"arena bytes": high}


def _works(try_out, size):
    """Whether an arena is large enough; in a process of its own, as too small a one may crash."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    signal.alarm(SECONDS)
    try:
        try_out(size)
        os._exit(0)
    except Exception as error:
        os.write(2, str(error).encode())
    finally:
        os._exit(1)


RUNS = (
    *(run_litert, run_mediapipe, run_tflite_support),
    *(run_onnx, run_openvino, run_tflm, measure_tflm),
)
# How many lines of the log are told with an error.
LOGGED = {run_tflm: 2}


def answer(run):
    """Do the task in the current folder."""
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
        said = said[len(said) - LOGGED.get(run, 0) :]
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


if __name__ == "__main__":
    answer({run.__name__: run for run in RUNS}[sys.argv[1]])
