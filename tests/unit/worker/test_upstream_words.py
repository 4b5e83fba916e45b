"""What an upstream's answer says about its limit."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from qctl.worker.http import MAX_RETRY_AFTER_S, retry_after_s, says_rate_limited

NOW = datetime(2026, 11, 22, 14, 0, 0, tzinfo=UTC)


@given(st.integers(0, 10**12))
def test_given_a_retry_after_in_seconds_then_it_is_believed_up_to_a_day(seconds: int) -> None:
    assert retry_after_s(str(seconds), NOW) == min(seconds, MAX_RETRY_AFTER_S)


@given(st.integers(-(10**7), 10**7))
def test_given_a_retry_after_as_a_date_then_it_is_the_time_until_then(seconds: int) -> None:
    date = format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)

    assert retry_after_s(date, NOW) == min(max(0, seconds), MAX_RETRY_AFTER_S)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (" 7 ", 7),
        ("Sunday, 22-Nov-26 14:00:30 GMT", 30),  # the obsolete forms of RFC 9110, 5.6.7
        ("Sun Nov 22 14:00:30 2026", 30),
        ("Sun, 22 Nov 2026 15:00:30 +0100", 30),
    ],
)
def test_given_another_way_to_write_it_then_it_means_the_same(value: str, seconds: float) -> None:
    assert retry_after_s(value, NOW) == seconds


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        " ",
        "soon",
        "-5",
        "1.5",
        "1e3",
        "0x10",
        "٣",
        "Sun, 99 Nov 2026 14:00:30 GMT",
        "Sun",
        "\ud800",
        "9" * 400 + "x",
    ],
)
def test_given_anything_else_then_nothing_was_said(value: str | None) -> None:
    assert retry_after_s(value, NOW) is None


@given(st.text(max_size=60))
def test_no_text_makes_it_fail(value: str) -> None:
    found = retry_after_s(value, NOW)

    assert found is None or 0 <= found <= MAX_RETRY_AFTER_S


def answered(status: int, **headers: str) -> requests.Response:
    response = requests.Response()
    response.status_code = status
    response.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    return response


@pytest.mark.parametrize(
    "response",
    [
        answered(429),
        answered(403, Retry_After="30"),
        answered(403, X_RateLimit_Remaining="0"),
        answered(403, x_rate_limit_remaining=" 0 "),
        answered(403, RateLimit_Remaining="0"),
    ],
)
def test_given_a_429_or_a_403_that_says_nothing_is_left_then_it_is_a_rate_limit(response: requests.Response) -> None:
    assert says_rate_limited(response)


@pytest.mark.parametrize(
    "response",
    [
        answered(403),
        answered(403, X_RateLimit_Remaining="17"),
        answered(401, Retry_After="30"),
        answered(200, X_RateLimit_Remaining="0"),
        answered(503, Retry_After="30"),
    ],
)
def test_given_another_answer_then_it_is_not(response: requests.Response) -> None:
    assert not says_rate_limited(response)
