"""`--until`: the operator's clock, the next time, and what is no time."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from qctl.ops.until import parse_until

BERLIN = ZoneInfo("Europe/Berlin")
#: A quarter past one in the afternoon in Berlin.
NOW_S = datetime(2026, 11, 22, 12, 15, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("text", "until"),
    [
        ("14:00", "2026-11-22T13:00:00+00:00"),
        ("9:05", "2026-11-23T08:05:00+00:00"),
        ("13:15", "2026-11-23T12:15:00+00:00"),
        ("13:15:01", "2026-11-22T12:15:01+00:00"),
        ("00:00", "2026-11-22T23:00:00+00:00"),
        (" 14:00 ", "2026-11-22T13:00:00+00:00"),
        ("2026-11-23T14:00", "2026-11-23T13:00:00+00:00"),
        ("2026-11-23 14:00:30", "2026-11-23T13:00:30+00:00"),
        ("2026-11-23T14:00Z", "2026-11-23T14:00:00+00:00"),
        ("2026-11-23T14:00+05:30", "2026-11-23T08:30:00+00:00"),
        ("2027-06-01T14:00", "2027-06-01T12:00:00+00:00"),  # by the rules of that day
    ],
)
def test_a_time_is_the_next_one_in_the_operators_zone(text: str, until: str) -> None:
    assert parse_until(text, NOW_S, BERLIN).astimezone(UTC).isoformat() == until


def test_the_next_day_may_be_an_hour_longer() -> None:
    # given the evening before the clocks are set back
    evening_s = datetime(2026, 10, 24, 20, 0, tzinfo=BERLIN).timestamp()

    # then three in the afternoon is that of the clock, 20 hours later
    assert parse_until("15:00", evening_s, BERLIN).timestamp() - evening_s == 20 * 3_600


@pytest.mark.parametrize(
    "text",
    [
        "",
        "noon",
        "24:00",
        "14:60",
        "14",
        "14:0",
        "1:2:3:4",
        "2026-11-23",
        "2026-13-01T00:00",
        "2026-11-22T13:14",
        "2026-11-22T12:15Z",
        "1999-01-01T00:00",
        "2028-01-01T00:00",
        "9999-12-31T23:59:59-23:59",
        "0001-01-01T00:00",
        "-1:00",
        "१४:००",
        "14:00\x1b[31m",
    ],
)
def test_what_is_no_time_to_come_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_until(text, NOW_S, BERLIN)


@pytest.mark.parametrize("text", ["2027-03-28T02:30", "02:30", "2:00"])
def test_a_time_that_the_clock_leaves_out_is_refused(text: str) -> None:
    night_s = datetime(2027, 3, 28, 0, 30, tzinfo=BERLIN).timestamp()
    with pytest.raises(ValueError, match="is never: the clock is put forward over it"):
        parse_until(text, night_s, BERLIN)


def test_on_the_day_of_the_lost_hour_the_next_such_time_is_that_of_tomorrow() -> None:
    noon_s = datetime(2027, 3, 28, 12, 0, tzinfo=BERLIN).timestamp()
    assert parse_until("02:30", noon_s, BERLIN) == datetime(2027, 3, 29, 2, 30, tzinfo=BERLIN)
    assert parse_until("03:00", noon_s, BERLIN) == datetime(2027, 3, 29, 3, 0, tzinfo=BERLIN)
