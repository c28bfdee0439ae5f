"""The command line: its help, errors and warnings, where they go, and with which exit status."""

import re
import subprocess
import sys
import warnings

import pytest

from tfcompress import __version__
from tfcompress.cli import app, options
from tfcompress.cli.app import main

COMMANDS = [command.__name__.replace("_", "-") for command in app.COMMANDS]


def test_options_name_what_the_library_knows():
    from tfcompress.conversion import settings
    from tfcompress.files import pixels
    from tfcompress.targets import targets

    assert settings.PRECISIONS == options.PRECISIONS
    assert set().union(*targets.IO_DTYPES.values()) == set(options.IO_DTYPES)
    assert settings.FORMATS == options.FORMATS
    assert settings.OBSERVERS == options.OBSERVERS
    assert settings.WEIGHT_OBSERVERS == options.WEIGHT_OBSERVERS
    assert tuple(pixels.SCALINGS) == options.SCALINGS


def test_help_has_examples_that_parse(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main([]) == 0
    assert capsys.readouterr().out.count("\n") > 20
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", listed, re.M)
        assert main([command, "--help"]) == 0
        text = capsys.readouterr().out
        shown = text.partition("Examples:\n")[2].partition("\n\n")[0]
        examples = re.findall(r"^ +tfcompress (.+?(?:\\\n.+)?)$", shown, re.M)
        assert examples
        for example in examples:
            words = re.split(r"[\s\\]+", example.split(">")[0].strip())
            assert words[0] == command
            # Options are known and take their values: it is the missing file that is missed.
            if command not in ("bench", "demo"):  # These would go on and train.
                assert main(words) == (0 if command == "targets" else 2)
            assert "--help" not in capsys.readouterr().err


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tfcompress {__version__}\n"


@pytest.fixture
def failing(monkeypatch):
    """`targets` as a command that raises what it is told to."""

    def fail(error):
        def raises():
            raise error

        monkeypatch.setattr("tfcompress.targets.targets.list_targets", raises)

    return fail


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ValueError("two\n lines"), 2, "two lines"),
        (TypeError("wrong"), 2, "wrong"),
        (OSError(28, "No space left on device"), 2, "No space left on device"),
        (PermissionError(13, "Permission denied", "a.txt"), 2, "a.txt: Permission denied"),
        (MemoryError(), 2, "not enough memory: MemoryError. Take fewer --samples, or a smaller"),
        (ImportError("install x"), 2, "install x"),
        (EOFError("no more"), 3, "EOFError: no more (This should not happen"),
        (KeyError("name"), 3, "KeyError: 'name' (This should not happen; run again with --debug"),
        (RuntimeError("x" * 999), 3, "RuntimeError: xxx"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_every_error_is_one_line(failing, capsys, error, status, message):
    failing(error)
    assert main(["targets"]) == status
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"Error: {message}")
    assert shown.err.count("\n") == 1
    assert len(shown.err) < 450


@pytest.mark.parametrize("arguments", [["--debug", "targets"], ["targets", "--debug"]])
def test_debug_shows_where(failing, capsys, arguments):
    failing(RuntimeError("deep inside"))
    assert main(arguments) == 3
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "in raises" in shown
    assert shown.splitlines()[-1] == "Error: RuntimeError: deep inside"


def test_our_warnings_are_shown_and_the_noise_is_not(monkeypatch, capfd):
    import logging
    import os

    def noisy():
        warnings.warn("layer 'odd' stays float", stacklevel=2)
        exec("import warnings; warnings.warn('of a library')", {"__name__": "library"})
        logging.getLogger("absl").warning("chatter")
        print("chatter", file=sys.stderr)
        os.write(2, b"chatter from C++\n")
        return []

    monkeypatch.setattr("tfcompress.targets.targets.list_targets", noisy)
    main(["targets", "--json"])
    shown = capfd.readouterr()
    assert shown.out == "[]\n"
    assert shown.err == "Warning: layer 'odd' stays float\n"
    os.write(2, b"restored")
    print(" too", file=sys.stderr)
    assert capfd.readouterr().err == "restored too\n"


def test_the_keras_backend_is_tensorflow(monkeypatch, capsys):
    import os

    monkeypatch.setenv("KERAS_BACKEND", "jax")
    main(["--version"])
    assert os.environ["KERAS_BACKEND"] == "tensorflow"


@pytest.mark.parametrize("value", ["224", "224x224", "224X224", "224×224"])
def test_image_sizes(value):
    assert options.parse_size(value) == (224, 224)
    assert options.parse_size("2x3") == (2, 3)


def test_the_console_script_calls_main():
    (script,) = __import__("importlib.metadata").metadata.entry_points(
        group="console_scripts", name="tfcompress"
    )
    assert script.load() is app.main


def test_python_m_is_the_command():
    command = [sys.executable, "-m", "tfcompress"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"tfcompress {__version__}\n")
    done = subprocess.run([*command, "chek"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "No such command 'chek'" in done.stderr
