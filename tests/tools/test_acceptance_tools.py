"""The real tools, each in its environment: what they accept, and what they must not accept."""

import dataclasses

import numpy as np
import pytest

from tfcompress.conversion.convert import convert
from tfcompress.tflite.arena import activation_bytes
from tfcompress.tflite.flatbuffer import read
from tfcompress.tflite.metadata import Metadata, TensorMetadata, add_metadata
from tfcompress.tools import arm64, comparison, litertjs, mediapipe, tflite_support, vela
from tfcompress.tools.accept import ask
from tfcompress.tools.driving import Refused
from tfcompress.tools.runtimes import ONNXRUNTIME, OPENVINO, TFLM, arena_bytes
from tfcompress.tools.subject import read_subject

ARM64, LITERTJS, MEDIAPIPE = arm64.TOOL, litertjs.TOOL, mediapipe.TOOL
TFLITE_SUPPORT, VELA = tflite_support.TOOL, vela.TOOL

pytestmark = pytest.mark.slow

RUNNERS = [TFLM, OPENVINO, ONNXRUNTIME, ARM64]


@pytest.fixture(scope="module")
def made(float_cnn, qat_cnn, images, tmp_path_factory):
    """A function that gives the subject of a precision."""
    folder = tmp_path_factory.mktemp("made")

    def make(precision, io_dtype="float32", **options):
        path = folder / f"{precision}_{io_dtype}.tflite"
        model = qat_cnn if precision in ("int8", "int4") else float_cnn
        calibration = images[0][:50] if precision == "int16x8" else None
        if not path.exists():
            settings = {"precision": precision, "io_dtype": io_dtype, "calibration": calibration}
            convert(model, path, **settings)
        return read_subject(path, options, images[0][:16])

    return make


def asked(tool, file):
    found = ask(tool, file)
    if found.status == "not run":
        pytest.skip(found.reason)
    return found


@pytest.mark.parametrize("tool", RUNNERS)
def test_int8_is_accepted(made, tool):
    found = asked(tool, made("int8", "int8"))
    assert found.status == "passed", found
    if "max LSB of an op" in found.figures:
        assert found.figures["max LSB of an op"] == 1
    else:
        assert found.figures["max LSB"] <= (0 if tool in (TFLM, ARM64) else 1)
    assert found.figures.get("bit-identical", "yes") == "yes"


def other_order(file, monkeypatch):
    """As if all of LiteRT's kernels gave the classes in another order."""
    monkeypatch.setattr(comparison, "with_other_kernels", lambda file: {})
    expected = [{k: v[:, ::-1] for k, v in sample.items()} for sample in file.expected]
    return dataclasses.replace(file, expected=expected)


@pytest.mark.parametrize("tool", RUNNERS)
def test_wrong_outputs_are_not_accepted(made, tool, monkeypatch):
    found = asked(tool, other_order(made("int8", "int8"), monkeypatch))
    assert found.status == "failed"
    assert found.figures["max LSB"] > 10


@pytest.mark.parametrize("tool", RUNNERS)
def test_float_is_accepted_within_a_relative_tolerance(made, tool):
    found = asked(tool, made("float32"))
    assert found.status == "passed", found
    assert found.figures["max relative"] < 1e-5


def test_tflm_tells_the_arena(made):
    file = made("int8", "int8")
    found = asked(TFLM, file)
    arena = arena_bytes(file.data)
    assert found.figures["arena bytes"] == arena
    activations = activation_bytes(read(file.data))
    assert activations < arena < activations + 20_000


def test_tflm_refuses_float16_in_its_own_words(made):
    asked(TFLM, made("float32"))
    found = ask(TFLM, made("float16"))
    assert found.status == "failed"
    assert "Node DEQUANTIZE" in found.reason
    with pytest.raises(Refused, match="Node DEQUANTIZE"):
        arena_bytes(made("float16").data)


@pytest.mark.parametrize("accelerator", ["ethos-u55-64", "ethos-u65-512", "ethos-u85-256"])
def test_vela_maps_all_of_int8(made, accelerator):
    found = asked(VELA, made("int8", "int8", accelerator=accelerator))
    assert found.status == "passed", found
    assert found.figures["accelerator"] == accelerator
    assert found.figures["CPU ops"] == 0
    assert found.figures["NPU ops"] > 10
    assert found.figures["cycles"] > 1000


def test_vela_leaves_float_edges_and_float_files_to_the_cpu(made):
    edges = asked(VELA, made("int8"))
    assert (edges.status, edges.figures["CPU ops"]) == ("failed", 2)
    floats = ask(VELA, made("float32"))
    assert (floats.status, floats.figures["NPU ops"]) == ("failed", 0)
    assert "unsupported DataType Float32" in floats.reason


def test_litertjs_runs_files_with_float_inputs(made):
    found = asked(LITERTJS, made("int8"))
    assert found.status == "passed", found
    assert found.figures["max LSB"] <= 1
    for precision in ("float32", "float16", "dynamic_int8"):
        assert ask(LITERTJS, made(precision)).status == "passed"


def test_litertjs_is_not_for_int8_inputs(made):
    found = ask(LITERTJS, made("int8", "int8"))
    assert found.status == "not applicable"
    assert "'image' is int8" in found.reason
    assert 'io_dtype="float32"' in found.reason


def test_litertjs_notices_other_outputs(made, monkeypatch):
    assert asked(LITERTJS, other_order(made("int8"), monkeypatch)).status == "failed"


@pytest.fixture
def described(made):
    """An int8 file with float inputs, and metadata of it."""
    metadata = Metadata(
        "quarters",
        "Finds the brightest quarter",
        inputs=(TensorMetadata(description="a photo", mean=(0.0,), std=(255.0,)),),
        outputs=(TensorMetadata(labels=("one", "two", "three", "four")),),
    )
    file = made("int8")
    return dataclasses.replace(file, data=add_metadata(file.data, metadata))


@pytest.mark.parametrize("tool", [MEDIAPIPE, TFLITE_SUPPORT])
def test_readers_agree_on_metadata(described, tool):
    found = asked(tool, described)
    assert found.status == "passed", found
    assert found.figures["labels"] == 4


def test_tflite_support_does_not_apply_without_metadata(made):
    found = ask(TFLITE_SUPPORT, made("int8"))
    assert found.status == "not applicable"
    assert "no metadata" in found.reason


def test_mediapipe_fails_on_a_float_image_without_metadata(made):
    found = asked(MEDIAPIPE, made("int8"))
    assert found.status == "failed"
    assert "requires specifying NormalizationOptions metadata" in found.reason


def test_mediapipe_takes_a_uint8_image_without_metadata(made):
    found = asked(MEDIAPIPE, made("int8", "uint8"))
    assert (found.status, found.figures["labels"]) == ("passed", 0)


def test_mediapipe_does_not_take_int8(made, described):
    file = dataclasses.replace(made("int8", "int8"), data=described.data)
    found = ask(MEDIAPIPE, file)
    assert (found.status, "the input is int8" in found.reason) == ("not applicable", True)


def test_mediapipe_normalizes_as_the_metadata_says(described, made):
    """Another mean gives other scores: so the comparison would notice."""
    file = described
    wrong = Metadata(
        inputs=(TensorMetadata(mean=(128.0,), std=(64.0,)),),
        outputs=(TensorMetadata(labels=("one", "two", "three", "four")),),
    )
    task = mediapipe._task(file)
    other = mediapipe._task(dataclasses.replace(file, data=add_metadata(file.data, wrong)))
    assert [p.dtype for p in task.pictures] == [np.uint8] * 16
    assert np.abs(task.scores - other.scores).max() > 0.001


@pytest.mark.parametrize("tool", [TFLM, OPENVINO, ONNXRUNTIME, VELA, ARM64, LITERTJS])
def test_without_an_environment_it_is_not_run(made, tool, tmp_path, monkeypatch):
    file = made("int8")
    (tmp_path / "file").touch()
    monkeypatch.setenv("TFCOMPRESS_CACHE", str(tmp_path / "file" / "cache"))
    found = ask(tool, file)
    assert found.status == "not run"
    assert found.reason


@pytest.mark.parametrize(
    ("tool", "program", "package"),
    [(ARM64, "qemu-aarch64-static", "qemu-user-static"), (LITERTJS, "chromium", "chromium")],
)
def test_without_its_program_it_says_what_to_install(made, tool, program, package, monkeypatch):
    file = made("int8")
    monkeypatch.setenv("PATH", "/nonexistent")
    found = ask(tool, file)
    assert found.status == "not run"
    assert found.reason.startswith(f"{program} is not installed")
    assert f"sudo apt-get install {package}" in found.reason
