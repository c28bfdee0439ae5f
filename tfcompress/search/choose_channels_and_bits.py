"""choose_channels_and_bits: which channels stay and how many bits layers get, learned together."""

from __future__ import annotations

import glob
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfcompress.conversion.convert import convert
from tfcompress.conversion.layer_names import LayerNames
from tfcompress.conversion.precisions import USUAL, WEIGHT_BITS, bits_of
from tfcompress.errors import check
from tfcompress.files import temporary
from tfcompress.post_training.kernels import Kernel, kernels_of
from tfcompress.search.architecture.training import Training, compile_settings
from tfcompress.search.assignment import check_budgets
from tfcompress.search.choice import ChannelsAndBits, ChosenLayer
from tfcompress.search.gates import Gates, Options
from tfcompress.search.layer_latency import NOISE, Clock, ms_of_layers
from tfcompress.search.prices import Prices, require_tensorflow
from tfcompress.surgery.base import opened, with_report
from tfcompress.surgery.macs import count, macs_by_node
from tfcompress.surgery.pruning.groups import Choice, Structure
from tfcompress.surgery.pruning.limits import Limits
from tfcompress.surgery.pruning.prune_channels import check_settings, kept_names, report_of
from tfcompress.surgery.pruning.ranking import competing, kept_channels
from tfcompress.surgery.pruning.refitting import with_statistics
from tfcompress.surgery.pruning.resizing import resized
from tfcompress.surgery.pruning.scores import score_groups
from tfcompress.techniques.rules import Rule, require_match

BITS = (0, 4, 8)
_NAMES = {bits: name for name, bits in WEIGHT_BITS.items() if name != "int16x8"}
# Temperatures of what is drawn, from the first epoch to the last.
_WARM, _COLD = 1.0, 0.1
# Samples that scores, statistics and files are made with.
_SAMPLES = 512
# Files that are measured at most, until one is within the budgets, and the bytes that a cut after
# one that is not leaves for what is rounded up.
_FILES, _SPARE = 6, 16
# What budgets are of, the most that they may be, and what they limit.
_UNITS = {
    "flash": ("bytes", math.inf),
    "macs": ("the share that may remain", 1.0),
    "latency": ("the share of int8's that may remain", 1.0),
}
_COSTS = {"flash": "bytes", "macs": "macs", "latency": "ms"}
# Beyond all logits, and how often what is between is halved.
_FAR, _HALVINGS = 50.0, 40

Progress = Callable[[str, int, int | None], Any]
Chosen = tuple[Choice, dict[str, int]]


def choose_channels_and_bits(
    model: keras.Model,
    data: tuple[Any, Any],
    *,
    flash: int | None = None,
    macs: float | None = None,
    latency: float | None = None,
    bits: Sequence[int] = BITS,
    layers: str | Callable[[Any], bool] = "*",
    keep: Iterable[str] = (),
    round_to: int = 4,
    max_sparsity: float = 0.9,
    epochs: int = 10,
    compile: Mapping[str, Any] | None = None,
    learning_rate: float = 0.05,
    batch_size: int = 32,
    accelerator: str | None = None,
    threads: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
    **settings: Any,
) -> ChannelsAndBits:
    """Learns which channels to remove and the bits of each layer in one training, by gradient.

    How likely it is that a channel stays, and that a layer has so many bits, is learned along with
    the weights: each step draws a network by these odds, and the loss is charged for what the
    expected network costs beyond the budgets, at a price that rises until they are met. Channels of
    0 bits are removed, together with all that belongs to them; layers get one of the other bits, as
    a tensor of a .tflite file has one. After Motetti et al. 2024 (arXiv:2407.01054), with
    Gumbel-softmax (Jang et al. 2017, arXiv:1611.01144) for the odds. What is likeliest is then cut
    to the budgets, to the byte, on files that are converted and measured.

    Train the result on afterwards, by `compress(found.model, found.recipe)`.

    Args:
        model: a trained float Keras 3 model with one input and one output; it is left untouched.
        data: (x, y) arrays to train on.
        flash: the most bytes of the .tflite file, as `convert` writes it of the float model with
            these bits.
        macs: the share of the model's MACs that may remain.
        latency: the share of the int8 file's latency that may remain, on this machine or by Vela.
            That of a layer is measured in each of its bits, and taken to fall as its weights do.
        bits: that may be chosen: 8, beside 0 (channels are removed), 4 and 2, each where a layer
            can have it.
        layers: pattern or predicate, as of `Rule`, of those that may have fewer than 8 bits.
        keep: names of layers, or patterns such as "stem*", whose channels stay.
        round_to: the number of channels that stay in a layer is a multiple of it, or all.
        max_sparsity: no layer loses more than this fraction.
        epochs: of the training.
        compile: arguments of `model.compile`; by default those of the model.
        learning_rate: of the odds, by Adam.
        batch_size: of the training.
        accelerator: "ethos-u55-128" or another that Vela knows, whose cycles tell latency; None
            measures on this machine.
        threads: CPU threads of LiteRT.
        seed: of all random numbers; Keras's global seed is set.
        progress: called as `progress(stage, done, total)`.
        **settings: of `convert`, such as `target` or `io_dtype`.

    Returns:
        A `ChannelsAndBits`: the smaller model with the weights that it was trained to, not
        compiled, `recipe` and `precisions` with the bits of its layers, and what its file costs
        beside the int8 file of the whole model.

    Raises:
        RuntimeError: Keras runs on another backend than TensorFlow.
        TypeError: an argument is of another kind.
        ValueError: there is no budget, an argument is out of its range, there is nothing to choose,
            or the budgets are out of reach; says how near one comes, before the training.

    Example:
        >>> found = choose_channels_and_bits(model, (x, y), flash=20_000)  # doctest: +SKIP
        >>> small = tfcompress.compress(found.model, found.recipe)  # doctest: +SKIP
    """
    budgets = check_budgets({"flash": flash, "macs": macs, "latency": latency}, _UNITS)
    require_tensorflow("Or take prune_channels, and choose_precision after it.")
    _check_bits(bits)
    check_settings("global", round_to, max_sparsity)
    check(learning_rate > 0, "learning_rate", "above 0", learning_rate)
    training = Training.of(
        data, None, compile_settings(model, compile), None, epochs, batch_size, seed
    )
    clock = Clock(threads, accelerator) if latency is not None else None
    files = _Files(training, settings, clock, progress or (lambda stage, done, total: None))
    structure = Structure(opened(model))
    structure.keep(kept_names(structure, keep))
    options = _options(structure, bits, Rule(layers))
    scores = _scores(structure, files) if 0 in bits else {}
    if not scores and all(len(each) == 1 for _, each in options):
        raise ValueError(
            f"model '{model.name}' must have channels that can be removed, or layers that can have "
            f"fewer bits; it has none for bits={tuple(bits)}. Keep fewer, or allow more bits."
        )
    base = files.content(structure.model, {kernel.name: 8 for kernel, _ in options})
    gates = Gates(structure, list(_costly(structure, files, options, base)), scores)
    cutting = _Cutting(gates, files, base, budgets, round_to, max_sparsity)
    cutting.require_reachable(model.name)
    _train(structure.model, gates, cutting.limits, training, learning_rate, files.tell)
    return cutting.found(model.name)


def _check_bits(bits: Any) -> None:
    known = (0, *sorted(_NAMES))
    listed = isinstance(bits, Sequence) and not isinstance(bits, str)
    right = listed and 8 in bits and len(set(bits)) > 1 and set(bits) <= set(known)
    words = "a list with 8 and some of 0, 2, 4"
    check(right, "bits", words, bits, "What has no integers of fewer bits stays in 8.")


class _Files:
    """Files of networks, converted and measured.

    Args:
        training: which holds the data.
        settings: of `convert`.
        clock: None if no latency is asked for.
    """

    def __init__(self, training: Training, settings: dict, clock: Clock | None, tell: Progress):
        x, y = training.train_data
        rows = np.random.default_rng(training.seed).permutation(len(x))[:_SAMPLES]
        self.samples = x[rows], y[rows]
        self.clock, self.tell, self._settings, self._made = clock, tell, settings, 0

    def content(self, model: keras.Model, bits: Mapping[str, int]) -> bytes:
        """The bytes of the file of a model with these bits of layers."""
        self.tell("convert", self._made, None)
        self._made += 1
        rules = {glob.escape(name): _NAMES[each] for name, each in bits.items() if each != 8}
        with temporary.folder() as folder:
            path = Path(folder) / "chosen.tflite"
            convert(model, path, precision=rules or USUAL, calibration=self.samples[0],
                    **self._settings)  # fmt: skip
            return path.read_bytes()

    def ratio(self, base: bytes, other: bytes) -> float:
        """The latency of a whole file, in parts of that of another."""
        assert self.clock is not None
        with temporary.folder() as folder:
            return self.clock.measured(Path(folder), [base, other], whole=True)[1][0]


def _options(
    structure: Structure, bits: Sequence[int], rule: Rule
) -> list[tuple[Kernel, tuple[int, ...]]]:
    """The bits that each kernel may have, falling."""
    wanted, kernels = sorted(set(bits) - {0}, reverse=True), list(kernels_of(structure.graph))
    matched = require_match(rule, [kernel.layer for kernel in kernels], structure.model)

    def able(layer: Any) -> tuple[int, ...]:
        few = any(layer is each for each in matched)
        return tuple(b for b in wanted if b == 8 or (few and bits_of(layer, _NAMES[b]) == b))

    return [(kernel, able(kernel.layer)) for kernel in kernels]


def _scores(structure: Structure, files: _Files) -> dict[str, np.ndarray]:
    """How important channels are before the training, as logarithms."""
    if not structure.prunable():
        return {}
    found = score_groups(structure, "reconstruction", files.samples)
    least = np.finfo("float32").tiny
    return {n: np.log(np.maximum(x, least)) for n, x in competing(structure, found).items()}


def _costly(
    structure: Structure,
    files: _Files,
    options: Sequence[tuple[Kernel, tuple[int, ...]]],
    base: bytes,
) -> Iterator[Options]:
    """What layers may be, with what that costs."""
    macs: dict[int, int] = {}
    for node, each in macs_by_node(structure.graph, structure.specs):
        macs[id(node.operation)] = macs.get(id(node.operation), 0) + (each or 0)
    timed = _timed(structure, files, options, base)
    for kernel, every in options:
        ms, ratios = timed.get(kernel.name, (0.0, {}))
        # Infinite: an accelerator has no such operator.
        bits = tuple(b for b in every if math.isfinite(ratios.get(_NAMES[b], 1.0)))
        yield Options(kernel, bits, {
            "bytes": np.array(bits, "float32") / 8,
            "macs": np.full(len(bits), macs.get(id(kernel.layer), 0), "float32"),
            "ms": np.array([ms * ratios.get(_NAMES[b], 1.0) for b in bits], "float32"),
        })  # fmt: skip


def _timed(structure, files: _Files, options, base: bytes) -> dict[str, tuple[float, dict]]:
    """Milliseconds of layers in int8, and the ratios of other precisions; none if not asked for."""
    if files.clock is None:
        return {}
    named = {kernel.name: [_NAMES[b] for b in bits] for kernel, bits in options}
    contents = {USUAL: base}
    for bits in {b for _, each in options for b in each} - {8}:
        rules = {kernel.name: bits if bits in each else 8 for kernel, each in options}
        contents[_NAMES[bits]] = files.content(structure.model, rules)
    names = LayerNames(structure.model)
    return ms_of_layers(files.clock, names, contents, named, files.tell)


def _train(
    model: keras.Model,
    gates: Gates,
    limits: Mapping[str, float],
    training: Training,
    learning_rate: float,
    tell: Progress,
) -> None:
    """Trains weights and odds together, in place."""
    import tensorflow as tf

    training.begin()
    training.compiled(model)
    weights, logits = model.trainable_variables, gates.variables
    optimizer = keras.optimizers.Adam(learning_rate)
    model.optimizer.build(weights)
    optimizer.build(logits)
    prices = Prices(limits)

    @tf.function(reduce_retracing=True)
    def step(x, y, heat):
        with tf.GradientTape() as tape:
            odds = gates.drawn(heat)
            values = gates.weights(odds, weights)
            fixed = gates.weights(odds, model.non_trainable_variables)
            predicted, _ = model.stateless_call(values, fixed, x, training=True)
            loss = model.compute_loss(x=x, y=y, y_pred=predicted)
            expected = gates.odds()
            costs = {name: gates.cost(name, expected) for name in limits}
            loss += prices.charged({n: tf.math.log(cost / limits[n]) for n, cost in costs.items()})
        values = [v.value for v in (*weights, *logits)]
        gradients = tape.gradient(loss, values, unconnected_gradients="zero")
        model.optimizer.apply(gradients[: len(weights)], weights)
        optimizer.apply(gradients[len(weights) :], logits)

    (x, y), random = training.train_data, np.random.default_rng(training.seed)
    for epoch in range(training.epochs):
        heat = tf.constant(_WARM * (_COLD / _WARM) ** (epoch / max(1, training.epochs - 1)))
        order = random.permutation(len(x))
        for first in range(0, len(x), training.batch_size):
            rows = order[first : first + training.batch_size]
            step(tf.constant(x[rows]), tf.constant(y[rows]), heat)
        tell("learn odds", epoch + 1, training.epochs)


class _Cutting:
    """Cuts what is likeliest to the budgets.

    Args:
        gates: with their odds.
        files: which convert and measure.
        base: the int8 file of the whole network.
        budgets: "flash" in bytes, "macs" and "latency" as shares.
        round_to, max_sparsity: see `choose_channels_and_bits`.

    Attributes:
        limits: the most that predicted "bytes", "macs" and "ms" may be.
    """

    def __init__(
        self,
        gates: Gates,
        files: _Files,
        base: bytes,
        budgets: Mapping[str, float],
        round_to: int,
        max_sparsity: float,
    ):
        self.gates, self.files, self.base, self.budgets = gates, files, base, dict(budgets)
        self.whole = gates.chosen({}, dict.fromkeys(gates.layers, 8))
        groups = gates.structure.groups
        self._sizes = {n: Limits.of(groups[n], round_to, max_sparsity) for n in gates.stay}
        self._macs = count(gates.structure.model)[0]
        self.limits = {
            _COSTS[name]: self._predicted(_COSTS[name], self.whole) * share
            for name, share in self.budgets.items()
            if name != "flash"
        }
        if "flash" in budgets:
            fixed = len(base) - self._predicted("bytes", self.whole)
            self.limits["bytes"] = budgets["flash"] - fixed

    def require_reachable(self, name: str) -> None:
        """Raises if the smallest network that there is exceeds a budget."""
        odds = self.gates.chosen(*self._at(_FAR))
        for budget, given in self.budgets.items():
            cost = _COSTS[budget]
            least, whole = (self._predicted(cost, each) for each in (odds, self.whole))
            if least > self.limits[cost]:
                near = f"{len(self.base) + least - whole:,.0f}"
                near = near if budget == "flash" else f"{least / whole:.2g}"
                raise ValueError(
                    f"model '{name}' cannot meet {budget}={given:,g}: with the fewest channels and "
                    f"bits that it may have it takes about {near}. Raise the budget to that, raise "
                    "max_sparsity, lower round_to, or allow fewer bits."
                )

    def best(self) -> Chosen:
        """The likeliest choice within the limits."""
        low, high = -_FAR, _FAR
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            odds = self.gates.chosen(*self._at(middle))
            met = all(self._predicted(n, odds) <= most for n, most in self.limits.items())
            low, high = (low, middle) if met else (middle, high)
        return self._at(high)

    def found(self, name: str) -> ChannelsAndBits:
        """The network that is chosen, once its file is within the budgets."""
        structure, samples = self.gates.structure, [[self.files.samples[0]]]
        for _ in range(_FILES):
            choice, bits = self.best()
            model = with_statistics(resized(structure, choice), samples)
            content = self.files.content(model, bits)
            costs = {"bytes": float(len(content)), "macs": float(count(model)[0])}
            if "latency" in self.budgets:
                costs["latency"] = self.files.ratio(self.base, content)
            if self._learn((choice, bits), costs):
                break
        else:
            raise ValueError(self._unmet(name, costs))
        report = report_of("choose_channels_and_bits", structure, choice)
        return ChannelsAndBits(
            model=with_report(model, report),
            budgets=dict(self.budgets),
            layers=tuple(self._layer(each, choice, bits) for each in self.gates.layers.values()),
            file=costs,
            int8={"bytes": float(len(self.base)), "macs": float(self._macs)},
        )

    def _learn(self, chosen: Chosen, costs: Mapping[str, float]) -> bool:
        """Takes the limits for what a file shows; returns whether it is within its budgets."""
        odds, met = self.gates.chosen(*chosen), True
        if "flash" in self.budgets and costs["bytes"] > self.budgets["flash"]:
            fixed = costs["bytes"] - self._predicted("bytes", odds)
            self.limits["bytes"] = self.budgets["flash"] - fixed - _SPARE
            met = False
        # What other operations multiply is not predicted, as products of attention.
        shares = {"macs": costs["macs"] / self._macs, "latency": costs.get("latency", 0.0) - NOISE}
        for name in shares.keys() & self.budgets.keys():
            if shares[name] > self.budgets[name]:
                self.limits[_COSTS[name]] *= self.budgets[name] / shares[name]
                met = False
        return met

    def _unmet(self, name: str, costs: Mapping[str, float]) -> str:
        asked = ", ".join(f"{key}={value:,g}" for key, value in self.budgets.items())
        near = ", ".join(f"{key} {value:,g}" for key, value in costs.items())
        return (
            f"no file of model '{name}' that was made meets {asked}; the last one has {near}. "
            "Raise the budget to that, or max_sparsity."
        )

    def _layer(self, layer: Options, choice: Choice, bits: Mapping[str, int]) -> ChosenLayer:
        kernel, odds = layer.kernel, self.gates.chosen(choice, bits)
        before, after = (self.gates.shape_left(kernel, x) for x in (self.whole, odds))
        first, now = (math.prod(shape[i] for i in kernel.axes) for shape in (before, after))
        size, chosen = math.prod(after), bits[kernel.name]
        return ChosenLayer(kernel.name, (first, now), chosen, size, math.ceil(size * chosen / 8))

    def _at(self, bar: float) -> Chosen:
        """Channels whose logits are above a bar, and bits that are worth it."""
        stay = {name: np.asarray(logits) for name, logits in self.gates.stay.items()}
        sizes = {}
        for name, logits in stay.items():
            limit, count = self._sizes[name], int((logits > bar).sum())
            sizes[name] = limit.larger(max(limit.least, count - limit.step), limit.size)
        bits = {}
        for name, layer in self.gates.layers.items():
            worth = np.asarray(self.gates.bits[name]) - bar * np.array(layer.bits) / 8
            bits[name] = layer.bits[int(np.argmax(worth))]
        return kept_channels(stay, sizes), bits

    def _predicted(self, cost: str, odds: Any) -> float:
        return float(self.gates.cost(cost, odds))
