"""Kotlin's compiler on the app that `tfcompress android` makes, and Java on what quantizes in it.

Android's and LiteRT's own libraries cannot be had from a package index that is open to all: the
compiler sees stubs of what the app calls, see `tfcompress/android/stubs`.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tfcompress.export.android.checking import KOTLIN, compile_kotlin, package_resources, run_kotlin
from tfcompress.export.android.naming import fill
from tfcompress.export.android.project import AndroidReport, android_project
from tfcompress.export.android.reference import stored
from tfcompress.export.android.tensors import Tensor
from tfcompress.tools.driving import Figure, NotApplicable, Outcome
from tfcompress.tools.subject import Subject

TITLE = f"Kotlin {KOTLIN}, against stubs of Android and LiteRT"
PACKAGE = "com.example.accept"

# In each runner, a call and one that the API does not have.
_WRONG = {
    "CompiledModel": ("model.run(", "model.execute("),
    "Interpreter": (".runForMultipleInputsOutputs(", ".runForInputs("),
}


def run(file: Subject) -> Outcome:
    """Compile the app of a file, and compare what quantizes and dequantizes in it with NumPy."""
    with tempfile.TemporaryDirectory(prefix="tfcompress-") as name:
        folder = Path(name)
        made = make_app(file, folder / "app")
        sources = sorted((folder / "app").rglob("*.kt"))
        check = folder / "Check.kt"
        base = made.model_class.removesuffix("Model")
        samples = len(file.inputs)
        check.write_text(fill("Check.kt", {"package": PACKAGE, "base": base, "samples": samples}))
        package_resources(folder / "app/app", PACKAGE, folder / "resources")
        classes = folder / "classes"
        errors = compile_kotlin([*sources, check, folder / "resources/R.java"], classes)
        if errors:
            return Outcome("failed", f"{len(errors)} errors: {'; '.join(errors[:3])}")
        if not refuses_wrong_call(made.api):
            return Outcome("failed", "a call that LiteRT does not have was compiled, too")
        figures: dict[str, Figure] = {"LiteRT API": made.api, "Kotlin files": len(sources)}
        reason, count = _compare(file, made, folder)
        if reason:
            return Outcome("failed", reason, figures)
        return Outcome("passed", "", {**figures, "equal numbers": count})


def make_app(file: Subject, folder: Path) -> AndroidReport:
    """Make the project of a file; with labels if an output can have some."""
    try:
        made = android_project(file.path, folder, package=PACKAGE, name="accepted")
        output = made.outputs[0]
        if made.labels is None and output.is_real and output.shape[-1:] == (output.size,):
            labels = [f'class {i} "$x"' for i in range(output.size)]
            made = android_project(
                file.path, folder, package=PACKAGE, name="accepted", labels=labels, force=True
            )
    except ValueError as error:
        raise NotApplicable(str(error)) from error
    return made


@functools.cache
def refuses_wrong_call(api: str) -> bool:
    """Tell whether the compiler refuses a call of a method that LiteRT's API does not have."""
    right, wrong = _WRONG[api]
    with tempfile.TemporaryDirectory(prefix="tfcompress-") as name:
        folder = Path(name)
        for file in (f"{api}Runner.kt", "TensorSpec.kt"):
            text = fill(file, {"package": PACKAGE})
            if file.startswith(api) and right not in text:
                return False
            (folder / file).write_text(text.replace(right, wrong))
        errors = compile_kotlin([folder], folder / "classes")
    method = wrong.strip("(").split(".")[-1]
    return any("unresolved reference" in error and f"'{method}'" in error for error in errors)


def _compare(file: Subject, made: AndroidReport, folder: Path) -> tuple[str, int]:
    """Return what differs between Java's numbers and NumPy's, and how many were compared."""
    asked, expected = b"", b""
    count = 0
    for tensor, samples in _tensors(file, made):
        for codes in samples:
            asked += stored(codes)
            if tensor.is_real:
                expected += stored(dequantize(tensor, codes))
            expected += stored(codes)
            count += codes.size
        if tensor.is_real:
            values = _values(tensor)
            asked += stored(values)
            expected += stored(quantize(tensor, values))
            count += values.size
    (folder / "asked.bin").write_bytes(asked)
    run_kotlin(folder / "classes", f"{PACKAGE}.CheckKt", str(folder))
    answered = (folder / "answered.bin").read_bytes()
    if len(answered) != len(expected):
        return f"Kotlin gave {len(answered)} bytes; expected {len(expected)}", count
    different = np.frombuffer(answered, np.uint8) != np.frombuffer(expected, np.uint8)
    if different.any():
        return f"Kotlin's numbers differ from NumPy's in {different.sum()} bytes", count
    return "", count


def _tensors(file: Subject, made: AndroidReport) -> Iterator[tuple[Tensor, list[np.ndarray]]]:
    for tensors, samples in ((made.inputs, file.inputs), (made.outputs, file.expected)):
        for number, tensor in enumerate(tensors):
            yield tensor, [list(sample.values())[number] for sample in samples]


def quantize(tensor: Tensor, values: np.ndarray) -> np.ndarray:
    """Real numbers as a tensor stores them, rounded half up as fake-quantization rounds."""
    if tensor.dtype == "float32":
        return values
    limits = np.iinfo(tensor.dtype)
    codes = np.floor(values / np.float32(tensor.scale) + np.float32(0.5))
    return np.clip(codes + tensor.zero_point, limits.min, limits.max).astype(tensor.dtype)


def dequantize(tensor: Tensor, codes: np.ndarray) -> np.ndarray:
    """What a tensor stores, as real numbers."""
    if tensor.dtype == "float32":
        return codes
    return (codes.astype(np.float32) - tensor.zero_point) * np.float32(tensor.scale)


def _values(tensor: Tensor) -> np.ndarray:
    """Draw real numbers in the range of a tensor and beyond, and halves between two codes."""
    random = np.random.default_rng(0)
    if tensor.dtype == "float32":
        return random.standard_normal(tensor.size).astype(np.float32)
    limits = np.iinfo(tensor.dtype)
    low, high = ((end - tensor.zero_point) * tensor.scale for end in (limits.min, limits.max))
    values = random.uniform(1.5 * low - 0.5 * high, 1.5 * high - 0.5 * low, tensor.size)
    halves = (random.integers(limits.min, limits.max, tensor.size) + 0.5) * tensor.scale
    return np.where(random.random(tensor.size) < 0.5, values, halves).astype(np.float32)
