"""Files of one operator, of any type, built by hand: what tools are asked about."""

import dataclasses

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from tflite_by_hand import OPS, TYPES, build, code, graph, operator, tensor

SCALE = 0.05
# What an operator of this dtype (as `inspect` tells it) takes and gives.
_ACTIVATIONS = {"dynamic_int8": "float32", "dynamic_int4": "float32", "float16": "float32"}
_ACTIVATIONS |= {"int4": "int8"}
_WEIGHTS = {"dynamic_int8": "int8", "dynamic_int4": "int4", "int16": "int8"}
_BIASES = {"int8": "int32", "uint8": "int32", "int4": "int32", "int16": "int64"}
_ZERO = {"uint8": 128}
_FIXED = {  # Outputs whose scale the kernels fix: (int8 scale, zero point), int16 scale
    "LOGISTIC": (1 / 256, -128, 1 / 32768),
    "SOFTMAX": (1 / 256, -128, 1 / 32768),
    "TANH": (1 / 128, 0, 1 / 32768),
    "L2_NORMALIZATION": (1 / 128, 0, 1 / 32768),
    "LOG_SOFTMAX": (16 / 256, 127, 1 / 32768),
}


@dataclasses.dataclass(frozen=True)
class Part:
    """An input or output: "real" (of the operator's type), "weight", "bias" or "plain".

    `values` None means no constant; plain ones bear the type of their values.
    """

    kind: str
    shape: tuple
    values: object = None
    dtype: str | None = None
    axis: int | None = None  # of scales per channel
    signature: tuple | None = None
    scale: float | None = None  # 0: none at all


def real(*shape, **more):
    """Activations."""
    return Part("real", shape, **more)


def constant(*shape, **more):
    """A constant of the operator's own type."""
    return Part("real", shape, np.ones(shape), **more)


def weight(*shape, axis=0, **more):
    """Weights; scales per channel of `axis`, one scale if it is None."""
    values = np.random.default_rng(0).integers(-7, 8, shape)
    return Part("weight", shape, values, axis=axis, **more)


def bias(count, **more):
    return Part("bias", (count,), np.ones(count), **more)


def integers(values, dtype="int32"):
    """A plain constant, such as axes or a shape."""
    values = np.asarray(values, dtype)
    return Part("plain", values.shape, values, dtype=dtype)


def plain(*shape, dtype="int32"):
    """Activations that are integers of no scale."""
    return Part("plain", shape, dtype=dtype)


def options(kind, **fields):
    """Options of an operator by the schema's names, without "Options"."""
    made = getattr(schema, f"{kind}OptionsT")()
    for key, value in fields.items():
        assert hasattr(made, key), (kind, key)
        setattr(made, key, value)
    return getattr(schema.BuiltinOptions, f"{kind}Options"), made


class File:
    """A file in the making: tensors and operators, at last its bytes."""

    def __init__(self):
        self.tensors, self.buffers, self.codes, self.operators = [], [], [], []

    def add(self, dtype, shape, values=None, quantization=None, signature=None):
        """Adds a tensor; returns its index."""
        buffer = 0
        if values is not None:
            self.buffers.append(values)
            buffer = len(self.buffers)
        name, kind = f"t{len(self.tensors)}", getattr(TYPES, dtype.upper())
        made = tensor(name, list(shape), kind, buffer, **(quantization or {}))
        made.shapeSignature = None if signature is None else list(signature)
        self.tensors.append(made)
        return len(self.tensors) - 1

    def part(self, part, dtype, inputs=(), output_of=None):
        """Adds a `Part`; `inputs` are those of its operator, for the scales of a bias."""
        if part.kind == "plain":
            values = None if part.values is None else part.values.tobytes()
            return self.add(part.dtype, part.shape, values, signature=part.signature)
        own = part.dtype or _own_dtype(part.kind, dtype)
        if part.kind == "weight" and dtype == "float16":
            stored = self.add("float16", part.shape, np.float16(part.values).tobytes())
            wide = self.add("float32", part.shape)
            self.op("DEQUANTIZE", [stored], [wide])
            return wide
        quantization = _quantization(part, own, dtype, inputs, output_of)
        values = None if part.values is None else _stored(part.values, own)
        return self.add(own, part.shape, values, quantization, part.signature)

    def op(self, name, inputs, outputs, built=(0, None), version=1):
        """Adds an operator, a custom one if the schema has none of this name."""
        custom = None if hasattr(OPS, name) else name.encode()
        self.codes.append(code(getattr(OPS, name, OPS.CUSTOM), version, custom))
        self.operators.append(operator(len(self.codes) - 1, inputs, outputs, *built))

    def unary(self, name, source, dtype="int8", **more):
        """Adds an operator of one input that keeps the shape; returns the index of its output."""
        made = self.part(real(*self.tensors[source].shape, **more), dtype, output_of=name)
        self.op(name, [source], [made])
        return made

    def conv(self, source, dtype="int8", version=3, channels=None, **fields):
        """Adds a 3 by 3 convolution; returns the index of its output."""
        shape = self.tensors[source].shape
        count = channels or shape[3]
        built = options("Conv2D", strideH=1, strideW=1, dilationHFactor=1, dilationWFactor=1)
        for key, value in fields.items():
            setattr(built[1], key, value)
        constants = [weight(count, 3, 3, shape[3]), bias(count)]
        found = [self.part(constant, dtype, constants) for constant in constants]
        made = self.part(real(*shape[:3], count), dtype)
        self.op("CONV_2D", [source, *found], [made], built, version)
        return made

    def bytes(self, inputs, outputs):
        graphs = [graph(self.tensors, self.operators, inputs, outputs)]
        return build(self.codes, graphs, self.buffers)


def op_file(name, dtype, inputs, outputs, built=(0, None), version=1):
    """The bytes of a file of one operator.

    Args:
        name: the operator, such as "CONV_2D".
        dtype: as `inspect` would tell it, and "int4" for int8 activations with int4 weights and
            "float16" for float16 weights behind a DEQUANTIZE.
        inputs, outputs: `Part`s; None for an optional input left out.
        built: as from `options`.
        version: of the operator.
    """
    file = File()
    ins = [-1 if part is None else file.part(part, dtype, inputs) for part in inputs]
    outs = [file.part(part, dtype, inputs, name) for part in outputs]
    file.op(name, ins, outs, built, version)
    given = [i for i, part in zip(ins, inputs, strict=True) if part and part.values is None]
    return file.bytes(given, outs)


def lstm(more=None):
    """An int8 LSTM of 4 units over 3 steps of 2 numbers; `more` gives an input that may be left
    out.
    """
    file = File()
    inner = [file.part(weight(4, 2, axis=None), "int8") for _ in range(4)]
    inner += [file.part(weight(4, 4, axis=None), "int8") for _ in range(4)]
    biases = [file.add("int32", (4,), np.zeros(4, "<i4").tobytes()) for _ in range(4)]
    cells = [file.part(real(1, 4), dtype) for dtype in ("int8", "int16")]
    for index in cells:
        file.tensors[index].isVariable = True
    taken, given = (file.part(real(1, 3, n), "int8") for n in (2, 4))
    inputs = [taken, *inner, -1, -1, -1, *biases, -1, -1, *cells, -1, -1, -1, -1]
    if more is not None:
        inputs[more] = file.part(weight(4, 4, axis=None), "int8")
    built = options("UnidirectionalSequenceLSTM", fusedActivationFunction=4)
    file.op("UNIDIRECTIONAL_SEQUENCE_LSTM", inputs, [given], built)
    gates = [file.part(real(0, scale=2**-12), "int16") for _ in range(4)]
    file.operators[-1].intermediates = [*gates, file.part(real(0), "int8")]
    return file.bytes([taken], [given])


def with_variable(dtype):
    """ADD of the input and a variable that it is assigned to."""
    file = File()
    taken = file.part(real(1, 8, 8, 4), dtype)
    handle = file.add("resource", ())
    file.op("VAR_HANDLE", [], [handle], options("VarHandle", container=b"", sharedName=b"v"))
    kept, total = file.part(real(1, 8, 8, 4), dtype), file.part(real(1, 8, 8, 4), dtype)
    file.op("READ_VARIABLE", [handle], [kept])
    file.op("ADD", [taken, kept], [total], options("Add"))
    file.op("ASSIGN_VARIABLE", [handle, total], [])
    return file.bytes([taken], [total])


def _own_dtype(kind, dtype):
    if kind == "weight":
        return _WEIGHTS.get(dtype, "float32" if dtype == "float16" else dtype)
    if kind == "bias":
        return _BIASES.get(dtype, "float32")
    return _ACTIVATIONS.get(dtype, dtype)


def _quantization(part, own, dtype, inputs, output_of):
    if part.scale == 0 or (own in ("float32", "int64", "bool") and part.kind != "bias"):
        return None
    if part.kind == "real" and own == "int32" and part.scale is None:
        return None
    if part.kind == "bias" and dtype not in _BIASES:
        return None
    if own not in ("int8", "uint8", "int16", "int4", "int32") and part.kind != "bias":
        return None
    scale, zero = part.scale or SCALE, _ZERO.get(own, 0)
    if output_of in _FIXED and part.scale is None:
        small, point, wide = _FIXED[output_of]
        scale, zero = (wide, 0) if own == "int16" else (small, point + _ZERO.get(own, 0))
    count, axis = 1, part.axis
    if part.kind == "bias":
        weights = next(p for p in inputs if p is not None and p.kind == "weight")
        count = 1 if weights.axis is None else weights.shape[weights.axis]
        scale, zero, axis = SCALE * SCALE, 0, 0
    elif part.kind == "weight":
        count = 1 if axis is None else part.shape[axis]
        zero = 0 if own != "uint8" else 128
    return {"scale": [scale] * count, "zero_point": [zero] * count, "axis": axis or 0}


def _stored(values, dtype):
    if dtype != "int4":
        return np.asarray(values).astype(dtype).tobytes()
    flat = np.asarray(values).ravel().astype(np.int8) & 15
    flat = np.append(flat, [0] * (len(flat) % 2)).astype(np.uint8)
    return (flat[::2] | flat[1::2] << 4).astype(np.uint8).tobytes()
