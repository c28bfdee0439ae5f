"""Where fake-quantization goes: after each group of operations that LiteRT runs as one."""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Sequence

import keras
import numpy as np
from keras import layers, tree

from tfcompress.graph.layers import Constant, KeepMask, Parameter, RepeatBatch
from tfcompress.graph.nodes import Graph, Node, scope_name
from tfcompress.graph.states import pairs_of
from tfcompress.kinds import (
    FOLDING,
    FUSING,
    TRANSPARENT,
    share_range,
)
from tfcompress.layers.extremes import Extremes
from tfcompress.layers.fake_quant import FakeQuant
from tfcompress.quantization.kernels import (
    fills,
    fixed_range,
    float_reason,
    has_kernel,
    has_own_grid,
    is_float,
    is_foldable,
    is_idle,
    kind_of,
    looks_up,
    passes_through,
    relu_name,
    rounds,
    selected,
)
from tfcompress.techniques.quantize import Quantize


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
            if id(node) in done or not is_float(node.outputs[0]):
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
            plain.update(id(t) for t in node.outputs if id(t) not in rounded or not is_float(t))
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
            return all(map(is_float, node.inputs))
        if (number := selected(node)) is not None and not np.any(number):
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
        tensors = [t for t in (*self._read(node), *node.outputs) if is_float(t)]
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
        if technique is None and wanted and any(map(is_float, node.inputs)):
            self.placement.left_float.append((node.name, kind, float_reason(node)))
        unit, activation = [node], None
        if technique is not None and kind in FOLDING:
            follower = self.graph.only_consumer(node.outputs[0])
            if follower is not None and is_foldable(follower):
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
            if is_float(tensor):
                self.sources[id(tensor)] = (technique, activation, unit[-1])

    def _selecting(self, node: Node) -> list[Node]:
        """The selection that alone reads what a node gives, by whose scale that is written."""
        follower = self.graph.only_consumer(node.outputs[0])
        given = self._is_given(node) or looks_up(node)
        if follower is None or given or fixed_range(node.operation) or self._passes(follower):
            return []
        selects = selected(follower) is not None and self._quantized(follower) is not None
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
        ranges = {self._fixed_range(self.sources[key][2], bits) for key in keys}
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

    def _fixed_range(self, node: Node, bits: int) -> tuple[float, float] | None:
        """The range that LiteRT fixes, or that of a share of truths, which has to be exact."""
        if kind_of(node.operation) == "Mean" and bits == 8 and self._is_truth(node.inputs[0]):
            given, made = (math.prod(t.shape[1:]) for t in (node.inputs[0], node.outputs[0]))
            return share_range(given // made)
        return fixed_range(node.operation, bits)

    def _is_truth(self, tensor) -> bool:
        """Whether a tensor holds truths as numbers, of known sizes."""
        node = self.graph.producer(tensor)
        while node is not None and not node.is_input and self._passes(node):
            node = self.graph.producer(node.inputs[0])
        if node is None or kind_of(node.operation) != "Cast" or None in tensor.shape[1:]:
            return False
        return node.inputs[0].dtype == "bool"

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
