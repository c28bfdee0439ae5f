"""Numbers with units."""

import pytest

from tfcompress.files.quantities import as_time, parse_bytes, parse_count, parse_seconds


def test_numbers_of_bytes():
    told = {"49152": 49152, "48k": 49152, "48K": 49152, "48KiB": 49152, "1.5M": 3 << 19}
    assert {text: parse_bytes(text) for text in told} == told
    for wrong in ("", "0", "-3", "48q", "k", "1e5", "0.00001k"):
        with pytest.raises(ValueError, match=r"such as 49152 or 48k \(of 1024 bytes\); received"):
            parse_bytes(wrong)


def test_counts_have_k_of_a_thousand():
    assert [parse_count(text) for text in ("7", "48k", "1.5M")] == [7, 48_000, 1_500_000]
    for wrong in ("", "0", "48KiB", "-1", "1e6"):
        with pytest.raises(ValueError, match=r"such as 1500000 or 1\.5M; received"):
            parse_count(wrong)


def test_times_need_their_units():
    told = {"90s": 90, "45m": 2700, "2h": 7200, "1h30m": 5400, "0.5h": 1800, "1d": 86400}
    assert {text: parse_seconds(text) for text in told} == told
    for wrong in ("", "90", "0s", "-1h", "2 hours", "h", "1h 5", "2y"):
        with pytest.raises(ValueError, match="such as 90s, 45m, 2h or 1h30m; received"):
            parse_seconds(wrong)


def test_times_are_told_as_people_do():
    assert [as_time(t) for t in (2.34, 59, 61, 7320)] == ["2.3 s", "59 s", "1 min 1 s", "2 h 2 min"]
