"""A check of what is refused, and of the message."""

import pytest


def refused(message, make, error=ValueError, unless=None):
    with pytest.raises(error, match=message) as caught:
        make()
    assert unless is None or unless not in str(caught.value)
