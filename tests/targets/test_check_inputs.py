"""What `check` says of inputs and of metadata inside of a file."""

import pytest
from op_files import File, real

from tfcompress.targets.check import check
from tfcompress.tflite.metadata import Metadata, TensorMetadata, add_metadata

IMAGE = (1, 8, 8, 3)
LABELS = (TensorMetadata(labels=("one", "two", "three")),)
COMPLETE = Metadata(inputs=(TensorMetadata(mean=(0.0,), std=(255.0,)),), outputs=LABELS)


def made(shape=IMAGE, dtype="float32", metadata=None):
    file = File()
    first = file.part(real(*shape), dtype)
    data = file.bytes([first], [file.unary("RELU", first, dtype)])
    return data if metadata is None else add_metadata(data, metadata)


def fatal(found):
    return [(finding.kind, finding.text) for finding in found.findings if finding.fatal]


def test_an_image_with_normalization_and_labels_suits_mediapipe():
    found = check(made(metadata=COMPLETE), "mediapipe")
    assert found.passed
    assert [f.kind for f in found.findings] == ["precision"]


@pytest.mark.parametrize("metadata", [None, Metadata("digits", outputs=LABELS)])
def test_a_float_image_needs_its_normalization(metadata):
    found = check(made(metadata=metadata), "mediapipe")
    (text,) = [text for kind, text in fatal(found) if kind == "metadata"]
    assert text == "input 't0' is float32, and the file's metadata give no mean and std of it"
    assert not found.passed
    assert found.mends[0].startswith("Convert with metadata= (--metadata)")
    assert "NOT PASSED" in str(found)
    (finding,) = [f for f in found.findings if f.fatal]
    assert finding.source == "measured with mediapipe 1.2.2, ImageClassifier"


def test_a_uint8_image_runs_without_metadata_but_gives_no_names():
    found = check(made(dtype="uint8"), "mediapipe")
    assert found.passed
    (note,) = [f for f in found.findings if f.kind == "metadata"]
    assert "classes have no names" in note.text
    named = check(made(dtype="uint8", metadata=Metadata(outputs=LABELS)), "mediapipe")
    assert [f for f in named.findings if f.kind == "metadata"] == []


@pytest.mark.parametrize(
    ("shape", "told"), [((1, 8, 8, 1), "[1, 8, 8, 1]"), ((1, 16), "[1, 16]"), ((), "[]")]
)
def test_mediapipe_takes_rgb_images_only(shape, told):
    metadata = Metadata(inputs=COMPLETE.inputs)
    found = check(made(shape, metadata=metadata), "mediapipe")
    ((kind, text),) = fatal(found)
    assert kind == "shape"
    assert text == (
        f"input 't0' has the shape {told}; MediaPipe Tasks takes [batch, height, width, 3]"
    )


def test_damaged_metadata_are_in_the_way():
    data = made(metadata=COMPLETE)
    found = check(data.replace(b"M001", b"M00x"), "mediapipe")
    assert [kind for kind, _ in fatal(found)] == ["metadata"]
    assert "cannot be read" in fatal(found)[0][1]


@pytest.mark.parametrize("target", ["web", "mobile_cpu", "microcontroller"])
def test_other_targets_read_no_metadata(target):
    kinds = {f.kind for f in check(made((1, 8, 8, 1)), target).findings}
    assert not kinds & {"metadata", "shape"}


def test_advice_on_inputs_only_where_they_do_not_suit():
    """An operator that stays float between integers: its DEQUANTIZE is no matter of the edges."""
    file = File()
    first = file.part(real(1, 8, 8, 4), "int8")
    wide = file.unary("DEQUANTIZE", first, "float32")
    last = file.unary("QUANTIZE", file.unary("COS", wide, "float32"), "int8")
    found = check(file.bytes([first], [last]), "ethos_u55")
    assert "io_dtype" not in found.operators[0].mend
    assert found.operators[0].mend.startswith("Convert with strict=True (--strict)")
    taken = check(file.bytes([wide], [last]), "ethos_u55")
    assert taken.mends[0] == "Convert with io_dtype='int8' (--io-dtype int8)."


def comparison(*, inside):
    """LESS, whose bool output ends the file or goes on into SELECT."""
    file = File()
    first = file.part(real(1, 8, 8, 4), "int8")
    less = file.add("bool", (1, 8, 8, 4))
    file.op("LESS", [first, first], [less])
    if not inside:
        return file.bytes([first], [less])
    last = file.part(real(1, 8, 8, 4), "int8")
    file.op("SELECT", [less, first, first], [last])
    return file.bytes([first], [last])


def test_vela_refuses_bool_at_the_edge_only():
    for target in ("ethos_u55", "ethos_u65"):
        found = check(comparison(inside=False), target)
        assert fatal(found) == [("refused", "output 't1' is bool")]
        assert "vela refuses the whole file" in str(found)
        assert not found.runs_in_parts
        found = check(comparison(inside=True), target)
        assert (fatal(found), found.is_refused, found.runs_in_parts) == ([], False, True)
        assert "NOT ALL MAPPED: 2 of 2 run on the CPU" in str(found)
    assert not check(comparison(inside=False), "ethos_u85").is_refused
