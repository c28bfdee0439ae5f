"""convert for tf_keras models: a SavedModel on the way, or TFMOT's trained ranges as they are."""

import warnings
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfcompress.conversion import converters
from tfcompress.conversion.job import Job
from tfcompress.files import models, temporary
from tfcompress.legacy import MOVE, require_graph
from tfcompress.legacy.compression import finalize
from tfcompress.legacy.rebuild import wrappers_of
from tfcompress.targets.targets import io_pair
from tfcompress.tflite import flatbuffer, signature


def run_legacy(job: Job, model: Any, calibration: Any, samples: int | None) -> Any:
    """The .tflite file of a tf_keras model, as a `ModelT`."""
    require_graph(model)
    if wrappers_of(model).quantized:
        return _trained(model, job)
    plain = finalize(model)
    with temporary.folder() as folder:
        module = tf.Module()
        module.weights = plain.variables
        tf.saved_model.save(module, folder, signatures={"serve": _serve(plain, None, named=True)})
        return job.run(models.SavedModel(Path(folder)), calibration, samples)


def _trained(model, job: Job) -> Any:
    """The file of a model that TFMOT trained for quantization, with the ranges it found."""
    if job.precision != "int8":
        raise ValueError(
            f"model '{model.name}' was trained by TFMOT for int8; received precision "
            f"'{job.precision}'. Convert it with precision='int8'. {MOVE}"
        )
    plain = finalize(model)
    converter = job.timed(
        "lower", lambda: converters.from_constants(_serve(plain, job.batch_size, named=False))
    )
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    kinds = [tf.as_dtype(dtype) for dtype in io_pair(job.io_dtype)]
    converter.inference_input_type, converter.inference_output_type = kinds
    converters.allow(converter, job.select_tf_ops)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Statistics for quantized inputs")  # the model has them
        data = job.timed("convert", converters.run_converter, converter)
    parsed = flatbuffer.read(data)
    inner = {layer.name: getattr(layer, "layer", layer).name for layer in model.layers}
    outputs = [inner[name] for name in model.output_names]
    signature.name_inputs_and_outputs(parsed, model.input_names, outputs)
    return parsed


def _serve(model, batch_size: int | None, *, named: bool):
    """A tf.function of a model's inputs, one by one, that gives all its outputs."""
    specs = [
        tf.TensorSpec((batch_size, *tensor.shape[1:]), tensor.dtype, name)
        for name, tensor in zip(model.input_names, model.inputs, strict=True)
    ]

    def serve(*values):
        packed = tf.nest.pack_sequence_as(model._nested_inputs, list(values))
        outputs = tf.nest.flatten(model(packed, training=False))
        if not named:
            return outputs
        return dict(zip(model.output_names, outputs, strict=True))

    return tf.function(serve, input_signature=specs, autograph=False, jit_compile=False)
