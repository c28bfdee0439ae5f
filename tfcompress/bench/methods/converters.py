"""Post-training quantization by TFLiteConverter and by litert-quantizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tfcompress.tflite.run import quiet

if TYPE_CHECKING:
    from tfcompress.bench.methods.run import Run


def float16(run: Run) -> None:
    """TFLiteConverter with float16 weights."""
    twin = run.twin
    run.write(lambda: by_converter(twin, half=True), kept=twin)


def dynamic_int8(run: Run) -> None:
    """TFLiteConverter with int8 weights, activations quantized as they come."""
    twin = run.twin
    run.write(lambda: by_converter(twin), kept=twin)


def ptq_int8(run: Run) -> None:
    """TFLiteConverter with representative data."""
    twin, samples = run.twin, run.calibration
    run.write(lambda: int8_by_converter(twin, samples), kept=twin)


def aeq_int8(run: Run) -> None:
    """The static recipe of litert-quantizer: int8 weights and activations."""
    twin, samples = run.twin, run.calibration
    run.write(lambda: by_quantizer(twin, samples, weight_bits=8), kept=twin)


def aeq_int4(run: Run) -> None:
    """The same with 4-bit weights in Conv2D and Dense, where LiteRT has kernels for them."""
    twin, samples = run.twin, run.calibration
    run.write(lambda: by_quantizer(twin, samples, weight_bits=4), kept=twin)


def by_converter(model: Any, half: bool = False) -> bytes:
    """A file of float activations: int8 weights, or of 16 bits with `half`."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if half:
        converter.target_spec.supported_types = [tf.float16]
    return _quietly(converter)


def int8_by_converter(model: Any, samples: np.ndarray | None) -> bytes:
    """A file of int8 weights, activations, inputs and outputs."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if samples is not None:
        converter.representative_dataset = lambda: ([sample[None]] for sample in samples)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return _quietly(converter)


def by_quantizer(model: Any, samples: np.ndarray, weight_bits: int) -> bytes:
    """A file by litert-quantizer from the float file of a tf_keras model."""
    import tensorflow as tf
    from litert_quantizer import qtyping, quantizer, recipe

    float_file = _quietly(tf.lite.TFLiteConverter.from_keras_model(model))
    maker = quantizer.Quantizer(float_file, recipe.static_wi8_ai8())
    if weight_bits != 8:
        for name in (qtyping.TFLOperationName.CONV_2D, qtyping.TFLOperationName.FULLY_CONNECTED):
            maker.add_static_config(".*", name, 8, weight_bits)
    (signature, entry), *_ = _signatures(float_file).items()
    # All at once: its ranges are moving averages over batches, which cut off what is rare.
    found = maker.calibrate({signature: [{entry: samples}]})
    return bytes(maker.quantize(found).quantized_model)


def _signatures(float_file: bytes) -> dict[str, str]:
    """The name of the first input of each signature."""
    from ai_edge_litert.interpreter import Interpreter

    known = Interpreter(model_content=float_file).get_signature_list()
    return {name: told["inputs"][0] for name, told in known.items()}


def _quietly(converter: Any) -> bytes:

    with quiet():
        return converter.convert()
