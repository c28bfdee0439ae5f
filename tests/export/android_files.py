"""Small .tflite files for the tests of Android projects, built by hand."""

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from tflite_by_hand import OPS, TYPES, build, code, fully_connected, graph, operator, tensor

_GRIDS = {"int8": -128, "uint8": 0, "int16": 0, "float32": None}


def _softmax():
    options = schema.SoftmaxOptionsT()
    options.beta = 1.0
    return schema.BuiltinOptions.SoftmaxOptions, options


def signature(name, inputs, outputs):
    """A signature of {name: tensor index}."""
    made = schema.SignatureDefT()
    made.signatureKey, made.subgraphIndex = name.encode(), 0
    ends = []
    for names in (inputs, outputs):
        entries = []
        for text, index in names.items():
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = text.encode(), index
            entries.append(entry)
        ends.append(entries)
    made.inputs, made.outputs = ends
    return made


def classifier(io="int8", *, softmax=True, height=12, channels=1, signed=True, key="serve"):
    """Pixels -> 3 classes: a fully connected layer, and a softmax.

    Input "image" of (1, height, 12, channels), output "kind" of (1, 3).
    """
    pixels = height * 12 * channels
    random = np.random.default_rng(1)
    zero = _GRIDS[io]
    scale = None if zero is None else 1 / 255
    out = None if zero is None else {"int16": 1 / 32768}.get(io, 1 / 256)
    dtype = getattr(TYPES, io.upper())
    if io == "float32":
        weights = random.normal(size=(3, pixels)).astype("<f4").tobytes()
        weight = tensor(b"w", [3, pixels], TYPES.FLOAT32, 1)
    else:
        kind = "uint8" if io == "uint8" else "int8"
        low, high = (100, 156) if io == "uint8" else (-28, 28)
        weights = random.integers(low, high, (3, pixels)).astype(kind).tobytes()
        weight_type = getattr(TYPES, kind.upper())
        weight = tensor(b"w", [3, pixels], weight_type, 1, [0.01], [128 if io == "uint8" else 0])
    logits_zero = {"uint8": 128}.get(io, 0)
    logits_scale = 0.001 if io == "int16" else 0.1
    grid = () if zero is None else ([logits_scale], [logits_zero])
    tensors = [
        tensor(b"image", [1, height, 12, channels], dtype, 0, scale and [scale], [zero or 0]),
        weight,
        tensor(b"logits" if softmax else b"kind", [1, 3], dtype, 0, *grid),
    ]
    layers = [operator(0, [0, 1, -1], [2], *fully_connected())]
    if softmax:
        tensors.append(tensor(b"kind", [1, 3], dtype, 0, out and [out], [zero or 0]))
        layers.append(operator(1, [2], [3], *_softmax()))
    last = len(tensors) - 1
    extra = {"signatureDefs": [signature(key, {"image": 0}, {"kind": last})]} if signed else {}
    return build(
        [code(OPS.FULLY_CONNECTED, 4), code(OPS.SOFTMAX, 2)],
        [graph(tensors, layers, [0], [last])],
        [weights],
        **extra,
    )


def several(names=("a", "b", "c", "d"), types=("float32", "int32", "bool", "float32")):
    """Inputs of float32 (2, 3) and int32 (4), outputs: b >= b, or b cast, and a + a."""
    options = schema.AddOptionsT()
    texts = [name.encode() for name in names]
    kinds = [getattr(TYPES, name.upper()) for name in types]
    tensors = [
        tensor(texts[0], [2, 3], kinds[0]),
        tensor(texts[1], [4], kinds[1]),
        tensor(texts[2], [4], kinds[2]),
        tensor(texts[3], [2, 3], kinds[3]),
    ]
    if types[2] == "bool":
        second = operator(1, [1, 1], [2])
    else:
        cast = schema.CastOptionsT()
        cast.inDataType, cast.outDataType = kinds[1], kinds[2]
        second = operator(2, [1], [2], schema.BuiltinOptions.CastOptions, cast)
    operators = [operator(0, [0, 0], [3], schema.BuiltinOptions.AddOptions, options), second]
    codes = [code(OPS.ADD), code(OPS.GREATER_EQUAL), code(OPS.CAST)]
    ends = ({names[0]: 0, names[1]: 1}, {names[2]: 2, names[3]: 3})
    return build(
        codes,
        [graph(tensors, operators, [0, 1], [2, 3])],
        [],
        signatureDefs=[signature("serve", *ends)],
    )


def step():
    """A file that adds what it keeps to its input: a state that begins with the third call."""
    names = ["x", "sum_state_from_2", "y", "sum_state_from_2_out"]
    tensors = [tensor(name.encode(), [1, 3], TYPES.FLOAT32) for name in names]
    kind, options = schema.BuiltinOptions.AddOptions, schema.AddOptionsT()
    operators = [operator(0, [0, 1], [made], kind, options) for made in (2, 3)]
    ends = ({names[0]: 0, names[1]: 1}, {names[2]: 2, names[3]: 3})
    made = graph(tensors, operators, [0, 1], [2, 3])
    return build([code(OPS.ADD)], [made], [], signatureDefs=[signature("serve", *ends)])
