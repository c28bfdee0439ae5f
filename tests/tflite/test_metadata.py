"""Metadata in .tflite files: what is written is read back, and wrong input is refused."""

import dataclasses
import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from metadata_models import FULL, LABELS, colours

from tfcompress.tflite import flatbuffer
from tfcompress.tflite.inspect import inspect
from tfcompress.tflite.metadata import (
    Metadata,
    TensorMetadata,
    add_metadata,
    load_metadata,
    read_metadata,
)


def test_every_field_is_read_back():
    data = add_metadata(colours("float32"), FULL)
    assert read_metadata(data) == FULL
    assert read_metadata(colours("float32")) is None


def test_equal_input_gives_equal_bytes_and_old_metadata_goes():
    plain = colours("uint8")
    data = add_metadata(plain, FULL)
    assert add_metadata(plain, FULL) == data
    other = Metadata("other", outputs=(TensorMetadata(labels=("r", "g", "b")),))
    assert add_metadata(data, FULL) == data  # also of a file that has some
    assert add_metadata(data, other) == add_metadata(plain, other)
    model = flatbuffer.read(add_metadata(data, other))
    assert len(model.metadata) == 1
    assert len(model.buffers) == len(flatbuffer.read(plain).buffers) + 1


def test_other_metadata_and_shared_buffers_stay():
    model = flatbuffer.read(colours("uint8"))
    model.buffers.append(schema.BufferT(data=np.frombuffer(b"1.14.0", np.uint8)))
    # An entry of this name may point to the buffer of a tensor, which must not be written over.
    model.metadata = [
        schema.MetadataT(name="min_runtime_version", buffer=2),
        schema.MetadataT(name="TFLITE_METADATA", buffer=1),
    ]
    found = inspect(add_metadata(flatbuffer.write(model), FULL))
    assert (found.metadata[0].name, found.metadata[0].text) == ("min_runtime_version", "1.14.0")
    assert [t.bytes for t in found.tensors if t.is_constant] == [8]
    assert found.model_metadata == FULL


def test_where_things_lie_in_the_file():
    data = add_metadata(colours("uint8"), FULL)
    assert data[4:8] == b"TFL3"
    (entry,) = flatbuffer.read(data).metadata
    assert entry.name == b"TFLITE_METADATA"
    assert flatbuffer.read(data).buffers[entry.buffer].data[4:8].tobytes() == b"M001"
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        (info,) = archive.infolist()
        assert (info.filename, info.compress_type) == ("labels.txt", zipfile.ZIP_STORED)
        assert info.date_time == (1980, 1, 1, 0, 0, 0)
        assert archive.read(info) == "red\ngrün\nblue".encode()
    assert zipfile.is_zipfile(io.BytesIO(add_metadata(colours("uint8"), Metadata("n")))) is False


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_the_model_computes_the_same(dtype):
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3)).astype(dtype)
    results = []
    for data in (colours(dtype), add_metadata(colours(dtype), FULL)):
        runner = Interpreter(model_content=data)
        runner.allocate_tensors()
        runner.set_tensor(runner.get_input_details()[0]["index"], image)
        runner.invoke()
        results.append(runner.get_tensor(runner.get_output_details()[0]["index"]))
    np.testing.assert_array_equal(*results)
    np.testing.assert_allclose(results[0][0], image.mean((0, 1, 2)), atol=0.5)


def test_what_is_left_out_takes_the_names_of_the_signature():
    found = read_metadata(add_metadata(colours("float32"), Metadata("n")))
    assert found == Metadata("n", inputs=(TensorMetadata("image"),), outputs=(found.outputs[0],))
    assert found.outputs == (TensorMetadata("colour"),)
    # Without a name, the position counts; another name is shown instead.
    metadata = Metadata(inputs=(TensorMetadata(mean=0, std=1),), outputs=(TensorMetadata("tint"),))
    found = read_metadata(add_metadata(colours("float32"), metadata))
    assert (found.inputs[0].name, found.inputs[0].std) == ("image", (1.0,))
    assert found.outputs[0].name == "tint"


def test_entries_are_matched_by_name_in_any_order():
    data = colours("float32", outputs=2)
    tint, shade = TensorMetadata("tint", "second"), TensorMetadata("colour", "first")
    found = read_metadata(add_metadata(data, Metadata(outputs=(tint, shade))))
    assert found.outputs == (shade, tint)
    found = read_metadata(add_metadata(data, Metadata(outputs=(tint,))))
    assert found.outputs == (TensorMetadata("colour"), tint)
    both = tuple(dataclasses.replace(entry, labels=LABELS[::-1]) for entry in (shade, tint))
    data = add_metadata(data, Metadata(outputs=both))
    assert read_metadata(data).outputs == both
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.namelist() == ["labels_1.txt", "labels_2.txt"]


def test_the_name_of_one_output_in_the_place_of_another_is_refused():
    entries = (TensorMetadata("shade"), TensorMetadata("colour", labels=LABELS))
    with pytest.raises(ValueError, match=r"outputs\[1\]: received the name 'colour'; .* 'tint'"):
        add_metadata(colours("float32", outputs=2), Metadata(outputs=entries))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (
            {"outputs": [{"labels": ["a", "b"]}]},
            r"outputs\[0\] 'colour': received 2 labels; expected 3",
        ),
        ({"inputs": [{"mean": [1, 2], "std": [1, 2]}]}, r"mean: received 2 values; expected 1, or"),
        ({"outputs": [{"minimum": [0, 0]}]}, r"minimum: received 2 values"),
        (
            {"inputs": [{"name": "imgae"}, {"name": "x"}]},
            r"received 2 entries; the file has 1 inputs: image.* Did you mean 'image'\?",
        ),
    ],
)
def test_metadata_that_does_not_fit_the_file_is_refused(metadata, message):
    with pytest.raises(ValueError, match=message):
        add_metadata(colours("float32"), load_metadata(metadata))


def test_inspect_shows_it(capsys):
    data = add_metadata(colours("uint8"), FULL)
    found = inspect(data)
    assert found.model_metadata == FULL
    assert found.model_metadata_problem is None
    plain = json.loads(json.dumps(found.to_dict()))
    assert load_metadata(plain["model_metadata"]) == FULL
    text = str(found)
    for part in ("colours of a picture", "Jo", "MIT", "(x - 127.5) / 127.5", "3 labels: red, grün"):
        assert part in text
    assert inspect(colours("uint8")).model_metadata is None
    assert "Metadata" not in str(inspect(colours("uint8")))


def test_inspect_says_why_metadata_cannot_be_read():
    data = add_metadata(colours("uint8"), FULL)
    found = inspect(data[: data.rindex(b"PK\3\4")])  # without the archive
    assert found.model_metadata is None
    assert "no archive of files at its end" in found.model_metadata_problem
    assert "no archive of files" in " ".join(str(found).split())
    assert [op.name for op in found.operators] == ["MEAN"]


def test_metadata_is_read_without_tensorflow():
    program = "import sys, tfcompress.tflite.metadata; print(sorted({'tensorflow', 'keras'} & set("
    program += "sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
