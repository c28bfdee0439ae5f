"""The files of a project by their paths, as bytes."""

from __future__ import annotations

import re

from tfcompress.export.android import kotlin
from tfcompress.export.android.kotlin import App
from tfcompress.export.android.naming import Values, android_text, fill, kotlin_text
from tfcompress.export.android.tensors import Tensor

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


def module_files(app: App, model: bytes, source: str = "java") -> dict[str, bytes]:
    """Return what runs the model in an app: its file, labels and classes.

    Args:
        model: the bytes of the .tflite file.
    """
    folder = f"src/main/{source}/{app.package.replace('.', '/')}"
    files = {f"src/main/assets/{app.file_base}.tflite": model}
    if app.classes is not None:
        text = "".join(f"{label}\n" for label in app.classes.labels)
        files[f"src/main/assets/{app.file_base}_labels.txt"] = text.encode()
    made = kotlin.library(app)
    return files | {f"{folder}/{name}": text.encode() for name, text in made.items()}


def project_files(app: App, model: bytes) -> dict[str, bytes]:
    """Return a whole project.

    Args:
        model: the bytes of the .tflite file.
    """
    package = app.package.replace(".", "/")
    values: Values = {
        **VERSIONS,
        "package": app.package,
        "base": app.base,
        "title": android_text(app.title),
        "picture": app.takes_picture,
    }
    texts = {
        "README.md": fill("README.md", {**values, **_told(app)}),
        ".gitignore": fill("gitignore", values),
        "settings.gradle.kts": fill("settings.gradle.kts", values),
        "build.gradle.kts": fill("build.gradle.kts", values),
        "gradle.properties": fill("gradle.properties", values),
        "gradle/libs.versions.toml": fill("libs.versions.toml", values),
        "gradle/wrapper/gradle-wrapper.properties": fill("gradle-wrapper.properties", values),
        "app/build.gradle.kts": fill("app_build.gradle.kts", values),
        "app/src/main/AndroidManifest.xml": fill("AndroidManifest.xml", values),
        "app/src/main/res/layout/activity_main.xml": fill("activity_main.xml", values),
        "app/src/main/res/values/strings.xml": fill("strings.xml", values),
        "app/src/main/res/values/themes.xml": fill("themes.xml", values),
        f"app/src/main/java/{package}/MainActivity.kt": kotlin.activity(app),
        f"app/src/androidTest/java/{package}/{app.model}Test.kt": kotlin.test(app),
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
    tolerances = ", ".join(f"{t:g}" for t in app.reference.tolerances)
    notes.append(f"The test lets outputs differ by {tolerances} as stored (integers: in LSB).")
    return notes


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
