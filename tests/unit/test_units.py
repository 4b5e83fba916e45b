"""How durations, rates and sizes are written, and that what is printed can be read again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qctl import units
from qctl.units import NS_PER_S, Rate


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("30s", 30.0),
        ("15m", 900.0),
        ("1h", 3600.0),
        ("1d", 86_400.0),
        ("0s", 0.0),
        (" 5s ", 5.0),
        ("366d", 366 * 86_400.0),
    ],
)
def test_a_duration(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "30", "s", "-1s", "1.5s", "1 s", "1w", "1S", "1s1s", "1_0s", "١s", "1:30", "9" * 13 + "s"]
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected a duration such as 250ms"):
        units.parse_duration(text)


def test_a_duration_has_a_bound() -> None:
    with pytest.raises(ValueError, match="at most 366d"):
        units.parse_duration("367d")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.25, "250ms"),
        (1, "1s"),
        (90, "90s"),
        (900, "15m"),
        (3_600, "1h"),
        (86_400, "1d"),
        (1.5, "1500ms"),
        (0.0001, "0s"),
    ],
)
def test_a_duration_is_printed_short_and_exact(seconds: float, text: str) -> None:
    assert units.format_duration(seconds) == text


@given(st.integers(0, 366 * 86_400_000))
def test_a_printed_duration_reads_back(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert units.parse_duration(units.format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "rate_units", "period_s", "printed"),
    [
        ("20000/h", 20_000, 3_600, "20000/h"),
        ("900/15m", 900, 900, "900/15m"),
        ("1/s", 1, 1, "1/s"),
        ("500/d", 500, 86_400, "500/d"),
        ("300/60s", 300, 60, "300/m"),
        ("300/1m", 300, 60, "300/m"),
        ("5/24h", 5, 86_400, "5/d"),
        ("1000000000000/h", 10**12, 3_600, "1000000000000/h"),
    ],
)
def test_a_rate(text: str, rate_units: int, period_s: int, printed: str) -> None:
    rate = units.parse_rate(text)
    assert rate == Rate(rate_units, period_s * NS_PER_S)
    assert str(rate) == printed
    assert rate.per_second == pytest.approx(rate_units / period_s)


@pytest.mark.parametrize(
    "text", ["", "20000", "20000/", "/h", "20000/w", "-1/h", "1.5/h", "20 000/h", "20000/ h", "20000/h/h", "1/ms"]
)
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match="expected a rate N/PERIOD"):
        units.parse_rate(text)


@pytest.mark.parametrize("text", ["0/h", "1000000000001/h", "9999999999999/h"])
def test_the_units_of_a_rate_have_bounds(text: str) -> None:
    with pytest.raises(ValueError, match=r"between 1 and 10\^12"):
        units.parse_rate(text)


@pytest.mark.parametrize("text", ["1/0s", "1/367d", "1/999999999d"])
def test_the_period_of_a_rate_has_bounds(text: str) -> None:
    with pytest.raises(ValueError, match="between 1s and 366d"):
        units.parse_rate(text)


@given(st.integers(1, units.MAX_UNITS), st.integers(1, 366), st.sampled_from("smhd"))
def test_a_printed_rate_reads_back(rate_units: int, count: int, unit: str) -> None:
    rate = units.parse_rate(f"{rate_units}/{count}{unit}")
    assert units.parse_rate(str(rate)) == rate


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("0", 0), ("17", 17), ("17B", 17), ("64KiB", 65_536), ("1MiB", 1 << 20), ("2GiB", 2 << 30)]
)
def test_a_size(text: str, size_bytes: int) -> None:
    assert units.parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "MiB", "1MB", "1M", "1 MiB", "-1", "1.5MiB", "1kib"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size"):
        units.parse_size(text)


@given(st.integers(0, 10**12 - 1))
def test_a_printed_size_reads_back(size_bytes: int) -> None:
    assert units.parse_size(units.format_size(size_bytes)) == size_bytes
