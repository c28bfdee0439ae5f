"""sensitivity: how much a model loses when one layer at a time is pruned or quantized."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from tfcompress.backend import as_tensor
from tfcompress.errors import check, is_whole
from tfcompress.graph.flatten import flatten
from tfcompress.layers.compressed import is_compressed, target_variables
from tfcompress.recipe.findings import Kind, Row, Sensitivity
from tfcompress.search import scan
from tfcompress.search.outputs import Simulation
from tfcompress.search.scan import PRECISIONS
from tfcompress.surgery.pruning.judging import batches
from tfcompress.techniques import Prune, Quantize
from tfcompress.techniques.masks import Pattern
from tfcompress.techniques.quantize import quantize_weight
from tfcompress.techniques.rules import Rule

SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
BITS = (8, 4, 3, 2)

# Methods of a model's class that decide what `evaluate` gives.
_LOOPS = ("test_step", "compute_loss", "compute_metrics")


@dataclasses.dataclass(frozen=True)
class _Trial:
    """One layer compressed in one way: `values` are the new weights of `variables`."""

    layer: str
    kind: Kind
    value: float
    variables: list[Any]
    values: Callable[[], list[Any]]


def sensitivity(
    model: keras.Model,
    data: Any = None,
    *,
    layers: str | Callable[[Any], bool] = "*",
    sparsities: Sequence[float] = SPARSITIES,
    bits: Sequence[int] = BITS,
    precisions: Sequence[str] = PRECISIONS,
    prune: Prune | None = None,
    evaluate: Callable[[keras.Model], float] | None = None,
    calibration: Any = None,
    method: str = "outputs",
    batch_size: int = 128,
    samples: int | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> Sensitivity:
    """Scans how much a model loses when one layer at a time is pruned or quantized, untrained.

    Each layer takes one evaluation per sparsity and number of bits, of a flat copy of the model
    that is compiled once; the model itself is left untouched. All kernels of a layer are compressed
    together, as a `Rule` would; quantization is that of weights, as `Quantize` rounds them.

    With `calibration`, samples without labels, layers are computed in other precisions, too, as a
    file would: weights on their grids, and what comes to the layer on that of 8 or 16 bits. What
    is measured then is how far the outputs are from those of the float model: for probabilities
    the Kullback-Leibler divergence, for others noise over what differs from
    sample to sample.

    Args:
        model: any Keras 3 model that `flatten` takes; compiled, unless there is `evaluate`.
        data: (x, y) or (x, y, sample_weight) arrays, or a batched `tf.data.Dataset`, as for
            `model.evaluate`. Validation data, not what the model was trained on.
        layers: pattern or predicate as of `Rule`.
        sparsities: fractions of zeros to try; an empty list tries none.
        bits: widths of weights to try, 2 to 16; an empty list tries none.
        precisions: of layers in a file, to try with `calibration`: "int8", "int4", "int2",
            "int4_blockwise", "int16x8", "float16", "float32"; each where a layer can have it.
        prune: a `Prune` whose pattern, score, depthwise and seed are to be tried; its sparsity does
            not matter. None prunes single weights by magnitude. An "n:m" pattern has but its own
            sparsity to try.
        evaluate: instead of `data`, a function f(model) -> float (higher is better). It is given
            the flat copy, compiled as the model is. By default the model's compiled loss measures,
            without the penalties of regularizers; its metrics of one number are told, too.
        calibration: samples of the inputs, as for `convert`; alone, without `data` and `evaluate`,
            only precisions are tried.
        method: how precisions are judged: "outputs" computes the outputs once for each layer and
            precision; "hessian" estimates them from the squares of what rounding changes in
            weights, each times its curvature (as Dong et al. 2020, arXiv:1911.03852), in one pass
            for all; it knows nothing of activations.
        batch_size: of arrays.
        samples: at most so many, spread evenly over arrays, the first ones of a dataset. A few
            thousand tell the order of layers; None takes all.
        progress: called as `progress(done, total)` after each evaluation, the first of which is
            that of the model as it is.

    Returns:
        A `Sensitivity` with rows, `render()`, `plot()` and `save()`; `Recipe.from_sensitivity`
        makes a recipe of it.

    Raises:
        TypeError: if the model, the data or what `evaluate` returns is of another kind.
        ValueError: if the model cannot be flattened, is compressed already or not compiled, an
            argument is out of its range, or no layer has a weight to compress.

    Example:
        >>> found = sensitivity(model, (x, y), samples=2000)  # doctest: +SKIP
        >>> recipe = Recipe.from_sensitivity(found, sparsity=0.8)  # doctest: +SKIP
        >>> found = sensitivity(model, calibration=x[:200])  # doctest: +SKIP
    """
    if isinstance(model, keras.Model) and is_compressed(model):
        raise ValueError(
            f"model '{model.name}' comes from compress; expected the plain one. Pass the model "
            "that it was made from, or tfcompress.finalize(model) if nothing in it is quantized."
        )
    prune = _plain(prune)
    scan.check_scan(precisions, method)
    flat = flatten(model)
    labelled = data is not None or evaluate is not None or calibration is None
    sparsities, bits = (_sparsities(sparsities, prune), bits) if labelled else ((), ())
    trials = list(_trials(flat, layers, sparsities, bits, prune))
    tried = () if calibration is None else precisions
    kernels = scan.kernels_to_try(flat, layers, tried)
    unlabelled = sum(len(scan.able(kernel, tried)) for kernel in kernels)
    count = len(trials) if labelled else unlabelled
    names = "sparsities and bits" if labelled else "precisions"
    check(count > 0, names, "settings that some layer takes", (sparsities, bits, precisions))
    given = scan.inputs_of(flat, calibration, samples) if kernels else []
    told = scan.Steps(progress, len(trials) + labelled + unlabelled)
    goal, baseline, rows = "outputs", {}, []
    if labelled:
        goal = "loss" if evaluate is None else "evaluate"
        measure = _measure_of(model, flat, data, evaluate, batch_size, samples)
        baseline = measure()
        told.step()
        check(
            bool(np.isfinite(baseline[goal])), f"the model's own {goal}", "finite", baseline[goal]
        )
        for trial in trials:
            rows.append(_row(trial, goal, baseline, _run(trial, measure)))
            told.step()
    if kernels:
        simulation = Simulation(flat, kernels, given, batch_size)
        for row in scan.rows_of(simulation, tried, method):
            rows.append(row)
            told.step()
    return Sensitivity(model.name, goal, baseline, prune, tuple(rows))


def _row(trial: _Trial, goal: str, baseline: dict[str, float], measured: dict[str, float]) -> Row:
    loss = measured[goal] - baseline[goal]
    drop = loss if goal == "loss" else -loss
    size = sum(int(np.prod(v.shape)) for v in trial.variables)
    names = tuple(v.name for v in trial.variables)
    drop = drop if np.isfinite(drop) else float("inf")
    return Row(trial.layer, names, size, trial.kind, trial.value, measured, drop)


def _run(trial: _Trial, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    old = [ops.convert_to_numpy(as_tensor(v)) for v in trial.variables]
    for variable, value in zip(trial.variables, trial.values(), strict=True):
        variable.assign(value)
    measured = measure()
    for variable, value in zip(trial.variables, old, strict=True):
        variable.assign(value)
    return measured


def _trials(flat, layers, sparsities, bits, prune: Prune) -> Iterator[_Trial]:
    rule = Rule(layers)
    quantize = [Quantize(bits=width) for width in bits]
    matched = [x for x in flat.layers if rule.matches(x) and target_variables(x)]
    if not matched:
        having = ", ".join(x.name for x in flat.layers if target_variables(x)) or "none"
        raise ValueError(
            f"layers must match a layer of model '{flat.name}' that has a kernel, which are: "
            f"{having}; received {layers!r}, which matches none of them."
        )
    for layer in matched:
        found = target_variables(layer)
        pruned = [pair for pair in found if prune.refuses(*pair) is None]
        for value in sparsities if pruned else ():
            yield _Trial(layer.name, "sparsity", value, *_pruned(prune, value, pruned))
        for technique in quantize:
            yield _Trial(layer.name, "bits", technique.bits, *_quantized(technique, found))


def _pruned(prune: Prune, sparsity: float, targets):
    # As at the end of the schedule.
    technique = dataclasses.replace(prune, sparsity=sparsity).over(0, 0)

    def values():
        found = []
        for owner, variable in targets:
            weight = ops.convert_to_numpy(as_tensor(variable))
            found.append(weight * technique.bind(owner, variable.name).mask(weight, None, 0))
        return found

    return [variable for _, variable in targets], values


def _quantized(technique: Quantize, targets):
    def values():
        every = [(v, technique.bind(owner, v.name).axes) for owner, v in targets]
        return [quantize_weight(v, technique.bits, axes) for v, axes in every]

    return [variable for _, variable in targets], values


def _plain(prune: Prune | None) -> Prune:
    """The settings of pruning that are tried, with any sparsity."""
    if prune is None:
        return Prune(0.5)
    if not isinstance(prune, Prune):
        raise TypeError(f"prune must be a tfcompress.Prune; received {prune!r}.")
    trained = prune.learns_scores or prune.threshold is not None or prune.scope == "global"
    check(
        not trained,
        "prune",
        "one that prunes each layer by itself, to a sparsity, without training",
        prune,
        "Leave out scope and threshold, and scores that are learned from gradients.",
    )
    fixed = Pattern.parse(prune.pattern).sparsity
    return dataclasses.replace(prune, sparsity=0.5 if fixed is None else fixed)


def _sparsities(sparsities: Sequence[float], prune: Prune) -> list[float]:
    fixed = Pattern.parse(prune.pattern).sparsity
    return sorted({float(s) for s in sparsities}) if fixed is None else [fixed][: len(sparsities)]


def _measure_of(
    model, flat, data, evaluate, batch_size: int, samples: int | None
) -> Callable[[], dict[str, float]]:
    """The function that measures the flat copy as it is now."""
    if (data is None) == (evaluate is None):
        raise ValueError(
            "give either data, which the compiled loss is measured on, or evaluate, a function "
            f"f(model) -> float; received {'neither' if data is None else 'both'}."
        )
    if model.compiled:
        _compile_like(model, flat)
    if evaluate is not None:
        return lambda: {"evaluate": _number(evaluate(flat))}
    if not model.compiled:
        raise ValueError(
            f"model '{model.name}' must be compiled with a loss, which measures it; it is not. "
            "Call model.compile(loss=...), or pass evaluate=, a function f(model) -> float."
        )
    lost = [name for name in _LOOPS if getattr(type(model), name) is not getattr(type(flat), name)]
    if lost:
        raise ValueError(
            f"model '{model.name}' has its own {', '.join(lost)}, which its flat copy lacks, so "
            "that its loss would be another one. Pass evaluate=, a function f(model) -> float."
        )
    given = _given(flat, data, batch_size, samples)

    def measure() -> dict[str, float]:
        found = flat.evaluate(**given, verbose=0, return_dict=True).items()
        return {name: float(value) for name, value in found if np.ndim(value) == 0}

    return measure


def _compile_like(model, flat) -> None:
    config = model._compile_config.config
    kept = ("loss", "loss_weights", "metrics", "weighted_metrics")
    how = {"run_eagerly": model.run_eagerly, "jit_compile": model.jit_compile}
    flat.compile("sgd", **{name: config.get(name) for name in kept}, **how)
    # Penalties shrink with the weights, and would praise what harms the model.
    for variable in flat.trainable_variables:
        variable.regularizer = None


def _given(flat, data, batch_size: int, samples: int | None) -> dict[str, Any]:
    """What `evaluate` is to be called with: the data, or some samples of it as arrays."""
    if isinstance(data, (Iterator, list, np.ndarray)):
        raise TypeError(
            "data must be (x, y) arrays or a batched tf.data.Dataset, which can be read again and "
            f"again; received {type(data).__name__}. Pass the labels with it: (x, y)."
        )
    if isinstance(data, tuple):
        kind = "(x, y) or (x, y, sample_weight)"
        check(2 <= len(data) <= 3, "data", kind, f"{len(data)} parts")
    elif samples is None:
        return {"x": data}
    if samples is not None:
        check(is_whole(samples), "samples", "1 or more", samples)
        data = tree.map_structure(_joined, *batches(data, flat, batch_size, samples))
    names = ("x", "y", "sample_weight")
    return {"batch_size": batch_size, **dict(zip(names, data, strict=False))}


def _joined(*parts):
    return None if parts[0] is None else np.concatenate(parts)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"evaluate must return a number (higher is better); received {value!r}."
        ) from error
