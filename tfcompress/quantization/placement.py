"""Where fake-quantization goes: after each group of operations that LiteRT runs as one.

LiteRT fuses Conv + BatchNormalization + ReLU into one op, gives pooling, reshaping and
concatenation the scale of their inputs, and fixes the ranges of softmax, sigmoid and tanh
(quantization specification: https://ai.google.dev/edge/litert/conversion/tensorflow/quantization/quantization_spec).
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Sequence

import keras
import numpy as np
from keras import layers, tree

from tfcompress.graph.layers import Constant, FixedTraining, KeepMask, Parameter, RepeatBatch
from tfcompress.graph.nodes import Graph, Node, has_own_call, scope_name
from tfcompress.graph.states import pairs_of
from tfcompress.kinds import (
    FILLING,
    FIXED_RANGES,
    FOLDING,
    FUSING,
    INTEGER,
    KEEPING,
    ROUNDING,
    TRANSPARENT,
    operator_of,
)
from tfcompress.layers.batch_norm import FusedBatchNorm
from tfcompress.layers.compressed import Compressed
from tfcompress.layers.extremes import Extremes
from tfcompress.layers.fake_quant import FakeQuant
from tfcompress.quantization.loops import is_loop, loop_reason
from tfcompress.techniques.quantize import Quantize

# The ranges of outputs that LiteRT fixes.
_FIXED = {
    "softmax": FIXED_RANGES["SOFTMAX"],
    "sigmoid": FIXED_RANGES["LOGISTIC"],
    "tanh": FIXED_RANGES["TANH"],
    "logsoftmax": FIXED_RANGES["LOG_SOFTMAX"],
}
_FIXED_16 = (-1.0, 32767 / 32768)
_ACTIVATIONS = set(
    "relu relu6 leaky_relu gelu hard_silu elu softmax log_softmax sigmoid tanh linear".split()
)


@dataclasses.dataclass
class Placement:
    """What `compress` inserts.

    Attributes:
        quantizers: id of a tensor of the graph -> (FakeQuant, row of its range or None).
        absorbed: ids of activation nodes that a FakeQuant carries out.
        per_channel: ids of Dense nodes whose BatchNormalization makes scales per channel.
        left_float: (name, kind, reason) of the operations that stay float though asked for.
        floats: ids of nodes that read floats as they are: what is given, and what floats give.
        exact: ids of tensors that such nodes read before they are rounded for others.
    """

    quantizers: dict[int, tuple[FakeQuant, int | None]]
    absorbed: set[int]
    per_channel: set[int]
    left_float: list[tuple[str, str, str]]
    floats: set[int] = dataclasses.field(default_factory=set)
    exact: set[int] = dataclasses.field(default_factory=set)


def place(
    graph: Graph, technique_of: Callable[[Node], Quantize | None], states: Sequence[tuple] = ()
) -> Placement:
    """Decides where fake-quantization of activations goes.

    Args:
        states: of the step of a loop, whose inputs are rounded outside: each state that it reads,
            and the new one, which has its scale.
    """
    return _Placer(graph, technique_of, states).run()


def kind_of(operation) -> str:
    """The name of an operation's kind: its class, or its activation for an Activation layer."""
    if isinstance(operation, FixedTraining):
        operation = operation.layer
    if isinstance(operation, layers.BatchNormalization):
        return "BatchNormalization"
    if isinstance(operation, layers.Activation):
        name = keras.activations.serialize(operation.activation)
        return f"Activation:{name}"
    return type(operation).__name__


def fixed_range(operation, bits: int = 8) -> tuple[float, float] | None:
    """The output range that LiteRT fixes for an operation, if it does."""
    name = kind_of(operation).removeprefix("Activation:").lower().replace("_", "")
    if bits == 16:  # there is no LOG_SOFTMAX of 16 bits
        return _FIXED_16 if name in _FIXED and name != "logsoftmax" else None
    return _FIXED.get(name)


def relu_name(operation) -> str | None:
    """'relu' or 'relu6' if the operation is that, None otherwise."""
    kind = kind_of(operation).removeprefix("Activation:").lower()
    if isinstance(operation, layers.ReLU):
        plain = operation.negative_slope == 0 and operation.threshold == 0
        known = {None: "relu", 6.0: "relu6"}
        return known.get(operation.max_value) if plain else None
    return kind if kind in ("relu", "relu6") else None


def has_kernel(operation) -> bool:
    """Whether LiteRT has an integer kernel for what the operation is lowered to."""
    kind = kind_of(operation)
    if kind.startswith("Activation:"):
        return kind.removeprefix("Activation:") in _ACTIVATIONS
    if isinstance(operation, layers.ReLU):
        leaky = operation.negative_slope != 0 and operation.max_value is not None
        return operation.threshold == 0 and operation.max_value in (None, 6.0) and not leaky
    return kind in INTEGER | KEEPING


def passes_through(operation) -> bool:
    """Whether an operation's output keeps the scale of its input."""
    kind = kind_of(operation)
    if isinstance(operation, layers.UpSampling2D | layers.UpSampling1D):
        return True
    return kind in KEEPING or kind == "Activation:linear"


def rounds(operation) -> bool:
    """Whether an operation keeps the scale but gives values between the steps of the grid."""
    if isinstance(operation, layers.UpSampling2D):
        return operation.interpolation != "nearest"
    return kind_of(operation) in ROUNDING


def is_idle(node: Node) -> bool:
    """Whether a user's layer gives back its input in inference, as one that drops paths does."""
    layer = node.operation
    if not isinstance(layer, keras.Layer) or not has_own_call(type(layer)) or layer.weights:
        return False
    if len(node.inputs) != 1 or "training" not in inspect.signature(layer.call).parameters:
        return False
    x = keras.KerasTensor(node.inputs[0].shape, node.inputs[0].dtype)
    args, kwargs = tree.map_structure(
        lambda value: x if isinstance(value, keras.KerasTensor) else value,
        (node.args, node.kwargs),
    )
    try:
        return layer.call(*args, **{**kwargs, "training": False}) is x
    except Exception:
        return False


def float_reason(node: Node) -> str:
    """Why an operation that was asked to be quantized stays float, as "it ..." goes on."""
    operation = inner_layer(node.operation)
    sized = not any(None in t.shape[1:] for t in node.inputs)
    if is_loop(operation) and (reason := loop_reason(operation)):
        return reason
    if sized and any(getattr(t, "_keras_mask", None) is not None for t in node.inputs):
        return "reads masks"
    if isinstance(operation, keras.Layer) and has_own_call(type(operation)):
        random = len(operation.variables) != len(operation.weights)
        takes = "training" in inspect.signature(operation.call).parameters
        if random or takes:
            return "does something else in training"
    if isinstance(operation, keras.Layer) and not sized:
        return "reads tensors of no fixed size: pass inputs= of the size that the file is for"
    if isinstance(operation, keras.Layer) and has_own_call(type(operation)):
        return "has a call() that is no graph of Keras layers and keras.ops"
    named = operator_of(kind_of(operation))
    has_none = "has no integer kernel in LiteRT"
    return f"is {named}, which {has_none}" if named else has_none


def reasons_of(graph: Graph) -> dict[str, str]:
    """Why operations of a compressed model would stay float, by their names."""
    found = {}
    for node in graph.nodes:
        operation = node.operation
        if node.is_input or isinstance(operation, FakeQuant):
            continue
        if not has_kernel(inner_layer(operation)):
            found[node.name] = float_reason(node)
    return found


def inner_layer(operation):
    """A layer without our wrapper."""
    return operation.layer if isinstance(operation, Compressed | FusedBatchNorm) else operation


def fills(node: Node) -> bool:
    """Whether a node that keeps the scale of its inputs puts constants among their values."""
    leaves = tree.flatten((node.args, node.kwargs))
    known = (keras.KerasTensor, str, bool, type(None))
    return kind_of(node.operation) in FILLING and not all(isinstance(x, known) for x in leaves)


class _Placer:
    def __init__(self, graph: Graph, technique_of, states: Sequence[tuple]):
        self.graph, self.technique_of, self.states = graph, technique_of, states
        self.placement = Placement({}, set(), set(), [])
        self.parent: dict[int, int] = {}
        self.names: dict[str, int] = {}
        self.extremes = Extremes(graph)
        self.idle = {id(node) for node in graph.nodes if not node.is_input and is_idle(node)}
        self.fixed: set[int] = set()
        # id of a tensor -> (technique, None if its operation stays float; activation; node)
        self.sources: dict[int, tuple[Quantize | None, str | None, Node]] = {}

    def run(self) -> Placement:
        for old, new in self.states:
            self.parent[self._root(id(old))] = self._root(id(new))
        self.fixed = self._of_weights()
        while True:
            self.wanted = self._find_wanted()
            fixed = self._of_weights(self.wanted)
            if fixed == self.fixed:
                break
            self.fixed = fixed
        self.placement.floats = self._find_floats()
        done: set[int] = set()
        for node in self.graph.nodes:
            if id(node) in done or not _is_float(node.outputs[0]):
                continue
            if not node.is_input and self._passes(node):
                self._tie(node)
                if fills(node) and (technique := self._quantized(node)) is not None:
                    self.sources[id(node.outputs[0])] = (technique, None, node)
            else:
                self._add_unit(node, done)
        self._tie_states()
        self._make_quantizers()
        return self.placement

    def _tie_states(self) -> None:
        """Gives a state one scale as it comes and goes: it is rounded where it is made."""
        pairs = pairs_of(self.graph)
        for given, made in pairs:
            self.parent[self._root(id(given))] = self._root(id(made))
        inputs = {id(given) for given, _ in pairs}
        rounded = {self._root(key) for key in self.sources.keys() - inputs}
        for key in inputs & self.sources.keys():
            if self._root(key) in rounded:
                del self.sources[key]

    def _of_weights(self, rounded: Collection[int] = ()) -> set[int]:
        """Nodes that compute with weights and constants alone; the file has what they give.

        Not those that read tensors that are rounded for others.
        """
        fixed: set[int] = set()
        plain: set[int] = set()  # tensors
        for node in self.graph.nodes:
            operation, inputs = node.operation, self._read(node)
            free = not isinstance(operation, keras.Layer) or kind_of(operation) == "Rsqrt"
            holds = isinstance(operation, Parameter | Constant)
            of_weights = bool(inputs) and all(id(t) in plain for t in inputs)
            if not node.is_input and of_weights and free and not self._passes(node):
                fixed.add(id(node))
            elif not holds and not (of_weights and self._passes(node)):
                continue
            plain.update(id(t) for t in node.outputs if id(t) not in rounded or not _is_float(t))
        return fixed

    def _find_wanted(self) -> set[int]:
        """Tensors that some quantized operation reads, if need be through reshapes."""
        wanted: set[int] = set()
        for node in reversed(self.graph.nodes):
            if node.is_input or id(node) in self.fixed:
                continue
            if self._passes(node):
                reads = any(id(t) in wanted for t in node.outputs)
            else:
                reads = self._quantized(node) is not None
            if reads:
                wanted.update(id(t) for t in node.inputs)
        return wanted

    def _find_floats(self) -> set[int]:
        """Nodes that stay float, with those before them that are no operation in the file."""
        floats: set[int] = set()
        for node in reversed(self.graph.nodes):
            if node.is_input:
                continue
            if kind_of(node.operation) in TRANSPARENT or id(node) in self.idle:
                stays = all(self._is_read_by_floats(t, floats) for t in node.outputs)
            else:
                stays = not self._passes(node) and self._quantized(node) is None
            if stays:
                floats.add(id(node))
        return floats

    def _passes(self, node: Node) -> bool:
        """Whether a node's output keeps the scale of its input."""
        if kind_of(node.operation) == "Cast":
            return all(map(_is_float, node.inputs))
        if (number := _selected(node)) is not None and not np.any(number):
            return True  # 0 is on any grid
        if self.states and number is None and kind_of(node.operation) == "Where":
            return True  # a state that stays what it was
        return id(node) in self.idle or passes_through(node.operation)

    def _is_read_by_floats(self, tensor, floats: set[int]) -> bool:
        readers = self.graph.consumers(tensor)
        all_float = bool(readers) and all(id(node) in floats for node in readers)
        return all_float and not self.graph.is_output(tensor)

    def _quantized(self, node: Node) -> Quantize | None:
        technique = self.technique_of(node)
        quantizes = technique is not None and technique.activation_bits is not None
        return technique if quantizes and has_kernel(node.operation) else None

    @staticmethod
    def _read(node: Node) -> list:
        # RepeatBatch reads its second input only for the size of the batch, KeepMask for its mask.
        first = isinstance(node.operation, RepeatBatch | KeepMask)
        return node.inputs[:1] if first else node.inputs

    def _tie(self, node: Node) -> None:
        tensors = [t for t in (*self._read(node), *node.outputs) if _is_float(t)]
        for tensor in tensors[1:]:
            self.parent[self._root(id(tensor))] = self._root(id(tensors[0]))

    def _root(self, key: int) -> int:
        while self.parent.setdefault(key, key) != key:
            self.parent[key] = self.parent[self.parent[key]]
            key = self.parent[key]
        return key

    def _add_unit(self, node: Node, done: set[int]) -> None:
        """Makes the last tensor of node (+ BatchNormalization) (+ ReLU) a source of values."""
        technique = None if id(node) in self.fixed else self._quantized(node)
        kind = kind_of(node.operation)
        asked = None if id(node) in self.fixed else self.technique_of(node)
        wanted = asked is not None and asked.activation_bits is not None
        # What makes floats out of whole numbers has nothing to quantize.
        if technique is None and wanted and any(map(_is_float, node.inputs)):
            self.placement.left_float.append((node.name, kind, float_reason(node)))
        unit, activation = [node], None
        if technique is not None and kind in FOLDING:
            follower = self.graph.only_consumer(node.outputs[0])
            if follower is not None and _is_foldable(follower):
                unit.append(follower)
                self.placement.per_channel.add(id(node))
        if technique is not None and kind in FUSING:
            follower = self.graph.only_consumer(unit[-1].outputs[0])
            if follower is not None and relu_name(follower.operation):
                activation = relu_name(follower.operation)
                unit.append(follower)
                self.placement.absorbed.add(id(follower))
        if technique is not None and not activation:
            unit += self._selecting(unit[-1])
        done.update(id(part) for part in unit)
        for tensor in unit[-1].outputs:
            if _is_float(tensor):
                self.sources[id(tensor)] = (technique, activation, unit[-1])

    def _selecting(self, node: Node) -> list[Node]:
        """The selection that alone reads what a node gives, by whose scale that is written."""
        follower = self.graph.only_consumer(node.outputs[0])
        given = self._is_given(node) or looks_up(node)
        if follower is None or given or fixed_range(node.operation) or self._passes(follower):
            return []
        selects = _selected(follower) is not None and self._quantized(follower) is not None
        return [follower] if selects else []

    def _make_quantizers(self) -> None:
        groups: dict[int, list[int]] = {}
        for key in self.sources:
            groups.setdefault(self._root(key), []).append(key)
        # What no quantized operation gives or reads stays float.
        groups = {root: keys for root, keys in groups.items() if any(map(self._is_asked, keys))}
        if self.states:
            groups = {root: x for root, keys in groups.items() if (x := self._of_step(keys))}
        own = [technique for technique, _, _ in self.sources.values() if technique is not None]
        shared: dict[int, FakeQuant] = {}
        multiplied = self._multiplied()
        rounded = {self._root(id(t)) for n in self._rounding() for t in n.outputs}
        for root, keys in groups.items():
            technique, _, node = self.sources[keys[0]]
            embedded = technique is not None and (looks_up(node) or has_own_grid(node))
            if embedded and len(keys) == 1 and root not in rounded:
                continue  # what it gives is on a grid already: of its weights, of its states
            # A float operation's output takes the settings of those that read it.
            techniques = [self.sources[key][0] for key in keys] + own + [Quantize()]
            technique = next(t for t in techniques if t is not None)
            shared[root] = self._make(keys, technique, root in multiplied)
            for row, key in enumerate(keys):
                self.placement.quantizers[key] = (shared[root], row)
            if not shared[root].observes:
                self.placement.exact.update(k for k in keys if self._is_exact(*self.sources[k]))
        self._round_again(shared)

    def _of_step(self, keys: list[int]) -> list[int]:
        """What is to be rounded in a step: no states, nor frames that nothing is joined with."""
        old = {id(state) for state, _ in self.states}
        keys = [key for key in keys if key not in old]
        return keys if any(not self.sources[key][2].is_input for key in keys) else []

    def _is_asked(self, key: int) -> bool:
        technique, _, node = self.sources[key]
        takes = technique is not None and not self._is_weight(node)
        return key in self.wanted or (takes and kind_of(node.operation) != "Cast")

    def _multiplied(self) -> set[int]:
        """The roots of weights that are multiplied with as a Dense layer does, not by value."""
        products = [n for n in self.graph.nodes if kind_of(n.operation) == "Matmul"]
        read = {self._root(id(t)) for n in products for t in n.inputs}
        others = {
            self._root(key)
            for key, (_, _, node) in self.sources.items()
            if not self._is_weight(node)
        }
        return read - others

    @functools.cached_property
    def _divisors(self) -> set[int]:
        """The roots of what something is divided by."""
        operands = [
            tree.flatten((n.args, n.kwargs))[1]
            for n in self.graph.nodes
            if kind_of(n.operation) in ("Divide", "TrueDivide")
        ]
        return {self._root(id(x)) for x in operands if isinstance(x, keras.KerasTensor)}

    def _make(self, keys: list[int], technique: Quantize, symmetric: bool) -> FakeQuant:
        _, activation, node = self.sources[keys[0]]
        alone = len(keys) == 1
        if not alone:  # a shared range need not start at 0, so that each ReLU does its own work
            self.placement.absorbed -= {id(self.sources[key][2]) for key in keys}
        floats = [row for row, key in enumerate(keys) if self._stays_float(*self.sources[key])]
        bits = technique.activation_bits or 8
        ranges = {fixed_range(self.sources[key][2].operation, bits) for key in keys}
        fixed = ranges.pop() if len(ranges) == 1 and not (floats or symmetric) else None
        # The file may take integers, but floats need not be rounded where floats go on.
        observes = node.is_input and self._is_read_by_floats(node.outputs[0], self.placement.floats)
        extremes, divides = self.extremes.of(keys), self._root(keys[0]) in self._divisors
        plain = not (fixed or extremes or divides or symmetric or observes or bits > 8)
        return FakeQuant(
            bits=8 if symmetric else bits,
            symmetric=symmetric,
            # A weight's range is what it is now.
            momentum=0.0 if self._is_weight(node) else technique.momentum,
            activation=activation if alone else None,
            sources=len(keys),
            fixed=fixed,
            delay=technique.delay,
            freeze=technique.freeze,
            float_source=floats or False,
            observes=observes,
            extremes=extremes,
            divides=divides,
            learned=plain and technique.activation_step == "learned" and not self._is_weight(node),
            name=self._unique_name(f"{node.name}_range"),
        )

    def _is_exact(self, technique: Quantize | None, activation: str | None, node: Node) -> bool:
        return technique is None or self._is_given(node)

    def _stays_float(self, technique: Quantize | None, activation: str | None, node: Node) -> bool:
        return technique is None and not self._is_given(node)

    def _is_weight(self, node: Node) -> bool:
        return isinstance(node.operation, Parameter) or id(node) in self.fixed

    def _is_given(self, node: Node) -> bool:
        """Whether a node's values come from no computation: inputs, weights, whole numbers."""
        given = isinstance(node.operation, layers.InputLayer) or self._is_weight(node)
        return given or kind_of(node.operation) == "Cast"

    def _unique_name(self, name: str) -> str:
        """A layer that is called several times has a quantizer for each call."""
        name = scope_name(name)  # inputs may have any name
        count = self.names[name] = self.names.get(name, 0) + 1
        return name if count == 1 else f"{name}_{count}"

    def _round_again(self, shared: dict[int, FakeQuant]) -> None:
        """Averages of values on a grid lie between its steps: round them by the same range."""
        for node in self._rounding():
            for tensor in node.outputs:
                layer = shared.get(self._root(id(tensor)))
                if layer is not None:
                    self.placement.quantizers[id(tensor)] = (layer, None)

    def _rounding(self) -> list[Node]:
        return [n for n in self.graph.nodes if not n.is_input and rounds(n.operation)]


def _is_foldable(node: Node) -> bool:
    """Whether a node is a BatchNormalization over the last axis, as the converter folds it."""
    operation = node.operation
    if not isinstance(operation, layers.BatchNormalization):
        return False
    rank = len(node.outputs[0].shape)
    return operation.axis in (-1, rank - 1)


def _selected(node: Node):
    """The constant that a node selects where it does not select values of a tensor, if so."""
    if kind_of(node.operation) != "Where":
        return None
    values = tree.flatten((node.args, node.kwargs))[1:]
    known = [x for x in values if not isinstance(x, keras.KerasTensor)]
    return known[0] if len(values) == 2 and len(known) == 1 else None


def has_own_grid(node: Node) -> bool:
    """Whether a node rounds what it gives by itself, be it under techniques or not."""
    return kind_of(getattr(node.operation, "layer", node.operation)) in ("IntegerLSTM", "StepRNN")


def looks_up(node: Node) -> bool:
    """Whether a node gives rows of a table of weights, be it under techniques or not."""
    kind = kind_of(getattr(node.operation, "layer", node.operation))
    if kind == "ReversibleEmbedding":
        return not (node.kwargs.get("reverse") or any(x is True for x in node.args))
    return kind == "Embedding"


def _is_float(tensor) -> bool:
    return "float" in str(tensor.dtype)
