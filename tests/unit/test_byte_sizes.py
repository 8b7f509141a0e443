"""Bytes and time spans as people write them."""

import pytest

from service.byte_sizes import parse_bytes, shown_age, shown_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1000", 1000), ("20G", 20 * 10**9), ("1.5 MB", 1_500_000), ("3kb", 3000)],
)
def test_sizes_are_understood(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "1 GiB", "nan", "1e9"])
def test_others_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no number of bytes"):
        parse_bytes(text)


def test_numbers_are_shown_with_units() -> None:
    assert [shown_bytes(n) for n in (0, 999, 1000, 50e9, 2e15)] == [
        "0 B", "999 B", "1 kB", "50 GB", "2e+03 TB",
    ]  # fmt: skip
    assert [shown_age(s) for s in (-5, 59, 90, 7200, 86400 * 3)] == [
        "0 s", "59 s", "1.5 min", "2.0 h", "3.0 d",
    ]  # fmt: skip
