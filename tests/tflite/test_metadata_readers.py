"""Other tools read our metadata, and we read theirs; each runs in an environment of its own."""

import json
import subprocess

import numpy as np
import pytest
from metadata_models import FULL, LABELS, colours

from tfcompress.tflite import flatbuffer
from tfcompress.tflite.inspect import inspect
from tfcompress.tflite.metadata import Metadata, TensorMetadata, add_metadata, read_metadata
from tfcompress.tools.environments import Unavailable, python_environment

pytestmark = pytest.mark.slow

DISPLAY = """
import json, sys
from tensorflow_lite_support.metadata.cc.python import _pywrap_metadata_version as version
from tflite_support import metadata

shown = metadata.MetadataDisplayer.with_model_file(sys.argv[1])
files = shown.get_packed_associated_file_list()
contents = {name: shown.get_associated_file_buffer(name).decode() for name in files}
least = version.GetMinimumMetadataParserVersion(shown.get_metadata_buffer())
print(json.dumps([json.loads(shown.get_metadata_json()), contents, least]))
"""
POPULATE = """
import sys
from tflite_support.metadata_writers import image_classifier, writer_utils

writer = image_classifier.MetadataWriter.create_for_inference(
    writer_utils.load_file(sys.argv[1]), [10.0, 20.0, 30.0], [2.0] * 3, [sys.argv[2]]
)
writer_utils.save_file(writer.populate(), sys.argv[3])
"""
CLASSIFY = """
import json, sys
import mediapipe
import numpy as np
from mediapipe.tasks.python import BaseOptions, vision

pixels = np.empty((8, 8, 3), np.uint8)
pixels[:] = json.loads(sys.argv[2])
options = vision.ImageClassifierOptions(
    base_options=BaseOptions(model_asset_path=sys.argv[1]), max_results=3
)
with vision.ImageClassifier.create_from_options(options) as classifier:
    image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=pixels)
    found = classifier.classify(image).classifications[0].categories
print(json.dumps([[c.category_name, c.index, c.score] for c in found]))
"""


def environment(name, package):
    try:
        return python_environment(name, [package])
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def tflite_support():
    return environment("tflite-support", "tflite-support==0.4.4")


@pytest.fixture(scope="module")
def mediapipe():
    return environment("mediapipe", "mediapipe==1.2.2")


def run(python, program, *arguments):
    command = [python, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def shown_tensor(entry):
    """One of our entries as tflite-support shows it."""
    expected = {"name": entry.name, "description": entry.description}
    if entry.mean:
        options = {"mean": list(entry.mean), "std": list(entry.std)}
        unit = {"options_type": "NormalizationOptions", "options": options}
        expected["process_units"] = [unit]
    expected["stats"] = {"max": list(entry.maximum), "min": list(entry.minimum)}
    if entry.labels:
        expected["associated_files"] = [{"name": "labels.txt", "type": "TENSOR_AXIS_LABELS"}]
    return expected


def test_tflite_support_reads_every_field(tflite_support, tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(add_metadata(colours("uint8"), FULL))
    shown, files, least = json.loads(run(tflite_support, DISPLAY, path))
    assert files == {"labels.txt": "\n".join(LABELS)}
    (graph,) = shown.pop("subgraph_metadata")
    texts = ("name", "description", "version", "author", "license")
    assert shown == {**{k: getattr(FULL, k) for k in texts}, "min_parser_version": least}
    assert least == "1.0.0"
    (image,), (colour,) = graph["input_tensor_metadata"], graph["output_tensor_metadata"]
    assert image.pop("content") == {
        "content_properties_type": "ImageProperties",
        "content_properties": {"color_space": "RGB"},
    }
    assert colour.pop("content")["content_properties_type"] == "FeatureProperties"
    assert image == shown_tensor(FULL.inputs[0])
    assert colour == shown_tensor(FULL.outputs[0])


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_mediapipe_classifies_with_our_labels(mediapipe, tmp_path, dtype):
    normalization = {"mean": 0, "std": 255} if dtype == "float32" else {}
    metadata = Metadata(
        inputs=(TensorMetadata("image", **normalization),),
        outputs=(TensorMetadata(labels=LABELS),),
    )
    path = tmp_path / "m.tflite"
    path.write_bytes(add_metadata(colours(dtype), metadata))
    found = json.loads(run(mediapipe, CLASSIFY, path, [50, 200, 100]))
    assert [entry[:2] for entry in found] == [["grün", 1], ["blue", 2], ["red", 0]]
    scores = [entry[2] for entry in found]
    np.testing.assert_allclose(scores, [200 / 255, 100 / 255, 50 / 255], atol=1e-6)


def test_metadata_of_tflite_support_is_read(tflite_support, tmp_path):
    source, target, labels = (tmp_path / name for name in ("m.tflite", "n.tflite", "l.txt"))
    source.write_bytes(colours("float32"))
    labels.write_text("\n".join(LABELS))
    run(tflite_support, POPULATE, source, labels, target)
    data = target.read_bytes()
    found = read_metadata(data)
    assert found.name == "ImageClassifier"
    assert (found.inputs[0].mean, found.inputs[0].std) == ((10, 20, 30), (2, 2, 2))
    assert found.outputs[0].labels == LABELS
    assert inspect(data).model_metadata == found
    # The model behind it is the same, and ours takes the place of theirs.
    again = add_metadata(data, FULL)
    assert read_metadata(again) == FULL
    assert len(flatbuffer.read(again).metadata) == len(flatbuffer.read(data).metadata)


def test_our_own_commands_take_files_with_metadata(float_cnn, images, converted, tmp_path):
    import tfcompress as tfc

    (plain, _), path = converted("float", io_dtype="float32"), tmp_path / "m.tflite"
    metadata = Metadata(outputs=(TensorMetadata(labels=("a", "b", "c", "d")),))
    path.write_bytes(add_metadata(plain.read_bytes(), metadata))
    data = images[0][:16]
    before, after = (tfc.verify(float_cnn, file, data) for file in (plain, path))
    assert after.passed
    assert after.outputs == before.outputs
    files = tfc.benchmark([plain, path], runs=2, rounds=1).files
    assert files[1].activation_bytes == files[0].activation_bytes
    assert files[1].file_bytes == path.stat().st_size > plain.stat().st_size
