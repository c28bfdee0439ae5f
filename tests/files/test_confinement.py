"""Processes that can change no files but where they may."""

import os
import subprocess
import sys

import keras
import pytest

from tfcompress.files import confinement

pytestmark = pytest.mark.skipif(confinement.version() < 3, reason="needs Landlock of Linux 6.2")

CONFINED = """
import os, sys
from tfcompress.files.confinement import confine
mine, others = sys.argv[1:]
assert confine([mine, "/no/such/folder", "/dev"])
os.mkdir(mine + "/new")
for name in ("a", "new/b"):
    open(f"{mine}/{name}", "w").write("1")
os.rename(mine + "/new/b", mine + "/c")
os.remove(mine + "/a")
open(os.devnull, "w").write("1")
assert open(others + "/kept").read() == "it"
for change in (
    lambda: open(others + "/kept", "a"),
    lambda: open(others + "/new", "w"),
    lambda: os.truncate(others + "/kept", 0),
    lambda: os.remove(others + "/kept"),
    lambda: os.rename(others + "/kept", mine + "/kept"),
    lambda: os.mkdir(others + "/folder"),
    lambda: os.system(f"rm {others}/kept 2> /dev/null") and open("/"),
):
    try:
        change()
    except OSError:
        continue
    raise AssertionError(change.__code__.co_firstlineno)
"""


def test_other_folders_stay_as_they_are(tmp_path):
    mine, others = tmp_path / "mine", tmp_path / "others"
    mine.mkdir()
    others.mkdir()
    (others / "kept").write_text("it")
    subprocess.run([sys.executable, "-c", CONFINED, mine, others], check=True)
    assert sorted(os.listdir(mine)) == ["c", "new"]
    assert [(path.name, path.read_text()) for path in others.iterdir()] == [("kept", "it")]


ACTING = """
import sys
import keras
from tfcompress.cli.app import main

@keras.saving.register_keras_serializable("confinement")
class Acting(keras.layers.Layer):
    def __init__(self, path, **kwargs):
        super().__init__(**kwargs)
        try:
            open(path, "w").write("it acted")
        except PermissionError:
            pass

    def call(self, x):
        return x * 2

sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["others", "mine"])
def test_a_command_writes_nothing_but_its_output(tmp_path, where):
    """As if what a file names were not looked at: loading the model writes a file.

    The temporary folder is elsewhere, as it is left to the command.
    """
    for name in ("mine", "others", "temporary"):
        (tmp_path / name).mkdir()

    @keras.saving.register_keras_serializable("confinement")
    class Acting(keras.layers.Layer):
        def call(self, x):
            return x * 2

        def get_config(self):
            return {**super().get_config(), "path": str(tmp_path / where / "marker")}

    model, output = tmp_path / "model.keras", tmp_path / "mine/model.tflite"
    keras.Sequential([keras.Input((4,)), Acting()]).save(model)
    command = ["convert", model, "-o", output, "--precision", "float32", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", ACTING, *map(str, command)],
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert output.stat().st_size > 0
    assert (tmp_path / where / "marker").exists() == (where == "mine")
