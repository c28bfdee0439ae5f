"""Compilers on a generated project: Android's resources by aapt, Kotlin against stubs."""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tfcompress.tools.driving import Refused
from tfcompress.tools.environments import Unavailable, node_environment, program, run_tool

STUBS = Path(__file__).parent / "stubs"
KOTLIN = "2.4.20"
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
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
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
    folder = node_environment("kotlin", [f"kotlin-compiler@{KOTLIN}"])
    return java, folder / "node_modules/kotlin-compiler/lib"
