"""Latency, size and memory of files built by hand, against values worked out by hand."""

import json

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from tfcompress.tflite import benchmark as module
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.benchmark import activation_bytes, benchmark

TYPES, OPS = schema.TensorType, schema.BuiltinOperator
OPTIONS = {
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "ADD": "AddOptions",
    "RESHAPE": "ReshapeOptions",
    "CONCATENATION": "ConcatenationOptions",
}


def build(names, shapes, operators, inputs, outputs, weights=None, dtype=TYPES.FLOAT32):
    """A model of one graph.

    Args:
        names: the operators that occur, as in BuiltinOperator.
        shapes: of the tensors; those in `weights` are constants.
        operators: (index in names, input tensors, output tensors).
    """
    weights = weights or {}
    buffers = [schema.BufferT()]
    tensors = []
    for i, shape in enumerate(shapes):
        number = 0
        if i in weights:
            number = len(buffers)
            buffers.append(schema.BufferT(data=np.frombuffer(weights[i].tobytes(), np.uint8)))
        tensors.append(schema.TensorT(name=f"t{i}", shape=shape, type=dtype, buffer=number))
    codes = [schema.OperatorCodeT(deprecatedBuiltinCode=getattr(OPS, n), version=1) for n in names]
    for code in codes:
        code.builtinCode = code.deprecatedBuiltinCode
    ops = []
    for code, taken, given in operators:
        op = schema.OperatorT(opcodeIndex=code, inputs=taken, outputs=given)
        if names[code] in OPTIONS:
            op.builtinOptionsType = getattr(schema.BuiltinOptions, OPTIONS[names[code]])
            op.builtinOptions = getattr(schema, OPTIONS[names[code]] + "T")()
        if names[code] == "RESHAPE":
            op.builtinOptions.newShape = shapes[given[0]]
        ops.append(op)
    graph = schema.SubGraphT(tensors=tensors, inputs=inputs, outputs=outputs, operators=ops)
    return schema.ModelT(version=3, operatorCodes=codes, subgraphs=[graph], buffers=buffers)


def dense(width, depth=1):
    """`depth` fully connected layers of width x width: 4 * depth * width**2 bytes of weights."""
    weights = {2 * i + 1: np.ones((width, width), np.float32) for i in range(depth)}
    shapes = [[1, width]] + [[width, width], [1, width]] * depth
    operators = [(0, [2 * i, 2 * i + 1, -1], [2 * i + 2]) for i in range(depth)]
    return build(["FULLY_CONNECTED"], shapes, operators, [0], [2 * depth], weights)


def diamond():
    """a = tanh(x); b = tanh(a); c = a + b; d = reshape(c): 40 bytes each; e = [d, d]: 80."""
    operators = [(0, [0], [1]), (0, [1], [2]), (1, [1, 2], [3]), (2, [3], [4]), (3, [4, 4], [5])]
    shapes = [[10], [10], [10], [10], [2, 5], [4, 5]]
    return build(["TANH", "ADD", "RESHAPE", "CONCATENATION"], shapes, operators, [0], [5])


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / "small.tflite", tmp_path / "large.tflite"]
    for path, model in zip(paths, (dense(4), dense(512, 4)), strict=True):
        path.write_bytes(flatbuffer.write(model))
    return paths


def test_two_files_are_compared(files):
    found = benchmark(files, runs=5, rounds=3, warmup=1)
    small, large = found.files
    assert small.ratio == 1.0
    # 4 MB of weights against 64 bytes.
    assert large.ratio > 5
    for path, file in zip(files, found.files, strict=True):
        assert 0 < file.min_ms <= file.median_ms <= file.p90_ms
        assert file.file_bytes == path.stat().st_size
        assert file.path == str(path)
    assert small.activation_bytes == 2 * 4 * 4
    assert json.loads(json.dumps(found.to_dict()))["files"][1]["ratio"] == large.ratio
    assert "large.tflite" in str(found)


def test_statistics_are_paired_by_round(files, monkeypatch, in_this_process):
    # Round 1 is ten times slower than round 0 and 2: the ratio must not see it.
    turns = []
    latencies = {"small": [1, 3, 10, 30, 1, 3], "large": [2, 6, 20, 60, 8, 8]}
    values = {name: iter([99.0, *times]) for name, times in latencies.items()}

    def run(self):
        turns.append("small" if "small" in self.path else "large")
        return next(values[turns[-1]])

    monkeypatch.setattr(module._Runner, "run", run)
    calls = []
    found = benchmark(files, runs=2, rounds=3, warmup=1, progress=lambda *a: calls.append(a))
    assert turns == ["small", "large"] * 7
    assert calls == [(i, 7) for i in range(1, 8)]
    small, large = found.files
    assert (small.median_ms, small.min_ms) == (3.0, 1.0)
    assert small.p90_ms == np.percentile(latencies["small"], 90)
    assert large.ratio == 2.0  # of 2, 2 and 4


def test_liveness_by_hand():
    # While tanh runs: x, a. While the second runs: a, b. ADD overwrites one of the two, RESHAPE
    # takes nothing; CONCATENATION has 40 bytes of input and 80 of output.
    assert activation_bytes(diamond()) == 120
    assert activation_bytes(dense(4, 3)) == 32
    # The first tanh could overwrite x, then both a and b are needed.
    model = diamond()
    model.subgraphs[0].operators = model.subgraphs[0].operators[:3]
    model.subgraphs[0].outputs = [3]
    assert activation_bytes(model) == 80
    # An output is never given up.
    model.subgraphs[0].outputs = [1, 2, 3]
    assert activation_bytes(model) == 120
    # Nor is a variable.
    model.subgraphs[0].outputs = [3]
    model.subgraphs[0].tensors[0].isVariable = True
    assert activation_bytes(model) == 120


def test_the_bodies_of_loops_count():
    model = build(["WHILE"], [[10], [10]], [(0, [0], [1])], [0], [1])
    op = model.subgraphs[0].operators[0]
    op.builtinOptions = schema.WhileOptionsT(condSubgraphIndex=1, bodySubgraphIndex=2)
    for body in (dense(4), dense(8)):
        body.subgraphs[0].tensors[1].buffer = len(model.buffers)
        model.buffers.append(body.buffers[1])
        model.subgraphs.append(body.subgraphs[0])
    model.operatorCodes.append(schema.OperatorCodeT(builtinCode=OPS.FULLY_CONNECTED))
    for graph in model.subgraphs[1:]:
        graph.operators[0].opcodeIndex = 1
    # The loop's own 40 bytes (its output may overwrite its input), 32 of one body, 64 of the other.
    assert activation_bytes(model) == 40 + 32 + 64
    # A damaged file may call itself.
    op.builtinOptions = schema.WhileOptionsT(condSubgraphIndex=0, bodySubgraphIndex=0)
    assert activation_bytes(model) == 40


def arena(model):
    """The span of addresses that the interpreter gives to the activations."""
    runner = Interpreter(
        model_content=flatbuffer.write(model),
        experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
    )
    runner.allocate_tensors()
    graph = flatbuffer.read(flatbuffer.write(model)).subgraphs[0]
    views = [runner.tensor(i)() for i, t in enumerate(graph.tensors) if t.buffer == 0]
    starts = [view.ctypes.data for view in views]
    ends = [view.ctypes.data + view.nbytes for view in views]
    return max(ends) - min(starts)


@pytest.mark.parametrize("model", [dense(4), dense(64, 3), diamond()])
def test_the_bound_lies_below_the_arena_of_the_interpreter(model):
    bound = activation_bytes(model)
    # Alignment to 64 bytes and the input, which the interpreter keeps, are all there is above it.
    assert bound <= arena(model) <= bound + 64 * 6 + 4 * 64


def test_data_is_fitted_to_each_file(tmp_path):
    model = build(["TANH"], [[1, 3], [1, 3]], [(0, [0], [1])], [0], [1], dtype=TYPES.INT8)
    for tensor in model.subgraphs[0].tensors:
        tensor.quantization = schema.QuantizationParametersT(
            scale=np.float32([1 / 128]), zeroPoint=np.int64([0])
        )
    path = tmp_path / "m.tflite"
    path.write_bytes(flatbuffer.write(model))
    # More rows than the model takes; beyond the range; rounded to even.
    data = np.float32([[0.5, -2.0, 3.5 / 128], [0, 0, 0]])
    expected = [[64, -128, 4]]
    for given in (data, [data], {"t0": data}):
        ((index, value),) = module._Runner(path, 1, given).inputs
        assert (index, value.dtype) == (0, np.int8)
        np.testing.assert_array_equal(value, expected)
    ((_, drawn),) = module._Runner(path, 1, None).inputs
    ((_, again),) = module._Runner(path, 1, None).inputs
    np.testing.assert_array_equal(drawn, again)
    assert drawn.shape == (1, 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((1, 5), np.float32), r"has shape \(1, 4\); received \(1, 5\)"),
        (np.zeros((0, 4), np.float32), r"has shape \(1, 4\); received \(0, 4\)"),
        ([], r"has 1 inputs; received 0 arrays"),
        ({"image": 0}, r"no data for input 't0' .* received \['image'\]"),
        (np.array([["a"] * 4]), "is float32; received <U1"),
    ],
)
def test_unfit_data_is_refused(files, data, message):
    with pytest.raises(ValueError, match=message):
        benchmark(files[0], data=data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"runs": 0}, r"runs must be a whole number of at least 1; received 0\. Try runs=1"),
        ({"threads": 0}, r"threads must be .* received 0"),
        ({"threads": 1.5}, r"threads must be .* received 1\.5"),
        ({"rounds": -1}, r"rounds must be .* received -1"),
        ({"warmup": -1}, r"warmup must be a whole number of at least 0; received -1"),
    ],
)
def test_counts_below_one_are_refused(files, arguments, message):
    with pytest.raises(ValueError, match=message):
        benchmark(files, **arguments)


def test_bad_files_are_refused(files, tmp_path):
    with pytest.raises(
        ValueError, match=r"expected the path or the bytes of a .tflite file; received int"
    ):
        benchmark([5])
    with pytest.raises(ValueError, match=r"received none\. Name a file"):
        benchmark([])
    with pytest.raises(ValueError, match=r"no file at '.*gone.tflite'"):
        benchmark([files[0], tmp_path / "gone.tflite"])
    (tmp_path / "half.tflite").write_bytes(files[1].read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"half.tflite' is damaged: received 1000 bytes"):
        benchmark([files[0], tmp_path / "half.tflite"])
    model = dense(4)
    model.operatorCodes[0] = schema.OperatorCodeT(
        deprecatedBuiltinCode=OPS.CUSTOM, builtinCode=OPS.CUSTOM, customCode="MyOp", version=1
    )
    (tmp_path / "custom.tflite").write_bytes(flatbuffer.write(model))
    with pytest.raises(ValueError, match=r"cannot run '.*custom.tflite'.*MyOp"):
        benchmark(tmp_path / "custom.tflite")
