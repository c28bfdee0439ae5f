"""LiteRT on 64-bit ARM, the processor of phones, emulated by qemu-user.

Debian's packages for arm64 are unpacked into the cache, and their Python is started behind
qemu-aarch64: neither root nor a chroot is needed.
"""

from __future__ import annotations

import platform
import shutil
import sys
from pathlib import Path

import numpy as np

from tfcompress.tools.comparison import difference, figures_of
from tfcompress.tools.driving import Figure, NotApplicable, Outcome, Tool, drive
from tfcompress.tools.environments import Unavailable, install, made, program, run_tool
from tfcompress.tools.subject import Subject

PACKAGES = ("ai-edge-litert==2.3.0", "numpy==2.2.6")
RELEASE = "bookworm"
DEBIAN = ("python3.11-minimal", "libpython3.11-stdlib", "libstdc++6")
MIRROR = "http://deb.debian.org/debian"
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
PROCESSOR = "cortex-a76"

# Newer than this in the names of wheels, Debian's C library is not.
_PLATFORMS = ("manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")

# LiteRT asks the system for its processor, and must not be told of that of this machine.
_PROCESSOR_FILES = {
    "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 "
    "atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp\nCPU implementer\t: 0x41\n"
    "CPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: 0xd0b\nCPU revision\t: 1\n\n",
    "sys/devices/system/cpu/possible": "0\n",
    "sys/devices/system/cpu/present": "0\n",
    "sys/devices/system/cpu/cpu0/topology/core_id": "0\n",
    "sys/devices/system/cpu/cpu0/topology/physical_package_id": "0\n",
    "sys/devices/system/cpu/cpu0/topology/core_siblings_list": "0\n",
}


def run(file: Subject) -> Outcome:
    """Compare the reference kernels, which must give the same integers as on this machine.

    What the optimized kernels give, which a phone runs, is reported, too.
    """
    if platform.machine() in ("aarch64", "arm64"):
        raise NotApplicable("this machine is an ARM64 itself")
    if file.note:  # Other kernels give other integers on another processor.
        raise NotApplicable(file.note)
    answer = drive(_python(), "run_litert", file.data, file.inputs, what="LiteRT on ARM64")
    count = len(file.units)
    reference = [sample[:count] for sample in answer.outputs]
    found = difference(file, reference)
    optimized = difference(file, [sample[count:] for sample in answer.outputs])
    if isinstance(found, str) or isinstance(optimized, str):
        return Outcome("failed", str(found))
    same = all(
        wanted.tobytes() == np.asarray(given).tobytes()
        for expected, outputs in zip(file.expected, reference, strict=True)
        for wanted, given in zip(expected.values(), outputs, strict=True)
    )
    kernels = answer.figures["kernels"]
    figures: dict[str, Figure] = {**figures_of(found), "bit-identical": "yes" if same else "no"}
    figures |= {f"{kernels} {name}": value for name, value in figures_of(optimized).items()}
    # Floats may differ in their last bits: the two processors' exp and the like do.
    if (found.lsb or 0) == 0 and (found.relative or 0) <= file.relative:
        return Outcome("passed", "", figures)
    return Outcome("failed", "outputs are not those of the reference kernels on x86-64", figures)


TOOL = Tool("LiteRT 2.3.0 on ARM64 (qemu-user)", run)


def _python() -> list[str | Path]:
    """The command that starts an ARM64 Python with LiteRT."""
    qemu = program("qemu-aarch64-static", "qemu-user-static")
    apt, unpack = program("apt-get", "apt"), program("dpkg-deb", "dpkg")
    if not Path(KEYS).exists():
        raise Unavailable(
            "the keys of Debian's packages are not installed: on Debian or Ubuntu, sudo apt-get "
            "install debian-archive-keyring"
        )

    def make(folder: Path) -> None:
        _download(folder, apt)
        for package in sorted((folder / "cache/archives").glob("*.deb")):
            run_tool([unpack, "-x", package, folder / "root"], what="dpkg-deb")
        shutil.rmtree(folder / "cache")
        shutil.rmtree(folder / "state")
        for name, content in _PROCESSOR_FILES.items():
            (folder / "root" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "root" / name).write_text(content)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        pip += ["--target", str(folder / "packages"), "--only-binary", ":all:"]
        pip += ["--implementation", "cp", "--python-version", "3.11"]
        pip += ["--retries", "1", *(f"--platform={name}" for name in _PLATFORMS)]
        install(pip, PACKAGES, what="arm64", index="a package index (PIP_INDEX_URL)")

    contents = [RELEASE, *DEBIAN, *PACKAGES, *map(str, _PROCESSOR_FILES.items())]
    folder = made("arm64", contents, make)
    # Files that a program asks for are looked for under -L first, then on this machine.
    command: list[str | Path] = [qemu, "-cpu", PROCESSOR, "-L", folder / "root"]
    command += ["-E", f"PYTHONPATH={folder / 'packages'}"]
    return [*command, folder / "root/usr/bin/python3.11"]


def _download(folder: Path, apt: str) -> None:
    """Let apt fetch the packages and what they need, with lists of its own."""
    state, cache = folder / "state", folder / "cache"
    (state / "lists/partial").mkdir(parents=True)
    (cache / "archives/partial").mkdir(parents=True)
    (state / "status").touch()
    (state / "sources.list").write_text(f"deb [signed-by={KEYS}] {MIRROR} {RELEASE} main\n")
    settings = {
        "Dir::State": state,
        "Dir::State::status": state / "status",
        "Dir::Cache": cache,
        "Dir::Etc::sourcelist": state / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "",
        "Debug::NoLocking": "true",
    }
    command = [apt, "--quiet", *(f"-o{name}={value}" for name, value in settings.items())]
    run_tool([*command, "update"], what="apt-get update")
    run_tool([*command, "install", "--yes", "--download-only", *DEBIAN], what="apt-get install")
