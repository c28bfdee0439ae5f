"""Runs a .tflite file with LiteRT's reference kernels, and with the kernels it takes by itself."""

import platform

import numpy as np
from answering import answer


def run(samples, settings, log):
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    made = {}
    for kind in ("BUILTIN_REF", "AUTO"):
        interpreter = Interpreter(
            "model.tflite", experimental_op_resolver_type=getattr(OpResolverType, kind)
        )
        interpreter.allocate_tensors()
        made[kind] = [_run(interpreter, sample) for sample in samples]
    kernels = "XNNPACK" if "XNNPACK delegate" in log.text() else "optimized"
    # Both after one another; the caller takes them apart.
    outputs = [[*a, *b] for a, b in zip(made["BUILTIN_REF"], made["AUTO"], strict=True)]
    return outputs, {"machine": platform.machine(), "kernels": kernels, "numpy": np.__version__}


def _run(interpreter, sample):
    for entry, value in zip(interpreter.get_input_details(), sample, strict=True):
        interpreter.set_tensor(entry["index"], value)
    interpreter.invoke()
    return [interpreter.get_tensor(entry["index"]) for entry in interpreter.get_output_details()]


if __name__ == "__main__":
    answer(run)
