"""How large the arena must be for TFLite Micro to plan and run a model."""

from __future__ import annotations


def measure_arena(data: bytes, where: str) -> tuple[int, str]:
    """Let TFLite Micro find the smallest arena in which a model can be planned and run.

    Args:
        data: the bytes of the .tflite file.
        where: what error messages call it.

    Returns:
        (bytes, a multiple of 16; who measured).

    Raises:
        Unavailable: TFLite Micro cannot be had here.
        ValueError: it refuses the file, crashes on it or takes more than a minute.
    """
    from tfcompress.acceptance.outcome import Refused
    from tfcompress.acceptance.tools import tflm

    try:
        found = tflm.arena_bytes(data)
    except Refused as error:
        raise ValueError(
            f"TFLite Micro refuses {where}: {error}; expected a file that it can run. Convert "
            "again with target='microcontroller', or replace the layer that it names."
        ) from error
    return found, f"measured by {tflm.TITLE} on a 64-bit machine"
