"""Where Android projects are written: whole or not at all; and what is refused."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from android_files import classifier, several
from tflite_by_hand import OPS, TYPES, build, code, fully_connected, graph, operator, tensor

from tfcompress.export.android.contents import missing_settings
from tfcompress.export.android.project import android_project
from tfcompress.tflite import flatbuffer

PACKAGE = "com.example.digits"
LABELS = ["one", "two", "three"]
GRADLE = 'plugins { kotlin("android") }\nandroid {\n    namespace = "com.example.digits"\n}\n'


@pytest.fixture
def digits(tmp_path):
    path = tmp_path / "digits.tflite"
    path.write_bytes(classifier())
    return path


def content(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def test_folder_with_other_content_needs_force(digits, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "README.md").write_text("old")
    with pytest.raises(ValueError, match=r"exists and is not empty.*--force \(force=True\)"):
        android_project(digits, out, package=PACKAGE)
    assert content(out) == {"notes.txt": b"mine", "README.md": b"old"}
    android_project(digits, out, package=PACKAGE, force=True)
    made = content(out)
    assert made.pop("notes.txt") == b"mine"
    android_project(digits, tmp_path / "new", package=PACKAGE)
    assert made == content(tmp_path / "new")


def test_empty_folder_and_relative_paths_are_fine(digits, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    android_project(digits, ".", package=PACKAGE)
    android_project(digits, "inner", package=PACKAGE)
    assert Path("settings.gradle.kts").is_file()
    assert Path("inner/settings.gradle.kts").is_file()
    assert not [name for name in os.listdir() if name.endswith(".tmp")]


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("method", ["write_bytes", "replace"])
def test_nothing_is_left_when_writing_fails(digits, tmp_path, monkeypatch, existing, method):
    out = tmp_path / "out"
    if existing:
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    before = content(tmp_path)
    done = []

    def fail(*arguments):
        done.append(arguments)
        if len(done) > (5 if existing or method == "write_bytes" else 0):
            raise OSError(28, "No space left on device")
        return original(*arguments)

    if method == "write_bytes":
        original = Path.write_bytes
        monkeypatch.setattr(Path, "write_bytes", fail)
    else:
        original = os.replace
        monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match=r"cannot write '.*out' .*no space left.*Nothing was changed"):
        android_project(digits, out, package=PACKAGE, force=True)
    monkeypatch.undo()
    assert len(done) > 0
    assert content(tmp_path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == (
        ["digits.tflite", "out"] if existing else ["digits.tflite"]
    )
    assert not existing or [p.name for p in out.iterdir()] == ["notes.txt"]


def test_places_where_nothing_can_be(digits, tmp_path):
    with pytest.raises(OSError, match="a file has that name"):
        android_project(digits, digits, package=PACKAGE)
    with pytest.raises(OSError, match=r"digits.tflite' is a file"):
        android_project(digits, digits / "out", package=PACKAGE)


def test_what_an_old_module_lacks():
    old = 'plugins { id "com.android.application" }\nandroid { defaultConfig { minSdkVersion 21 } }'
    assert missing_settings(old, groovy=True)[2:] == (
        "android { defaultConfig { minSdk 24 } }",
        'plugins { id "org.jetbrains.kotlin.android" } // before AGP 9, which has Kotlin built in',
    )
    new = "plugins { alias(libs.plugins.kotlin) }\nandroid { defaultConfig { minSdk = 26 } }"
    assert len(missing_settings(new, groovy=False)) == 2
    assert len(missing_settings(old, groovy=True, kotlin=True)) == 3
    low = new.replace("26", "23")
    assert missing_settings(low, groovy=False)[2:] == ("android { defaultConfig { minSdk = 24 } }",)


@pytest.fixture
def module(tmp_path):
    """The module of an app."""
    folder = tmp_path / "MyApp/app"
    (folder / "src/main").mkdir(parents=True)
    (folder / "build.gradle.kts").write_text(GRADLE)
    (folder / "src/main/AndroidManifest.xml").write_text("<manifest/>")
    return folder


def test_into_adds_model_and_classes_alone(digits, module):
    report = android_project(digits, module, package=PACKAGE, into=True, labels=LABELS)
    added = set(content(module)) - {"build.gradle.kts", "src/main/AndroidManifest.xml"}
    assert added == set(report.files)
    sources = "src/main/java/com/example/digits"
    assert added == {
        *("src/main/assets/digits.tflite", "src/main/assets/digits_labels.txt"),
        *(f"{sources}/{c}.kt" for c in ("DigitsModel", "DigitsTensors", "TensorSpec")),
        *(f"{sources}/{c}.kt" for c in ("CompiledModelRunner", "Classification", "Pixels")),
    }
    assert (module / "build.gradle.kts").read_text() == GRADLE
    assert report.to_add == (
        'android { androidResources { noCompress += "tflite" } }',
        'dependencies { implementation("com.google.ai.edge.litert:litert:2.3.0") }',
    )
    assert all(line in str(report) for line in report.to_add)
    assert "Android Studio" not in str(report)


def test_into_asks_only_for_what_is_missing(digits, module):
    (module / "build.gradle.kts").write_text(
        'android { androidResources { noCompress += "tflite" } }\nx(libs.litert); kotlin("android")'
    )
    assert android_project(digits, module, package=PACKAGE, into=True).to_add == ()


def test_into_a_project_of_its_own_needs_nothing(digits, tmp_path):
    android_project(digits, tmp_path / "MyApp", package=PACKAGE)
    added = android_project(digits, tmp_path / "MyApp/app", package=PACKAGE, into=True)
    assert added.to_add == ()


def test_into_speaks_the_language_of_the_build_file(digits, module):
    (module / "build.gradle.kts").rename(module / "build.gradle")
    assert android_project(digits, module, package=PACKAGE, into=True).to_add == (
        'android { androidResources { noCompress "tflite" } }',
        'dependencies { implementation "com.google.ai.edge.litert:litert:2.3.0" }',
    )


def test_into_again_changes_nothing_and_a_second_model_shares_classes(digits, module, tmp_path):
    android_project(digits, module, package=PACKAGE, into=True)
    before = content(module)
    android_project(digits, module, package=PACKAGE, into=True)
    assert content(module) == before
    other = tmp_path / "other.tflite"
    other.write_bytes(classifier("uint8"))
    android_project(other, module, package=PACKAGE, into=True)
    assert before.items() < content(module).items()


def test_into_refuses_other_files_of_the_same_names(digits, module):
    source = module / "src/main/java/com/example/digits/TensorSpec.kt"
    source.parent.mkdir(parents=True)
    source.write_text("mine")
    before = content(module)
    with pytest.raises(ValueError, match=r"another src/main/java/.*TensorSpec.kt; .*--force"):
        android_project(digits, module, package=PACKAGE, into=True)
    assert content(module) == before
    android_project(digits, module, package=PACKAGE, into=True, force=True)
    assert source.read_text().startswith("package com.example.digits")


def test_into_follows_the_folder_of_sources(digits, module):
    (module / "src/main/kotlin").mkdir()
    android_project(digits, module, package=PACKAGE, into=True)
    assert (module / "src/main/kotlin/com/example/digits/DigitsModel.kt").is_file()
    assert not (module / "src/main/java").exists()


def test_into_refuses_what_is_no_module(digits, module, tmp_path):
    with pytest.raises(ValueError, match=r"no module of an app.*Try '.*MyApp/app'"):
        android_project(digits, module.parent, package=PACKAGE, into=True)
    with pytest.raises(ValueError, match="no folder at"):
        android_project(digits, tmp_path / "none", package=PACKAGE, into=True)
    (module / "src/main/AndroidManifest.xml").unlink()
    with pytest.raises(ValueError, match="no module of an app"):
        android_project(digits, module, package=PACKAGE, into=True)
    shutil.rmtree(module)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "b"], r"received 2 labels; expected 3 labels, as the outputs are 'kind' \[1, 3\]"),
        (["a", "b", ""], r"label 3 of the labels is ''"),
        (["a", "b", "c\nd"], r"label 3 of the labels is 'c\\nd'.*without line breaks"),
        ([], r"holds no labels"),
        (b"a\n\nb\n", r"label 2 of '.*labels.txt' is ''"),
        (b"\n", r"'.*labels.txt' holds no labels"),
        (b"\xff\xfe\x00", r"is no text of UTF-8"),
        (None, r"no file at '.*labels.txt'"),
    ],
)
def test_labels_that_do_not_fit(digits, tmp_path, labels, message):
    if not isinstance(labels, list):
        path = tmp_path / "labels.txt"
        if labels is not None:
            path.write_bytes(labels)
        labels = path
    with pytest.raises(ValueError, match=message):
        android_project(digits, tmp_path / "out", package=PACKAGE, labels=labels)
    assert not (tmp_path / "out").exists()


def test_labels_of_a_file_without_classes(tmp_path):
    path = tmp_path / "x.tflite"
    path.write_bytes(several())
    with pytest.raises(ValueError, match="expected as many labels as an output has numbers"):
        android_project(path, tmp_path / "out", package=PACKAGE, labels=["a", "b", "c", "d"])


def one_layer(kind="float32", shape=(1, 4), **grid):
    tensors = [
        tensor(b"x", list(shape), getattr(TYPES, kind.upper()), 0, **grid),
        tensor(b"w", [2, 4], TYPES.FLOAT32, 1),
        tensor(b"y", [1, 2], TYPES.FLOAT32),
    ]
    layer = operator(0, [0, 1, -1], [2], *fully_connected())
    return build(
        [code(OPS.FULLY_CONNECTED)],
        [graph(tensors, [layer], [0], [2])],
        [np.zeros(8, "<f4").tobytes()],
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"not a model", "is not a .tflite file"),
        (one_layer("float16"), r"input 'x' of '.*' is float16; expected one of float32, int8"),
        (one_layer("string"), r"is string; expected one of"),
        (one_layer(shape=(1, 0)), r"has shape \[1, 0\]; expected dimensions of 1 or more"),
        (one_layer(shape=(1, 2**24 + 1)), r"expected dimensions .* at most 2\^24 elements"),
        (one_layer("int8", scale=[0.0], zero_point=[0]), r"the scales \[0.0\] and zero point 0"),
        (one_layer("int8", scale=[0.1], zero_point=[300]), r"zero point 300"),
        (one_layer("int8", scale=[0.1, 0.2], zero_point=[0, 0]), r"expected one scale above 0"),
        (build([], [graph([], [], [], [])], []), r"has 0 inputs; expected 1 to 100"),
        (
            several(types=("int64", "int32", "bool", "int64")),
            r"exchanges bool together with int32, int64",
        ),
    ],
)
def test_files_that_no_app_can_run(tmp_path, data, message):
    path = tmp_path / "x.tflite"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        android_project(path, tmp_path / "out", package=PACKAGE)
    assert [p.name for p in tmp_path.iterdir()] == ["x.tflite"]


def test_file_that_only_the_reference_kernels_run(tmp_path):
    model = flatbuffer.read(classifier())
    model.subgraphs[0].tensors[2].quantization.zeroPoint = np.int64([-(2**24)])
    path = tmp_path / "x.tflite"
    path.write_bytes(flatbuffer.write(model))
    with pytest.raises(ValueError, match=r"LiteRT cannot run '.*x.tflite': .*zero-point value"):
        android_project(path, tmp_path / "out", package=PACKAGE)
    assert [p.name for p in tmp_path.iterdir()] == ["x.tflite"]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"package": "digits"}, ValueError, "expected a Java package"),
        ({"scaling": "0-1"}, ValueError, "unknown scaling '0-1'.*Did you mean '0_1'"),
        ({"name": " "}, ValueError, "expected a name for the model"),
        ({"name": "a\nb"}, ValueError, "expected a name for the model"),
    ],
)
def test_settings_that_are_refused(digits, tmp_path, settings, error, message):
    with pytest.raises(error, match=message):
        android_project(digits, tmp_path / "out", **{"package": PACKAGE, **settings})
    assert not (tmp_path / "out").exists()


def test_model_must_be_a_path(tmp_path):
    with pytest.raises(TypeError, match="received bytes"):
        android_project(classifier(), tmp_path / "out", package=PACKAGE)
    with pytest.raises(ValueError, match="no file at"):
        android_project(tmp_path / "none.tflite", tmp_path / "out", package=PACKAGE)
