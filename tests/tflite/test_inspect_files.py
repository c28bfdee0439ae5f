"""What `inspect` says of real files, and of paths and files that will not do."""

import io
import json
import math
import random
import subprocess
import sys
import time

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from tflite_by_hand import build, graph

from tfcompress.tflite import flatbuffer, inspection
from tfcompress.tflite.inspect import inspect


@pytest.fixture(scope="session")
def real_files(tmp_path_factory):
    """A float and an int8 file from TFLiteConverter."""
    import keras
    import tensorflow as tf

    folder = tmp_path_factory.mktemp("real")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3), name="image")
    x = keras.layers.Conv2D(4, 3, activation="relu")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(5, activation="softmax", name="scores")(x)
    model = keras.Model(inputs, outputs)
    model.export(folder / "saved", verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved"))
    (folder / "float.tflite").write_bytes(converter.convert())
    data = np.random.default_rng(0).random((8, 1, 8, 8, 3), np.float32)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([x] for x in data)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    (folder / "int8.tflite").write_bytes(converter.convert())
    return folder / "float.tflite", folder / "int8.tflite"


@pytest.fixture(scope="session")
def clustered_file(tmp_path_factory):
    """A float file of clustered and pruned layers, and their kernels by operator."""
    import keras

    import tfcompress as tfc

    rng = np.random.default_rng(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(5),
        ]
    )
    centroids = np.float32([0, 0, 0, -0.5, 0.25, 0.75, 1.5])
    kernels = {}
    for layer, name in ((model.layers[0], "CONV_2D"), (model.layers[2], "FULLY_CONNECTED")):
        kernels[name] = rng.choice(centroids[: 5 if name == "CONV_2D" else 7], layer.kernel.shape)
        layer.kernel.assign(kernels[name])
    path = tmp_path_factory.mktemp("clustered") / "model.tflite"
    tfc.convert(model, path, precision="float32")
    return path, kernels


def interpreter(data):
    runner = Interpreter(
        model_content=data, experimental_op_resolver_type=OpResolverType.BUILTIN_REF
    )
    runner.allocate_tensors()
    return runner


def test_clustered_weights_of_a_real_file_keep_their_count(clustered_file):
    path, kernels = clustered_file
    found = {layer.operator: layer for layer in inspect(path).layer_bytes}
    for operator_name, kernel in kernels.items():
        layer = found[operator_name]
        values, counts = np.unique(kernel, return_counts=True)
        assert (layer.weights, layer.unique) == (kernel.size, len(values))
        assert layer.sparsity == np.mean(kernel == 0)
        bits = -np.sum(counts * np.log2(counts / kernel.size))
        assert layer.entropy_bytes == math.ceil(bits / 8)


@pytest.mark.parametrize("width", [80, 120])
def test_tables_keep_numbers_whole(real_files, width):
    from rich.console import Console

    target = io.StringIO()
    found = inspect(real_files[1])
    found.render(Console(file=target, width=width))
    lines = target.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    text = " ".join(target.getvalue().split())
    assert f"{found.file_bytes:,} bytes, {found.zipped_bytes:,} zipped" in text
    assert f"{found.weights_bytes:,} bytes, {found.coded_bytes:,} entropy-coded" in text
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    for layer in (layer for layer in found.layer_bytes if layer.weights):
        per_channel = layer.unique_per_channel
        numbers = [
            f"{layer.weights:,}",
            f"{layer.sparsity:.1%}",
            f"{layer.unique} ({per_channel})" if per_channel else f"{layer.unique}",
            f"{layer.bytes:,}",
            f"{layer.coded_bytes:,}",
        ]
        (row,) = (row for row in rows if row[-5:] == numbers)
        assert row[1:-5] == ([layer.operator, layer.dtype] if width == 120 else [])
        if width == 80:
            assert rows[rows.index(row) + 1] == [f"{layer.operator} {layer.dtype}", *[""] * 5]


def test_layers_are_named_by_what_tells_them_apart():
    fused = "m/conv/Relu;m/conv/convolution;m/bias/Read"
    short = inspection._short_names([fused, "m/dense/MatMul", ""])
    assert short == ["conv/Relu", "dense/MatMul", ""]
    for names in (["dense/MatMul", "dense/Add"], ["a/dense/MatMul", "b/dense/MatMul"], ["", "y"]):
        assert inspection._short_names(names) == names


def test_bad_paths_say_what_is_expected(tmp_path):
    with pytest.raises(ValueError, match=r"no file at .*nothing.tflite'; expected the path"):
        inspect(tmp_path / "nothing.tflite")
    with pytest.raises(ValueError, match=r"is a folder\. Name the file itself"):
        inspect(tmp_path)
    (tmp_path / "empty.tflite").touch()
    with pytest.raises(ValueError, match=r"empty.tflite' is not a .tflite file: received 0 bytes"):
        inspect(tmp_path / "empty.tflite")
    (tmp_path / "m.keras").write_bytes(b"PK\x03\x04" + bytes(40))
    with pytest.raises(ValueError, match=r"identifier 'TFL3'.*tfcompress\.convert first"):
        inspect(tmp_path / "m.keras")
    with pytest.raises(ValueError, match="received list"):
        inspect([])
    with pytest.raises(ValueError, match="is damaged: received 48 bytes in which"):
        inspect(b"\x00\x00\xff\xffTFL3" + bytes(40))


def test_a_table_behind_a_million_offsets_is_refused_at_once():
    # A small file that would unpack to a million graphs: the weights are read as their list.
    count = 1_000_000
    data = bytearray(build([], [graph([], [], [], [])], [b"\1" * 4 * (count + 1)]))
    model = schema.Model.GetRootAs(data, 0)
    target = model.Subgraphs(0)._tab.Pos
    field = model._tab.Pos + model._tab.Offset(6)
    start = data.index(b"\1" * 100)
    offsets = target - np.arange(start + 4, start + 4 * (count + 1), 4, np.int64)
    data[start : start + 4 * (count + 1)] = np.uint32([count, *offsets]).tobytes()
    data[field : field + 4] = (start - field).to_bytes(4, "little")
    begin = time.perf_counter()
    with pytest.raises(ValueError, match="tables lie on top of one another"):
        inspect(bytes(data))
    assert time.perf_counter() - begin < 2


def test_importing_needs_neither_tensorflow_nor_keras():
    program = (
        "import sys, tfcompress.tflite.inspect, tfcompress.tflite.benchmark\n"
        "sys.exit(' '.join({'tensorflow', 'keras'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_real_file_agrees_with_the_interpreter(real_files):
    for path in real_files:
        found = inspect(path)
        details = {d["index"]: d for d in interpreter(path.read_bytes()).get_tensor_details()}
        for t in found.tensors:
            detail = details[t.index]
            assert t.name == detail["name"]
            assert t.dtype == np.dtype(detail["dtype"]).name
            assert list(t.shape) == list(detail["shape"])
            assert t.shape_signature == (tuple(detail["shape_signature"]) or t.shape)
            quantization = detail["quantization_parameters"]
            np.testing.assert_array_equal(np.float32(t.scales), quantization["scales"])
            np.testing.assert_array_equal(t.zero_points, quantization["zero_points"])
    conv = next(op for op in found.operators if op.name == "CONV_2D")
    assert (conv.dtype, conv.activation) == ("int8", "RELU")
    assert found.tensors[conv.inputs[1]].scale_count == 4
    assert found.float_ops == ()
    assert found.inputs[0].shape_signature[1:] == (8, 8, 3)
    assert found.signatures[0].inputs == {"image": found.inputs[0].index}


def test_a_real_file_computes_the_same_after_read_and_write(real_files):
    for path in real_files:
        outputs = []
        for data in (path.read_bytes(), flatbuffer.write(flatbuffer.read(path))):
            runner = interpreter(data)
            detail = runner.get_input_details()[0]
            values = np.random.default_rng(1).integers(0, 100, detail["shape"])
            runner.set_tensor(detail["index"], values.astype(detail["dtype"]))
            runner.invoke()
            outputs.append(runner.get_tensor(runner.get_output_details()[0]["index"]))
        np.testing.assert_array_equal(*outputs)


def test_damaged_files_give_a_result_or_a_value_error(real_files):
    rng = random.Random(0)
    whole = real_files[1].read_bytes()
    refused = []
    for turn in range(300):
        data = bytearray(whole)
        if turn % 3 == 0:
            del data[rng.randrange(len(data)) :]
        else:
            for _ in range(rng.choice([1, 1, 8])):
                data[rng.randrange(len(data))] = rng.choice([0, 0xFF, rng.randrange(256)])
        try:
            json.dumps(inspect(bytes(data)).to_dict(), allow_nan=False)
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > 100  # every truncation, at least
    assert all("expected" in message for message in refused)
