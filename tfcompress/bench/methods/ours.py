"""The methods of tfcompress.

Like those of TFMOT they are set for a training of some hundred steps: see the comments.
"""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from tfcompress.bench.methods.run import Make, drop_nothing

if TYPE_CHECKING:
    from tfcompress.bench.methods.run import Run
    from tfcompress.techniques.quantize import Granularity

# Of a training of some hundred steps; the default of 0.99 is for longer ones.
MOMENTUM = 0.95

# A layer with fewer than this part of the weights keeps 8 bits.
_FEW = 200
# Steps of a training that is not short.
_MANY = 500
# About so many training inputs tell means and variances.
_SAMPLES = 1000
# Weights of few given values lie far from the float model's, so that labels count as well.
_TAUGHT_FAR = {"alpha": 0.1, "temperature": 4.0, "dropout": True}
INT8 = {"precision": "int8", "io_dtype": "int8"}
# One scale for all weights of a tensor, as older NPUs ask for.
TENSOR = {"convolution": "per_tensor", "dense": "per_tensor"}


def float32(run: Run) -> None:
    """The float model as it is."""
    run.convert(run.model, precision="float32")


def float16(run: Run) -> None:
    """Float weights of 16 bits."""
    run.convert(run.model, precision="float16")


def dynamic_int8(run: Run) -> None:
    """int8 weights, activations quantized as they come."""
    run.convert(run.model, precision="dynamic_int8")


def ptq(precision: str, **settings: Any) -> Make:
    """Post-training quantization."""
    how = {"precision": precision, "io_dtype": "int8", **settings}
    return lambda run: run.convert(run.model, calibration=run.calibration, **how)


def mixed(run: Run) -> None:
    """Precision layer by layer, for a file a quarter smaller than that of int8."""
    from tfcompress.search.choose_precision import choose_precision

    samples, start = run.calibration, time.perf_counter()
    run.convert(run.model, calibration=samples, **INT8)
    flash = run.path.stat().st_size * 3 // 4
    found = choose_precision(run.model, samples, flash=flash, io_dtype="int8")
    run.convert(run.model, precision=found.precisions, calibration=samples, io_dtype="int8")
    run.convert_seconds = time.perf_counter() - start


def tuned_ptq_int8(run: Run) -> None:
    """The same after training on: tells what the further steps alone are worth."""
    model = run.model
    run.fit(model)
    run.convert(model, calibration=run.calibration, **INT8)


def qat_int8(run: Run) -> None:
    """Quantization-aware training."""
    _quantize_aware(run, run.model)


def stream_ptq_int8(run: Run) -> None:
    """A model over the next frame, calibrated as it runs over windows."""
    from tfcompress.surgery.streams.stream import Stream

    step = _step_of(run.model)
    run.convert(step, calibration=Stream(step).samples(run.calibration), **INT8)


def stream_qat_int8(run: Run) -> None:
    """Quantization-aware training over windows, then a model over the next frame."""
    from tfcompress.compression.compress import quantize_aware

    qat = quantize_aware(run.model, momentum=MOMENTUM)
    run.fit(qat)
    run.convert(_step_of(qat), **INT8)


def _step_of(model: Any) -> Any:
    from tfcompress.surgery.streams.streaming import streaming

    return streaming(model, windows="Flatten")


def qat_int4(run: Run) -> None:
    """Quantization-aware training with 4-bit weights."""
    from tfcompress.compression.compress import quantize_aware

    qat = quantize_aware(run.model, bits=4, momentum=MOMENTUM)
    run.fit(qat)
    run.convert(qat, precision="int4", io_dtype="int8")


def qat_learned_int4(run: Run) -> None:
    """Learned steps of 4-bit weights, from those of GPTQ, with the float model as the teacher."""
    # Weights on a grid that gives what the float model gives move but little.
    _learn_steps(run, {"*": 4}, rate=0.1)


def qat_learned_int2_dense(run: Run) -> None:
    """The same with 2-bit weights of Dense."""
    _learn_steps(run, {"*": 4, "Dense": 2}, rate=1.0)


def qat_learned_int3(run: Run) -> None:
    """The same with 3 bits where the weights are, for codes that TFLite Micro decodes."""
    from tfcompress.kinds import DEPTHWISE, is_of

    layers, few = run.model.layers, run.model.count_params() / _FEW
    bits = {layer.name: 4 for layer in layers if is_of(layer, DEPTHWISE)}
    bits |= {layer.name: 8 for layer in layers if 0 < _weights(layer) < few}
    _learn_steps(run, {"*": 3, **bits}, rate=1.0, dense="per_tensor")


def _weights(layer: Any) -> int:
    return math.prod(layer.kernel.shape) if hasattr(layer, "kernel") else 0


def _learn_steps(
    run: Run, bits: dict[str, int], rate: float, dense: Granularity = "per_channel"
) -> None:
    from tfcompress.compression.compress import compress
    from tfcompress.post_training.gptq_model import gptq
    from tfcompress.techniques import Quantize
    from tfcompress.techniques.rules import Rule, Rules, quantize_of

    learned, model = Quantize(step="learned", dense=dense, momentum=MOMENTUM), run.model
    rules = [Rule(name, [dataclasses.replace(learned, bits=n)]) for name, n in bits.items()]
    first = {}
    for layer in filter(_weights, model.layers):
        given = quantize_of(Rules(rules).techniques_of(layer))
        # From 4 bits training finds better weights of 2 than GPTQ does.
        first[layer.name] = 4 if given is None or given.bits == 2 else given.bits
    start = gptq(model, run.calibration, bits=first, dense=dense).model
    qat = compress(start, rules)
    run.fit(_taught(run, qat, alpha=0.0, temperature=4.0), rate=rate)
    run.convert_coded(qat)


def prune_learned_int4(sparsity: float) -> Make:
    """Zeros found before training, which hold, and learned steps of 4 bits for what is left."""
    return lambda run: _sparse_steps(run, sparsity)


def _sparse_steps(run: Run, sparsity: float) -> None:
    from tfcompress.compression.compress import compress
    from tfcompress.compression.finalize import finalize
    from tfcompress.techniques import Prune, Quantize
    from tfcompress.techniques.rules import Rule

    # Small layers have rules of their own, depthwise ones, too.
    start, held = _with_zeros(run, sparsity), Prune(preserve=True, depthwise=True)
    steps = Quantize(bits=4, step="learned", dense="per_tensor", momentum=MOMENTUM)
    plain = Quantize(dense="per_tensor", momentum=MOMENTUM)
    few = start.count_params() / _FEW
    small = [layer.name for layer in start.layers if 0 < _weights(layer) < few]
    rules = [Rule("*", [held, steps]), *(Rule(name, [held, plain]) for name in small)]
    student = compress(start, rules)
    # In few steps weights that make up for others had better move but little.
    run.fit(_taught(run, student), rate=1.0 if run.tuning.steps > _MANY else 0.3)
    run.convert(finalize(student), io_dtype="int8")


def _with_zeros(run: Run, sparsity: float) -> Any:
    """The float model with zeros for which its other weights make up."""
    from tfcompress.post_training import prune_after_training

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of outputs that differ much, which methods look at
        samples = _inputs(run)[: _SAMPLES // 2]
        return prune_after_training(run.model, samples, sparsity, samples=None)


def prune_int8(sparsity: float, distilled: bool = False) -> Make:
    """Pruning and quantization in one run."""
    return lambda run: _compressed(run, sparsity, distilled=distilled)


def cluster_int8(clusters: int) -> Make:
    """Clustering and quantization in one run."""
    return lambda run: _compressed(run, clusters=clusters)


def pcqat_int8(sparsity: float, clusters: int, distilled: bool = False) -> Make:
    """Pruning, clustering and quantization in one run."""
    return lambda run: _compressed(run, sparsity, clusters, distilled)


def distill_int8(run: Run) -> None:
    """Quantization-aware training with the float model as the teacher."""
    _quantize_aware(run, run.model, distilled=True)


def codebook_int8(values: str, **settings: Any) -> Make:
    """Weights of few given values, but of the first and last layer, taught by the float model."""
    return lambda run: _coded(run, values, settings)


def channels_int8(macs: float, distilled: bool = False) -> Make:
    """Channels removed, then quantization-aware training."""

    def make(run: Run) -> None:
        from tfcompress.compression.compress import quantize_aware
        from tfcompress.surgery.pruning.prune_channels import prune_channels

        small = prune_channels(run.model, macs=macs, data=_inputs(run))
        _trained(run, quantize_aware(small, momentum=MOMENTUM), distilled)

    return make


def svd_int8(params: float, distilled: bool = False) -> Make:
    """Layers of low rank, then quantization-aware training."""

    def make(run: Run) -> None:
        from tfcompress.compression.compress import quantize_aware
        from tfcompress.surgery.factors.factorize import factorize

        small = factorize(run.model, "svd", params=params, data=_inputs(run))
        _trained(run, quantize_aware(small, momentum=MOMENTUM), distilled)

    return make


def _compressed(
    run: Run,
    sparsity: float | None = None,
    clusters: int | None = None,
    distilled: bool = False,
) -> None:
    from tfcompress.compression.compress import compress
    from tfcompress.techniques import Cluster, Quantize
    from tfcompress.techniques.rules import Rule

    techniques: list[Any] = [Quantize(momentum=MOMENTUM)]
    if clusters is not None:
        # Weights that have lost their neighbours move before they share values.
        begin = None if sparsity is None else _soon(run)
        techniques.insert(0, Cluster(clusters, begin=begin))
    model, rate = run.model, 1.0
    if sparsity is not None:
        model, prune, rate = _pruned(run, sparsity)
        techniques.insert(0, prune)
    _trained(run, compress(model, [Rule("*", techniques)]), distilled, rate)


def _pruned(run: Run, sparsity: float) -> tuple[Any, Any, float]:
    """Zeros from before training where they change little, else those that training finds.

    Returns (model, technique, share of the rate).
    """
    from tfcompress import schedules
    from tfcompress.post_training.drift import MOST
    from tfcompress.techniques import Prune

    start = _with_zeros(run, sparsity)
    if start.correction_report.drift <= MOST:
        return start, Prune(preserve=True), 1.0
    zeros = schedules.polynomial(0.0, sparsity, end=_soon(run), frequency="1%")
    # Weights that have far to go recover at the rate of the original training.
    return run.model, Prune(zeros), run.task.training.rate / run.tuning.rate


def _soon(run: Run) -> str:
    """When zeros have come: early where steps are few, as what remains has to recover."""
    return "50%" if run.tuning.steps > _MANY else "30%"


def _trained(run: Run, small: Any, distilled: bool, rate: float = 1.0) -> None:
    """Trains a model under techniques, and writes the file."""
    from tfcompress.compression.callbacks import UpdateCompression
    from tfcompress.compression.finalize import finalize

    drop_nothing(small)
    run.fit(_taught(run, small) if distilled else small, [UpdateCompression()], rate=rate)
    run.convert(_settled(run, finalize(small)), **INT8)


def _settled(run: Run, model: Any) -> Any:
    """A model with better statistics of BatchNormalization, if its last weights have them."""
    import keras

    from tfcompress.post_training.batch_norm import settled

    x, loss = _inputs(run), keras.losses.get(run.task.loss)
    y = x if run.data.y_train is None else run.data.y_train[:: _every(run)]
    found = settled(model, x, lambda each: float(np.mean(loss(y, each.predict(x, verbose=0)))))
    return model if found is None else found[0]


def _coded(run: Run, values: str, settings: dict[str, Any]) -> None:
    from tfcompress.compression.compress import compress
    from tfcompress.compression.finalize import finalize
    from tfcompress.post_training import reestimate_batch_norm
    from tfcompress.techniques import Codebook, Quantize
    from tfcompress.techniques.rules import Rule

    quantize = Quantize(momentum=MOMENTUM)
    rules = [Rule("*", [Codebook(values, **settings), quantize])]
    small = compress(run.model, [*rules, Rule("first_and_last", [quantize])])
    run.fit(_taught(run, small, **_TAUGHT_FAR))
    # Moving averages of so few steps still tell of the float weights.
    run.convert_coded(finalize(reestimate_batch_norm(small, _inputs(run), samples=None)))


def _inputs(run: Run) -> np.ndarray:
    """Training inputs from all over the data: the first alone may be of one kind."""
    x = run.data.x_train[:: _every(run)]
    return x.astype("float32") * np.float32(run.data.scale)


def _every(run: Run) -> int:
    return max(1, len(run.data.x_train) // _SAMPLES)


def _taught(run: Run, student: Any, **settings: Any) -> Any:
    """What trains a student with the float model as its teacher; see `Distiller` for settings."""
    from tfcompress.distillation import Distiller

    # Reconstructions are numbers, for which soft labels are none.
    losses = "mse" if run.task.loss == "mse" else None
    return Distiller(student, run.model, losses, cache="memory", **settings)


def _quantize_aware(run: Run, model: Any, distilled: bool = False) -> None:
    from tfcompress.compression.compress import quantize_aware

    qat = quantize_aware(model, momentum=MOMENTUM)
    run.fit(_taught(run, qat) if distilled else qat)
    run.convert(qat, **INT8)
