"""Packages that tasks need and tfcompress itself does not."""

from __future__ import annotations

import importlib

from tfcompress.environments import Unavailable


def require(module: str, use: str) -> None:
    """Refuses to go on without a package of the extra `bench`.

    Args:
        module: what it is imported as.
        use: what it is needed for; the message begins with it.

    Raises:
        Unavailable: it cannot be imported.

    Example:
        >>> require("numpy", "tasks keep their data in arrays of NumPy")
    """
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise Unavailable(
            f"{use}, which cannot be imported ({error}): pip install 'tfcompress[bench]'"
        ) from error
