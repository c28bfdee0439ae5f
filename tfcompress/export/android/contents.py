"""The files of a project by their paths, as bytes: templates filled in with what an app is."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tfcompress.export import filling
from tfcompress.export.android.naming import android_text, kotlin_text
from tfcompress.export.android.reference import Reference
from tfcompress.export.android.tensors import Classes, Interface, Tensor
from tfcompress.export.filling import Values
from tfcompress.files.pixels import Normalization

# Read in November 2026: Android Gradle plugin 9.3 needs Gradle 9.5.0 and Java 17 and knows API
# levels up to 37 (developer.android.com/build/releases/agp-9-3-0-release-notes); LiteRT 2.3 needs
# API level 24 (developers.google.com/edge/litert/next/android_kotlin).
VERSIONS: dict[str, str | int] = {
    "agp": "9.3.1",
    "gradle": "9.5.0",
    "litert": "2.3.0",
    "compile_sdk": 36,
    "min_sdk": 24,
}

LITERT = f"com.google.ai.edge.litert:litert:{VERSIONS['litert']}"

# Files that are the same for all apps but for names and versions, and their templates.
_PROJECT = {
    ".gitignore": "gitignore",
    "settings.gradle.kts": "settings.gradle.kts",
    "build.gradle.kts": "build.gradle.kts",
    "gradle.properties": "gradle.properties",
    "gradle/libs.versions.toml": "libs.versions.toml",
    "gradle/wrapper/gradle-wrapper.properties": "gradle-wrapper.properties",
    "app/build.gradle.kts": "app_build.gradle.kts",
    "app/src/main/AndroidManifest.xml": "AndroidManifest.xml",
    "app/src/main/res/layout/activity_main.xml": "activity_main.xml",
    "app/src/main/res/values/strings.xml": "strings.xml",
    "app/src/main/res/values/themes.xml": "themes.xml",
}

_READERS = {
    "FloatArray": "floats",
    "IntArray": "ints",
    "LongArray": "longs",
    "BooleanArray": "booleans",
}


@dataclasses.dataclass(frozen=True)
class App:
    """What an app is made of.

    Attributes:
        package: of its classes.
        base: the start of its class names; `file_base` that of its files.
        title: shown to people.
        interface: what the file exchanges.
        normalizations: of each input that a picture fits, by its number.
        classes: names of an output's classes, or None.
        reference: for the test.
        model_bytes: the size of the file.
    """

    package: str
    base: str
    file_base: str
    title: str
    interface: Interface
    normalizations: dict[int, Normalization]
    classes: Classes | None
    reference: Reference
    model_bytes: int

    @property
    def model(self) -> str:
        """The main class."""
        return f"{self.base}Model"

    @property
    def runner(self) -> str:
        """The class that runs the file."""
        return f"{self.interface.runner}Runner"

    @property
    def takes_picture(self) -> bool:
        """Whether a picture is all that the model needs."""
        return len(self.interface.inputs) == 1 and 0 in self.normalizations


fill = functools.partial(filling.fill, Path(__file__).parent / "templates")


def module_files(app: App, model: bytes, source: str = "java") -> dict[str, bytes]:
    """Return what runs the model in an app: its file, labels and classes."""
    folder = f"src/main/{source}/{app.package.replace('.', '/')}"
    files = {f"src/main/assets/{app.file_base}.tflite": model}
    if app.classes is not None:
        text = "".join(f"{label}\n" for label in app.classes.labels)
        files[f"src/main/assets/{app.file_base}_labels.txt"] = text.encode()
    made = _library(app)
    return files | {f"{folder}/{name}": text.encode() for name, text in made.items()}


def project_files(app: App, model: bytes) -> dict[str, bytes]:
    """Return a whole project."""
    package = app.package.replace(".", "/")
    values: Values = {
        **VERSIONS,
        "package": app.package,
        "base": app.base,
        "title": android_text(app.title),
        "picture": app.takes_picture,
    }
    kotlin = _kotlin_values(app)
    texts = {
        "README.md": fill("README.md", {**values, **_told(app)}),
        **{path: fill(template, values) for path, template in _PROJECT.items()},
        f"app/src/main/java/{package}/MainActivity.kt": fill("MainActivity.kt", kotlin),
        f"app/src/androidTest/java/{package}/{app.model}Test.kt": fill("ModelTest.kt", kotlin),
    }
    files = {path: text.encode() for path, text in texts.items()}
    files |= {f"app/{path}": data for path, data in module_files(app, model).items()}
    files[f"app/src/main/assets/{app.file_base}_example.bin"] = app.reference.example
    files[f"app/src/androidTest/assets/{app.file_base}_reference.bin"] = app.reference.data
    return files


def missing_settings(build: str, groovy: bool, kotlin: bool = False) -> tuple[str, ...]:
    """Return what a module's build file still needs, as lines to add to it."""
    lines = []
    if "noCompress" not in build or "tflite" not in build:
        call = 'noCompress "tflite"' if groovy else 'noCompress += "tflite"'
        lines.append(f"android {{ androidResources {{ {call} }} }}")
    if "litert" not in build.lower():
        library = f' "{LITERT}"' if groovy else f'("{LITERT}")'
        lines.append(f"dependencies {{ implementation{library} }}")
    least = re.search(r"minSdk(?:Version)?[\s=(]+(\d+)", build)
    if least and int(least[1]) < int(VERSIONS["min_sdk"]):
        sign = " " if groovy else " = "
        lines.append(f"android {{ defaultConfig {{ minSdk{sign}{VERSIONS['min_sdk']} }} }}")
    if not kotlin and "kotlin" not in build.lower():
        plugin = ' "org.jetbrains.kotlin.android"' if groovy else '("org.jetbrains.kotlin.android")'
        lines.append(f"plugins {{ id{plugin} }} // before AGP 9, which has Kotlin built in")
    return tuple(lines)


def _told(app: App) -> Values:
    """Return what the README tells of the model."""
    kinds = [("input", t) for t in app.interface.inputs]
    kinds += [("output", t) for t in app.interface.outputs]
    return {
        "asset_name": f"{app.file_base}.tflite",
        "example_name": f"{app.file_base}_example.bin",
        "model": app.model,
        "runner": app.runner,
        "model_bytes": f"{app.model_bytes:,}",
        "samples": app.reference.samples,
        "usage": f"    {_usage(app)}",
        "tensor_rows": "\n".join(_row(kind, tensor) for kind, tensor in kinds),
        "notes": "\n\n".join(_notes(app)),
    }


def _row(kind: str, tensor: Tensor) -> str:
    name = kotlin_text(tensor.name).replace("|", "\\u007c")
    shape = " x ".join(map(str, tensor.shape)) or "scalar"
    stored = tensor.dtype
    if tensor.scale:
        stored += f", scale {tensor.scale:.6g}, zero point {tensor.zero_point}"
    return f"| {kind} | `{name}` | {shape} | {stored} | `{tensor.identifier}: {tensor.array}` |"


def _usage(app: App) -> str:
    function = "classify" if app.classes else "run"
    result = "best" if app.classes else "outputs"
    if app.takes_picture and not app.classes:
        return f"val outputs = model.run(model.{app.interface.inputs[0].identifier}From(bitmap))"
    given = "bitmap" if app.takes_picture else ", ".join(t.identifier for t in app.interface.inputs)
    return f"val {result} = model.{function}({given})"


def _notes(app: App) -> list[str]:
    notes = ["Arrays hold the elements in row-major order, the last dimension running fastest."]
    notes += [
        f"`{tensor.identifier}`: {kotlin_text(tensor.about)}."
        for tensor in (*app.interface.inputs, *app.interface.outputs)
        if tensor.about
    ]
    for number, normalization in app.normalizations.items():
        name = app.interface.inputs[number].identifier
        notes.append(
            f"`{name}From(bitmap)` makes `{name}` of a picture: (pixel - mean) / std with pixels "
            f"from 0 to 255, mean {_numbers(normalization.mean)}, std "
            f"{_numbers(normalization.std)}. {normalization.source} By its shape the input is "
            "taken for a picture: use the numbers of your own if it is none."
        )
    if app.classes is not None:
        how = "a softmax of" if app.classes.logits else "the numbers of"
        output = app.interface.outputs[app.classes.output].identifier
        count = len(app.classes.labels)
        notes.append(f"Probabilities of the {count} classes are {how} `{output}`.")
    if app.interface.compiled:
        notes.append(
            "The model runs on the CPU. For the GPU, add the library "
            f"`com.google.ai.edge.litert:litert-gpu:{VERSIONS['litert']}` and name "
            "`Accelerator.GPU` before `Accelerator.CPU` in `CompiledModelRunner.kt`."
        )
    else:
        notes.append(
            "The model runs on LiteRT's `Interpreter`, on the CPU: `CompiledModel`, which can use "
            "the GPU, exchanges float32, int8, int32 and bool only, of fixed shapes and by names "
            "of ASCII in a signature. A file with such inputs and outputs (io_dtype float32 or "
            "int8) gets it."
        )
    if app.interface.states:
        notes.append(
            f"The model takes the next frames of a stream: `{app.base}Stream(model)` keeps its "
            "states from one `run` to the next, and begins a new stream with `reset()`."
        )
    tolerances = ", ".join(f"{t:g}" for t in app.reference.tolerances)
    notes.append(f"The test lets outputs differ by {tolerances} as stored (integers: in LSB).")
    return notes


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _library(app: App) -> dict[str, str]:
    """Return the classes that run the model, by file name."""
    values = _kotlin_values(app)
    package: Values = {"package": app.package}
    files = {
        f"{app.model}.kt": fill("Model.kt", values),
        f"{app.base}Tensors.kt": fill("Tensors.kt", values),
        "TensorSpec.kt": fill("TensorSpec.kt", package),
        f"{app.runner}.kt": fill(f"{app.runner}.kt", package),
    }
    if app.interface.states:
        files[f"{app.base}Stream.kt"] = fill("Stream.kt", {**values, **_states(app)})
    if app.classes is not None:
        files["Classification.kt"] = fill("Classification.kt", package)
    if app.normalizations:
        files["Pixels.kt"] = fill("Pixels.kt", package)
    return files


def _states(app: App) -> Values:
    """What a stream keeps, of which numbers among inputs and outputs."""
    inputs, tensors = app.interface.inputs, f"{app.base}Tensors"
    states = app.interface.states
    held = {taken for taken, _, _ in states}
    frames = [(i, t) for i, t in enumerate(inputs) if i not in held]
    return {
        "states_taken": ", ".join(str(taken) for taken, _, _ in states),
        "states_given": ", ".join(str(given) for _, given, _ in states),
        "states_starts": ", ".join(str(start) for _, _, start in states),
        "states_zeros": _indented(
            8,
            (
                f"{i} to {tensors}.inputs[{i}].encode({inputs[i].array}({inputs[i].size})),"
                for i in sorted(held)
            ),
        ),
        "frame_parameters": _indented(8, (f"{t.identifier}: {t.array}," for _, t in frames)),
        "frames_encoded": _indented(
            12, (f"{i} to {tensors}.inputs[{i}].encode({t.identifier})," for i, t in frames)
        ),
    }


def _kotlin_values(app: App) -> Values:
    inputs, outputs = app.interface.inputs, app.interface.outputs
    tensors = f"{app.base}Tensors"
    signature = app.interface.signature
    return {
        "package": app.package,
        "base": app.base,
        "model": app.model,
        "asset": kotlin_text(f"{app.file_base}.tflite"),
        "labels_asset": kotlin_text(f"{app.file_base}_labels.txt"),
        "example_asset": kotlin_text(f"{app.file_base}_example.bin"),
        "reference_asset": kotlin_text(f"{app.file_base}_reference.bin"),
        "compiled": app.interface.compiled,
        "signature": kotlin_text(signature or ""),
        "input_specs": _indented(8, map(_spec, inputs)),
        "output_specs": _indented(8, map(_spec, outputs)),
        "input_parameters": _indented(8, (f"{t.identifier}: {t.array}," for t in inputs)),
        "output_fields": _indented(8, (f"val {t.identifier}: {t.array}," for t in outputs)),
        "encoded": _indented(
            16, (f"{tensors}.inputs[{i}].encode({t.identifier})," for i, t in enumerate(inputs))
        ),
        "decoded": _indented(
            8,
            (
                f"{tensors}.outputs[{i}].{_READERS[t.array]}(data[{i}]),"
                for i, t in enumerate(outputs)
            ),
        ),
        "arguments": ", ".join(t.identifier for t in inputs),
        "image": bool(app.normalizations),
        "image_functions": "".join(_image(app, i) for i in app.normalizations),
        "picture": app.takes_picture,
        "image_function": f"{inputs[0].identifier}From",
        "classify_picture": app.takes_picture and app.classes is not None,
        "run_on": "the example input" + (" or a picture" if app.takes_picture else ""),
        "constants": app.takes_picture or app.classes is None,
        "labels": app.classes is not None,
        "label_count": len(app.classes.labels) if app.classes else 0,
        "probabilities": _probabilities(app),
        "tolerances": ", ".join(map(repr, app.reference.tolerances)),
        "samples": app.reference.samples,
    }


def _indented(indent: int, lines: Iterable[str]) -> str:
    return "\n".join(f"{' ' * indent}{line}" for line in lines)


def _spec(tensor: Tensor) -> str:
    shape = ", ".join(map(str, tensor.shape))
    grid = ""
    if tensor.scale:
        grid = f", {np.float32(tensor.scale)!s}f, {tensor.zero_point}"
    name, kind = kotlin_text(tensor.name), tensor.dtype.upper()
    return f"TensorSpec({name}, listOf({shape}), ElementType.{kind}{grid}),"


def _image(app: App, number: int) -> str:
    tensor, normalization = app.interface.inputs[number], app.normalizations[number]
    height, width, channels = tensor.image or (0, 0, 0)
    values: Values = {
        "parameter": tensor.identifier,
        "function": f"{tensor.identifier}From",
        "height": height,
        "width": width,
        "channels": channels,
        "normalization": normalization.source,
        "mean": ", ".join(f"{np.float32(m)!s}f" for m in normalization.mean),
        "std": ", ".join(f"{np.float32(s)!s}f" for s in normalization.std),
    }
    return fill("image_function.kt", values)


def _probabilities(app: App) -> str:
    if app.classes is None:
        return ""
    field = f"outputs.{app.interface.outputs[app.classes.output].identifier}"
    return f"softmax({field})" if app.classes.logits else field
