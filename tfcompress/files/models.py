"""Keras models and SavedModels read from files."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfcompress.files import configs, hdf5, saved_models, sizes
from tfcompress.files.writing import PathLike

if TYPE_CHECKING:
    import keras

HDF5 = b"\x89HDF\r\n\x1a\n"
_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_TRUST = "If you trust whoever made it, pass trusted=True (--trusted)."
_CUSTOM = re.compile(r"(?:Could not locate \w+|Unknown [\w ]+:) '([^']+)'")


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A TensorFlow SavedModel folder: a finished graph, which holds no Keras layers.

    Args:
        path: the folder that holds `saved_model.pb`.
        signature: which of its functions is meant; None: the usual one.
    """

    path: Path
    signature: str | None = None


def load_model(path: PathLike, *, trusted: bool = False) -> keras.Model | SavedModel:
    """Load a model from disk, uncompiled, with Keras's safe mode on: no code in it is run.

    Args:
        trusted: take a SavedModel whose operators reach outside it, too.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(
            f"expected the path of a model (.keras, .h5, SavedModel); received "
            f"{type(path).__name__}."
        )
    file = Path(path)
    version = _check_model_folder(file) if file.is_dir() else check_model_file(file)
    if (file / "saved_model.pb").is_file():
        if not trusted:
            saved_models.check(file, _TRUST)
        return SavedModel(file)
    _check_config(file, path, version)
    check_weights(file)
    import keras

    try:
        with sizes.no_more_weights(keras.layers.Layer, file):
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


def _check_config(file: Path, path: PathLike, version: str | None) -> None:
    # The settings of `compile` that the whole model has are not looked at.
    config = {**read_config(file), "compile_config": None}
    if version is None or not version.startswith(("1.", "2.")):
        configs.check_keras(config, path)
        return
    mend = (
        f"It was written by Keras {configs.short(version)[1:-1]} (tf_keras). Bring it over: "
        f"`tfcompress migrate {path} new.keras`."
    )
    configs.check_keras(config, path, mend)


def _check_model_folder(folder: Path) -> str | None:
    if (folder / "saved_model.pb").is_file() or (folder / _CONFIG).is_file():
        return None
    raise ValueError(
        f"'{folder}' is a folder without saved_model.pb; expected a .keras or .h5 file or a "
        "SavedModel folder. Name the model itself."
    )


def read_config(path: Path, name: str = "model_config") -> dict[str, Any]:
    """The configuration in a file that `check_model_file` has passed, or in a folder of Keras's.

    Args:
        name: of the attribute that it is in a .h5 file.
    """
    try:
        if path.is_dir():
            text: str | bytes = (path / _CONFIG).read_bytes()
        elif path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive:
                text = archive.read(_CONFIG)
        else:
            text = hdf5.look_through(path)["texts"].get(name)
        config = configs.parse(text, path)
    except (TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"'{path}' is damaged: its configuration cannot be read. Save the model again."
        ) from error
    if not isinstance(config, dict):
        raise ValueError(
            f"'{path}' is damaged: its configuration is a {type(config).__name__}; expected that "
            "of a model. Save the model again."
        )
    return config


def check_model_file(file: Path) -> str | None:
    """Return the version of Keras that wrote the file, if it says so."""
    expected = "expected a .keras or .h5 file or a SavedModel folder"
    start = start_of(file, expected)
    if start[4:8] == b"TFL3":
        raise ValueError(
            f"'{file}' is a .tflite file already; {expected}. Name the Keras model it came from."
        )
    kind = ".keras" if start[:2] == b"PK" else ".h5" if start == HDF5 else None
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
    try:
        with zipfile.ZipFile(file) as archive:
            sizes.check_zip(archive)
            broken = archive.testzip()
            if broken is not None:
                raise zipfile.BadZipFile(f"the checksum of {broken} is wrong")
            missing = {_CONFIG, _METADATA} - set(archive.namelist())
            metadata = b"{}" if missing else archive.read(_METADATA)
        found = json.loads(metadata)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(
            f"'{file}' is damaged: its JSON cannot be read. Save the model again."
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # zipfile raises many kinds for damaged files.
        raise ValueError(hdf5.damaged(file, reason_of(error))) from error
    if missing:
        raise ValueError(
            f"'{file}' is a zip file without {sorted(missing)[0]}; expected a .keras file. "
            "Save the model with model.save('model.keras')."
        )
    return str(found.get("keras_version")) if isinstance(found, dict) else None


def check_weights(file: Path) -> None:
    """Raises a ValueError if the weights beside a configuration lie elsewhere, or fill memory."""
    if file.is_dir():
        weights = file / _WEIGHTS
        if weights.is_file():
            hdf5.look_through(weights)
    elif file.suffix == ".keras":
        hdf5.look_through(file, _WEIGHTS)
    # A .h5 file holds both, and has been looked at.


def _hdf5_version(file: Path) -> str | None:
    found = hdf5.look_through(file)
    if "model_config" not in found["texts"]:
        weights = file.name.endswith(".weights.h5") or "layers" in found["names"]
        raise ValueError(
            f"'{file}' holds {'only weights' if weights else 'no model'}; expected a whole "
            "model. Build it in Python, call load_weights, and save that with "
            "model.save('model.keras')."
        )
    return found["texts"].get("keras_version")


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


def start_of(file: Path, expected: str) -> bytes:
    """The first bytes of a file, by which its kind is known."""
    if not file.exists():
        raise ValueError(f"no file at '{file}'; {expected}. Check the path.")
    if not file.is_file():
        raise ValueError(f"'{file}' is not a regular file; {expected}. Name another path.")
    try:
        with file.open("rb") as stream:
            return stream.read(8)
    except OSError as error:
        raise ValueError(
            f"cannot read '{file}': {error.strerror}; {expected}. Check its permissions."
        ) from error


def reason_of(error: BaseException) -> str:
    """Return the first sentence of a message, in one line."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line.split(". ")[0].rstrip(".")[:200]


def with_signature(model: Any, name: str) -> SavedModel:
    """A SavedModel of which one signature is meant."""
    if not isinstance(model, SavedModel):
        raise ValueError(
            f"signature='{name}' is for the folder of a SavedModel; received a "
            f"{type(model).__name__}, which has one. Leave it out."
        )
    return dataclasses.replace(model, signature=name)
