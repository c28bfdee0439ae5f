"""Which precision each layer of a model gets in its file."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras

from tfcompress.errors import expected_one_of
from tfcompress.kinds import (
    CONVOLUTIONS,
    DEPTHWISE,
    SEPARABLE,
    TRANSPOSED,
    is_exactly,
    is_kernel,
    is_known,
)
from tfcompress.quantization.kernels import inner_layer
from tfcompress.techniques import Quantize
from tfcompress.techniques.rules import Rule, Rules, require_match

USUAL = "int8"

# Precisions with weights of fewer bits -> operators of LiteRT with kernels for them.
KERNELS: dict[str, tuple[str, ...]] = {
    "int4": ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D"),
    "int2": ("FULLY_CONNECTED",),
    "int4_blockwise": ("FULLY_CONNECTED",),
}
_HOLDERS = {
    "FULLY_CONNECTED": "Dense",
    "CONV_2D": "convolutions",
    "DEPTHWISE_CONV_2D": "depthwise convolutions",
}
# Those whose activations stay float.
FLOATS = ("int4_blockwise", "float16", "float32")
# The bits of the weights of integer operators.
WEIGHT_BITS = {"int8": 8, "int4": 4, "int2": 2, "int16x8": 8}
# How many weights of a row share a scale.
BLOCK = 32
LAYER_PRECISIONS = (USUAL, *KERNELS, "int16x8", "float16", "float32")
# What layers can be that were trained with activations of 8 bits.
TRAINED_PRECISIONS = (USUAL, "int4", "int2")

_WEIGHTED = (*KERNELS, "float16")


@dataclasses.dataclass(frozen=True)
class Precisions:
    """Ordered rules that give layers precisions; the last that matches a layer decides.

    A layer that none matches is "int8". Layers that open into several operations, such as
    attention, hand their precision to all of these.

    Args:
        rules: {pattern: precision}, in the order in which they count. A pattern is one of the name
            and the class of a layer as in `tfcompress.Rule` ("*", "block_1*", "Dense"), a type such
            as `keras.layers.Dense`, or a predicate `f(layer) -> bool`. A precision is "int8";
            "int4", "int2" or "int4_blockwise" (weights of fewer bits); "int16x8" (activations of 16
            bits); "float16" (weights, with float activations) or "float32".

    Raises:
        TypeError: if `rules` is no mapping, or a pattern is none.
        ValueError: if there is no rule, or a precision is none.
    """

    rules: Mapping[Any, str]

    def __post_init__(self) -> None:
        rules = self.rules
        if not isinstance(rules, Mapping):
            raise TypeError(
                "precision by layer must be a mapping {pattern: precision}, such as "
                f"{{'*': 'int4', 'head': 'int8'}}; received {rules!r}."
            )
        if not rules:
            raise ValueError(
                "precision by layer must have at least one rule; received none. Add one, such as "
                "{'*': 'int4'}, or leave precision out."
            )
        for pattern, precision in rules.items():
            rule = Rule(pattern)
            if precision not in LAYER_PRECISIONS:
                raise ValueError(
                    f"unknown precision {precision!r} for {rule.words}; "
                    f"{expected_one_of(str(precision), LAYER_PRECISIONS)}"
                )
        object.__setattr__(self, "rules", dict(rules))

    @classmethod
    def of(cls, rules: Precisions | Mapping[Any, str]) -> Precisions:
        """Rules as they are, or those of a mapping."""
        return rules if isinstance(rules, Precisions) else cls(rules)

    @property
    def named(self) -> tuple[str, ...]:
        """The precisions that rules name, each once, in their order."""
        return tuple(dict.fromkeys(self.rules.values()))

    def __iter__(self) -> Iterator[tuple[Rule, str]]:
        for pattern, precision in self.rules.items():
            yield Rule(pattern), precision

    def of_layer(self, layer: Any, otherwise: str = USUAL) -> str:
        """The precision that a layer is to have."""
        found = (precision for rule, precision in reversed(list(self)) if rule.matches(layer))
        return next(found, otherwise)

    @property
    def opened(self) -> Rules:
        """Rules that quantize the activations of layers that are to have integer kernels."""
        rules = [Rule("*", [Quantize()])]
        for rule, precision in self:
            bits = 16 if precision == "int16x8" else 8
            opens = precision not in ("float16", "float32")
            asked = [Quantize(activation_bits=bits)] if opens else []
            rules.append(dataclasses.replace(rule, techniques=asked))
        return Rules(rules)

    def check_layers(self, model: keras.Model) -> None:
        """Raises unless every rule matches layers of a flat model, some of which can be that."""
        for rule, precision in self:
            matched = require_match(rule, map(inner_layer, model.operations), model)
            require_able(rule, precision, [x for x in matched if may_be(x, precision)], matched)


def may_be(layer: Any, precision: str) -> bool:
    """Whether a layer has weights for a precision, as far as its class tells."""
    if precision not in _WEIGHTED:
        return True
    if not getattr(layer, "weights", None):
        return False
    operators = _operators(layer)
    return operators is None or precision == "float16" or bool(operators & {*KERNELS[precision]})


def require_able(rule: Rule, precision: str, able: Iterable[Any], matched: Sequence[Any]) -> None:
    """Raises if none of the layers that a rule matches is able to be what it says."""
    if any(True for _ in able):
        return
    named = [f"'{x.name}' ({type(x).__name__})" for x in matched]
    more = ", ..." if len(named) > 5 else ""
    kernels = KERNELS.get(precision)
    expected = "weights"
    if kernels:
        expected = f"weights of {', '.join(_HOLDERS[kernel] for kernel in kernels)}"
    expected += f" with a multiple of {BLOCK} inputs" if precision == "int4_blockwise" else ""
    others = [name for name in KERNELS if any(may_be(x, name) for x in matched)]
    mend = "Name another precision for these layers, or other layers"
    runs = f"; LiteRT runs these in {', '.join(others)} or {USUAL}" if others and kernels else ""
    raise ValueError(
        f"{rule.words} asks for {precision}, which LiteRT runs for {expected} alone; it matches "
        f"{', '.join(named[:5])}{more}. {mend}{runs}."
    )


def bits_of(layer: Any, precision: str, narrow: Collection[str] | None = None) -> int | None:
    """The bits in which the kernel of a layer of one operator is stored; None if it is float.

    Args:
        layer: a Dense layer or a convolution, opened if it was composite.
        narrow: operators with weights of fewer than 8 bits; None for all that have kernels.
    """
    if precision in FLOATS:
        return None
    held = next(held for names, held in _HOLDING if is_exactly(layer, names))
    if len(held) > 1:  # each output reads one channel, or several
        alone = is_exactly(layer, DEPTHWISE) or int(layer.kernel.shape[-2]) == 1
        held = {"DEPTHWISE_CONV_2D" if alone else "CONV_2D"}
    able = held & {*KERNELS.get(precision, ())}
    return WEIGHT_BITS[precision] if able & (able if narrow is None else {*narrow}) else 8


def _operators(layer: Any) -> set[str] | None:
    """The operators that hold the kernels of a layer; None if its class does not tell."""
    if not is_known(layer) or getattr(layer, "_layers", None):
        return None
    if not any(is_kernel(layer, variable) for variable in layer.variables):
        return set()
    return next((held for names, held in _HOLDING if is_exactly(layer, names)), None)


_HOLDING: tuple[tuple[Collection[str], set[str]], ...] = (
    ({"Embedding", "Conv3D", "Conv3DTranspose"}, set()),
    # A convolution in groups or of one channel may be the other of the two.
    (CONVOLUTIONS | DEPTHWISE | SEPARABLE, {"CONV_2D", "DEPTHWISE_CONV_2D"}),
    (TRANSPOSED, {"TRANSPOSE_CONV"}),
    ({"Dense"}, {"FULLY_CONNECTED"}),
)
