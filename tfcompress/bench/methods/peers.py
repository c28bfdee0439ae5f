"""The methods of peers: TFLiteConverter, litert-quantizer and TensorFlow Model Optimization.

Those of TFMOT are on tf_keras, as its guides write them. Where its defaults do badly in a short
training, it gets what mends that: see the comments.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from tfcompress.bench.methods.run import Make, drop_nothing
from tfcompress.legacy import import_tf_keras, import_tfmot
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


def aeq(weight_bits: int, algorithm: str = "MIN_MAX_UNIFORM_QUANT") -> Make:
    """The static recipe of litert-quantizer: int8 activations, and weights of some bits.

    Args:
        weight_bits: of Conv2D and Dense; those of other layers are of 8.
        algorithm: by which it finds scales of weights.
    """

    def make(run: Run) -> None:
        twin, samples = run.twin, run.calibration
        run.write(lambda: by_quantizer(twin, samples, weight_bits, algorithm), kept=twin)

    return make


def by_converter(model: Any, half: bool = False) -> bytes:
    """A file of float activations: int8 weights, or of 16 bits with `half`."""
    import tensorflow as tf

    converter = _converter(model)
    if half:
        converter.target_spec.supported_types = [tf.float16]
    return _quietly(converter)


def int8_by_converter(model: Any, samples: np.ndarray | None) -> bytes:
    """A file of int8 weights, activations, inputs and outputs."""
    import tensorflow as tf

    converter = _converter(model)
    if samples is not None:
        converter.representative_dataset = lambda: ([sample[None]] for sample in samples)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return _quietly(converter)


def _converter(model: Any) -> Any:
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return converter


def by_quantizer(model: Any, samples: np.ndarray, weight_bits: int, algorithm: str) -> bytes:
    """A file by litert-quantizer from the float file of a tf_keras model."""
    import tensorflow as tf
    from litert_quantizer import qtyping, quantizer, recipe
    from litert_quantizer.algorithm_manager import AlgorithmName

    names, channels = qtyping.TFLOperationName, qtyping.QuantGranularity.CHANNELWISE
    float_file = _quietly(tf.lite.TFLiteConverter.from_keras_model(model))
    maker = quantizer.Quantizer(float_file, recipe.static_wi8_ai8())
    for name, bits in (
        (names.DEPTHWISE_CONV_2D, 8),
        (names.CONV_2D, weight_bits),
        (names.FULLY_CONNECTED, weight_bits),
    ):
        maker.add_static_config(".*", name, 8, bits, channels, AlgorithmName[algorithm])
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


# The share of the steps in which weights go, as for ours, and how often they do.
_PRUNED, _UPDATES = 0.3, 15

# Shares of the steps of PCQAT: pruning and clustering; quantization takes the rest. Weights go in
# most of the first stage, as the others recover what that cost.
_PRUNING, _CLUSTERING, _PRUNED_OF_STAGE = 0.4, 0.3, 0.75

# Weight of a batch in the moving average of ranges, which has no setting.
_EMA = 0.001


def qat_int8(run: Run) -> None:
    """Quantization-aware training."""
    _quantize_aware(run, run.twin)


def prune_int8(sparsity: float) -> Make:
    """Pruning, then post-training quantization."""
    return lambda run: _post_quantized(run, _pruned(run, run.twin, sparsity, run.tuning.steps))


def cluster_int8(clusters: int) -> Make:
    """Clustering, then post-training quantization."""
    return lambda run: _post_quantized(run, _clustered(run, run.twin, clusters, run.tuning.steps))


def pcqat_int8(sparsity: float, clusters: int) -> Make:
    """Pruning, clustering that keeps zeros, quantization that keeps both: one after another."""

    def make(run: Run) -> None:
        steps = run.tuning.steps
        pruning, clustering = round(steps * _PRUNING), round(steps * _CLUSTERING)
        model = _pruned(run, run.twin, sparsity, pruning, _PRUNED_OF_STAGE)
        model = _clustered(run, model, clusters, clustering, preserve_sparsity=True)
        _quantize_aware(run, model, steps - pruning - clustering, keep=True)

    return make


def _pruned(run: Run, model: Any, sparsity: float, steps: int, share: float = _PRUNED) -> Any:
    keras = import_tfmot().sparsity.keras
    frequency = max(1, round(share * steps / _UPDATES))
    # The last update must fall on a multiple of the frequency.
    end = max(1, round(share * steps) // frequency) * frequency
    schedule = keras.PolynomialDecay(0.0, sparsity, 0, end, frequency=frequency)
    drop_nothing(model)
    pruned = keras.prune_low_magnitude(model, schedule)
    run.fit(pruned, [keras.UpdatePruningStep()], steps)
    return keras.strip_pruning(pruned)


def _clustered(
    run: Run, model: Any, clusters: int, steps: int, preserve_sparsity: bool = False
) -> Any:
    drop_nothing(model)
    under = clustered(model, clusters, preserve_sparsity)
    run.fit(under, steps=steps)
    return import_tfmot().clustering.keras.strip_clustering(under)


def clustered(model: Any, clusters: int, preserve_sparsity: bool = False) -> Any:
    """A tf_keras model with its convolutions and Dense layers under TFMOT's clustering."""
    from tensorflow_model_optimization.python.core.clustering.keras.experimental import cluster

    tf_keras = import_tf_keras()

    def wrap(layer):
        # Layer by layer: as a whole, BatchNormalization and Dropout would not be told of training.
        if type(layer) not in (tf_keras.layers.Conv2D, tf_keras.layers.Dense):
            return layer
        if layer.kernel.shape.num_elements() <= clusters:
            return layer
        # Starts by k-means++, its best.
        return cluster.cluster_weights(layer, clusters, preserve_sparsity=preserve_sparsity)

    return tf_keras.models.clone_model(model, clone_function=wrap)


def _quantize_aware(run: Run, model: Any, steps: int | None = None, keep: bool = False) -> None:
    qat = quantized(model, keep)
    start_ranges(qat, run.calibration, run.tuning.batch)
    run.fit(qat, steps=steps)
    run.write(lambda: int8_by_converter(qat, None), kept=qat)


def quantized(model: Any, keep: bool = False) -> Any:
    """A tf_keras model under TFMOT's quantization; with `keep` zeros and clusters are kept."""
    tfmot = import_tfmot()
    annotated = tfmot.quantization.keras.quantize_annotate_model(model)
    scheme = tfmot.experimental.combine.Default8BitClusterPreserveQuantizeScheme
    with tfmot.quantization.keras.quantize_scope():
        return tfmot.quantization.keras.quantize_apply(annotated, *([scheme(True)] if keep else []))


def _post_quantized(run: Run, model: Any) -> None:
    samples = run.calibration
    run.write(lambda: int8_by_converter(model, samples), kept=model)


def start_ranges(model: Any, samples: np.ndarray, batch: int) -> None:
    """Lets ranges of activations start where a float model has them, not at -6 to 6.

    Their moving average takes thousands of steps to get there, and that of the inputs only grows.
    """
    weights = model.get_weights()
    averages = [v for v in model.variables if _is_range(v)]
    batches = [samples[i : i + batch] for i in range(0, len(samples) - batch + 1, batch)]
    _assign_inputs(model, samples)
    # The ranges of layers further on depend on those before.
    for _ in range(3):
        before = [v.numpy() for v in averages]
        for x in batches or [samples]:
            model(x, training=True)
        kept = (1 - _EMA) ** max(1, len(batches))
        found = [
            (v.numpy() - kept * old) / (1 - kept) for v, old in zip(averages, before, strict=True)
        ]
        model.set_weights(weights)
        _assign_inputs(model, samples)
        for variable, value in zip(averages, found, strict=True):
            variable.assign(value)


def _is_range(variable: Any) -> bool:
    return _short(variable).endswith(
        ("activation_min", "activation_max", "output_min", "output_max")
    )


def _assign_inputs(model: Any, samples: np.ndarray) -> None:
    for variable in model.variables:
        # The layer's name has a number where the process made others before.
        end = re.fullmatch(r"quantize_layer(?:_\d+)?_(min|max)", _short(variable))
        if end and end[1] == "min":
            variable.assign(min(0.0, float(samples.min())))
        elif end:
            variable.assign(max(0.0, float(samples.max())))


def _short(variable: Any) -> str:
    return variable.name.split("/")[-1].removesuffix(":0")
