"""Turns a .tflite file into ONNX by tf2onnx and runs it with ONNX Runtime."""

import contextlib
import os
from collections import Counter

import numpy as np
from answering import answer

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""


def run(samples, settings, log):
    import onnx
    import onnxruntime
    from tf2onnx import convert

    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        convert.from_tflite("model.tflite", opset=settings["opset"], output_path="model.onnx")
    model = onnx.load("model.onnx")
    if settings["half"]:
        store_halves(onnx, model)
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


def store_halves(onnx, model):
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


if __name__ == "__main__":
    answer(run)
