"""Metadata given by users and by files: strict keys, bounds, no crash, no flood of memory."""

import io
import json
import struct
import time
import zipfile

import flatbuffers
import numpy as np
import pytest
from metadata_models import FULL, colours

from tfcompress.tflite import flatbuffer
from tfcompress.tflite.metadata import (
    Metadata,
    TensorMetadata,
    add_metadata,
    load_metadata,
    packing,
    read_metadata,
)
from tfcompress.tflite.metadata.editing import append_files, read_file
from tfcompress.tflite.metadata.packing import unpack


def test_json_round_trip(tmp_path):
    path = tmp_path / "meta.json"
    path.write_text(json.dumps(FULL.to_dict()))
    assert load_metadata(path) == load_metadata(str(path)) == load_metadata(FULL.to_dict()) == FULL
    assert load_metadata(FULL) is FULL


def test_labels_beside_the_json(tmp_path):
    (tmp_path / "labels.txt").write_bytes("\ufeffred\r\ngrün\r\nblue\r\n\r\n".encode())
    path = tmp_path / "meta.json"
    path.write_text('{"outputs": [{"labels": "labels.txt"}]}')
    assert load_metadata(path).outputs[0].labels == ("red", "grün", "blue")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"nmae": "x"}, r"unknown key 'nmae'; expected one of name, .* Did you mean 'name'\?"),
        ({"outputs": [{"lables": []}]}, r"outputs\[0\]: unknown key 'lables'.*'labels'\?"),
        ({"name": 3}, "name: received 3; expected a text"),
        ({"name": "a\0"}, "without zero bytes"),
        ({"name": "\ud800"}, "expected a text in Unicode"),
        ({"inputs": {}}, r"inputs: received \{\}; expected a list"),
        ({"inputs": ["x"]}, r"inputs\[0\]: received 'x'; expected an object with keys"),
        ({"inputs": [{"mean": "127"}]}, r"inputs\[0\]: mean: received '127'; expected a number"),
        ({"inputs": [{"mean": 10**400, "std": 1}]}, "mean: received 1000"),
        ({"inputs": [{"mean": True, "std": 1}]}, "mean: received True; expected a number"),
        ({"inputs": [{"mean": 1e39, "std": 1}]}, "mean: received 1e.39; expected a number"),
        ({"inputs": [{"mean": float("nan"), "std": 1}]}, "mean: received nan"),
        ({"inputs": [{"mean": [1, 2], "std": 1}]}, "received 2 values, and 1 for std"),
        ({"inputs": [{"mean": 1}]}, "received 1 values, and 0 for std"),
        ({"inputs": [{"mean": 0, "std": 0}]}, "std: .* expected numbers above 0"),
        ({"inputs": [{"minimum": 2, "maximum": 1}]}, "at most the maximum"),
        ({"outputs": [{"labels": [1]}]}, r"labels\[0\]: received 1; expected a text"),
        ({"outputs": [{"labels": ["a\nb"]}]}, r"labels\[0\]: .* a text of one line"),
        ({"outputs": [{"labels": ["a", " "]}]}, r"labels\[1\]: .* the last not empty"),
        ({"outputs": [{"labels": 3}]}, "labels: received 3; expected a list of texts"),
        ({"outputs": [{"labels": "labels.txt"}]}, "labels: .*beside the JSON file"),
    ],
)
def test_wrong_values_are_named(content, message):
    with pytest.raises(ValueError, match=message):
        load_metadata(content)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "meta.json' is no JSON"),
        ("[]", "meta.json': received \\[\\]; expected an object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"outputs": [{"labels": "../labels.txt"}]}', "beside the JSON file"),
        ('{"outputs": [{"labels": "/etc/passwd"}]}', "beside the JSON file"),
        ('{"outputs": [{"labels": "none.txt"}]}', "no file at .*none.txt"),
    ],
)
def test_wrong_files_are_named(tmp_path, text, message):
    path = tmp_path / "meta.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_metadata(path)


def test_paths_that_hold_no_text(tmp_path):
    with pytest.raises(ValueError, match="no file at"):
        load_metadata(tmp_path / "none.json")
    with pytest.raises(ValueError, match="no regular file"):
        load_metadata(tmp_path)
    (tmp_path / "latin.json").write_bytes(b'{"name": "gr\xfcn"}')
    with pytest.raises(ValueError, match="no text in UTF-8"):
        load_metadata(tmp_path / "latin.json")
    with pytest.raises(ValueError, match="received int; expected the path"):
        load_metadata(3)


def test_numbers_are_kept_as_float32():
    entry = TensorMetadata(mean=np.float64(0.485), std=np.float32([0.229]))
    assert (entry.mean, entry.std) == ((0.485,), (0.229,))
    with pytest.raises(ValueError, match="expected TensorMetadata objects"):
        Metadata(inputs=({"name": "x"},))


def archived(name, content=b"a\nb\nc", method=zipfile.ZIP_STORED):
    target = io.BytesIO(b"TFL3" * 10)
    target.seek(0, io.SEEK_END)
    with zipfile.ZipFile(target, "w", method) as archive:
        archive.writestr(name, content)
    return target.getvalue()


def test_files_in_the_archive():
    data = append_files(b"model", {"a.txt": b"1", "b.txt": b"2"})
    assert data[:5] == b"model"
    assert (read_file(data, "a.txt"), read_file(data, "b.txt")) == (b"1", b"2")
    assert read_file(archived("l", b"x" * 99, zipfile.ZIP_DEFLATED), "l") == b"x" * 99
    assert append_files(b"model", {}) == b"model"
    # Weights that look like the end of an archive.
    assert read_file(append_files(b"PK\5\6" + bytes(18), {"a": b"1"}), "a") == b"1"


@pytest.mark.parametrize("name", ["../labels.txt", "/etc/passwd", "a\\b", "..", "", "c:x", "a\0"])
def test_names_with_paths_are_refused(name):
    with pytest.raises(ValueError, match="no name of a file without a folder"):
        read_file(archived("labels.txt"), name)


def test_archives_that_would_fill_the_memory_are_refused():
    bomb = archived("labels.txt", bytes(50 * 2**20), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="takes 52,428,800 bytes"):
        read_file(bomb, "labels.txt")
    # The directory claims that it is small.
    lying = bomb.replace(struct.pack("<I", 50 * 2**20), struct.pack("<I", 100))
    with pytest.raises(ValueError, match="cannot be read"):
        read_file(lying, "labels.txt")
    many = append_files(b"model", {f"{i}": b"" for i in range(1001)})
    with pytest.raises(ValueError, match="more than 1,000 files"):
        read_file(many, "5")
    with pytest.raises(ValueError, match="no archive of files"):
        read_file(b"TFL3", "labels.txt")


def test_damaged_archives_are_refused():
    sound = archived("labels.txt", b"some labels " * 5, zipfile.ZIP_DEFLATED)
    for cut in range(len(sound)):
        with pytest.raises(ValueError, match=r"archive"):
            read_file(sound[:cut], "labels.txt")
    refused = 0
    for at in range(40, len(sound)):
        for value in (0, 1, 0x40, 0x7F, 0xFF):
            damaged = sound[:at] + bytes([value]) + sound[at + 1 :]
            try:
                read_file(damaged, "labels.txt")
            except ValueError:
                refused += 1
    assert refused > len(sound)


def test_labels_behind_many_tensors_are_counted_once_each():
    """200 tensors that share one label file of 100,000 lines would be 20 million labels."""
    entry = TensorMetadata("x", labels=("a",) * 100_000)
    builder = flatbuffers.Builder(1024)
    content = packing._content(builder, ())
    one = packing._tensor(builder, entry, content, "labels.txt")
    tensors = packing._tables(builder, [one] * 200)
    main = packing._table(builder, 10, {3: tensors})
    root = packing._table(builder, 8, {3: packing._tables(builder, [main])})
    builder.Finish(root, b"M001")
    model = flatbuffer.read(add_metadata(colours("float32"), Metadata()))
    model.buffers[model.metadata[0].buffer].data = np.frombuffer(builder.Output(), np.uint8)
    labels = {"labels.txt": b"a\n" * 100_000}
    data = append_files(flatbuffer.write(model), labels)
    start = time.process_time()
    with pytest.raises(ValueError, match=r"labels take more than|lie on top of one another"):
        read_metadata(data)
    assert time.process_time() - start < 2


def test_damaged_tables_are_refused():
    sound = bytes(flatbuffer.read(add_metadata(colours("float32"), FULL)).buffers[2].data.tobytes())
    assert unpack(sound)[0]["name"] == "colours"
    with pytest.raises(ValueError, match="the identifier is b'' instead of b'M001'"):
        unpack(b"")
    damaged = [sound[:cut] for cut in range(8, len(sound), 4)]
    for at in range(0, len(sound), 4):
        for value in (0, 1, 0x7FFFFFFF, 0xFFFFFFFF, len(sound) - at, 8):
            damaged.append(sound[:at] + struct.pack("<I", value) + sound[at + 4 :])
    refused = 0
    for data in damaged:
        try:
            unpack(data)
        except ValueError:
            refused += 1
    assert len(damaged) // 4 < refused < len(damaged)
