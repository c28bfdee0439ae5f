"""What the benchmark ran on, without saying whose it is."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "tfcompress",
    "tensorflow",
    "keras",
    "tf_keras",
    "tensorflow-model-optimization",
    "ai-edge-litert",
    "litert-quantizer",
    "numpy",
)


def describe() -> dict[str, Any]:
    """This machine as a line of results: processor, cores, memory in GiB, system and versions."""
    found: dict[str, Any] = {
        "cpu": _cpu(),
        "cores": cores(),
        "memory_gb": _memory_gib(),
        "amx": has_amx(),
        "system": f"{_system()}, {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }
    said = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {"kind": "machine", "id": said[:8], **found, "started": started}


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def has_amx() -> bool:
    """Whether the processor has AMX, whose int8 tiles XNNPACK takes and which phones lack."""
    return "amx_int8" in _proc("cpuinfo")


def status_mb(name: str) -> float | None:
    """A figure of this process's memory in MiB from /proc: VmRSS, VmHWM; None elsewhere."""
    for line in _proc("self/status").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    return None


def _proc(name: str) -> str:
    try:
        return Path("/proc", name).read_text()
    except OSError:
        return ""


def _cpu() -> str:
    for line in _proc("cpuinfo").splitlines():
        if line.startswith("model name"):
            return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    for line in _proc("meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return round(int(line.split()[1]) / 1024**2, 1)
    return None


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return f"{platform.system()} {platform.release()}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
