"""Android projects: what is in them, for which files."""

import json
import struct
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import typer
from android_files import classifier, several, step
from conftest import run_tflite
from metadata_models import colours

from tfcompress.cli.shipping import android
from tfcompress.cli.terminal import run
from tfcompress.export.android.naming import kotlin_text
from tfcompress.export.android.project import android_project
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.metadata import Metadata, TensorMetadata, add_metadata

PACKAGE = "com.example.digits"
MAIN = "app/src/main"
SOURCES = f"{MAIN}/java/com/example/digits"
LABELS = ["one", "two", "three"]


@pytest.fixture
def make(tmp_path):
    """Makes a project of the bytes of a file; gives what its files hold, and the report."""

    def made(data, name="digits.tflite", **settings):
        path = tmp_path / name
        path.write_bytes(data)
        report = android_project(path, tmp_path / "app", package=PACKAGE, **settings)
        return Project(tmp_path / "app"), report

    return made


class Project:
    def __init__(self, folder):
        self.folder = folder

    def __getitem__(self, path):
        return (self.folder / path).read_text(encoding="utf-8")

    def bytes(self, path):
        return (self.folder / path).read_bytes()


def test_project_has_what_android_studio_needs(make):
    data = classifier()
    project, report = make(data, labels=LABELS)
    files = {str(p.relative_to(project.folder)) for p in project.folder.rglob("*") if p.is_file()}
    assert files == set(report.files)
    assert files == {
        *("README.md", ".gitignore", "settings.gradle.kts", "build.gradle.kts"),
        *("gradle.properties", "gradle/libs.versions.toml", "app/build.gradle.kts"),
        "gradle/wrapper/gradle-wrapper.properties",
        f"{MAIN}/AndroidManifest.xml",
        *(f"{MAIN}/res/{p}.xml" for p in ("layout/activity_main", "values/strings")),
        f"{MAIN}/res/values/themes.xml",
        *(f"{MAIN}/assets/digits{end}" for end in (".tflite", "_labels.txt", "_example.bin")),
        *(f"{SOURCES}/{c}.kt" for c in ("DigitsModel", "DigitsTensors", "TensorSpec")),
        *(f"{SOURCES}/{c}.kt" for c in ("CompiledModelRunner", "Classification", "Pixels")),
        f"{SOURCES}/MainActivity.kt",
        "app/src/androidTest/java/com/example/digits/DigitsModelTest.kt",
        "app/src/androidTest/assets/digits_reference.bin",
    }
    assert project.bytes(f"{MAIN}/assets/digits.tflite") == data
    assert 'noCompress += "tflite"' in project["app/build.gradle.kts"]
    assert f'namespace = "{PACKAGE}"' in project["app/build.gradle.kts"]
    assert project[f"{MAIN}/assets/digits_labels.txt"] == "one\ntwo\nthree\n"
    assert "gradle-wrapper.jar" in project["README.md"]
    assert not any("{{" in project[f] for f in files if not f.endswith((".bin", ".tflite")))


def test_gradle_versions_are_those_of_the_catalog(make):
    tomllib = pytest.importorskip("tomllib")
    project, _ = make(classifier())
    catalog = tomllib.loads(project["gradle/libs.versions.toml"])
    assert catalog["libraries"]["litert"]["module"] == "com.google.ai.edge.litert:litert"
    assert catalog["versions"]["litert"].startswith("2.3.")
    known = {name.replace("-", ".") for name in catalog["libraries"]}
    build = project["app/build.gradle.kts"]
    used = {
        line.split("(libs.")[1].rstrip(")\n") for line in build.splitlines() if "n(libs" in line
    }
    assert used == known
    assert "alias(libs.plugins.android.application)" in build
    assert list(catalog["plugins"]) == ["android-application"]


def test_resources_are_xml_and_know_one_another(make):
    project, _ = make(classifier(), name="d.tflite", labels=LABELS)
    strings = ElementTree.fromstring(project[f"{MAIN}/res/values/strings.xml"])
    names = {entry.get("name") for entry in strings}
    layout = project[f"{MAIN}/res/layout/activity_main.xml"]
    manifest = project[f"{MAIN}/AndroidManifest.xml"]
    for text in (layout, manifest, project[f"{MAIN}/res/values/themes.xml"]):
        ElementTree.fromstring(text)
    for name in names - {"app_name", "failed"}:
        assert f"@string/{name}" in layout
        assert f'@+id/{name}"' in layout
    assert "@string/app_name" in manifest
    assert "R.string.failed" in project[f"{SOURCES}/MainActivity.kt"]


def test_tensors_have_the_names_and_grids_of_the_file(make):
    project, report = make(classifier(key="my_key"), labels=LABELS)
    text = project[f"{SOURCES}/DigitsTensors.kt"]
    spec = 'TensorSpec("image", listOf(1, 12, 12, 1), ElementType.INT8, 0.003921569f, -128),'
    assert spec in text
    assert 'TensorSpec("kind", listOf(1, 3), ElementType.INT8, 0.00390625f, -128),' in text
    assert 'const val SIGNATURE = "my_key"' in text
    assert np.float32("0.003921569") == np.float32(1 / 255)
    assert (report.model_class, report.labels, report.tolerances) == ("DigitsModel", 3, (1.0,))
    model = project[f"{SOURCES}/DigitsModel.kt"]
    assert "image: FloatArray," in model
    assert "val kind: FloatArray," in model


@pytest.mark.parametrize(
    ("data", "api"),
    [
        (classifier("int8"), "CompiledModel"),
        (classifier("float32"), "CompiledModel"),
        (classifier("uint8"), "Interpreter"),  # TensorBuffer has no UInt8
        (classifier("int16"), "Interpreter"),
        (classifier(signed=False), "Interpreter"),  # which goes by place, not by name
        (classifier(key="é"), "Interpreter"),
        (several(), "CompiledModel"),
        (several(types=("float32", "int32", "int64", "float32")), "Interpreter"),
    ],
)
def test_each_type_goes_through_an_api_that_takes_it(make, data, api):
    project, report = make(data, scaling="0_1")
    assert report.api == api
    assert f"runner = {api}Runner(" in project[f"{SOURCES}/DigitsModel.kt"]
    runners = {p.name for p in (project.folder / SOURCES).glob("*Runner.kt")}
    assert runners == {f"{api}Runner.kt"}


def test_outputs_whose_shape_is_told_when_they_are_run(make):
    # As those of detectors that end with TFLite_Detection_PostProcess.
    model = flatbuffer.read(several())
    for index in (2, 3):
        model.subgraphs[0].tensors[index].shape = []
    project, report = make(flatbuffer.write(model))
    assert [output.shape for output in report.outputs] == [(4,), (2, 3)]
    assert report.api == "Interpreter"
    assert "listOf(2, 3)" in project[f"{SOURCES}/DigitsTensors.kt"].split("outputs")[1]


def test_several_inputs_and_outputs_are_typed(make):
    project, report = make(several())
    text = project[f"{SOURCES}/DigitsModel.kt"]
    for line in ("a: FloatArray,", "b: IntArray,", "val c: BooleanArray,", "val d: FloatArray,"):
        assert f"        {line}\n" in text
    assert "DigitsTensors.outputs[0].booleans(data[0])," in text
    assert "classify" not in text
    assert "Bitmap" not in text
    assert report.tolerances[0] == 0.0


def test_a_step_gets_a_class_that_keeps_its_states(make):
    project, _ = make(step())
    stream = project[f"{SOURCES}/DigitsStream.kt"]
    for line in (
        "private val taken = intArrayOf(1)",
        "private val given = intArrayOf(1)",
        "private val starts = intArrayOf(2)",
        "        x: FloatArray,\n    ): DigitsModel.Outputs {",
        "            0 to DigitsTensors.inputs[0].encode(x),",
        "        1 to DigitsTensors.inputs[1].encode(FloatArray(3)),",
    ):
        assert line in stream
    assert "`DigitsStream(model)` keeps its states" in project["README.md"]


def test_reference_is_what_litert_gives(make, tmp_path):
    project, _ = make(classifier())
    data = project.bytes("app/src/androidTest/assets/digits_reference.bin")
    assert len(data) == 4 * (144 + 3)
    numbers = np.frombuffer(data, np.int8).reshape(4, 147)
    inputs = numbers[:, :144].reshape(4, 12, 12, 1)
    given = run_tflite(tmp_path / "digits.tflite", inputs)
    np.testing.assert_array_equal(given, (numbers[:, 144:].astype("float32") + 128) / 256)
    assert len(np.unique(inputs)) > 200
    assert project.bytes(f"{MAIN}/assets/digits_example.bin") == inputs[0].tobytes()


def test_reference_of_several_types(make):
    project, _ = make(several())
    data = project.bytes("app/src/androidTest/assets/digits_reference.bin")
    record = struct.calcsize("<6f4i4?6f")
    assert len(data) == 4 * record
    for start in range(0, len(data), record):
        values = struct.unpack_from("<6f4i4?6f", data, start)
        assert values[10:14] == (True,) * 4
        assert values[14:] == tuple(np.float32(2) * np.float32(v) for v in values[:6])


def test_probabilities_of_logits_go_through_a_softmax(make, tmp_path):
    logits, _ = make(classifier(softmax=False), labels=LABELS)
    assert "topClasses(softmax(outputs.kind), labels, count)" in logits[f"{SOURCES}/DigitsModel.kt"]
    (tmp_path / "d.tflite").write_bytes(classifier())
    android_project(
        tmp_path / "d.tflite", tmp_path / "b", package=PACKAGE, name="digits", labels=LABELS
    )
    text = Project(tmp_path / "b")[f"{SOURCES}/DigitsModel.kt"]
    assert "topClasses(outputs.kind, labels, count)" in text


def test_metadata_gives_labels_and_normalization(make):
    told = Metadata(
        inputs=(TensorMetadata("image", mean=[127.5], std=[63.0]),),
        outputs=(TensorMetadata("kind", labels=LABELS),),
    )
    project, report = make(add_metadata(classifier(), told))
    assert report.labels == 3
    text = project[f"{SOURCES}/DigitsModel.kt"]
    assert "mean: FloatArray = floatArrayOf(127.5f)," in text
    assert "std: FloatArray = floatArrayOf(63.0f)," in text
    assert project[f"{MAIN}/assets/digits_labels.txt"] == "one\ntwo\nthree\n"


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("Tiny shapes", "TinyShapesModel"),
        ("A classifier of tiny shapes, trained on drawings", "DigitsModel"),
        ("a\u2028b", "DigitsModel"),
    ],
)
def test_the_name_in_the_metadata_names_the_classes_unless_it_is_a_description(
    make, told, expected
):
    assert make(add_metadata(classifier(), Metadata(told)))[1].model_class == expected


def test_labels_of_metadata_belong_to_the_output_that_tells_them(make):
    told = Metadata(outputs=(TensorMetadata("tint", labels=LABELS),))
    project, report = make(add_metadata(colours("float32", 2), told), scaling="0_1")
    assert [o.identifier for o in report.outputs] == ["colour", "tint"]
    assert "topClasses(softmax(outputs.tint), labels" in project[f"{SOURCES}/DigitsModel.kt"]


@pytest.mark.parametrize(
    ("scaling", "mean", "std"), [(None, 0, 255), ("none", 0, 1), ("-1_1", 127.5, 127.5)]
)
def test_scaling_of_pixels(make, scaling, mean, std):
    project, _ = make(classifier(), scaling=scaling)
    text = project[f"{SOURCES}/DigitsModel.kt"]
    assert f"floatArrayOf({float(mean)}f)" in text
    assert f"floatArrayOf({float(std)}f)" in text


@pytest.mark.parametrize(
    ("settings", "image"),
    [({}, True), ({"channels": 3}, True), ({"channels": 2}, False), ({"height": 49}, False)],
)
def test_pictures_are_offered_where_they_fit(make, settings, image):
    project, _ = make(classifier(**settings))
    assert ("imageFrom(" in project[f"{SOURCES}/DigitsModel.kt"]) == image
    assert ("choose_picture" in project[f"{MAIN}/res/layout/activity_main.xml"]) == image
    assert (project.folder / SOURCES / "Pixels.kt").exists() == image


def test_hostile_names_stay_texts(make):
    names = ('a"; error("x") //', "${System.exit(1)}", "*/ class X", "class\n`|`")
    project, report = make(several(names), name="x y'<&>\".tflite")
    text = project[f"{SOURCES}/XYTensors.kt"]
    for name in names:
        assert f"TensorSpec({kotlin_text(name)}, " in text
    code = "".join(project[f"{SOURCES}/{p}"] for p in ("XYModel.kt", "MainActivity.kt"))
    for part in ("System.exit", 'error("x', "class X\n", "class X "):
        assert part not in code + project["README.md"].split("| input")[0]
    assert [t.identifier for t in report.inputs] == ["aErrorX", "systemExit1"]
    assert [t.identifier for t in report.outputs] == ["classX", "class_"]
    strings = ElementTree.fromstring(project[f"{MAIN}/res/values/strings.xml"])
    assert strings[0].text == "x y\\'<&>\\\""


@pytest.mark.parametrize("name", ["a\x01b.tflite", "a\nb.tflite", " .tflite"])
def test_file_whose_name_cannot_be_shown(make, name):
    with pytest.raises(ValueError, match=r"expected a name for the model .* with --name"):
        make(classifier(), name=name)


def test_report_is_plain_data_and_text(make):
    _, report = make(classifier(), labels=LABELS)
    assert json.loads(json.dumps(report.to_dict()))["inputs"][0]["zero_point"] == -128
    assert "com.example.digits.DigitsModel" in str(report)
    assert "Android Studio" in str(report)


def main(words):
    app = typer.Typer(add_completion=False)
    app.command()(android)
    return run(app, words)


def test_command(tmp_path, capsys):
    (tmp_path / "digits.tflite").write_bytes(classifier())
    (tmp_path / "labels.txt").write_bytes(b'\xef\xbb\xbfone\r\ntwo\r\n"$t"\r\n\n')
    words = [str(tmp_path / "digits.tflite"), "--package", PACKAGE]
    words += ["--labels", str(tmp_path / "labels.txt"), "--out", str(tmp_path / "out"), "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["labels"] == 3
    assert Project(tmp_path / "out")[f"{MAIN}/assets/digits_labels.txt"] == 'one\ntwo\n"$t"\n'
    assert main(words) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert main([*words, "--force"]) == 0
    assert main([*words, "--into", str(tmp_path)]) == 2
    assert "received both" in capsys.readouterr().err
