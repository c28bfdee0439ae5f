"""LiteRT in a process of its own: files that end it end nothing else."""

import io
import os
import pickle
import struct

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from tflite_by_hand import OPS, TYPES, build, code, graph, operator, tensor

from tfcompress.report.layers import layer_figures
from tfcompress.tflite import apart, flatbuffer
from tfcompress.tflite.benchmark import benchmark
from tfcompress.tflite.run import Runner


def add(scale=0.1):
    """ADD of int8; LiteRT's kernel aborts the process if a scale is 0."""
    scales = {"x": 0.1, "y": scale}
    tensors = [tensor(n, [1, 4], TYPES.INT8, scale=[s], zero_point=[0]) for n, s in scales.items()]
    options = schema.BuiltinOptions.AddOptions, schema.AddOptionsT()
    ops = [operator(0, [0, 0], [1], *options)]
    return build([code(OPS.ADD, 2)], [graph(tensors, ops, [0], [1])], [])


def run(data, reference=True):
    runner = Runner(flatbuffer.read(data), data, "it", reference=reference)
    return runner.run({"x": np.full((1, 4), 0.25, "float32")})


def test_a_file_that_ends_the_process_is_an_error_of_one_line(tmp_path):
    paths = [tmp_path / "good.tflite", tmp_path / "bad.tflite"]
    for path, scale in zip(paths, (0.1, 0.0), strict=True):
        path.write_bytes(add(scale))
    for make in (lambda: run(add(0.0)), lambda: benchmark(paths, runs=1, rounds=1)):
        with pytest.raises(ValueError, match="ended by SIGABRT") as caught:
            make()
        assert "\n" not in str(caught.value)
    assert "bad.tflite" in str(caught.value)
    # The next one starts another process.
    np.testing.assert_allclose(run(add())[0], np.full((1, 4), 0.6), atol=0.01)
    assert benchmark(paths[0], runs=2, rounds=1).files[0].median_ms > 0


def test_names_that_are_no_text_are_an_error_of_one_line(tmp_path):
    (tmp_path / "odd.tflite").write_bytes(
        add().replace(b"\x01\x00\x00\x00x", b"\x01\x00\x00\x00\xfb")
    )
    with pytest.raises(ValueError, match=r"odd\.tflite': 'utf-8' codec"):
        benchmark(tmp_path / "odd.tflite", runs=1, rounds=1)


def test_files_that_were_loaded_there_are_loaded_anew_when_they_run():
    data = add()
    runner = Runner(flatbuffer.read(data), data, "it", reference=True)
    with pytest.raises(ValueError, match="SIGABRT"):
        run(add(0.0))
    np.testing.assert_allclose(runner.run({"x": np.full((1, 4), 0.3)})[0], 0.6, atol=0.01)


def test_an_answer_is_data_and_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    def received(value):
        data = pickle.dumps(value, protocol=5)
        return apart._receive(io.BytesIO(struct.pack("<Q", len(data)) + data))

    values = ("done", [np.arange(3, dtype="int8"), np.float32(2), {"a": (1, None, "b")}])
    np.testing.assert_equal(received(values), values)
    with pytest.raises(pickle.UnpicklingError):
        received(("done", Evil()))
    assert not (tmp_path / "made").exists()


def test_the_report_takes_a_quantized_dimension_out_of_range():
    """LiteRT runs such a file."""
    data = flatbuffer.read(add())
    weight = tensor("w", [1, 4], TYPES.INT8, len(data.buffers), [0.1, 0.2], [0, 0])
    weight.quantization.quantizedDimension = 7
    data.buffers.append(schema.BufferT(np.arange(4, dtype=np.uint8)))
    data.subgraphs[0].tensors.append(weight)
    data.subgraphs[0].operators[0].inputs = [0, 2]
    found = layer_figures(flatbuffer.write(data))
    assert found[0]["histogram"] is None
    data.subgraphs[0].operators[0].outputs = [-1]  # left out
    assert layer_figures(flatbuffer.write(data)) == []
