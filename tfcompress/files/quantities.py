"""Numbers with units, as people write them: bytes, counts, seconds."""

from __future__ import annotations

import re

_NUMBER = r"(\d{1,15}(?:\.\d{1,6})?)"
_BYTES = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}
_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_bytes(value: str) -> int:
    """Bytes out of "49152", "48k" or "1M", of which k are 1024 bytes."""
    match = re.fullmatch(rf"{_NUMBER}([kKmMgG]?)(?:i?[bB])?", value.strip())
    found = 0 if match is None else round(float(match[1]) * _BYTES[match[2].lower()])
    if found < 1:
        raise ValueError(
            f"expected a number of bytes above 0, such as 49152 or 48k (of 1024 bytes); received "
            f"{value!r}."
        )
    return found


def parse_count(value: str) -> int:
    """A whole number out of "1500000", "1500k" or "1.5M", of which k are 1000."""
    match = re.fullmatch(rf"{_NUMBER}([kKmMgG]?)", value.strip())
    found = 0 if match is None else round(float(match[1]) * _COUNTS[match[2].lower()])
    if found < 1:
        raise ValueError(f"expected a number above 0, such as 1500000 or 1.5M; received {value!r}.")
    return found


def parse_seconds(value: str) -> float:
    """Seconds out of "90s", "45m", "2h", "1h30m" or "1d"."""
    parts = re.findall(rf"{_NUMBER}([smhdSMHD])", value.strip())
    whole = "".join(number + unit for number, unit in parts)
    found = sum(float(number) * _SECONDS[unit.lower()] for number, unit in parts)
    if whole != value.strip() or found <= 0:
        raise ValueError(
            f"expected a time with its unit, such as 90s, 45m, 2h or 1h30m; received {value!r}."
        )
    return found


def as_time(seconds: float) -> str:
    """Seconds as people say them."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s" if seconds >= 10 else f"{seconds:.1f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
