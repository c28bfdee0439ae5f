"""Files written whole or not at all; models loaded safely or refused with a reason."""

import errno
import os
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
from refusals import refusals_of

from tfcompress.files.models import SavedModel, load_model
from tfcompress.files.writing import atomic_write, check_writable


def listing(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(params=["unnamed", "named"])
def temporary(request, monkeypatch):
    """Both ways to write: with and without a name before the content is complete."""
    if request.param == "named":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)


@pytest.mark.usefixtures("temporary")
def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "model.tflite"
    atomic_write(path, b"first")
    path.chmod(0o640)
    atomic_write(str(path), b"second, longer")
    assert listing(tmp_path) == {"model.tflite": b"second, longer"}
    assert path.stat().st_mode & 0o777 == 0o640
    link = tmp_path / "link"
    link.symlink_to(path)
    atomic_write(link, b"third")
    assert link.is_symlink()
    assert path.read_bytes() == b"third"


def test_a_new_file_has_the_usual_permissions(tmp_path):
    atomic_write(tmp_path / "ours", b"")
    (tmp_path / "usual").write_bytes(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_short_writes_are_continued(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    atomic_write(tmp_path / "a", b"0123456789")
    assert (tmp_path / "a").read_bytes() == b"0123456789"


@pytest.mark.usefixtures("temporary")
@pytest.mark.parametrize("function", ["write", "fsync", "replace"])
@pytest.mark.parametrize("existing", [b"precious", None])
def test_a_full_disk_changes_nothing(tmp_path, monkeypatch, function, existing):
    path = tmp_path / "model.tflite"
    if existing:
        path.write_bytes(existing)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = listing(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(os, function, full)
        with pytest.raises(OSError, match=r"model.tflite' \(9 bytes\): no space left.* Free some"):
            atomic_write(path, b"123456789")
    assert listing(tmp_path) == before


@pytest.mark.usefixtures("temporary")
def test_a_read_only_folder_is_found_before_the_work(tmp_path, monkeypatch):
    def refuse(path, *_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)
    for check in (check_writable, lambda path: atomic_write(path, b"1")):
        with pytest.raises(PermissionError, match=r"permission denied. Check the permissions of"):
            check(tmp_path / "model.tflite")
    assert listing(tmp_path) == {}


def test_paths_that_cannot_be_written(tmp_path):
    for path, error, message in (
        (tmp_path, IsADirectoryError, "it is a folder. Name a file in it"),
        (tmp_path / "no" / "a", FileNotFoundError, "there is no folder '.*no'. Create it first"),
        ("/dev/null", OSError, "it is not a regular file"),
        (tmp_path / ("n" * 300), OSError, "name too long. Choose a shorter name"),
        ("", ValueError, "expected the path of a file to write; received ''"),
        ("a\0b", ValueError, "expected the path of a file"),
        (3, TypeError, "received int"),
    ):
        with pytest.raises(error, match=message):
            check_writable(path)
        with pytest.raises(error, match=message):
            atomic_write(path, b"1")
    assert listing(tmp_path) == {}


SLOW = """
import os, sys, time
from tfcompress.files import writing
write = os.write
def slow(descriptor, data):
    write(descriptor, data[:5])
    print("half", flush=True)
    time.sleep(60)
os.write = slow
writing.atomic_write(sys.argv[1], b"0123456789")
"""


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="needs files without a name")
@pytest.mark.parametrize("existing", [b"precious", None])
def test_a_killed_process_leaves_nothing(tmp_path, existing):
    path = tmp_path / "model.tflite"
    if existing:
        path.write_bytes(existing)
    before = listing(tmp_path)
    command = [sys.executable, "-c", SLOW, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"half\n"
        assert listing(tmp_path) == before
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=10)
    assert listing(tmp_path) == before


@pytest.fixture(scope="module")
def keras():
    return pytest.importorskip("keras")


@pytest.fixture(scope="module")
def models(keras, tmp_path_factory):
    """A folder with models in every format, sound and unsound."""
    folder = tmp_path_factory.mktemp("models")
    layers = keras.layers

    @keras.saving.register_keras_serializable("unheard")
    class Double(layers.Layer):
        def call(self, x):
            return 2 * x

    def save(name, *body):
        keras.Sequential([keras.Input((4,)), *body]).save(folder / name)

    for ending in ("keras", "h5"):
        save(f"ok.{ending}", layers.Dense(3, name="only"))
        save(f"lambda.{ending}", layers.Lambda(lambda x: x + 1))
        save(f"custom.{ending}", Double())
        content = (folder / f"ok.{ending}").read_bytes()
        (folder / f"half.{ending}").write_bytes(content[: len(content) // 2])
        (folder / f"random.{ending}").write_bytes(np.random.default_rng(0).bytes(1000))
        (folder / f"empty.{ending}").write_bytes(b"")
        (folder / f"text.{ending}").write_text("not a model")
    keras.saving.get_custom_objects().pop("unheard>Double")
    (folder / "h5.keras").write_bytes((folder / "ok.h5").read_bytes())
    (folder / "zip.h5").write_bytes((folder / "ok.keras").read_bytes())
    (folder / "ok.model").write_bytes((folder / "ok.keras").read_bytes())
    (folder / "model.tflite").write_bytes(b"\x1c\0\0\0TFL3")
    keras.Sequential([keras.Input((4,)), layers.Dense(3)]).save_weights(folder / "w.weights.h5")
    with zipfile.ZipFile(folder / "other.keras", "w") as archive:
        archive.writestr("a.txt", "hello")
    (folder / "saved").mkdir()
    (folder / "saved" / "saved_model.pb").write_bytes(b"")
    (folder / "empty").mkdir()
    return folder


@pytest.mark.parametrize("name", ["ok.keras", "ok.h5"])
def test_a_model_is_loaded_uncompiled(models, name):
    model = load_model(models / name)
    assert [layer.name for layer in model.layers] == ["only"]
    assert not model.compiled
    assert model.get_layer("only").kernel.shape == (4, 3)


def test_a_saved_model_is_only_named(models):
    assert load_model(models / "saved") == SavedModel(models / "saved")


REFUSED = {
    "gone.keras": r"no file at '.*gone.keras'; expected a .keras or .h5 file",
    "gone": r"no file at '.*gone'",
    "empty": r"is a folder without saved_model.pb",
    "empty.keras": r"is empty; expected",
    "empty.h5": r"is empty; expected",
    "text.keras": r"not a Keras file: it starts with b'not a mo'",
    "text.h5": r"not a Keras file: it starts with b'not a mo'",
    "random.keras": r"damaged or not a Keras file",
    "random.h5": r"damaged or not a Keras file",
    "half.keras": r"damaged or cut off: File is not a zip file",
    "half.h5": r"damaged or cut off: .*truncated file",
    "other.keras": r"a zip file without config.json",
    "h5.keras": r"is a .h5 file by its content; rename it to end in .h5",
    "zip.h5": r"is a .keras file by its content; rename it to end in .keras",
    "ok.model": r"has the ending '.model'.* looks like a .keras file: rename it",
    "model.tflite": r"is a .tflite file already",
    "w.weights.h5": r"holds only weights; expected a whole model.*load_weights",
    "lambda.keras": r"holds Python code \(a Lambda layer\), which is not run",
    "lambda.h5": r"holds Python code \(a Lambda layer\), which is not run",
    "custom.keras": r"needs the class or function '(unheard>)?Double'.* import it.*convert",
    "custom.h5": r"needs the class or function '(unheard>)?Double'.* import it.*convert",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_safe_whole_model_is_refused(models, name):
    with pytest.raises(ValueError, match=REFUSED[name]) as caught:
        load_model(models / name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_models_of_keras_2_are_named_as_such(tmp_path):
    with zipfile.ZipFile(tmp_path / "old.keras", "w") as archive:
        archive.writestr("metadata.json", '{"keras_version": "2.15.0"}')
        archive.writestr("config.json", '{"module": "keras", "class_name": "Nothing"}')
        archive.writestr("model.weights.h5", "")
    with pytest.raises(ValueError, match=r"by Keras 2.15.0 \(tf_keras\).*tfcompress migrate"):
        load_model(tmp_path / "old.keras")


def test_a_missing_model_is_found_without_keras(tmp_path):
    code = (
        "import sys\nfrom tfcompress.files.models import load_model\n"
        "try: load_model('gone.keras')\n"
        "except ValueError: print('tensorflow' in sys.modules, 'keras' in sys.modules)"
    )
    start = time.perf_counter()
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.split() == ["False", "False"]
    assert time.perf_counter() - start < 5


def test_damaged_models_give_only_clear_errors(models, tmp_path):
    content = (models / "ok.keras").read_bytes()
    assert len(refusals_of(load_model, content, tmp_path / "fuzz.keras")) > 90
