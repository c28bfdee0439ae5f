"""Reads a .tflite file with OpenVINO, runs it, and saves it as OpenVINO IR."""

import os

from answering import answer


def run(samples, settings, log):
    import openvino

    core = openvino.Core()
    model = core.read_model("model.tflite")
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
    kinds = [op.get_type_name() for op in model.get_ops()]
    figures = {"ops": sum(k not in ("Constant", "Parameter", "Result") for k in kinds)}
    figures["FakeQuantize"] = kinds.count("FakeQuantize")
    if settings["save"]:
        figures["bytes"] = sum(os.path.getsize(f"model.{end}") for end in ("xml", "bin"))
        weights = {str(op.get_element_type().to_string()) for op in _weights(model)}
        figures["weights"] = " ".join(sorted(weights))
    return outputs, figures


def _weights(model):
    constants = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
    return [op for op in constants if sum(n > 1 for n in op.shape) > 1]


if __name__ == "__main__":
    answer(run)
