"""Files inside a .tflite file: a zip archive behind the flatbuffer."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

from tfcompress.tflite.metadata.types import MOST_BYTES

_END, _END_SIZE = b"PK\x05\x06", 22
_LONG_END, _LONG_END_SIZE = b"PK\x06\x07", 20
# What zipfile raises for damaged archives, beside ValueError.
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError),
    *(OSError, OverflowError, RuntimeError),
)
_MOST_FILES = 1_000
_LONGEST_DIRECTORY = 2**20


def append_files(data: bytes, files: dict[str, bytes]) -> bytes:
    """Append files as a zip archive; equal input gives equal bytes.

    Args:
        data: the bytes of the .tflite file, without an archive.
        files: contents by name.

    Returns:
        The bytes of both.
    """
    if not files:
        return data
    target = io.BytesIO(data)
    target.seek(0, io.SEEK_END)
    # Mode "w" counts from where the stream stands; "a" would look for an archive in the weights.
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in files.items():
            # Stored, as MediaPipe reads it; ZipInfo takes a fixed time.
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_STORED)
    return target.getvalue()


def read_file(data: bytes, name: str) -> bytes:
    """Read a file of the archive at the end of a .tflite file.

    Args:
        data: the bytes of the .tflite file.
        name: of the file.

    Returns:
        Its content.

    Raises:
        ValueError: there is none of that name, it is damaged, or too large.
    """
    if not name or set(name) & set("/\\\0:") or name in (".", ".."):
        raise ValueError(f"{name!r:.80} is no name of a file without a folder")
    _check_directory(data)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            info = next((i for i in archive.infolist() if i.filename == name), None)
            if info is None:
                raise ValueError(f"there is no file {name!r:.80} in its archive")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{name!r:.80} is compressed in an unusual way")
            if info.file_size > MOST_BYTES:
                raise ValueError(f"{name!r:.80} takes {info.file_size:,} bytes")
            with archive.open(info) as file:
                content = file.read(MOST_BYTES + 1)
    except _DAMAGE as error:
        raise ValueError(f"its archive cannot be read: {error}") from error
    if len(content) > MOST_BYTES:
        raise ValueError(f"{name!r:.80} unpacks to more than {MOST_BYTES:,} bytes")
    return content


def _check_directory(data: bytes) -> None:
    """Check the size of the archive's directory before `zipfile` makes objects of all of it."""
    end = len(data) - _END_SIZE
    if not (data[end : end + 4] == _END and data[-2:] == b"\0\0"):
        end = data.rfind(_END, max(0, end - 0xFFFF))
    if end < 0 or end + _END_SIZE > len(data):
        raise ValueError("there is no archive of files at its end")
    count, size = struct.unpack_from("<HI", data, end + 10)
    start = end - _LONG_END_SIZE
    is_long = start >= 0 and data[start : start + 4] == _LONG_END
    if is_long or count > _MOST_FILES or size > _LONGEST_DIRECTORY:
        raise ValueError(f"its archive has more than {_MOST_FILES:,} files or a damaged directory")
