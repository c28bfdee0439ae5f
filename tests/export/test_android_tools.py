"""Android projects under real tools: Kotlin's compiler, Java, aapt, zipalign, apksigner."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from android_files import classifier, several, step
from conftest import run_tflite
from tflite_by_hand import OPS, TYPES, build, code, graph, operator, tensor

from tfcompress.export.android import checking
from tfcompress.export.android import contents as generated
from tfcompress.export.android.project import android_project
from tfcompress.export.android.tensors import Tensor
from tfcompress.tools.driving import NotApplicable, Refused
from tfcompress.tools.environments import program, run_tool
from tfcompress.tools.subject import read_subject

PACKAGE = "com.example.digits"
ASCII = ('a"; error("x") //', "${System.exit(1)}\n", "*/ class X", "class\\|`")
NAMES = ('a"; error("x") //', "${System.exit(1)}\n😀", "*/ class X", "class\\|`é")


@pytest.fixture
def subject(tmp_path):
    def made(data):
        (tmp_path / "model.tflite").write_bytes(data)
        return read_subject(tmp_path / "model.tflite", {})

    return made


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
def test_numpy_formulas_are_those_of_litert(tmp_path, dtype):
    scale, zero = 0.0371, {"int8": -7, "uint8": 33, "int16": 0}[dtype]
    grid = {"scale": [scale], "zero_point": [zero]}
    tensors = [
        tensor(b"x", [1, 1000], TYPES.FLOAT32),
        tensor(b"q", [1, 1000], getattr(TYPES, dtype.upper()), 0, **grid),
        tensor(b"y", [1, 1000], TYPES.FLOAT32),
    ]
    codes = [code(OPS.QUANTIZE), code(OPS.DEQUANTIZE, 3)]
    layers = [operator(0, [0], [1]), operator(1, [1], [2])]
    path = tmp_path / "grid.tflite"
    path.write_bytes(build(codes, [graph(tensors, layers, [0], [2])], []))
    # LiteRT rounds halves away from zero, fake-quantization up: none of them is drawn.
    values = np.random.default_rng(0).uniform(-30, 30, (1, 1, 1000)).astype("float32")
    entry = Tensor("q", "q", (1, 1000), dtype, float(np.float32(scale)), zero)
    stored = checking.quantize(entry, values[0])
    assert stored.dtype == dtype
    np.testing.assert_array_equal(
        checking.dequantize(entry, stored), run_tflite(path, values[0])[0][None]
    )
    assert (np.ptp(stored.astype(int)) == 255) == (dtype != "int16")  # some beyond the range


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "api", "numbers"),
    [
        # 8 samples and one draw beyond the range of each tensor of real numbers; a bitmap.
        (classifier("int8"), "CompiledModel", 9 * (144 + 3) + 144),
        (classifier("uint8", channels=3), "Interpreter", 9 * (432 + 3) + 432),
        (classifier("int16", height=49), "Interpreter", 9 * (588 + 3)),
        (step(), "CompiledModel", 9 * 12),
        (several(ASCII), "CompiledModel", 9 * 6 + 8 * 4 + 8 * 4 + 9 * 6),
        (several(NAMES, ("float32", "int32", "int64", "float32")), "Interpreter", 172),
    ],
)
def test_app_compiles_and_computes_what_numpy_does(subject, data, api, numbers):
    outcome = checking.ask_kotlin(subject(data))
    assert (outcome.status, outcome.reason) == ("passed", "")
    assert outcome.figures["LiteRT API"] == api
    assert outcome.figures["equal numbers"] == numbers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "right", "wrong", "reason"),
    [
        (
            "CompiledModelRunner.kt",
            "createInputBuffer(",
            "createInputBufer(",
            "unresolved reference",
        ),
        ("TensorSpec.kt", "scale + 0.5f)", "scale)", "Kotlin's numbers differ from NumPy's"),
    ],
)
def test_wrong_kotlin_fails(subject, monkeypatch, template, right, wrong, reason):
    original = generated.fill

    def fill(name, values):
        text = original(name, values)
        assert name != template or right in text
        return text.replace(right, wrong) if name == template else text

    monkeypatch.setattr(generated, "fill", fill)
    outcome = checking.ask_kotlin(subject(classifier()))
    assert outcome.status == "failed"
    assert reason in outcome.reason


def test_files_that_no_app_can_run_are_not_applicable(subject):
    file = subject(several(types=("float32", "int32", "bool", "float32")))
    file.path.write_bytes(b"no model")
    with pytest.raises(NotApplicable, match=r"is not a \.tflite file"):
        checking.ask_kotlin(file)


CHECK = """
package com.example.digits

fun main() {
    for (spec in MTensors.inputs + MTensors.outputs) {
        println(spec.name.map { it.code.toString(16) }.joinToString(" "))
    }
    val labels = listOf("a", "b", "c", "d")
    println(topClasses(floatArrayOf(0.2f, 0.5f, 0.2f, 0.1f), labels, 3).joinToString())
    println(softmax(floatArrayOf(1f, 3f, 2f)).joinToString())
    val pixels = intArrayOf(0xFF102030.toInt(), 0x00FF8000)
    val mean = floatArrayOf(16f, 32f, 48f)
    println(pixelsToFloats(pixels, 3, mean, floatArrayOf(2f, 4f, 8f)).joinToString())
    println(pixelsToFloats(pixels, 1, floatArrayOf(0f), floatArrayOf(1f)).joinToString())
    for (wrong in listOf(
        { MTensors.inputs[0].encode(floatArrayOf(1f)) },
        { MTensors.inputs[0].encode(IntArray(6)) },
        { MTensors.inputs[1].encode(FloatArray(4)) },
        { TensorSpec("x", listOf(1), ElementType.INT8).encode(intArrayOf(128)) },
    )) {
        println(runCatching(wrong).exceptionOrNull()!!.javaClass.simpleName)
    }
}
"""


@pytest.mark.slow
def test_what_needs_no_android_runs(tmp_path):
    (tmp_path / "model.tflite").write_bytes(
        several(NAMES, ("float32", "int32", "int64", "float32"))
    )
    android_project(tmp_path / "model.tflite", tmp_path / "app", package=PACKAGE, name="m model")
    sources = tmp_path / "app/app/src/main/java/com/example/digits"
    files = [sources / "MTensors.kt", sources / "TensorSpec.kt"]
    for name in ("Classification.kt", "Pixels.kt"):
        (tmp_path / name).write_text(generated.fill(name, {"package": PACKAGE}))
        files.append(tmp_path / name)
    (tmp_path / "Check.kt").write_text(CHECK)
    errors = checking.compile_kotlin([*files, tmp_path / "Check.kt"], tmp_path / "out")
    assert errors == []
    lines = checking.run_kotlin(tmp_path / "out", f"{PACKAGE}.CheckKt").splitlines()
    for line, name in zip(lines, NAMES, strict=False):
        units = b"".join(int(unit, 16).to_bytes(2, "big") for unit in line.split())
        assert units.decode("utf-16-be") == name
    assert lines[4] == (
        "Classification(index=1, label=b, probability=0.5), "
        "Classification(index=0, label=a, probability=0.2), "
        "Classification(index=2, label=c, probability=0.2)"
    )
    powers = np.exp(np.float32([1, 3, 2]))
    np.testing.assert_allclose(np.float32(lines[5].split(", ")), powers / powers.sum(), rtol=1e-6)
    assert lines[6] == "0.0, 0.0, 0.0, 119.5, 24.0, -6.0"
    gray = [0.299 * 16 + 0.587 * 32 + 0.114 * 48, 0.299 * 255 + 0.587 * 128]
    np.testing.assert_allclose(np.float32(lines[7].split(", ")), gray, rtol=1e-6)
    illegal, state = "IllegalArgumentException", "IllegalStateException"
    assert lines[8:] == [illegal, illegal, state, illegal]


@pytest.mark.slow
def test_apps_without_labels_compile(tmp_path):
    tensors = [tensor(name, [1, 12, 12, 3], TYPES.FLOAT32) for name in (b"left", b"right", b"sum")]
    options = schema.AddOptionsT()
    add = operator(0, [0, 1], [2], schema.BuiltinOptions.AddOptions, options)
    pair = build([code(OPS.ADD)], [graph(tensors, [add], [0, 1], [2])], [])
    files = []
    for number, (data, scaling) in enumerate(((classifier(), None), (pair, "0_1"))):
        (tmp_path / "model.tflite").write_bytes(data)
        package, app = f"com.example.app{number}", tmp_path / f"app{number}"
        android_project(tmp_path / "model.tflite", app, package=package, scaling=scaling)
        made = checking.package_resources(app / "app", package, tmp_path / package)
        files += [*app.rglob("*.kt"), made.with_name("R.java")]
    texts = [path.read_text() for path in files if path.name == "TfliteModel.kt"]
    assert ["rightFrom(" in text for text in texts] == [False, True]
    assert checking.compile_kotlin(files, tmp_path / "out") == []


@pytest.mark.slow
def test_gradle_files_are_kotlin(tmp_path):
    (tmp_path / "model.tflite").write_bytes(classifier())
    android_project(tmp_path / "model.tflite", tmp_path / "app", package=PACKAGE)
    files = []
    for number, path in enumerate(sorted((tmp_path / "app").rglob("*.gradle.kts"))):
        files.append(tmp_path / f"Script{number}.kt")
        files[-1].write_text(f"fun script{number}() {{\n{path.read_text()}}}\n")
    assert len(files) == 3

    def errors_of_syntax():
        errors = checking.compile_kotlin(files, tmp_path / "out")
        assert any("unresolved reference 'plugins'" in error for error in errors)
        known = ("unresolved reference", "cannot infer type")
        return [error for error in errors if not any(each in error for each in known)]

    # Gradle itself, which knows the names, cannot be had: the compiler sees the syntax alone.
    assert errors_of_syntax() == []
    files[0].write_text(files[0].read_text().replace("minSdk = 24", "minSdk == = 24"))
    errors = checking.compile_kotlin(files, tmp_path / "out")
    assert any("syntax" in error.lower() or "xpect" in error for error in errors)


@pytest.mark.slow
def test_apk_holds_the_model(subject):
    outcome = checking.ask_apk(subject(classifier("uint8")))
    assert (outcome.status, outcome.reason) == ("passed", "")
    assert outcome.figures["APK bytes"] > 10_000


@pytest.mark.slow
def test_name_of_the_app_reaches_the_package(tmp_path):
    (tmp_path / "model.tflite").write_bytes(classifier())
    title = '@Tom\'s "A&B" <x>\\n  5é'
    android_project(tmp_path / "model.tflite", tmp_path / "app", package=PACKAGE, name=title)
    made = checking.package_resources(tmp_path / "app/app", PACKAGE, tmp_path / "resources")
    told = run_tool([program("aapt", "aapt"), "dump", "strings", str(made)], what="aapt")
    assert any(line.endswith(f": {title}") for line in told.splitlines())


@pytest.mark.slow
def test_aapt_refuses_wrong_resources(tmp_path):
    (tmp_path / "model.tflite").write_bytes(classifier())
    android_project(tmp_path / "model.tflite", tmp_path / "app", package=PACKAGE)
    strings = tmp_path / "app/app/src/main/res/values/strings.xml"
    strings.write_text(strings.read_text().replace('"run_example"', '"run"'))
    with pytest.raises(Refused, match=r"aapt failed with status 1.*run_example"):
        checking.package_resources(tmp_path / "app/app", PACKAGE, tmp_path / "resources")


@pytest.mark.parametrize(
    ("compressed", "padding", "change", "reason"),
    [
        (zipfile.ZIP_STORED, 3, b"", ""),
        (zipfile.ZIP_STORED, 0, b"", "starts 1 bytes behind a multiple of 4"),
        (zipfile.ZIP_DEFLATED, 3, b"", "is compressed"),
        (zipfile.ZIP_STORED, 3, b"\0", "has other bytes"),
    ],
)
def test_what_is_wrong_with_a_model_in_an_apk(subject, compressed, padding, change, reason):
    file = subject(classifier())
    made = Path(file.path).with_name("app.apk")
    with zipfile.ZipFile(made, "w") as archive:
        entry = zipfile.ZipInfo("assets/x.tf")  # 11 letters behind a header of 30 bytes
        entry.compress_type = compressed
        entry.extra = bytes(padding)
        archive.writestr(entry, file.data + change)
    found = checking.check_model(made, "assets/x.tf", file)
    assert (reason in found) if reason else found == ""
