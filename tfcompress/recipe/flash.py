"""What a recipe is worth in flash, before anything is trained."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from tfcompress.backend import as_tensor
from tfcompress.compression.callbacks import update_together
from tfcompress.compression.compress import compress
from tfcompress.conversion.grids import find_grid
from tfcompress.graph.inputs import require_model
from tfcompress.kinds import channel_axes
from tfcompress.layers.compressed import (
    Compressed,
    effective_weight,
    target_variables,
    weight_name,
)
from tfcompress.layers.step_rnn import opened_layers
from tfcompress.results import Result, print_line, print_table
from tfcompress.techniques.cluster import by_channel
from tfcompress.techniques.rules import Rule, Rules, quantize_of
from tfcompress.tflite.weight_codes import smallest

if TYPE_CHECKING:
    from rich.console import Console

# A step at which all schedules have ended.
_END = 2**30


@dataclasses.dataclass(frozen=True)
class WeightFlash:
    """What one weight takes in flash.

    Attributes:
        name: layer and weight.
        count: elements, which is bytes in int8.
        values: how many different codes the file holds of it.
        bytes: in the smallest code that TFLite Micro decodes.
        code: its name, such as "table of 2 bits"; "int8" where none is smaller.
    """

    name: str
    count: int
    values: int
    bytes: int
    code: str


@dataclasses.dataclass(frozen=True)
class ExpectedFlash(Result):
    """What the weights of a model take in flash under a recipe.

    Attributes:
        model: its name.
        weights: one `WeightFlash` for each kernel; biases, and the graph of a file, are not there.
    """

    model: str
    weights: tuple[WeightFlash, ...]

    @property
    def int8(self) -> int:
        """Bytes of plain int8 weights."""
        return sum(weight.count for weight in self.weights)

    @property
    def bytes(self) -> int:
        """Bytes of the weights in their codes."""
        return sum(weight.bytes for weight in self.weights)

    @property
    def decoded(self) -> int:
        """Bytes that the largest coded weight takes in the arena while its operator runs."""
        return max((w.count for w in self.weights if w.code != "int8"), default=0)

    @property
    def line(self) -> str:
        """All in one line."""
        times = self.int8 / max(1, self.bytes)
        return (
            f"Weights in flash: {self.int8:,} bytes as int8, about {self.bytes:,} under this "
            f"recipe ({times:.1f} times smaller), if TFLite Micro decodes them, which takes "
            f"{self.decoded:,} bytes of RAM."
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            **super().to_dict(),
            "int8": self.int8,
            "bytes": self.bytes,
            "decoded": self.decoded,
        }

    def _print(self, console: Console) -> None:
        rows = [(w.name, w.values, w.count, w.bytes, w.code) for w in self.weights]
        print_table(console, self.model, "weight,values >,int8 >,bytes >,code", rows)
        print_line(console, self.line)


def expected_flash(model: keras.Model, recipe: Rules | Sequence[Rule]) -> ExpectedFlash:
    """What a model's weights will take in flash under a recipe, before it is trained.

    The techniques are applied to the weights as they are, at the end of their schedules, and each
    weight is put into the smallest code that TFLite Micro decodes. Sizes of tables are exact; those
    of masks and Huffman codes depend on where training leads.

    Args:
        model: any Keras 3 model that `flatten` takes; it is left untouched.
        recipe: a `Recipe`, or a list of `Rule`s. Layers without `Quantize` count as int8.

    Returns:
        An `ExpectedFlash`, which prints as a table.

    Raises:
        TypeError, ValueError: as `compress`.

    Example:
        >>> recipe = [Rule("*", [Codebook("4"), Quantize(bits=3)])]  # doctest: +SKIP
        >>> print(tfcompress.expected_flash(model, recipe).line)  # doctest: +SKIP
    """
    require_model(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what `compress` warns of is told when it is called
        small = compress(model, recipe)
    scheduled = [x for x in small._flatten_layers() if getattr(x, "scheduled", False)]
    for layer in scheduled:
        layer.begin_training(0, 0)
    update_together(scheduled, _END)
    for layer in scheduled:
        layer.advance(_END)
    return ExpectedFlash(model.name, tuple(_coded(*each) for each in _codes(small)))


def _codes(model: keras.Model) -> Iterator[tuple[str, np.ndarray, bool]]:
    """(name, codes by channel, whether each channel has a scale) of the kernels of a model."""
    for layer in opened_layers(model):
        if not isinstance(layer, Compressed):
            for owner, variable in target_variables(layer):
                axes = channel_axes(owner) if variable.name == "kernel" else ()
                name = weight_name(layer, owner, variable)
                yield name, _on_codes(as_tensor(variable), axes, 8), bool(axes)
            continue
        for target in layer.bound:
            quantize = quantize_of(target.techniques)
            axes = () if quantize is None else quantize.axes
            bits = 8 if quantize is None else min(8, quantize.bits)
            name = weight_name(layer.layer, target.owner, target.variable)
            yield name, _on_codes(effective_weight(target), axes, bits), bool(axes)


def _on_codes(weight: Any, axes: tuple[int, ...], bits: int) -> np.ndarray:
    """The int8 codes that a file holds of a weight: (channels, values in each)."""
    rows = by_channel(ops.convert_to_numpy(ops.cast(weight, "float32")), axes)
    grid = find_grid(rows, 1, [bits])
    if grid is None:  # not rounded while it trains
        scale = np.abs(rows).max(axis=0, keepdims=True, initial=0.0) / 127
    else:
        scale = grid.scale
    return np.rint(rows / np.where(scale > 0, scale, 1.0)).astype(np.int8).T


def _coded(name: str, codes: np.ndarray, by_scale: bool) -> WeightFlash:
    found = smallest(np.ascontiguousarray(codes), 0 if by_scale else None)
    size, code = (codes.size, "int8") if found is None else (found.bytes, found.code)
    return WeightFlash(name, codes.size, len(np.unique(codes)), size, code)
