"""The methods of tfcompress.

Like those of TFMOT they are set for a training of some hundred steps: see the comments.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from tfcompress.bench.methods.run import Make

if TYPE_CHECKING:
    from tfcompress.bench.methods.run import Run
    from tfcompress.techniques.quantize import Granularity

# Of a training of some hundred steps; the default of 0.99 is for longer ones.
MOMENTUM = 0.95

# A layer with fewer than this part of the weights keeps 8 bits.
_FEW = 200
# About so many training inputs tell means and variances.
_SAMPLES = 1000
# The share of the steps in which weights go.
PRUNING = 0.3
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
    """Zeros found before training, which hold, and learned steps of 4 bits for what is left.

    Which weights go is told by what layers get, not by their size alone, and the others make up for
    them before training begins; small layers lose less, as their density falls with the root of
    their size.
    """
    return lambda run: _sparse_steps(run, sparsity)


def _sparse_steps(run: Run, sparsity: float) -> None:
    from keras import ops

    from tfcompress import schedules
    from tfcompress.compression.callbacks import UpdateCompression
    from tfcompress.compression.compress import compress
    from tfcompress.compression.finalize import finalize
    from tfcompress.post_training import prune_after_training
    from tfcompress.techniques import Prune, Quantize
    from tfcompress.techniques.rules import Rule

    model = run.model
    shares = _sparsities(model, sparsity)
    samples = _inputs(run)[: _SAMPLES // 2]
    start = prune_after_training(model, samples, shares, samples=None)
    steps = Quantize(bits=4, step="learned", dense="per_tensor", momentum=MOMENTUM)
    plain = Quantize(dense="per_tensor", momentum=MOMENTUM)
    rules = [Rule("*", [steps])]
    few = model.count_params() / _FEW
    for layer in filter(_weights, start.layers):
        own: list[Any] = [steps if _weights(layer) >= few else plain]
        if layer.name in shares:
            zeros = float(np.mean(ops.convert_to_numpy(layer.kernel) == 0))
            # A little less: of weights as small, the mask would else keep some that are zeros.
            held = schedules.one_shot(max(0.0, zeros - 1e-6))
            own.insert(0, Prune(held, score="magnitude", scope="layer"))
        rules.append(Rule(layer.name, own))
    small = compress(start, rules)
    # Weights that make up for others move but little.
    run.fit(_taught(run, small), [UpdateCompression()], rate=0.3)
    run.convert(finalize(small), io_dtype="int8")


def _sparsities(model: Any, sparsity: float) -> dict[str, float]:
    """Zeros of each layer, so that the densities are as one over the root of the sizes."""
    from tfcompress.kinds import DEPTHWISE, is_of

    layers = [layer for layer in model.layers if not is_of(layer, DEPTHWISE)]
    sizes = {layer.name: _weights(layer) for layer in layers if _weights(layer)}
    left, whole = (1 - sparsity) * sum(sizes.values()), 0
    # Where a density would be more than 1, the others take what that leaves.
    ordered = sorted(sizes.values())
    for i, size in enumerate(ordered):
        scale = (left - whole) / sum(map(math.sqrt, ordered[i:]))
        if scale < math.sqrt(size):
            break
        whole += size
    zeros = {name: 1 - scale / math.sqrt(size) for name, size in sizes.items()}
    return {name: share for name, share in zeros.items() if share > 0.01}


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
        from tfcompress.surgery.pruning.prune_channels import prune_channels

        _quantize_aware(run, prune_channels(run.model, macs=macs, data=_inputs(run)), distilled)

    return make


def svd_int8(params: float, distilled: bool = False) -> Make:
    """Layers of low rank, then quantization-aware training."""

    def make(run: Run) -> None:
        from tfcompress.surgery.factors.factorize import factorize

        small = factorize(run.model, "svd", params=params, data=run.calibration)
        _quantize_aware(run, small, distilled)

    return make


def _compressed(
    run: Run,
    sparsity: float | None = None,
    clusters: int | None = None,
    distilled: bool = False,
) -> None:
    from tfcompress import schedules
    from tfcompress.compression.callbacks import UpdateCompression
    from tfcompress.compression.compress import compress
    from tfcompress.compression.finalize import finalize
    from tfcompress.recipe.recipe import Recipe
    from tfcompress.techniques import Cluster, Prune, Quantize
    from tfcompress.techniques.rules import Rule

    techniques: list[Any] = [Quantize(momentum=MOMENTUM)]
    if clusters is not None:
        techniques.insert(0, Cluster(clusters))
    if sparsity is not None:
        steps = run.tuning.steps
        # Most of so few steps recovers what pruning cost.
        end, frequency = max(1, round(PRUNING * steps)), max(1, steps // 50)
        schedule = schedules.polynomial(0.0, sparsity, end=end, frequency=frequency)
        # By magnitude over all layers, small nets would lose whole layers.
        techniques.insert(0, Prune(schedule, scope="global", score="taylor"))
    small = compress(run.model, Recipe([Rule("*", techniques)]))
    run.fit(_taught(run, small) if distilled else small, [UpdateCompression()])
    run.convert(finalize(small), **INT8)


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
    # Moving averages of so few steps still tell of the float weights. The first inputs alone may be
    # of one kind.
    run.convert_coded(finalize(reestimate_batch_norm(small, _inputs(run), samples=None)))


def _inputs(run: Run) -> np.ndarray:
    """Training inputs from all over the data."""
    x = run.data.x_train[:: max(1, len(run.data.x_train) // _SAMPLES)]
    return x.astype("float32") * np.float32(run.data.scale)


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
