"""Bad input through the command line: one clear line, a status, nothing half-written."""

import errno
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from refusals import damaged

from tfcompress.cli.app import main

# What an earlier conversion left, which a failed one must not touch.
PRECIOUS = b"precious"


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A model, a .tflite file of it and data for it."""
    keras = pytest.importorskip("keras")
    folder = tmp_path_factory.mktemp("sound")
    layers = keras.layers
    body = [layers.Conv2D(2, 3, activation="relu"), layers.Flatten(), layers.Dense(3)]
    keras.Sequential([keras.Input((8, 8, 1), name="image"), *body]).save(folder / "model.keras")
    wide = [keras.Input((None, None, 1), name="photo"), layers.Conv2D(2, 3)]
    keras.Sequential(wide).save(folder / "wide.keras")
    np.savez(folder / "x.npz", image=np.random.default_rng(0).random((10, 8, 8, 1), np.float32))
    command = ["convert", "model.keras", "-o", "model.tflite", "--precision", "float32", "-q"]
    here = os.getcwd()
    os.chdir(folder)
    try:
        assert main(command) == 0
    finally:
        os.chdir(here)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(sound, tmp_path, monkeypatch):
    """The same in a folder of each test's own, which is the current one."""
    monkeypatch.chdir(tmp_path)
    for name, content in sound.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "out.tflite").write_bytes(PRECIOUS)
    return tmp_path


def listing(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def refuse(folder, capsys):
    """Run a command that must fail; return its one line."""

    def run(*arguments, status=2):
        before = listing(folder)
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == status
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.startswith("Error: ")
        assert shown.err.count("\n") == 1
        assert "Traceback" not in shown.err
        assert len(shown.err) < 700
        assert listing(folder) == before
        return shown.err

    return run


CONVERT = ("convert", "model.keras", "-o", "out.tflite", "-q")
CHOOSE = ("model.keras", "--calibration", "x.npz", "-q", "-o")
VERIFY = ("verify", "model.keras", "model.tflite", "-q", "--data")


def save(name, array):
    (np.savez if name.endswith("z") else np.save)(name, array)
    return name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("convert", "gone.keras", "-o", "out.tflite", "-q"), "no file at 'gone.keras'; expected"),
        (("convert", ".", "-o", "out.tflite", "-q"), "is a folder without saved_model.pb; exp"),
        (("convert", "model.tflite", "-o", "o", "-q"), "is a .tflite file already; expected"),
        (("convert", "x.npz", "-o", "out.tflite", "-q"), "has the ending '.npz'; expected"),
        (("inspect", "gone.tflite"), "no file at 'gone.tflite'; expected"),
        (("inspect", "model.keras"), "not a .tflite file: received"),
        (("inspect", "."), "expected a .tflite file; '.' is a folder"),
        (("verify", "gone.keras", "model.tflite", "-q", "--data", "x.npz"), "'gone.keras'"),
        (("verify", "model.keras", "gone.tflite", "-q", "--data", "x.npz"), "'gone.tflite'"),
        ((*VERIFY, "gone.npz"), "no file at 'gone.npz'; expected a .npy file"),
        ((*VERIFY, "model.tflite"), "expected a .npy file, a .npz file or a folder of images"),
        ((*VERIFY, "x.npz", "--tolerance", "-1"), "--tolerance"),
        (("benchmark", "-q"), "Missing argument"),
        (("benchmark", "-q", "model.tflite", "gone.tflite"), "no file at 'gone.tflite'"),
        (("benchmark", "-q", "model.keras"), "not a .tflite file"),
        (("benchmark", "-q", "model.tflite", "--runs", "0"), "--runs"),
        (("targets", "edgetpu"), "Did you mean 'edge_tpu'?"),
        ((*CONVERT, "--precision", "int9"), "int8, int16x8, int4, or a .yaml file; received"),
        ((*CONVERT, "--precision", "int9"), "received 'int9'. Did you mean 'int8'?"),
        ((*CONVERT, "--io-dtype", "int64"), "received 'int64'. Did you mean 'int16'?"),
        ((*CONVERT, "--precision", "float16", "--io-dtype", "int8"), "int8"),
        (
            (*CONVERT, "--scaling", "255"),
            "--scaling must be one of none, 0_1, -1_1; received '255'",
        ),
        ((*CONVERT, "--image-size", "8x"), "must be HEIGHTxWIDTH in pixels; received '8x'. Try"),
        ((*CONVERT, "--samples", "0"), "--samples"),
        ((*CONVERT, "--batch-size", "none"), "--batch-size"),
        ((*CONVERT, "--bogus"), "No such option: --bogus"),
        (CONVERT, "calibration"),
        ((*CONVERT, "--calibration", "gone.npy"), "no file at 'gone.npy'"),
        ((*CONVERT, "--calibration", "."), "no images in the folder '.'; expected"),
        (("convert", "wide.keras", "-o", "o", "-q", "--precision", "float32"), "'photo'"),
        (("choose-precision", *CHOOSE, "r.yaml"), "needs a budget; received none. Give flash"),
        (("choose-precision", *CHOOSE, "r.json", "--flash", "9"), "must be a .yaml file"),
        (("choose-precision", *CHOOSE, "r.yaml", "--flash", "0"), "--flash"),
        (("choose-precision", *CHOOSE, "r.yaml", "--latency", "-1"), "latency must be a number"),
        (
            ("choose-precision", *CHOOSE, "r.yaml", "--flash", "9", "--precisions", "int8,int3"),
            "int3",
        ),
        (("convert", "model.keras", "-o", ".", "-q"), "cannot write '.': it is a folder. Name a"),
        (("convert", "model.keras", "-o", "no/o", "-q"), "there is no folder 'no'. Create it"),
        (("convert", "model.keras", "-o", "/dev/full", "-q"), "it is not a regular file"),
    ],
)
def test_arguments(refuse, arguments, words):
    assert words in refuse(*arguments)


def test_damaged_files(refuse, folder):
    noise = np.random.default_rng(0).bytes(2000)
    for name in ("model.keras", "model.tflite", "x.npz"):
        content = (folder / name).read_bytes()
        for bad in (b"", noise, content[:30], content[: len(content) // 2], content[:-1]):
            (folder / f"bad_{name}").write_bytes(bad)
            if name == "model.keras":
                line = refuse("convert", "bad_model.keras", "-o", "out.tflite", "-q")
            elif name == "x.npz":
                line = refuse(*CONVERT, "--calibration", "bad_x.npz")
            elif bad == content[:-1]:
                continue  # What is cut off may be padding.
            else:
                line = refuse("inspect", "bad_model.tflite")
                refuse(*VERIFY[:2], "bad_model.tflite", "-q", "--data", "x.npz")
                refuse("benchmark", "-q", "bad_model.tflite")
            assert f"bad_{name}'" in line
            assert "expected" in line or "again" in line


X = np.zeros((4, 8, 8, 1), np.float32)
NAN = np.where(np.arange(4).reshape(4, 1, 1, 1) == 2, np.nan, X)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (X[..., 0], "'image': received shape (4, 8, 8); expected (samples, 8, 8, 1): add a chan"),
        (
            np.zeros((4, 9, 9, 1)),
            "received shape (4, 9, 9, 1); expected (samples, 8, 8, 1): resize",
        ),
        (X.astype(str), "'image': received dtype <U32; expected float32: make it an array of num"),
        (X.astype(complex), "received dtype complex64"),
        (NAN, "'image', sample 2: received 64 value(s) that are NaN or infinite; expected finite"),
        (X[:0], "the data is empty: received no samples; expected at least one"),
    ],
)
def test_data_that_does_not_fit(refuse, array, words):
    array = array.astype(np.complex64) if array.dtype == np.complex128 else array
    path = save("bad.npy", array)
    assert words in refuse(*CONVERT, "--calibration", path)
    assert words in refuse(*VERIFY, path)


def test_objects_are_never_unpickled(refuse, folder):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, ("sprung",))

    np.save("trap.npy", np.array([Trap()], object), allow_pickle=True)
    np.savez("trap.npz", image=np.array([Trap()], object))
    for name in ("trap.npy", "trap.npz"):
        assert "holds Python objects" in refuse(*CONVERT, "--calibration", name)
        assert "holds Python objects" in refuse(*VERIFY, name)
    assert not (folder / "sprung").exists()


def test_wrong_names_and_numbers_of_inputs(refuse):
    np.savez("two.npz", image=X, label=np.zeros(4))
    assert "Leave out label" in refuse(*CONVERT, "--calibration", "two.npz")
    np.savez("numbered.npz", X, np.zeros(4))
    assert "received 2 array(s)" in refuse(*VERIFY, "numbered.npz")


def fail_with(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("function", ["write", "fsync"])
def test_a_full_disk(refuse, monkeypatch, function):
    write, patched = os.write, fail_with(errno.ENOSPC)
    if function == "write":  # Not to the places where people are told things.
        monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data) if fd < 3 else patched())
    else:
        monkeypatch.setattr(os, function, patched)
    line = refuse(*CONVERT, "--precision", "float32")
    assert "cannot write 'out.tflite'" in line
    assert "no space left on device. Free some space" in line


def test_a_read_only_folder_is_found_before_the_work(refuse, monkeypatch):
    monkeypatch.setattr("tfcompress.files.writing.unfinished", fail_with(errno.EROFS))
    monkeypatch.setattr(
        "tfcompress.files.models.load_model", lambda path: pytest.fail("worked in vain")
    )
    line = refuse(*CONVERT, "--precision", "float32")
    assert "cannot write 'out.tflite' (a new file): read-only file system." in line


def test_a_read_only_file_is_kept(refuse, folder, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert "is read-only. Remove it or name another path" in refuse(*CONVERT)


def test_a_traceback_only_with_debug(folder, capsys):
    for arguments in (["--debug", "inspect", "gone"], ["inspect", "gone", "--debug"]):
        assert main(arguments) == 2
        assert "Traceback" in capsys.readouterr().err


SLOW = """
import os, sys, time
write = os.write
def slow(descriptor, data):
    if len(data) < 1000:
        return write(descriptor, data)
    write(descriptor, data[:500])
    write(1, b"half")
    time.sleep(60)
os.write = slow
from tfcompress.cli.app import main
main(["convert", "model.keras", "-o", sys.argv[1], "--precision", "float32", "-q"])
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="needs files without a name")
def test_a_killed_conversion_leaves_nothing(folder):
    before = listing(folder)
    command = [sys.executable, "-c", SLOW, "out.tflite"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=folder) as process:
        try:
            assert process.stdout.read(4) == b"half"
        finally:
            process.send_signal(signal.SIGKILL)
        process.wait(timeout=10)
    assert listing(folder) == before


def test_an_interrupted_conversion_leaves_nothing(refuse, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    assert "interrupted" in refuse(*CONVERT, "--precision", "float32", status=130)


@pytest.mark.slow
def test_damaged_tflite_files_give_only_clear_errors(folder, capsys):
    content = (folder / "model.tflite").read_bytes()
    refused = 0
    for copy in damaged(content):
        (folder / "fuzz.tflite").write_bytes(copy)
        status = main(["inspect", "fuzz.tflite"])
        lines = capsys.readouterr().err.splitlines()
        # Flipped weights are sound files.
        assert (status, len(lines)) in ((0, 0), (2, 1))
        refused += status == 2
    assert refused > 50
