"""Checks of what is refused, and of the message; files that are damaged."""

import numpy as np
import pytest


def refused(message, make, error=ValueError, unless=None):
    with pytest.raises(error, match=message) as caught:
        make()
    assert unless is None or unless not in str(caught.value)


def damaged(content, count=100):
    """Copies of a file that are cut off, or have three bits flipped, in turn."""
    random = np.random.default_rng(0)
    for number in range(count):
        copy = bytearray(content)
        if number % 2:
            del copy[random.integers(len(copy)) :]
        else:
            for position in random.integers(len(copy), size=3):
                copy[position] ^= 1 << random.integers(8)
        yield bytes(copy)


def refusals_of(load, content, path):
    """What is said of damaged copies of a file, each in one line that names it."""
    messages = []
    for copy in damaged(content):
        path.write_bytes(copy)
        try:
            load(path)
        except ValueError as error:
            messages.append(str(error))
    assert all(path.name in message and "\n" not in message for message in messages)
    return messages
