"""Integer kernels that LiteRT has and litert-quantizer does not use yet.

What it leaves as DEQUANTIZE -> float op -> QUANTIZE becomes the op itself on integers.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.conversion import lstm, ranges
from tfcompress.conversion.ranges import Range
from tfcompress.kinds import OPERATORS
from tfcompress.tflite.flatbuffer import (
    add_buffer,
    changed,
    is_constant,
    op_code,
    op_name,
    scales_of,
    tensor_values,
)

# Ops with int8 kernels (and the version from which they have them).
KERNELS = {name: version for name, version in OPERATORS.items() if version}

_COMPARING = ("GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL")

# LiteRT compares in 256ths, and ends the process at scales of 1.
_COMPARED = (1 / 256, 1.0)

# Those that move codes about and never look at scales: all of their tensors must have the same.
SAME_SCALE = KERNELS.keys() & ranges.SAME_SCALE
_FLOAT, _INT32, _BOOL, _INT8 = 0, 2, 6, 9


def fold(
    model,
    known: dict[str, Range],
    cells: Mapping[str, float] | None = None,
    widths: Collection[int] | None = None,
) -> None:
    """Turns float ops between DEQUANTIZE and QUANTIZE into integer ones. Changes `model`.

    Args:
        known: ranges of tensors by name.
        cells: the greatest values of the cell states of LSTMs, by the tensors that these give.
        widths: the bits of weights that were trained for them; None if none were.
    """
    for graph in model.subgraphs:
        _Folder(model, graph, known, cells or {}, widths).run()


def round_twice(model, known: dict[str, Range]) -> None:
    """Writes what was trained to be rounded to two grids in turn so. Changes `model`.

    litert-quantizer writes it on the second at once where only operators of that grid read it.

    Args:
        known: ranges of tensors by name.
    """
    for graph in model.subgraphs:
        operators: list = []
        for op in graph.operators:
            operators.append(op)
            for place, index in enumerate(op.outputs):
                tensor = graph.tensors[index]
                found = known.get(bytes(tensor.name).decode())
                if found is None or found.bits != 8 or tensor.type != _INT8:
                    continue
                grid = _grid_over(found)
                if op_name(model, op) in ranges.SAME_SCALE or _is_near(_grid(tensor)[0], grid[0]):
                    continue
                first = {"name": bytes(tensor.name) + b"_first", "buffer": 0}
                graph.tensors.append(changed(tensor, **first, quantization=_quantization(*grid)))
                op.outputs[place] = len(graph.tensors) - 1
                operators.append(_conversion(model, "QUANTIZE", op.outputs[place], index))
        graph.operators = operators


class _Folder:
    """Folds the ops of a graph in their order, so that chains of them are folded too."""

    def __init__(self, model, graph, known: dict[str, Range], cells, widths):
        self.model, self.graph, self.ranges = model, graph, known
        self.cells, self.widths = cells, widths
        self.operators: list = []
        self.gone: set[int] = set()
        # float tensor -> the int8 tensor that it is read from
        self.source: dict[int, int] = {}
        self.quantizes: dict[int, list] = {}
        for op in graph.operators:
            if op_name(model, op) == "QUANTIZE":
                self.quantizes.setdefault(op.inputs[0], []).append(op)

    def run(self) -> None:
        tensors = self.graph.tensors
        for op in self.graph.operators:
            if id(op) in self.gone:
                continue
            name = op_name(self.model, op)
            if name == lstm.NAME and (known := self._states_of(op)):
                self._fold_lstm(op, known)
                continue
            if name == "RESHAPE" and self._is_rounded_again(op):
                self._round_again(op)
                continue
            if name in KERNELS and self._is_foldable(op, name):
                if name == "CAST" and tensors[op.inputs[0]].type != _BOOL:
                    self._quantize_count(op)
                else:
                    self._fold(op, name)
                continue
            self.operators.append(op)
            if name == "DEQUANTIZE" and tensors[op.inputs[0]].type == _INT8:
                self.source[op.outputs[0]] = op.inputs[0]
            elif name == "QUANTIZE" and tensors[op.outputs[0]].type == _INT8:
                self.source.setdefault(op.inputs[0], op.outputs[0])
        self.graph.operators = [op for op in self.operators if id(op) not in self.gone]
        _drop_idle_quantizes(self.model, self.graph)
        _drop_unread(self.model, self.graph)

    def _floats(self, indices) -> list[int]:
        return [i for i in indices if i >= 0 and self.graph.tensors[i].type == _FLOAT]

    def _is_foldable(self, op, name: str) -> bool:
        inputs = self._floats(op.inputs)
        constants = [i for i in inputs if is_constant(self.model, self.graph.tensors[i])]
        activations = [i for i in inputs if i not in constants]
        if name == "CAST":
            return self._is_truth(op) or self._is_count(op)
        if not activations or (constants and name not in ("PRELU", "MINIMUM", *_COMPARING)):
            return False
        grids = [grid for grid in map(self._grid_of, activations) if grid is not None]
        if len(grids) < len(activations):
            return False
        if name in SAME_SCALE and len(set(grids)) > 1:
            return False
        if name in _COMPARING:
            grids += [(self._symmetric_scale(i, name), 0) for i in constants]
            return all(_COMPARED[0] <= scale < _COMPARED[1] for scale, _ in grids)
        return all(self._wanted_grid(i) is not None for i in self._floats(op.outputs))

    def _is_rounded_again(self, op) -> bool:
        """Whether a RESHAPE to the same shape stands for codes that are rounded to others."""
        source, made = ranges.ends(op)
        shapes = [list(self.graph.tensors[i].shape) for i in (source, made)]
        codes = source in self.source or (source in self.graph.inputs and self._range_of(source))
        return shapes[0] == shapes[1] and bool(codes and self._range_of(made))

    def _is_truth(self, op) -> bool:
        """Whether a CAST makes numbers of truths, for integers to read."""
        source, made = op.inputs[0], op.outputs[0]
        return self.graph.tensors[source].type == _BOOL and self._wanted_grid(made) == (1.0, 0)

    def _is_count(self, op) -> bool:
        """Whether a CAST makes floats of whole numbers, for integers to read."""
        source, made = op.inputs[0], op.outputs[0]
        kinds = [self.graph.tensors[i].type for i in (source, made)]
        read = made in self.quantizes or any(
            made in other.inputs and op_name(self.model, other) in KERNELS
            for other in self.graph.operators
        )
        whole = kinds[0] not in (_FLOAT, _BOOL) and kinds[1] == _FLOAT
        return whole and read and self._wanted_grid(made) is not None

    def _symmetric_scale(self, index: int, name: str) -> float:
        values: Any = tensor_values(self.model, self.graph.tensors[index])
        least = 0.5 if name in _COMPARING else 1e-9
        return max(float(np.abs(values).max(initial=0.0)), least) / 127

    def _grid_of(self, index: int) -> tuple[float, int] | None:
        """Scale and zero point with which a float tensor can be read as int8."""
        if index in self.source:
            return _grid(self.graph.tensors[self.source[index]])
        return self._wanted_grid(index) if index in self.graph.inputs else None

    def _wanted_grid(self, output: int) -> tuple[float, int] | None:
        """Scale and zero point that an output is to have; None if it is to stay float."""
        known = self._range_of(output)
        if known is None:
            return None
        over = _grid_over(known)
        for op in self.quantizes.get(output, []):
            if self.graph.tensors[op.outputs[0]].type == _INT8:
                grid = _grid(self.graph.tensors[op.outputs[0]])
                # What was trained for another grid is rounded to that first.
                if self.widths is None or _is_near(grid[0], over[0]):
                    return grid
        return over

    def _range_of(self, output: int) -> Range | None:
        """The range of 8 bits that is known of a tensor."""
        known = self.ranges.get(bytes(self.graph.tensors[output].name).decode())
        return known if known is not None and known.bits == 8 else None

    def _fold(self, op, name: str) -> None:
        """Moves an op onto integer tensors; a DEQUANTIZE after it serves those that read floats."""
        tensors = self.graph.tensors
        for index in self._floats(op.inputs):
            if index in self.graph.inputs and index not in self.source:
                self._quantize(index)
        op.inputs = [self.source.get(i, i) for i in op.inputs]
        first = next((i for i in op.inputs if i >= 0 and tensors[i].type == _INT8), -1)
        for index in self._floats(op.inputs):
            op.inputs = [self._constant(i, first, name) if i == index else i for i in op.inputs]
        outputs = list(op.outputs)
        self.operators.append(op)
        for position, output in enumerate(outputs):
            if tensors[output].type != _FLOAT:
                continue
            grid = _grid(tensors[first]) if name in SAME_SCALE else self._wanted_grid(output)
            if name == "CAST":  # on a grid of scale 1
                op.builtinOptionsType = schema.BuiltinOptions.CastOptions
                op.builtinOptions = schema.CastOptionsT(_BOOL, _INT8)
            outputs[position] = self.source[output] = self._integer_tensor(output, grid)
            back = _conversion(self.model, "DEQUANTIZE", outputs[position], output)
            self.operators.append(back)
        op.outputs = outputs
        _raise_version(self.model, op)

    def _round_again(self, op) -> None:
        """Writes a QUANTIZE of codes, and a DEQUANTIZE for those that read floats."""
        source, made = ranges.ends(op)
        if source not in self.source:
            self._quantize(source)
        given = self._integer_tensor(made, self._wanted_grid(made))
        self.operators.append(_conversion(self.model, "QUANTIZE", self.source[source], given))
        self.source[made] = given
        self.operators.append(_conversion(self.model, "DEQUANTIZE", given, made))

    def _quantize(self, index: int) -> None:
        """Makes an int8 tensor of a float one."""
        made = self._integer_tensor(index, self._wanted_grid(index))
        self.operators.append(_conversion(self.model, "QUANTIZE", index, made))
        self.source[index] = made

    def _states_of(self, op) -> Range | None:
        """The range of the hidden states of an LSTM, if also what it reads has one."""
        read = self._grid_of(op.inputs[0]) or self._wanted_grid(op.inputs[0])
        return None if read is None else self._range_of(op.outputs[0])

    def _fold_lstm(self, op, known: Range) -> None:
        """Writes an LSTM on integers, which gives its hidden state on the grid of that."""
        x, made = op.inputs[0], op.outputs[0]
        if x not in self.source:
            self._quantize(x)
        # One that differs in the last bit of its scale is that of the QUANTIZE after it.
        grid = _grid_over(known)
        wanted = self._wanted_grid(made)
        same = wanted is not None and wanted[1] == grid[1] and _is_near(wanted[0], grid[0])
        given = self.source[made] = self._integer_tensor(made, wanted if same else grid)
        name = bytes(self.graph.tensors[made].name).decode()
        most = self.cells.get(name, 1.0)
        self.operators += lstm.integer_operators(
            self.model, op, self.source[x], given, most, self.widths
        )
        states = {op.inputs[place] for place in (lstm.HIDDEN, lstm.CELL)}
        self.operators = [old for old in self.operators if not states.intersection(old.outputs)]
        for index in states:
            self.graph.tensors[index].isVariable = False
        self.operators.append(_conversion(self.model, "DEQUANTIZE", given, made))

    def _quantize_count(self, op) -> None:
        """Writes a CAST of whole numbers as their QUANTIZE, and as it is for readers of floats."""
        source, made = op.inputs[0], op.outputs[0]
        tensors = self.graph.tensors
        # Whole numbers of scale 1; those that others read, or of another type, as a copy.
        cast = schema.CastOptionsT(tensors[source].type, _INT32)
        named = {"name": bytes(tensors[source].name) + b"_whole", "type": _INT32, "buffer": 0}
        tensors.append(changed(tensors[source], **named, quantization=_quantization(1.0, 0)))
        whole = len(tensors) - 1
        code = op_code(self.model, schema.BuiltinOperator.CAST)
        options = schema.BuiltinOptions.CastOptions
        self.operators.append(schema.OperatorT(code, [source], [whole], options, cast))
        self.source[made] = self._integer_tensor(made, self._wanted_grid(made))
        self.operators.append(_conversion(self.model, "QUANTIZE", whole, self.source[made]))
        self.operators.append(op)

    def _integer_tensor(self, output: int, grid) -> int:
        """The int8 tensor in an output's place: that of a QUANTIZE of the same grid, or a new one.

        Any other QUANTIZE of the output changes the scale instead.
        """
        tensors, found = self.graph.tensors, None
        for op in self.quantizes.get(output, []):
            target = tensors[op.outputs[0]]
            if found is None and target.type == _INT8 and _grid(target) == grid:
                found = op.outputs[0]
                self.gone.add(id(op))
        if found is None:
            name = bytes(tensors[output].name) + b"_quantized"
            made = {"name": name, "type": _INT8, "quantization": _quantization(*grid)}
            tensors.append(changed(tensors[output], **made))
            found = len(tensors) - 1
        for op in self.quantizes.get(output, []):
            op.inputs = [found]
        return found

    def _constant(self, index: int, like: int, name: str) -> int:
        """An int8 twin of a constant: on its own symmetric grid, or on that of another tensor."""
        tensor = self.graph.tensors[index]
        values: Any = tensor_values(self.model, tensor)
        scale, zero = self._symmetric_scale(index, name), 0
        if name in SAME_SCALE:
            scale, zero = _grid(self.graph.tensors[like])
        codes = np.clip(np.rint(values / scale) + zero, -128, 127).astype(np.int8)
        made = changed(
            tensor,
            name=bytes(tensor.name) + b"_quantized",
            type=_INT8,
            buffer=add_buffer(self.model, codes.tobytes()),
            quantization=_quantization(scale, zero),
        )
        self.graph.tensors.append(made)
        return len(self.graph.tensors) - 1


def _grid(tensor) -> tuple[float, int]:
    scales, points = scales_of(tensor)
    return scales[0], points[0] if points else 0


def _is_near(one: float, other: float) -> bool:
    return abs(one - other) < 1e-6 * other


def _grid_over(known: Range) -> tuple[float, int]:
    """Scale and zero point of a range."""
    scale = max(known.maximum - known.minimum, 1e-9) / 255
    return scale, round(np.clip(-128 - known.minimum / scale, -128, 127))


def _quantization(scale: float, zero: int):
    # As the file stores it: what is told of the file is told of this.
    return schema.QuantizationParametersT(scale=[float(np.float32(scale))], zeroPoint=[zero])


def _conversion(model, name: str, source: int, target: int):
    """A new QUANTIZE or DEQUANTIZE."""
    code = op_code(model, getattr(schema.BuiltinOperator, name), version=2)
    return schema.OperatorT(code, [source], [target])


def _raise_version(model, op) -> None:
    """Integer kernels of some ops came with a later version of the op."""
    code = model.operatorCodes[op.opcodeIndex]
    needed = KERNELS[op_name(model, op)]
    if code.version < needed:
        model.operatorCodes.append(changed(code, version=needed))
        op.opcodeIndex = len(model.operatorCodes) - 1


def _drop_idle_quantizes(model, graph) -> None:
    """Takes out QUANTIZE ops from a scale to the same scale, as before a PACK."""
    alias: dict[int, int] = {}
    kept = []
    for op in graph.operators:
        op.inputs = [alias.get(i, i) for i in op.inputs]
        idle = op_name(model, op) == "QUANTIZE" and op.outputs[0] not in graph.outputs
        if idle and _same_grid(graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]):
            alias[op.outputs[0]] = op.inputs[0]
        else:
            kept.append(op)
    graph.operators = kept


def _same_grid(a, b) -> bool:
    one, other = scales_of(a), scales_of(b)
    return a.type == b.type and all(one) and one == other


def _drop_unread(model, graph) -> None:
    """Takes out DEQUANTIZE and CAST ops that nobody reads any more."""
    read = {i for op in graph.operators for i in op.inputs} | set(graph.outputs)
    graph.operators = [
        op
        for op in graph.operators
        if op_name(model, op) not in ("DEQUANTIZE", "CAST") or op.outputs[0] in read
    ]
