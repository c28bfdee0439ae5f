"""Float files of TensorFlow functions, before anything is made of them."""

import tensorflow as tf

from tfcompress.tflite import flatbuffer


def float_model(function, *shapes):
    """A parsed float file of a TensorFlow function."""
    specs = [tf.TensorSpec(shape, name=f"x{n}") for n, shape in enumerate(shapes)]
    concrete = tf.function(function, input_signature=specs).get_concrete_function()
    return flatbuffer.read(tf.lite.TFLiteConverter.from_concrete_functions([concrete]).convert())


def ops_of(model) -> list[str]:
    return [flatbuffer.op_name(model, op) for op in model.subgraphs[0].operators]


def run(model, *values):
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_content=bytes(flatbuffer.write(model)))
    runner.allocate_tensors()
    for entry, value in zip(runner.get_input_details(), values, strict=True):
        runner.set_tensor(entry["index"], value)
    runner.invoke()
    return [runner.get_tensor(entry["index"]) for entry in runner.get_output_details()]
