"""Models read with safe mode on, and files written whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib
import json
import os
import re
import secrets
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

PathLike = str | os.PathLike[str]

_HDF5 = b"\x89HDF\r\n\x1a\n"
_CUSTOM = re.compile(r"(?:Could not locate \w+|Unknown [\w ]+:) '([^']+)'")
_MENDS = {
    errno.ENOSPC: "Free some space, or name a path on another disk.",
    errno.EDQUOT: "Free some of your quota, or name a path on another disk.",
    errno.EROFS: "The disk is read-only; name a path on another one.",
    errno.EACCES: "Check the permissions of the folder, or name a path elsewhere.",
    errno.EPERM: "Check the permissions of the folder, or name a path elsewhere.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
}


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A TensorFlow SavedModel folder: a finished graph, which holds no Keras layers.

    Args:
        path: the folder that holds `saved_model.pb`.
    """

    path: Path


def atomic_write(path: PathLike, data: bytes) -> None:
    """Write a file in whole, or leave everything as it was.

    The bytes go to a file without a name in the same folder where the system can do that (Linux),
    so that even a killed process leaves nothing behind; it gets its name when all is on the disk.

    Args:
        path: the file; one that exists is replaced, and keeps its permissions. Through a
            symbolic link, the file it points to is.
        data: the content.

    Raises:
        OSError: the folder is missing or read-only, the disk is full, the path is a folder.

    Example:
        >>> atomic_write("model.tflite", b"...")  # doctest: +SKIP
    """
    check_writable(path)
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode & 0o7777 if target.exists() else None
        with unfinished(target) as (descriptor, finish):
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            if mode is not None:
                os.fchmod(descriptor, mode)
            os.fsync(descriptor)
            finish()
    except OSError as error:
        raise unwritable(error, path, f"{len(data):,} bytes") from error


def is_same(one: PathLike, other: PathLike) -> bool:
    """Whether two paths are, or would be, one file.

    Args:
        one, other: paths of files that need not exist.

    Example:
        >>> is_same("model.tflite", "./model.tflite")
        True
    """
    return os.path.realpath(one) == os.path.realpath(other) or (
        os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)
    )


def check_writable(path: PathLike) -> None:
    """Check that a file can be written, before the work that its content takes.

    Args:
        path: the file; it need not exist, its folder must.

    Raises:
        OSError: the folder is missing or read-only, the path is a folder or no regular file.

    Example:
        >>> check_writable("model.tflite")
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"expected the path of a file to write; received {type(path).__name__}.")
    if not os.fspath(path) or "\0" in os.fspath(path):
        raise ValueError(f"expected the path of a file to write; received {os.fspath(path)!r}.")
    target = Path(os.path.realpath(path))
    try:
        if target.is_dir():
            raise IsADirectoryError(f"cannot write '{path}': it is a folder. Name a file in it.")
        if target.exists() and not target.is_file():
            raise OSError(f"cannot write '{path}': it is not a regular file. Name another path.")
        if not target.parent.is_dir():
            raise FileNotFoundError(
                f"cannot write '{path}': there is no folder '{Path(path).parent}'. "
                "Create it first, or name a path in a folder that exists."
            )
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(
                f"cannot write '{path}': the file that is there is read-only. "
                "Remove it or name another path."
            )
        with unfinished(target):
            pass
    except OSError as error:
        if error.errno is None:  # One of the above.
            raise
        raise unwritable(error, path, "a new file") from error


@contextlib.contextmanager
def unfinished(target: Path) -> Iterator[tuple[int, Any]]:
    """Open a new file beside `target`; gives its descriptor and what puts it in place."""
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        flags = os.O_WRONLY | os.O_TMPFILE
        descriptor, named = os.open(target.parent, flags, 0o666), False
    except (OSError, AttributeError):  # Not every file system knows files without a name.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        descriptor, named = os.open(temporary, flags, 0o666), True

    def finish() -> None:
        if not named:
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                # Given a folder, Python calls linkat, which alone follows this link.
                os.link(f"/proc/self/fd/{descriptor}", temporary.name, dst_dir_fd=folder)
            finally:
                os.close(folder)
        os.replace(temporary, target)

    try:
        yield descriptor, finish
    finally:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def unwritable(error: OSError, path: PathLike, what: str) -> OSError:
    """Return the error for a file that could not be written, with the mend."""
    reason = (error.strerror or str(error)).lower()
    mend = _MENDS.get(error.errno or 0, "Name another path.")
    clear = type(error)(f"cannot write '{path}' ({what}): {reason}. {mend} Nothing was changed.")
    clear.errno = error.errno
    return clear


def load_model(path: PathLike) -> keras.Model | SavedModel:
    """Load a model from disk, uncompiled, with Keras's safe mode on: no code in it is run.

    Only a program that calls `keras.config.enable_unsafe_deserialization()` itself lifts that.

    Args:
        path: a `.keras` or `.h5` (`.hdf5`) file of a whole model, or a SavedModel folder.

    Returns:
        The `keras.Model`, or a `SavedModel` that names the folder.

    Raises:
        ValueError: there is no such file, it is damaged, no Keras model, or holds what cannot be
            loaded safely.

    Example:
        >>> model = load_model("model.keras")  # doctest: +SKIP
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(
            f"expected the path of a model (.keras, .h5, SavedModel); received "
            f"{type(path).__name__}."
        )
    file = Path(path)
    version = _check_model_folder(file) if file.is_dir() else check_model_file(file)
    if (file / "saved_model.pb").is_file():
        return SavedModel(file)
    import keras

    for module in ("layers", "primitives", "techniques"):  # They register their classes.
        importlib.import_module(f"tfcompress.{module}")
    try:
        model = keras.saving.load_model(file, compile=False, safe_mode=True)
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(_explain(error, path, version)) from error
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"'{path}' holds a {type(model).__name__}; expected a model. "
            "Put it into a keras.Sequential and save that."
        )
    return model


def _check_model_folder(folder: Path) -> str | None:
    if (folder / "saved_model.pb").is_file() or (folder / "config.json").is_file():
        return None
    raise ValueError(
        f"'{folder}' is a folder without saved_model.pb; expected a .keras or .h5 file or a "
        "SavedModel folder. Name the model itself."
    )


def check_model_file(file: Path) -> str | None:
    """Return the version of Keras that wrote the file, if it says so."""
    expected = "expected a .keras or .h5 file or a SavedModel folder"
    if not file.exists():
        raise ValueError(f"no file at '{file}'; {expected}. Check the path.")
    if not file.is_file():
        raise ValueError(f"'{file}' is not a regular file; {expected}. Name the model itself.")
    try:
        with file.open("rb") as stream:
            start = stream.read(8)
    except OSError as error:
        raise ValueError(
            f"cannot read '{file}': {error.strerror}; {expected}. Check its permissions."
        ) from error
    if start[4:8] == b"TFL3":
        raise ValueError(
            f"'{file}' is a .tflite file already; {expected}. Name the Keras model it came from."
        )
    kind = ".keras" if start[:2] == b"PK" else ".h5" if start == _HDF5 else None
    if file.suffix not in (".keras", ".h5", ".hdf5"):
        mend = f"It looks like a {kind} file: rename it." if kind else "Name a Keras model."
        raise ValueError(f"'{file}' has the ending '{file.suffix}'; {expected}. {mend}")
    if not start:
        raise ValueError(f"'{file}' is empty; {expected}. Save the model again.")
    if kind is None:
        raise ValueError(
            f"'{file}' is damaged or not a Keras file: it starts with {start!r}; {expected}. "
            "Save the model again with model.save('model.keras')."
        )
    if (kind == ".keras") != (file.suffix == ".keras"):
        raise ValueError(f"'{file}' is a {kind} file by its content; rename it to end in {kind}.")
    return _zip_version(file) if kind == ".keras" else _hdf5_version(file)


def _zip_version(file: Path) -> str | None:
    again = "Save the model again with model.save('model.keras'), or copy it again in full."
    try:
        with zipfile.ZipFile(file) as archive:
            broken = archive.testzip()
            if broken is not None:
                raise zipfile.BadZipFile(f"the checksum of {broken} is wrong")
            missing = {"config.json", "metadata.json"} - set(archive.namelist())
            if missing:
                raise ValueError(
                    f"'{file}' is a zip file without {sorted(missing)[0]}; expected a .keras file. "
                    "Save the model with model.save('model.keras')."
                )
            metadata = json.loads(archive.read("metadata.json"))
            json.loads(archive.read("config.json"))
    except (MemoryError, ValueError) as error:
        if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
            raise ValueError(f"'{file}' is damaged: its JSON cannot be read. {again}") from error
        raise
    except Exception as error:  # zipfile raises many kinds for damaged files.
        raise ValueError(f"'{file}' is damaged or cut off: {reason_of(error)}. {again}") from error
    return str(metadata.get("keras_version")) if isinstance(metadata, dict) else None


def _hdf5_version(file: Path) -> str | None:
    import h5py

    try:
        with h5py.File(file, "r") as content:
            version = content.attrs.get("keras_version")
            if "model_config" not in content.attrs:
                weights = file.name.endswith(".weights.h5") or "layers" in content
                raise ValueError(
                    f"'{file}' holds {'only weights' if weights else 'no model'}; expected a whole "
                    "model. Build it in Python, call load_weights, and save that with "
                    "model.save('model.keras')."
                )
    except (OSError, RuntimeError, KeyError) as error:
        raise ValueError(
            f"'{file}' is damaged or cut off: {reason_of(error)}. Save the model again, or copy it "
            "again in full."
        ) from error
    return version.decode(errors="replace") if isinstance(version, bytes) else version


def _explain(error: Exception, path: PathLike, version: str | None) -> str:
    """Say in one line why Keras could not load a model, and what helps."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    text = " ".join(str(link) for link in chain)
    # The config of the whole model is in the message, and may name anything.
    custom = next((m for m in (_CUSTOM.search(str(e)) for e in reversed(chain)) if m), None)
    if "safe_mode" in text or "arbitrary code" in text:
        return (
            f"'{path}' holds Python code (a Lambda layer), which is not run; expected layers only. "
            "Replace it by keras.ops calls or a layer class of your own, or load the model in "
            "Python, if you trust it, and pass it to tfcompress.convert."
        )
    if version and version.startswith(("1.", "2.")):
        return (
            f"'{path}' was written by Keras {version} (tf_keras) and cannot be loaded in Keras 3: "
            f"{reason_of(chain[-1])}. Bring it over: `tfcompress migrate {path} new.keras`."
        )
    if custom:
        return (
            f"'{path}' needs the class or function '{custom[1]}', which is not known here. In "
            "Python, import it, load the model and pass it to tfcompress.convert; or register it "
            "with keras.saving.register_keras_serializable."
        )
    return (
        f"'{path}' cannot be loaded as a Keras model: {reason_of(chain[-1])}. Expected a whole, "
        "undamaged model; save it again with model.save('model.keras')."
    )


def reason_of(error: BaseException) -> str:
    """Return the first sentence of a message, in one line."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line.split(". ")[0].rstrip(".")[:200]
