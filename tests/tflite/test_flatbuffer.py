"""Files as they are written: equal zero points once, with the contents that were given."""

import flatbuffers
import numpy as np
from tflite_by_hand import OPS, TYPES, build, code, fully_connected, graph, operator, tensor

from tfcompress.tflite import flatbuffer
from tfcompress.tflite.inspect import inspect


def test_equal_zero_points_are_written_once():
    count, bias = 64, np.arange(64, dtype=np.int32)
    scales, points = np.linspace(0.1, 0.2, count), np.zeros(count)
    tensors = [
        tensor("x", [1, 8], TYPES.INT8, scale=[0.5], zero_point=[1]),
        tensor("w", [count, 8], TYPES.INT8, 1, scales, points),
        tensor("b", [count], TYPES.INT32, 2, scales / 2, points),
        tensor("y", [1, count], TYPES.INT8, scale=[0.5], zero_point=[1]),
    ]
    kind, options = fully_connected()
    ops = [operator(0, [0, 1, 2], [3], kind, options)]
    weights = np.random.default_rng(0).integers(-9, 9, (count, 8)).astype(np.int8)
    data = build(
        [code(OPS.FULLY_CONNECTED)], [graph(tensors, ops, [0], [3])],
        [weights.tobytes(), bias.tobytes()],
    )  # fmt: skip
    found = inspect(data).tensors
    assert [t.name for t in found] == list("xwby")
    assert found[1].scales == tuple(scales.astype(np.float32))
    assert found[2].scales == tuple((scales / 2).astype(np.float32))
    assert found[1].zero_points == found[2].zero_points == (0,) * count
    assert [t.zero_points for t in found[::3]] == [(1,), (1,)]
    file = flatbuffer.read(data)
    np.testing.assert_array_equal(
        flatbuffer.tensor_values(file, file.subgraphs[0].tensors[1]), weights
    )
    builder = flatbuffers.Builder(1024)
    builder.Finish(file.Pack(builder))
    # Those of the bias, and that of the output.
    assert len(data) <= len(builder.Output()) - 8 * count - 8
