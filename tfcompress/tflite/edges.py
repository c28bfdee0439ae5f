"""The inputs and outputs of a float .tflite, made fit for quantization."""

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfcompress.tflite.flatbuffer import op_name
from tfcompress.tflite.ranges import Range


def part_outputs(model, ranges: dict[int, Range]) -> None:
    """Gives every output a tensor that nothing else reads or is. Changes both arguments.

    ai-edge-quantizer makes a file that does not run where an output is an input, is read by an
    operation too, or is given twice: there a RESHAPE to its own shape stands between.

    Args:
        model: a float `ModelT`.
        ranges: ranges by tensor index.
    """
    graph = model.subgraphs[0]
    old = [int(index) for index in graph.outputs]
    shared = {i for op in graph.operators for i in op.inputs} | set(graph.inputs)
    shared |= {index for index in old if old.count(index) > 1}
    new = [_reshaped(model, graph, i, ranges) if i in shared else i for i in old]
    for signature in model.signatureDefs or []:
        remaining = list(zip(old, new, strict=True))
        for entry in signature.outputs or []:
            pair = next(pair for pair in remaining if pair[0] == entry.tensorIndex)
            remaining.remove(pair)
            entry.tensorIndex = pair[1]
    graph.outputs = new


def require_ranges(model, ranges: dict[int, Range], io_dtype: str) -> None:
    """Raises if an input or output cannot be of an integer type."""
    graph = model.subgraphs[0]
    for kind, indices in (("input", graph.inputs), ("output", graph.outputs)):
        for index in indices:
            if graph.tensors[index].type == 0 and index not in ranges:
                name = bytes(graph.tensors[index].name).decode()
                raise ValueError(
                    f"{kind} '{name}' belongs to a layer that stays float, so that its range is "
                    f"not known; received io_dtype='{io_dtype}'. Pass io_dtype='float32', or "
                    "quantize that layer too."
                )


def _reshaped(model, graph, index: int, ranges: dict[int, Range]) -> int:
    """A new tensor that a RESHAPE makes of another one."""
    source = graph.tensors[index]
    shape = np.asarray(source.shape, np.int32)
    buffer = schema.BufferT()
    buffer.data = shape.view(np.uint8)
    model.buffers.append(buffer)
    sizes = schema.TensorT()
    sizes.name, sizes.type, sizes.shape = bytes(source.name) + b"_shape", 2, [len(shape)]
    sizes.buffer = len(model.buffers) - 1
    copied = schema.TensorT()
    copied.__dict__.update(source.__dict__)
    copied.name, copied.buffer = bytes(source.name) + b"_output", 0
    graph.tensors += [sizes, copied]
    op = schema.OperatorT()
    op.opcodeIndex = _opcode(model, schema.BuiltinOperator.RESHAPE)
    op.inputs, op.outputs = [index, len(graph.tensors) - 2], [len(graph.tensors) - 1]
    op.builtinOptionsType = schema.BuiltinOptions.ReshapeOptions
    op.builtinOptions = schema.ReshapeOptionsT()
    op.builtinOptions.newShape = shape.tolist()
    graph.operators.append(op)
    if index in ranges:
        ranges[op.outputs[0]] = ranges[index]
    return op.outputs[0]


def _opcode(model, builtin: int) -> int:
    for number, code in enumerate(model.operatorCodes):
        if code.builtinCode == builtin:
            return number
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = builtin
    code.version = 1
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def type_unread_outputs(model) -> None:
    """Gives outputs of a SPLIT that nobody reads the type of the others. Changes `model`.

    The quantizer leaves them float, and XNNPACK refuses the file: an unrolled LSTM, whose first
    step has no use for its forget gate, is such a case.
    """
    for graph in model.subgraphs:
        read = {i for op in graph.operators for i in op.inputs} | set(graph.outputs)
        for op in graph.operators:
            if op_name(model, op) not in ("SPLIT", "SPLIT_V", "UNPACK"):
                continue
            tensors = [graph.tensors[i] for i in op.outputs]
            pattern = next((t for t in tensors if t.quantization and t.type != 0), None)
            for index, tensor in zip(op.outputs, tensors, strict=True):
                if pattern is not None and tensor.type == 0 and index not in read:
                    tensor.type, tensor.quantization = pattern.type, pattern.quantization
