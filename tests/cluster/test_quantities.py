"""Numbers with units are read exactly, and nothing else is read as a number."""

from collections.abc import Callable

import pytest

from twinflow.cluster.quantities import count, memory, whole


@pytest.mark.parametrize(
    ("text", "value"),
    [("7", 7), ("32k", 32_000), ("32K", 32_768), ("1.5m", 1_500_000), ("2M", 2 * 2**20), (12, 12)],
)
def test_count(text: object, value: int) -> None:
    assert count(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4GiB", 4 * 2**30),
        ("4Gi", 4 * 2**30),
        ("4G", 4 * 2**30),
        ("4GB", 4 * 10**9),
        ("4g", 4 * 10**9),
        ("0.1GB", 100_000_000),
        ("512 MiB", 512 * 2**20),
        ("4096B", 4096),
    ],
)
def test_memory(text: str, value: int) -> None:
    assert memory(text) == value


@pytest.mark.parametrize("parse", [whole, count, memory])
@pytest.mark.parametrize("wrong", ["", "x", "1.5", "k", "1e3", "0x10", "3q", True, 1.0, None, [1]])
def test_what_is_no_number(parse: Callable[[object], int], wrong: object) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse(wrong)


def test_whole_numbers_have_signs_and_no_units() -> None:
    assert [whole("-3"), whole(" 8 "), whole(9)] == [-3, 8, 9]
    with pytest.raises(ValueError, match="whole number"):
        whole("8k")
