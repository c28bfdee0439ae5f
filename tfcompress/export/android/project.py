"""`android_project`: an Android Studio project around a .tflite file, or its classes in an app."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfcompress.errors import expected_one_of
from tfcompress.export.android.contents import (
    App,
    missing_settings,
    module_files,
    project_files,
)
from tfcompress.export.android.naming import check_package, class_base, file_base
from tfcompress.export.android.reference import make_reference
from tfcompress.export.android.tensors import (
    Classes,
    Interface,
    Tensor,
    assign,
    classes_of,
    read_interface,
    read_labels,
)
from tfcompress.files import writing
from tfcompress.files.pixels import SCALINGS, Normalization, named, untold
from tfcompress.files.writing import PathLike
from tfcompress.results import Result, Rows, print_table
from tfcompress.tflite import flatbuffer
from tfcompress.tflite.metadata import Metadata, descriptions, read_metadata
from tfcompress.tflite.pixels import normalization_of

if TYPE_CHECKING:
    from rich.console import Console

_LONGEST_NAME = 32
_BUILD_FILES = ("build.gradle.kts", "build.gradle")


@dataclasses.dataclass(frozen=True)
class AndroidReport(Result):
    """What was made.

    Attributes:
        folder: of the project, or the app's module.
        package: of the classes.
        model_class: the class to use.
        api: LiteRT's "CompiledModel" or "Interpreter".
        inputs, outputs: in the order of the file.
        labels: how many classes have names; None if none.
        pixels: how image inputs take pixels, by their identifiers.
        tolerances: the largest difference that the test lets pass, by output as stored.
        files: that were written, within the folder.
        to_add: lines that the module's build file still needs.
    """

    folder: str
    package: str
    model_class: str
    api: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    labels: int | None
    tolerances: tuple[float, ...]
    files: tuple[str, ...]
    to_add: tuple[str, ...]
    pixels: dict[str, Normalization] = dataclasses.field(default_factory=dict)

    def _print(self, console: Console) -> None:
        """Print what was made, and what is left to do."""
        rows: Rows = [
            ("class", f"{self.package}.{self.model_class}"),
            ("LiteRT API", self.api),
            *((f"input {t.identifier}", _told(t)) for t in self.inputs),
            *((f"output {t.identifier}", _told(t)) for t in self.outputs),
            *((f"pixels of {name}", _said(told)) for name, told in self.pixels.items()),
            ("labels", "none" if self.labels is None else self.labels),
            ("files", len(self.files)),
        ]
        print_table(console, self.folder, "what,value", rows)
        if "settings.gradle.kts" in self.files:
            console.print("Open the folder in Android Studio; its README.md says how to go on.")
        if self.to_add:
            console.print("Add to the module's build file:", markup=False)
            for line in self.to_add:
                console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def _told(tensor: Tensor) -> str:
    grid = f", scale {tensor.scale:.6g}, zero point {tensor.zero_point}" if tensor.scale else ""
    return f"{tensor.array} of {list(tensor.shape)}, stored as {tensor.dtype}{grid}"


def _said(told: Normalization) -> str:
    mean, std = (", ".join(f"{v:g}" for v in values) for values in (told.mean, told.std))
    return f"(pixel - {mean}) / {std}. {told.source}"


def android_project(
    model: PathLike,
    folder: PathLike,
    *,
    package: str,
    labels: PathLike | Sequence[str] | None = None,
    into: bool = False,
    name: str | None = None,
    scaling: str | None = None,
    force: bool = False,
) -> AndroidReport:
    """Make an Android Studio project that runs a .tflite file, or add the file to an app.

    The project holds the model, a Kotlin class with typed inputs and outputs that quantizes and
    dequantizes by the file's own scales, a screen, and a test for the device with outputs of
    LiteRT's reference kernels. With `labels`, given or in the file's metadata, it classifies.

    Args:
        model: the .tflite file.
        folder: of the project to make; with `into`, of the module of an app (which holds
            `build.gradle.kts` and `src/main/AndroidManifest.xml`).
        package: of the Kotlin classes, for example "com.example.digits".
        labels: a text file with one class a line, or the names; as many as an output has numbers.
        into: only add the model and its classes; build files are not changed, see `to_add`.
        name: of the model, for its classes, its file and the app; by default that in the file's
            metadata, else the file's own.
        scaling: how an image input takes pixels: "none" (0 to 255), "0_1", "-1_1"; by default
            what the file tells, in its metadata, by the range that its input is quantized for, or
            by the preprocessing inside.
        force: replace files of the same names in a folder that has other content.

    Returns:
        An `AndroidReport`.

    Raises:
        ValueError: the file is damaged or cannot be exchanged with Kotlin, the package is none,
            labels do not fit, nothing tells how an image input takes pixels, the folder has other
            content or is no module.
        OSError: the folder cannot be written; nothing was changed.

    Example:
        >>> made = android_project(
        ...     "digits.tflite", "Digits", package="com.example.digits", labels="labels.txt"
        ... )  # doctest: +SKIP
    """
    check_package(package)
    if scaling is not None and scaling not in SCALINGS:
        raise ValueError(f"unknown scaling {scaling!r}; {expected_one_of(scaling, SCALINGS)}")
    target = Path(folder)
    if not isinstance(model, (str, os.PathLike)):
        raise TypeError(f"expected the path of a .tflite file; received {type(model).__name__}.")
    build = _check_module(target) if into else None
    if not into:
        writing.check_new(target, force)
    content = flatbuffer.load(model)
    name = _name(model, name, read_metadata(content))
    app = _app(model, content, package, name, labels, scaling)
    if into:
        source = "kotlin" if _only_kotlin(target) else "java"
        files = module_files(app, content, source)
        _check_differing(files, target, force)
        writing.write_all(files, target)
    else:
        files = project_files(app, content)
        writing.write_all(files, target)
    return AndroidReport(
        folder=str(folder),
        package=package,
        model_class=app.model,
        api=app.interface.runner,
        inputs=app.interface.inputs,
        outputs=app.interface.outputs,
        labels=len(app.classes.labels) if app.classes else None,
        tolerances=app.reference.tolerances,
        files=tuple(sorted(files)),
        to_add=_to_add(build, files) if build else (),
        pixels={app.interface.inputs[i].identifier: n for i, n in app.normalizations.items()},
    )


def _app(
    path: PathLike,
    content: bytes,
    package: str,
    name: str,
    labels: PathLike | Sequence[str] | None,
    scaling: str | None,
) -> App:
    where = flatbuffer.describe(path)
    names = None if labels is None else read_labels(labels)
    model = flatbuffer.read(content, name=where)
    interface = read_interface(model, where)
    metadata = read_metadata(content)
    reference = make_reference(path, interface.outputs)
    interface = interface.with_shapes(reference.shapes)
    interface = interface.with_descriptions(descriptions(model, content))
    return App(
        package=package,
        base=class_base(name),
        file_base=file_base(name),
        title=name,
        interface=interface,
        normalizations=_normalizations(model, interface, metadata, scaling, where),
        classes=_classes(names, interface, model, metadata),
        reference=reference,
        model_bytes=len(content),
    )


def _name(model: PathLike, name: str | None, metadata: Metadata | None) -> str:
    told = metadata.name.strip() if metadata else ""
    # What is longer is a description.
    fits = told.isprintable() and 0 < len(told) <= _LONGEST_NAME
    text = name if name is not None else told if fits else Path(model).stem
    if not text.strip() or not text.isprintable():
        raise ValueError(
            f"expected a name for the model such as 'Digits'; received {text!r}. Give one with "
            "--name (name=)."
        )
    return text.strip()


def _classes(
    names: tuple[str, ...] | None, interface: Interface, model: Any, metadata: Metadata | None
) -> Classes | None:
    if names is not None:
        return assign(names, interface.outputs, model)
    outputs = interface.outputs
    for number, told in enumerate(metadata.outputs[: len(outputs)] if metadata else ()):
        # Those of detectors name what stands in an output, not its places.
        if told.labels and (found := classes_of(told.labels, outputs, number, model)):
            return found
    return None


def _normalizations(
    model: Any, interface: Interface, metadata: Metadata | None, scaling: str | None, where: str
) -> dict[int, Normalization]:
    found = {}
    for number, tensor in enumerate(interface.inputs):
        if tensor.image is None:
            continue
        if scaling is not None:
            told: Normalization | None = named(scaling, f"It was asked for: scaling '{scaling}'.")
        else:
            told = normalization_of(model, metadata, number)
        if told is None:
            raise untold(f"input {tensor.name!r} of {where}")
        found[number] = told
    return found


def _to_add(build: Path, ours: Iterable[str]) -> tuple[str, ...]:
    text = build.read_text(encoding="utf-8", errors="replace")
    sources = {p.relative_to(build.parent).as_posix() for p in build.parent.glob("src/**/*.kt")}
    return missing_settings(text, build.suffix == ".gradle", kotlin=bool(sources - set(ours)))


def _check_module(folder: Path) -> Path:
    """Return the build file of a module of an app."""
    expected = (
        "expected the folder of an app's module, with build.gradle.kts (or build.gradle) and "
        "src/main/AndroidManifest.xml"
    )
    if not folder.is_dir():
        raise ValueError(f"no folder at '{folder}'; {expected}. Check the path.")
    build = next((folder / name for name in _BUILD_FILES if (folder / name).is_file()), None)
    if build is None or not (folder / "src/main/AndroidManifest.xml").is_file():
        inner = [p.parent for name in _BUILD_FILES for p in sorted(folder.glob(f"*/{name}"))]
        mend = f"Try '{inner[0]}'." if inner else "Make a project of its own with --out."
        raise ValueError(f"'{folder}' is no module of an app; {expected}. {mend}")
    return build


def _only_kotlin(module: Path) -> bool:
    return (module / "src/main/kotlin").is_dir() and not (module / "src/main/java").is_dir()


def _check_differing(files: dict[str, bytes], folder: Path, force: bool) -> None:
    found = writing.differing(files, folder)
    if found and not force:
        raise ValueError(
            f"'{folder}' has another {found[0]}"
            + (f" and {len(found) - 1} more that differ" if len(found) > 1 else "")
            + "; expected new names. Choose another --name, or replace them with --force."
        )
