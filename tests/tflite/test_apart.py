"""LiteRT in a process of its own: files that end it end nothing else."""

import io
import os
import pickle
import struct
import sys

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from tflite_by_hand import OPS, TYPES, build, code, fully_connected, graph, operator, tensor

from tfcompress.files import apart, confinement
from tfcompress.report.layers import layer_figures
from tfcompress.tflite import flatbuffer, work
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


def test_relative_paths_begin_where_this_process_is_now(tmp_path, monkeypatch):
    run(add())  # which starts the other process, if nothing did before
    monkeypatch.chdir(tmp_path)
    (tmp_path / "it.tflite").write_bytes(add())
    assert benchmark("it.tflite", runs=1, rounds=1, warmup=0).files[0].path == "it.tflite"


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


def counting(step, limit):
    """WHILE n != limit: n + step."""
    loop = schema.WhileOptionsT()
    loop.condSubgraphIndex, loop.bodySubgraphIndex = 1, 2
    numbers = {name: tensor(name, [], TYPES.INT32) for name in "nmij"}
    bound, one = tensor("bound", [], TYPES.INT32, 1), tensor("one", [], TYPES.INT32, 2)
    graphs = [
        graph(
            [numbers["n"], numbers["m"]],
            [operator(0, [0], [1], schema.BuiltinOptions.WhileOptions, loop)],
            [0],
            [1],
        ),
        graph(
            [numbers["i"], bound, tensor("b", [], TYPES.BOOL)], [operator(1, [0, 1], [2])], [0], [2]
        ),
        graph(
            [numbers["i"], one, numbers["j"]],
            [operator(2, [0, 1], [2], schema.BuiltinOptions.AddOptions, schema.AddOptionsT())],
            [0],
            [2],
        ),
    ]
    codes = [code(OPS.WHILE), code(OPS.NOT_EQUAL), code(OPS.ADD)]
    return build(codes, graphs, [np.int32([limit]).tobytes(), np.int32([step]).tobytes()])


@pytest.mark.parametrize("kind", ["run", pytest.param("benchmark", marks=pytest.mark.slow)])
def test_a_loop_without_an_end_is_ended(tmp_path, monkeypatch, kind):
    """It counts by 2 from 0 to 7."""
    path = tmp_path / "endless.tflite"
    path.write_bytes(counting(2, 7))
    good = counting(2, 6)
    runner = Runner(flatbuffer.read(good), good, "it", reference=True)
    monkeypatch.setenv("TFCOMPRESS_SECONDS", "1")
    loop = Runner(flatbuffer.read(path), path.read_bytes(), "it", reference=True)
    zero = np.zeros((), "int32")
    runs = {
        "run": lambda: loop.run({"n": zero}),
        "benchmark": lambda: benchmark(path, runs=1, data=zero),
    }
    with pytest.raises(ValueError, match=r"ended after 1 s .* TFCOMPRESS_SECONDS=10\b") as caught:
        runs[kind]()
    assert "\n" not in str(caught.value)
    assert runner.run({"n": zero}) == [6]


def test_seconds_that_are_none_are_told(monkeypatch):
    monkeypatch.setenv("TFCOMPRESS_SECONDS", "long")
    with pytest.raises(ValueError, match=r"TFCOMPRESS_SECONDS .* received 'long'"):
        run(add())


def test_time_grows_with_what_is_computed():
    """A product of 1000 x 3000 and 3000 x 2000, and what loops for a thousand turns."""
    tensors = [
        tensor(n, s, TYPES.FLOAT32)
        for n, s in zip("xwy", ([1000, 3000], [2000, 3000], [1000, 2000]), strict=True)
    ]
    large = build(
        [code(OPS.FULLY_CONNECTED)],
        [graph(tensors, [operator(0, [0, 1, -1], [2], *fully_connected())], [0, 1], [2])],
        [],
    )
    assert 6e9 / 5e6 < work.seconds(large) - 10 < 6.1e9 / 5e6
    assert work.seconds(large, threads=4) == pytest.approx(4 * work.seconds(large), abs=4)
    assert work.seconds(counting(1, 7)) == 10
    assert work.seconds(large.replace(struct.pack("<i", 3000), struct.pack("<i", 2**30))) == 3600


@pytest.mark.skipif(confinement.version() < 4, reason="needs Landlock of Linux 6.7")
def test_what_runs_there_changes_no_file_and_starts_no_program(tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("it")
    new, own = str(tmp_path / "new"), str(kept)
    for name, *arguments in (
        ("os:open", new, os.O_WRONLY | os.O_CREAT),
        ("os:open", own, os.O_WRONLY),
        ("os:mkdir", new),
        ("os:remove", own),
        ("os:truncate", own, 0),
        ("os:rename", own, new),
        ("os:symlink", own, new),
        ("shutil:rmtree", str(tmp_path)),
        ("subprocess:check_call", [sys.executable, "-c", "0"]),
        ("socket:create_connection", ("127.0.0.1", 9)),
    ):
        with pytest.raises(RuntimeError, match="ermission"):
            apart.ask(name, *arguments)
    assert apart.ask("numpy:sum", np.arange(3)) == 3
    assert (kept.read_text(), list(tmp_path.iterdir())) == ("it", [kept])
