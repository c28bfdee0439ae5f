"""The tools "kotlin" and "apk", which ask about the app that `tfcompress android` makes of a file.

Kotlin's compiler takes the app, and Java runs what quantizes in it. Android's and LiteRT's own
libraries cannot be had from a package index that is open to all: the compiler sees stubs of what
the app calls, see `stubs`. Resources are compiled by aapt; the APK around them and the file is
aligned and signed as a build would.
"""

from __future__ import annotations

import functools
import re
import struct
import subprocess
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfcompress.export.android.contents import fill
from tfcompress.export.android.project import AndroidReport, android_project
from tfcompress.export.android.reference import stored
from tfcompress.export.android.tensors import Tensor
from tfcompress.files import children, temporary
from tfcompress.files.pixels import Normalization
from tfcompress.tools.driving import Figure, NotApplicable, Outcome, Refused, Tool
from tfcompress.tools.environments import Unavailable, node_environment, program, run_tool
from tfcompress.tools.subject import Subject, run_reference

STUBS = Path(__file__).parent / "stubs"
KOTLIN_VERSION = "2.4.20"
_FRAMEWORK = Path("/usr/share/android-framework-res/framework-res.apk")
_MIN_SDK, _TARGET_SDK = "24", "36"
_SECONDS = 600.0


def package_resources(app: Path, package: str, folder: Path) -> Path:
    """Compile a module's manifest, resources and assets with aapt, which refuses wrong ones."""
    aapt = program("aapt", "aapt")
    if not _FRAMEWORK.is_file():
        raise Unavailable(
            f"no {_FRAMEWORK}: on Debian or Ubuntu, sudo apt-get install android-framework-res"
        )
    main = app / "src/main"
    manifest = (main / "AndroidManifest.xml").read_text(encoding="utf-8")
    folder.mkdir(parents=True, exist_ok=True)
    # aapt goes by this name.
    own = folder / "AndroidManifest.xml"
    own.write_text(manifest.replace("<manifest ", f'<manifest package="{package}" ', 1))
    apk = folder / "resources.apk"
    command = [aapt, "package", "-f", "-M", str(own), "-S", str(main / "res")]
    command += ["-A", str(main / "assets"), "-I", str(_FRAMEWORK), "-0", "tflite"]
    command += ["--min-sdk-version", _MIN_SDK, "--target-sdk-version", _TARGET_SDK]
    ask([*command, "-J", str(folder), "-F", str(apk)], what="aapt")
    return apk


def ask(command: Sequence[str], *, what: str) -> str:
    """Run a tool that is there and return what it printed."""
    try:
        return run_tool(command, what=what, seconds=_SECONDS)
    except Unavailable as error:
        raise Refused(str(error)) from error


def compile_kotlin(sources: Sequence[Path], out: Path) -> list[str]:
    """Compile Kotlin against the stubs; warnings count as errors."""
    java, lib = kotlin_compiler()
    command = [java, "-Xmx1g", "-cp", str(lib / "kotlin-preloader.jar")]
    command += ["org.jetbrains.kotlin.preloading.Preloader"]
    command += ["-cp", str(lib / "kotlin-compiler.jar")]
    command += ["org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", "-Werror", "-no-stdlib"]
    command += ["-no-reflect", "-cp", f"{lib / 'kotlin-stdlib.jar'}:{lib / 'annotations-13.0.jar'}"]
    command += ["-d", str(out), str(STUBS), *map(str, sources)]
    try:
        done = children.finished(command, _SECONDS, text=True)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"Kotlin's compiler did not end within {_SECONDS:.0f} s") from None
    said = done.stdout + done.stderr
    errors = re.findall(r"^(?:.*/)?([^/\n]*\berror: .*)$", said, re.M)
    errors += re.findall(r"^(?:.*/)?([^/\n]*\bwarning: .*)$", said, re.M) if done.returncode else []
    if done.returncode and not errors:
        raise Unavailable(f"Kotlin's compiler failed: {' '.join(said.split())[-300:]}")
    return errors


def run_kotlin(classes: Path, main: str, *arguments: str) -> str:
    """Run compiled Kotlin with Java; returns what it prints."""
    java, lib = kotlin_compiler()
    path = f"{classes}:{lib / 'kotlin-stdlib.jar'}"
    return ask([java, "-cp", path, main, *arguments], what=main)


@functools.cache
def kotlin_compiler() -> tuple[str, Path]:
    """Return Java and the folder of the Kotlin compiler's libraries."""
    java = program("java", "openjdk-17-jre-headless")
    folder = node_environment("kotlin", [f"kotlin-compiler@{KOTLIN_VERSION}"])
    return java, folder / "node_modules/kotlin-compiler/lib"


PACKAGE = "com.example.accept"

# In each runner, a call and one that the API does not have.
_WRONG = {
    "CompiledModel": ("model.run(", "model.execute("),
    "Interpreter": (".runForMultipleInputsOutputs(", ".runForInputs("),
}


def ask_kotlin(file: Subject) -> Outcome:
    """Compile the app of a file, and compare what quantizes and dequantizes in it with NumPy."""
    with temporary.folder() as name:
        folder = Path(name)
        made = make_app(file, folder / "app")
        sources = sorted((folder / "app").rglob("*.kt"))
        check = folder / "Check.kt"
        base = made.model_class.removesuffix("Model")
        samples = len(file.inputs)
        values: dict[str, Any] = {"package": PACKAGE, "base": base, "samples": samples}
        check.write_text(fill("Check.kt", {**values, "pictures": _pictures(made)}))
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


KOTLIN = Tool(f"Kotlin {KOTLIN_VERSION}, against stubs of Android and LiteRT", ask_kotlin)


def make_app(file: Subject, folder: Path) -> AndroidReport:
    """Make the project of a file; with labels if an output can have some."""
    try:
        # How it takes pixels does not matter to what is asked here.
        settings: dict[str, Any] = {"package": PACKAGE, "name": "accepted", "scaling": "-1_1"}
        made = android_project(file.path, folder, **settings)
        output = made.outputs[0]
        if made.labels is None and output.is_real and output.shape[-1:] == (output.size,):
            labels = [f'class {i} "$x"' for i in range(output.size)]
            made = android_project(file.path, folder, labels=labels, force=True, **settings)
    except ValueError as error:
        raise NotApplicable(str(error)) from error
    return made


@functools.cache
def refuses_wrong_call(api: str) -> bool:
    """Tell whether the compiler refuses a call of a method that LiteRT's API does not have."""
    right, wrong = _WRONG[api]
    with temporary.folder() as name:
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
            values = _drawn(tensor)
            asked += stored(values)
            expected += stored(quantize(tensor, values))
            count += values.size
    for tensor, normalization in images_of(made):
        pixels = np.random.default_rng(0).integers(0, 256, tensor.shape[1:]).astype(np.uint8)
        asked += stored(_argb(pixels))
        values = from_pixels(tensor, normalization, pixels)
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


def images_of(made: AndroidReport) -> list[tuple[Tensor, Normalization]]:
    """The inputs that are made of a picture, and how."""
    return [(t, made.pixels[t.identifier]) for t in made.inputs if t.identifier in made.pixels]


def _pictures(made: AndroidReport) -> str:
    """Kotlin that makes each image input of pixels, as its function does of a bitmap's."""
    base, lines = made.model_class.removesuffix("Model"), []
    for tensor, told in images_of(made):
        height, width, channels = tensor.shape[1:]
        mean, std = (", ".join(f"{np.float32(v)!s}f" for v in vs) for vs in (told.mean, told.std))
        lines.append(
            f"    pixels({channels}, {height * width}, floatArrayOf({mean}), floatArrayOf({std}), "
            f"{base}Tensors.inputs[{made.inputs.index(tensor)}])"
        )
    return "\n".join(lines)


def _argb(pixels: np.ndarray) -> np.ndarray:
    """Pixels of (H, W, channels) as Bitmap.getPixels gives them."""
    red, green, blue = np.broadcast_to(pixels, (*pixels.shape[:2], 3)).astype(np.uint32).T
    return (0xFF000000 | red << 16 | green << 8 | blue).T.astype(np.uint32)


def from_pixels(tensor: Tensor, told: Normalization, pixels: np.ndarray) -> np.ndarray:
    """The real numbers that an app makes of pixels, of (H, W, channels), for an input."""
    values = np.broadcast_to(pixels, (*pixels.shape[:2], 3)).astype(np.float32)
    if tensor.shape[-1] == 1:
        brightness = np.array([0.299, 0.587, 0.114], np.float32) * values
        values = brightness[..., :1] + brightness[..., 1:2] + brightness[..., 2:]
    made = (values - np.array(told.mean, np.float32)) / np.array(told.std, np.float32)
    return made.reshape(tensor.shape)


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


def _drawn(tensor: Tensor) -> np.ndarray:
    """Draw real numbers in the range of a tensor and beyond, and halves between two codes."""
    random = np.random.default_rng(0)
    if tensor.dtype == "float32":
        return random.standard_normal(tensor.size).astype(np.float32)
    limits = np.iinfo(tensor.dtype)
    low, high = ((end - tensor.zero_point) * tensor.scale for end in (limits.min, limits.max))
    values = random.uniform(1.5 * low - 0.5 * high, 1.5 * high - 0.5 * low, tensor.size)
    halves = (random.integers(limits.min, limits.max, tensor.size) + 0.5) * tensor.scale
    return np.where(random.random(tensor.size) < 0.5, values, halves).astype(np.float32)


# Of a key that lives as long as this check.
_PASSWORD = "throw-away"
_LOCAL_HEADER = 30


def ask_apk(file: Subject) -> Outcome:
    """Check that the APK is valid and holds the file so that it can be mapped into memory."""
    tools = {name: program(name, name) for name in ("zipalign", "apksigner")}
    tools["keytool"] = program("keytool", "openjdk-17-jre-headless")
    with temporary.folder() as name:
        folder = Path(name)
        make_app(file, folder / "app")
        raw = package_resources(folder / "app/app", PACKAGE, folder / "resources")
        apk = sign(raw, folder, tools)
        reason = check_model(apk, "assets/accepted.tflite", file)
        figures = {"APK bytes": apk.stat().st_size}
    return Outcome("failed" if reason else "passed", reason, dict(figures))


APK = Tool("APK of resources and model, without code (aapt, zipalign, apksigner)", ask_apk)


def sign(raw: Path, folder: Path, tools: dict[str, str]) -> Path:
    """Align and sign an APK with a key of its own, and verify both."""
    keys, apk = folder / "keys.p12", folder / "app.apk"
    make_key = [tools["keytool"], "-genkeypair", "-keystore", str(keys), "-storetype", "PKCS12"]
    make_key += ["-storepass", _PASSWORD, "-alias", "check", "-keyalg", "RSA", "-keysize", "2048"]
    ask([*make_key, "-validity", "2", "-dname", "CN=check"], what="keytool")
    ask([tools["zipalign"], "-f", "4", str(raw), str(apk)], what="zipalign")
    signing = [tools["apksigner"], "sign", "--ks", str(keys), "--ks-pass", f"pass:{_PASSWORD}"]
    ask([*signing, str(apk)], what="apksigner")
    ask([tools["zipalign"], "-c", "4", str(apk)], what="zipalign")
    ask([tools["apksigner"], "verify", str(apk)], what="apksigner")
    return apk


def check_model(apk: Path, entry: str, file: Subject) -> str:
    """Return what is wrong with the model in an APK; "" if nothing is."""
    with zipfile.ZipFile(apk) as archive:
        info = archive.getinfo(entry)
        data = archive.read(entry)
    if info.compress_type != zipfile.ZIP_STORED:
        return f"{entry} is compressed, so that it cannot be mapped into memory"
    if start := _start(apk, info.header_offset) % 4:
        return f"{entry} starts {start} bytes behind a multiple of 4"
    if data != file.data:
        return f"{entry} has other bytes than the file"
    names = list(file.expected[0])
    made = run_reference(data, file.inputs, names, f"{entry} of the APK")
    for given, expected in zip(made, file.expected, strict=True):
        if any(not np.array_equal(given[n], expected[n], equal_nan=True) for n in names):
            return f"{entry} gives other outputs than the file"
    return ""


def _start(apk: Path, header: int) -> int:
    """Return where the bytes of an entry start, by its own header: the padding is in it alone."""
    with apk.open("rb") as stream:
        stream.seek(header)
        name, extra = struct.unpack("<HH", stream.read(_LOCAL_HEADER)[26:30])
    return header + _LOCAL_HEADER + name + extra
