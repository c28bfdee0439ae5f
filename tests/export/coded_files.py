"""Files by hand whose weights have few values, for codes of weights."""

import itertools

import numpy as np
from tflite_by_hand import OPS, TYPES, build, code, fully_connected, graph, operator, tensor

from tfcompress.export.microcontroller.decoding import slim, weights_of, with_decoding
from tfcompress.tflite import flatbuffer

GRID = {"scale": [0.5], "zero_point": [0]}


def weights(shape, seed, kinds=4):
    return np.random.default_rng(seed).integers(-kinds // 2, kinds // 2, shape, dtype=np.int8)


def file_of(first, second, kind=TYPES.INT8, scales=1):
    """FULLY_CONNECTED twice with the first weight, then with the second; the bytes of the file."""
    count = 64
    told = {"scale": [0.25] * scales, "zero_point": [0] * scales}
    bias = {"scale": [0.125] * scales, "zero_point": [0] * scales}
    names = ("net/dense_1/MatMul;net/a", "net/dense_1/again;b", "net/last_1/MatMul;c")
    tensors = [
        tensor("x", [1, count], TYPES.INT8, 0, **GRID),
        tensor("net/w1", [count, count], kind, 1, **told),
        tensor("net/w2", [count, count], TYPES.INT8, 2, **told),
        tensor("net/b", [count], TYPES.INT32, 3, **bias),
        *(tensor(name, [1, count], TYPES.INT8, 0, **GRID) for name in names),
    ]
    steps = [([0, 1, 3], [4]), ([4, 1, 3], [5]), ([5, 2, 3], [6])]
    operators = [operator(0, *step, *fully_connected()) for step in steps]
    stored = packed(first) if kind == TYPES.INT4 else first.tobytes()
    buffers = [stored, second.tobytes(), np.arange(count, dtype=np.int32).tobytes()]
    return build(
        [code(OPS.FULLY_CONNECTED)],
        [graph(tensors, operators, [0], [6])],
        buffers,
        description=b"made by hand",
    )


def packed(codes):
    low, high = codes.reshape(-1, 2).astype(np.uint8).T & 15
    return (low | high << 4).tobytes()


def name_of(tensor):
    return tensor.split("/")[1].removesuffix("_1") if "/" in tensor else ""


def coded(data):
    model = slim(flatbuffer.read(data), name_of)
    return flatbuffer.write(with_decoding(model, weights_of(model)))


def chain(widths=(64, 32, 96, 16), kinds=5):
    """FULLY_CONNECTED one after another, with weights of so many values; the bytes of the file."""
    random, tensors, operators, buffers = np.random.default_rng(0), [], [], []
    tensors.append(tensor("x", [1, widths[0]], TYPES.INT8, 0, **GRID))
    for number, (taken, given) in enumerate(itertools.pairwise(widths)):
        half = random.choice(np.arange(1, 128), kinds // 2, replace=False)
        grid = [*half, *-half, *[0] * (kinds % 2)]
        buffers.append(random.choice(grid, (given, taken)).astype(np.int8).tobytes())
        told = {"scale": [0.0015], "zero_point": [0]}
        tensors.append(tensor("w", [given, taken], TYPES.INT8, len(buffers), **told))
        tensors.append(tensor(f"net/dense{number}/MatMul", [1, given], TYPES.INT8, 0, **GRID))
        last = len(tensors)
        ports = [last - 3 if number else 0, last - 2, -1], [last - 1]
        operators.append(operator(0, *ports, *fully_connected()))
    tensors[-1].name = f"dense{number}"
    graphs = [graph(tensors, operators, [0], [len(tensors) - 1])]
    return build([code(OPS.FULLY_CONNECTED)], graphs, buffers)
