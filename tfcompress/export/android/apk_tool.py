"""An APK around the file, packaged by aapt and signed by apksigner as a build would."""

from __future__ import annotations

import struct
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from tfcompress.export.android.checking import ask, package_resources
from tfcompress.export.android.kotlin_tool import PACKAGE, make_app
from tfcompress.tools.driving import Outcome
from tfcompress.tools.environments import program
from tfcompress.tools.subject import Subject, run_reference

TITLE = "APK of resources and model, without code (aapt, zipalign, apksigner)"

# Of a key that lives as long as this check.
_PASSWORD = "throw-away"
_LOCAL_HEADER = 30


def run(file: Subject) -> Outcome:
    """Check that the APK is valid and holds the file so that it can be mapped into memory."""
    tools = {name: program(name, name) for name in ("zipalign", "apksigner")}
    tools["keytool"] = program("keytool", "openjdk-17-jre-headless")
    with tempfile.TemporaryDirectory(prefix="tfcompress-") as name:
        folder = Path(name)
        make_app(file, folder / "app")
        raw = package_resources(folder / "app/app", PACKAGE, folder / "resources")
        apk = sign(raw, folder, tools)
        reason = check_model(apk, "assets/accepted.tflite", file)
        figures = {"APK bytes": apk.stat().st_size}
    return Outcome("failed" if reason else "passed", reason, dict(figures))


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
