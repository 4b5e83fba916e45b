"""What an API's answers say about its limits: by the headers of real ones, and of one that knows the truth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import format_datetime
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qctl.quota.listener import Listener
from qctl.quota.matching import limit_of
from qctl.quota.policy import NS_PER_MS, NS_PER_S, Limit, Window
from qctl.quota.upstream import (
    MAX_WAIT_NS,
    SECONDARY_FIRST_NS,
    Answer,
    Heard,
    Offset,
    Span,
    Style,
    Told,
    clock_reset,
    read,
)

S, MS = NS_PER_S, NS_PER_MS
#: 2026-11-22 14:00:00 UTC, and the boot clock at that moment.
EPOCH_S, BOOT_NS = 1_795_356_000, 5_000 * S
DATE = format_datetime(datetime.fromtimestamp(EPOCH_S, UTC), usegmt=True)
HOUR_NS = 3_600 * S


def answer(status: int = 200, *, body: bytes = b"", took_ns: int = 0, **headers: str) -> Answer:
    """One that was sent `took_ns` before it came, at EPOCH_S by all clocks, with its `Date`; `date=""` for none."""
    named = {name.replace("_", "-").lower(): value for name, value in {"date": DATE, **headers}.items()}
    sent_ns = BOOT_NS - took_ns
    return Answer(status, {k: v for k, v in named.items() if v or k != "date"}, sent_ns, BOOT_NS, EPOCH_S * S, body)


def heard(status: int = 200, *, style: Style = Style.AUTO, body: bytes = b"", **headers: str) -> Heard:
    return read(answer(status, body=body, **headers), style=style)


def in_s(span: Span | None) -> tuple[float, float] | None:
    """Seconds from BOOT_NS on."""
    return None if span is None else (round((span.lo_ns - BOOT_NS) / S, 1), round((span.hi_ns - BOOT_NS) / S, 1))


def only(what: Heard) -> Told:
    (told,) = what.told
    return told


# Headers of real APIs. The date in each answer says 14:00:00, so that the API's clock is known to the second, and
# the second that dates come late.


@pytest.mark.parametrize(
    ("headers", "remaining", "limit", "period_s", "reset_s"),
    [
        # Twitter: epoch seconds, rounded somehow
        (
            {"x-rate-limit-limit": "900", "x-rate-limit-remaining": "899", "x-rate-limit-reset": str(EPOCH_S + 61)},
            899,
            900,
            None,
            (57.9, 62),
        ),
        # GitHub
        (
            {
                "x-ratelimit-limit": "5000",
                "x-ratelimit-remaining": "4990",
                "x-ratelimit-used": "10",
                "x-ratelimit-reset": str(EPOCH_S + 61),
                "x-ratelimit-resource": "core",
            },
            4990,
            5000,
            None,
            (57.9, 62),
        ),
        # the IETF's draft 11, and 07
        (
            {"ratelimit": '"hour";r=50;t=30', "ratelimit-policy": '"hour";q=100;w=3600;pk=:aGk=:'},
            50,
            100,
            3600,
            (29, 31),
        ),
        ({"ratelimit": '"hour";r=50;t=30'}, 50, None, None, (29, 31)),
        ({"ratelimit": '"hour";r=50'}, 50, None, None, None),
        ({"ratelimit": "limit=100, remaining=50, reset=30", "ratelimit-policy": "100;w=60"}, 50, 100, 60, (29, 31)),
        # its drafts up to 06
        ({"ratelimit-limit": "100", "ratelimit-remaining": "50", "ratelimit-reset": "30"}, 50, 100, None, (29, 31)),
        (
            {
                "ratelimit-limit": "100, 100;w=60, 1000;w=3600",
                "ratelimit-remaining": "50",
                "ratelimit-reset": "30",
            },
            50,
            100,
            60,
            (29, 31),
        ),
        (
            {"ratelimit-limit": "10", "ratelimit-policy": "10;w=1, 50;w=60", "ratelimit-remaining": "5"},
            5,
            10,
            1,
            None,
        ),
        # GitLab: an epoch in a field of the draft
        (
            {"ratelimit-limit": "600", "ratelimit-remaining": "599", "ratelimit-reset": str(EPOCH_S + 61)},
            599,
            600,
            None,
            (57.9, 62),
        ),
        # OpenAI: durations as Go prints them
        (
            {
                "x-ratelimit-limit-requests": "60",
                "x-ratelimit-remaining-requests": "59",
                "x-ratelimit-reset-requests": "6m0s",
            },
            59,
            60,
            None,
            (358.9, 361.1),
        ),
        ({"x-ratelimit-remaining": "59", "x-ratelimit-reset": "1.5s"}, 59, None, None, (1.4, 1.6)),
        ({"x-ratelimit-remaining": "59", "x-ratelimit-reset": "120ms"}, 59, None, None, (0.1, 0.1)),
        # Kong: the period is in the name
        ({"x-ratelimit-limit-hour": "60", "x-ratelimit-remaining-hour": "5"}, 5, 60, 3600, None),
        # Reddit: with a fraction
        ({"x-ratelimit-remaining": "599.0", "x-ratelimit-reset": "30"}, 599, None, None, (29, 31)),
        # Discord: the delay beside the instant
        (
            {
                "x-ratelimit-limit": "5",
                "x-ratelimit-remaining": "0",
                "x-ratelimit-reset": f"{EPOCH_S + 30}.25",
                "x-ratelimit-reset-after": "30.25",
            },
            0,
            5,
            None,
            (30.2, 30.3),
        ),
        # Anthropic
        (
            {
                "anthropic-ratelimit-requests-limit": "50",
                "anthropic-ratelimit-requests-remaining": "49",
                "anthropic-ratelimit-requests-reset": "2026-11-22T14:01:01Z",
            },
            49,
            50,
            None,
            (57.9, 62),
        ),
    ],
)
def test_given_the_headers_of_an_api_then_they_say_what_it_means(
    headers: dict[str, str],
    remaining: int,
    limit: int | None,
    period_s: int | None,
    reset_s: tuple[float, float] | None,
) -> None:
    told = only(heard(**headers))

    assert (told.remaining_units, told.limit_units) == (remaining, limit)
    assert told.period_ns == (None if period_s is None else period_s * S)
    assert in_s(told.reset) == reset_s
    assert not told.exact


@pytest.mark.parametrize(
    "value",
    [
        str(EPOCH_S + 61),
        f"{EPOCH_S + 61}.0",
        f"{EPOCH_S + 61}000",
        f"{EPOCH_S + 61}000000",
        f"{EPOCH_S + 61}000000000",
        "Sun, 22 Nov 2026 14:01:01 GMT",
        "Sunday, 22-Nov-26 14:01:01 GMT",
        "Sun Nov 22 14:01:01 2026",
        "Sun, 22 Nov 2026 15:01:01 +0100",
        "Sun Nov 22 2026 15:01:01 GMT+0100 (Central European Standard Time)",
        "2026-11-22T14:01:01Z",
        "2026-11-22T15:01:01+01:00",
    ],
)
def test_given_any_form_of_an_instant_then_it_is_the_same_one(value: str) -> None:
    assert in_s(only(heard(x_ratelimit_remaining="1", x_ratelimit_reset=value)).reset) == (57.9, 62)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "-1",
        "soon",
        "1e3",
        "0x10",
        "٣",
        "30, 30",
        "99999999999",
        "9" * 30,
        "2026-11-22",
        "2026-11-22 14:01:01",  # of no zone
        "Sun, 99 Nov 2026 14:01:01 GMT",
        str(EPOCH_S - 60),  # over already
        "400d",
        "1s" * 60,  # nobody's
        "5 m",
        "\ud800",
        "inf",
        "nan",
    ],
)
def test_given_a_reset_that_is_malformed_or_cannot_be_then_what_remains_is_believed_alone(value: str) -> None:
    told = only(heard(x_ratelimit_remaining="7", x_ratelimit_reset=value))

    assert (told.remaining_units, told.reset) == (7, None)


@pytest.mark.parametrize("value", ["-1", "", "many", "1e3", "5, 5", "9" * 14, "٣", "+5", "1_000", "\u00b2", "true"])
@pytest.mark.parametrize("name", ["x-ratelimit-remaining", "x-rate-limit-remaining", "ratelimit-remaining"])
def test_given_a_number_that_cannot_be_then_it_says_nothing(name: str, value: str) -> None:
    assert heard(**{name: value}).silent


@pytest.mark.parametrize(
    "value",
    [
        '"a";r=5.0',
        '"a";r=-1',
        '"a";r=?1',
        '"a";r="5"',
        '"a";t=5',
        "5;r=5",
        '"a";r=5,',
        '"a;r=5',
        '("a" "b");r=5',
        '"a";r=5, "a";r=7',  # there twice
        '"a";r=9999999999999',
        "remaining=-1",
        "remaining=1.5",
        "limit=5",
        '"ä";r=5',
        ", ".join(f'"p{n}";r=5' for n in range(9)),
        '"a";r=5;comment="' + "x" * 3_000 + '"',
        '"bytes";r=5',  # by the policy below, not of calls
    ],
)
def test_given_a_ratelimit_field_that_is_malformed_then_it_says_nothing(value: str) -> None:
    assert heard(ratelimit=value, ratelimit_policy='"bytes";q=9;qu="content-bytes";w=1').silent


def test_given_several_policies_then_each_is_told_with_its_own_numbers() -> None:
    found = heard(
        ratelimit='"burst";r=9;t=30, "daily";r=700;t=5000', ratelimit_policy='"burst";q=10;w=60,"daily";q=1000;w=86400'
    )

    said = [(told.remaining_units, told.limit_units, told.period_ns) for told in found.told]
    assert said == [(9, 10, 60 * S), (700, 1000, 86_400 * S)]


def test_given_an_answer_out_of_a_cache_then_it_says_nothing_but_that_it_was_refused_and_how_long() -> None:
    assert heard(age="7", x_ratelimit_remaining="0", x_ratelimit_reset="30").silent
    assert heard(403, age="7", x_ratelimit_remaining="0").silent
    assert not heard(age="0", x_ratelimit_remaining="0").silent

    for status in (403, 429):
        found = heard(status, age="7", retry_after="30", x_ratelimit_remaining="0")
        assert (found.refused, found.told, found.offset, in_s(found.wait)) == (True, (), None, (29, 31))
    assert heard(429, age="7").wait is None


# Whose word counts: `headers` of the inventory


@pytest.mark.parametrize(
    ("style", "remaining"),
    [
        (Style.AUTO, 1),
        (Style.RATELIMIT, 1),
        (Style.X_RATE_LIMIT, 3),
        (Style.GITHUB, 3),
        (Style.NONE, None),
    ],
)
def test_given_both_families_then_the_style_chooses(style: Style, remaining: int | None) -> None:
    found = heard(style=style, ratelimit='"a";r=1', ratelimit_remaining="2", x_ratelimit_remaining="3")

    assert [told.remaining_units for told in found.told] == ([] if remaining is None else [remaining])


def test_given_a_style_then_headers_of_another_say_nothing() -> None:
    assert heard(style=Style.RATELIMIT, x_ratelimit_remaining="3").silent
    assert heard(style=Style.X_RATE_LIMIT, ratelimit_remaining="3", ratelimit='"a";r=1').silent


def test_given_none_then_a_429_is_one_all_the_same_and_its_retry_after_is_obeyed() -> None:
    found = heard(429, style=Style.NONE, retry_after="30", x_ratelimit_remaining="0")

    assert found.refused
    assert not found.told
    assert in_s(found.wait) == (29, 31)


# Refusals


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (429, {}),
        (403, {"retry_after": "30"}),
        (403, {"X_RateLimit_Remaining": "0"}),
        (403, {"x_rate_limit_remaining": " 0 "}),
        (403, {"RateLimit_Remaining": "0"}),
        (403, {"RateLimit": '"a";r=0'}),
    ],
)
def test_given_a_429_or_a_403_that_says_nothing_is_left_then_it_is_a_rate_limit(
    status: int, headers: dict[str, str]
) -> None:
    assert heard(status, **headers).refused


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (403, {}),
        (403, {"X_RateLimit_Remaining": "17"}),
        (403, {"retry_after": "soon"}),
        (401, {"retry_after": "30"}),
        (200, {"x_ratelimit_remaining": "0"}),
        (503, {"retry_after": "30"}),
    ],
)
def test_given_another_answer_then_it_is_not(status: int, headers: dict[str, str]) -> None:
    assert not heard(status, **headers).refused


@pytest.mark.parametrize(
    ("value", "wait_s"),
    [
        ("30", (29, 31)),
        (" 7 ", (6, 8)),
        ("0", (0, 1)),
        ("1.5", (1.4, 1.6)),
        ("Sun, 22 Nov 2026 14:00:30 GMT", (26.9, 31)),
        ("200000", (86_400, 86_400)),  # a day is the most
        (str(EPOCH_S + 30), (26.9, 31)),  # an epoch, which the RFC does not know
    ],
)
def test_given_a_retry_after_then_it_is_how_long(value: str, wait_s: tuple[float, float]) -> None:
    found = in_s(heard(429, retry_after=value).wait)

    assert found == pytest.approx(wait_s, abs=0.15)


@pytest.mark.parametrize("value", ["", "soon", "-5", "1e3", "٣", "30, 60", "1700000000000000000000", "5000000000"])
def test_given_a_retry_after_that_cannot_be_then_nothing_was_said(value: str) -> None:
    assert heard(429, retry_after=value).wait is None


@pytest.mark.parametrize(
    ("seconds", "milliseconds", "wait_s"),
    [
        ("1", "250", (0.2, 0.3)),
        ("", "250", (0.2, 0.3)),
        ("3600", "1", (3598.3, 3601.7)),  # they contradict each other
        ("1", "90000", (90, 90)),
        ("30", "soon", (29, 31)),
        ("30", "999999999999", (29, 31)),  # thirty years
    ],
)
def test_given_milliseconds_then_they_are_finer_but_never_sooner(
    seconds: str, milliseconds: str, wait_s: tuple[float, float]
) -> None:
    assert in_s(heard(429, retry_after=seconds, retry_after_ms=milliseconds).wait) == wait_s


@pytest.mark.parametrize("value", ["Sun, 22 Nov 2026 13:59:40 GMT", str(EPOCH_S - 20)])
def test_given_a_retry_after_that_is_over_then_nothing_was_said(value: str) -> None:
    assert heard(429, retry_after=value).wait is None
    assert heard(403, retry_after=value).refused
    # and what it says of its limit is the next best
    assert in_s(heard(429, retry_after=value, ratelimit='"a";r=0;t=30').wait) == (29, 31)


def test_given_a_clock_that_begins_at_1970_then_a_delay_is_none_of_its_instants() -> None:
    assert in_s(heard(429, date="Thu, 01 Jan 1970 00:10:00 GMT", retry_after="60").wait) == (59, 61)


@pytest.mark.parametrize("second", ["Sun, 22 Nov 2026 14:08:20 GMT", "x", "GMT", "+0100"])
def test_given_a_date_that_more_follows_then_it_says_nothing(second: str) -> None:
    assert heard(429, retry_after=f"Sun, 22 Nov 2026 14:00:05 GMT, {second}").wait is None
    assert heard(429, retry_after=f"Sun, 22 Nov 2026 14:00:05 GMT {second}").wait is None
    assert heard(date=f"{DATE}, {second}").offset is None


def test_given_a_reset_in_another_unit_than_seconds_then_it_does_not_say_how_long() -> None:
    def found(seconds: str, *, named: str = "", periods_s: tuple[int, ...] = (60, 5)) -> tuple[float, float] | None:
        headers = {f"x-ratelimit-remaining{named}": "0", f"x-ratelimit-reset{named}": seconds}
        periods_ns = [period_s * S for period_s in periods_s]
        return in_s(read(answer(429, **headers), style=Style.AUTO, periods_ns=periods_ns).wait)

    assert found("59000") is None
    assert found("120") == (119, 121)
    # Where it names its unit, or its period, or is an instant, or nobody knows how long periods are, it is believed.
    assert found("59000s") is not None
    assert found("59000", named="-day") is not None
    assert found(str(EPOCH_S + 59_000)) is not None
    assert found("59000", periods_s=()) is not None


def test_given_retry_after_and_a_reset_then_retry_after_rules() -> None:
    found = heard(429, retry_after="30", ratelimit='"a";r=0;t=5')

    assert in_s(found.wait) == (29, 31)


def test_given_no_retry_after_then_it_waits_for_the_last_reset_of_those_that_are_gone() -> None:
    found = heard(429, ratelimit='"a";r=0;t=5, "b";r=0;t=30, "c";r=9;t=500')

    assert in_s(found.wait) == (29, 31)


def test_given_a_429_with_units_left_then_it_does_not_say_how_long() -> None:
    assert heard(429, x_ratelimit_remaining="9", x_ratelimit_reset="30").wait is None


# GitHub

REFUSED = {"x_github_request_id": "A1", "x_ratelimit_limit": "5000", "x_ratelimit_reset": str(EPOCH_S + 900)}
SECONDARY = b'{"message": "You have exceeded a secondary rate limit. Please wait a few minutes"}'


@pytest.mark.parametrize("status", [403, 429])
def test_given_githubs_primary_limit_then_it_waits_for_the_reset(status: int) -> None:
    found = heard(status, x_ratelimit_remaining="0", **REFUSED)

    assert (found.refused, found.secondary) == (True, False)
    assert in_s(found.wait) == (896.7, 901.2)


@pytest.mark.parametrize(("status", "body"), [(403, SECONDARY), (429, b"")])
def test_given_githubs_secondary_limit_then_it_waits_a_minute_or_as_long_as_it_says(status: int, body: bytes) -> None:
    unsaid = heard(status, body=body, x_ratelimit_remaining="4000", **REFUSED)
    said = heard(status, body=body, x_ratelimit_remaining="4000", retry_after="90", **REFUSED)

    assert (unsaid.refused, unsaid.secondary, said.refused, said.secondary) == (True,) * 4
    assert in_s(unsaid.wait) == (60, 60)
    assert in_s(said.wait) == (89, 91)
    assert only(unsaid).remaining_units == 4000


def test_given_a_permission_that_is_missing_on_github_then_it_is_no_limit() -> None:
    found = heard(403, body=b'{"message": "Must have admin rights"}', x_ratelimit_remaining="4000", **REFUSED)

    assert not found.refused


def test_given_the_style_github_then_a_server_of_ones_own_is_read_as_github_is() -> None:
    bare = {name: value for name, value in REFUSED.items() if "id" not in name}

    assert heard(403, style=Style.GITHUB, body=SECONDARY, x_ratelimit_remaining="4000", **bare).secondary
    assert not heard(403, body=SECONDARY, x_ratelimit_remaining="4000", **bare).refused


def test_given_a_secondary_limit_that_goes_on_then_each_wait_is_twice_as_long_but_only_for_what_was_sent_after_it() -> (
    None
):
    listener = Listener()
    refusal = answer(429, x_ratelimit_remaining="4000", **REFUSED)
    first = listener.hear(refusal)
    beside = listener.hear(refusal)  # was under way at the same time
    assert first.wait is not None
    assert first.wait == beside.wait == Span(BOOT_NS, BOOT_NS).moved(SECONDARY_FIRST_NS)

    later_ns = first.wait.hi_ns + S
    again = listener.hear(replace(refusal, sent_ns=later_ns, received_ns=later_ns))

    assert again.wait == Span(later_ns, later_ns).moved(2 * SECONDARY_FIRST_NS)


# Which limit it is about


def limits(*rates: tuple[int, int]) -> list[Limit]:
    return [Limit(units, seconds * S) for units, seconds in rates]


def told(
    remaining: int | None = 5,
    *,
    limit: int | None = None,
    period_s: int | None = None,
    reset_s: int | None = None,
    exact: bool = False,
) -> Told:
    reset = None if reset_s is None else Span(BOOT_NS + reset_s * S, BOOT_NS + reset_s * S)
    period_ns = None if period_s is None else period_s * S
    return Told(remaining, limit, period_ns, reset, BOOT_NS, BOOT_NS, exact=exact)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (told(period_s=900), (300, 900)),
        (told(period_s=60), None),
        (told(limit=20_000), (20_000, 3600)),
        (told(limit=20_000, period_s=900), (300, 900)),
        (told(limit=77, reset_s=1000), (20_000, 3600)),
        (told(reset_s=901), (20_000, 3600)),
        (told(reset_s=100), None),  # it may be the end of either
        (told(reset_s=5000), None),
        (told(), None),
        (told(limit=77, reset_s=100, exact=True), None),
        (told(limit=300, exact=True), (300, 900)),
    ],
)
def test_given_several_limits_then_what_is_said_finds_its_own(said: Told, found: tuple[int, int] | None) -> None:
    expected = None if found is None else Limit(found[0], found[1] * S)

    assert limit_of(said, limits((300, 900), (20_000, 3600))) == expected


@pytest.mark.parametrize("said", [told(), told(limit=77), told(reset_s=10_000), told(limit=100)])
def test_given_one_limit_then_it_is_the_one_unless_it_may_be_something_else(said: Told) -> None:
    (one,) = limits((100, 3600))

    assert limit_of(said, [one]) == one
    assert limit_of(replace(said, exact=True), [one]) == (one if said.limit_units == 100 else None)


def test_given_a_paced_quota_then_it_is_the_bucket_unless_the_rate_is_nearer() -> None:
    rate, bucket = Limit(100, 3600 * S), Limit(4, 144 * S, Window.PACED)

    for said in (told(), told(limit=4), told(limit=10), told(reset_s=1000)):
        assert limit_of(said, [bucket, rate]) == bucket
    for said in (told(limit=100), told(limit=80), told(limit=5000), told(period_s=3600)):
        assert limit_of(said, [bucket, rate]) == rate
    assert limit_of(told(), [bucket]) == bucket
    assert limit_of(told(), []) is None


@pytest.mark.parametrize(
    "headers",
    [
        {"x_ratelimit_remaining_tokens": "3", "x_ratelimit_limit_tokens": "160000"},
        {"x_ratelimit_remaining": "29", "x_ratelimit_limit": "30", "x_ratelimit_resource": "search"},
        {"ratelimit": '"t";r=3', "ratelimit_policy": '"t";q=160000;qu="tokens"'},
        {"anthropic_ratelimit_input_tokens_remaining": "3"},
    ],
)
def test_given_what_may_not_be_calls_then_it_is_only_of_a_limit_with_its_units(headers: dict[str, str]) -> None:
    assert only(heard(**headers)).exact


def test_given_an_api_that_reports_now_one_limit_now_another_then_each_is_only_of_its_own() -> None:
    listener = Listener()

    def hear(limit: int) -> bool:
        return only(listener.hear(answer(x_rate_limit_limit=str(limit), x_rate_limit_remaining="5"))).exact

    # Given an API whose limit was changed: it is still the one
    assert [hear(900), hear(900), hear(300), hear(300)] == [False] * 4
    # When it turns back, it has several
    assert [hear(900), hear(300), hear(15)] == [True] * 3


# The clock of the API


def test_given_dates_then_the_clock_becomes_known_as_well_as_the_latency_allows() -> None:
    listener = Listener()
    for step in range(200):
        sent_ns = BOOT_NS + step * 37 * MS
        made_ns = sent_ns + 5 * MS
        date = format_datetime(datetime.fromtimestamp(EPOCH_S + (made_ns - BOOT_NS) // S, UTC), usegmt=True)
        found = listener.hear(Answer(200, {"date": date}, sent_ns, sent_ns + 10 * MS, 0))

    assert found.offset is not None
    truth_ns = EPOCH_S * S - BOOT_NS
    # How far it may be ahead is known no better than how late dates are.
    assert truth_ns - 40 * MS < found.offset.span.lo_ns <= truth_ns <= found.offset.span.hi_ns < truth_ns + 1140 * MS


def test_given_a_clock_that_is_set_then_the_new_one_is_believed() -> None:
    listener = Listener()
    listener.hear(answer())
    found = listener.hear(replace(answer(), headers={"date": "Sun, 22 Nov 2026 15:00:00 GMT"}))

    assert found.offset is not None
    assert found.offset.span.lo_ns == (EPOCH_S + 3600) * S - BOOT_NS


def test_given_servers_with_a_clock_each_then_it_may_be_either_for_an_hour() -> None:
    # Given an API of two servers, the clock of one 3 s behind
    listener = Listener()
    truths_ns = (EPOCH_S * S - BOOT_NS, (EPOCH_S - 3) * S - BOOT_NS)

    def hear(at_ns: int, which: int) -> Offset:
        date_s = (at_ns + truths_ns[which]) // S
        date = format_datetime(datetime.fromtimestamp(date_s, UTC), usegmt=True)
        found = listener.hear(Answer(200, {"date": date}, at_ns, at_ns, 0)).offset
        assert found is not None
        return found

    # When they answer in turns, then from the first contradiction on both are in what is believed
    at_ns = BOOT_NS
    for step in range(40):
        hear(at_ns, 0)
        at_ns += 370 * MS
        seen = hear(at_ns, step % 2)
        at_ns += 370 * MS
        if step > 10:
            assert all(seen.span.lo_ns <= truth_ns <= seen.span.hi_ns for truth_ns in truths_ns)
            assert seen.span.hi_ns - seen.span.lo_ns < 8 * S

    # and an hour after only one is left it is known as well as ever
    at_ns += HOUR_NS
    for _ in range(20):
        at_ns += 370 * MS
        seen = hear(at_ns, 0)
    assert truths_ns[0] - S < seen.span.lo_ns <= truths_ns[0] <= seen.span.hi_ns < truths_ns[0] + 2 * S


@pytest.mark.parametrize("date", ["", "yesterday", "Sun, 99 Nov 2026 14:00:00 GMT", str(EPOCH_S)])
def test_given_no_date_then_this_machines_clock_is_believed_to_two_seconds(date: str) -> None:
    headers = {"x-ratelimit-remaining": "1", "x-ratelimit-reset": str(EPOCH_S + 60), "date": date}
    found = read(Answer(200, headers, BOOT_NS, BOOT_NS, EPOCH_S * S), style=Style.AUTO)

    assert in_s(only(found).reset) == (57, 63)
    assert found.offset is None


def test_given_a_reset_on_a_multiple_of_the_period_then_it_is_exact_but_for_the_clock() -> None:
    reset = str(EPOCH_S + 3600)
    found = read(answer(x_ratelimit_remaining="1", x_ratelimit_reset=reset), style=Style.AUTO, periods_ns=[HOUR_NS])
    short = read(answer(x_ratelimit_remaining="1", x_ratelimit_reset=reset), style=Style.AUTO, periods_ns=[S])

    assert in_s(only(found).reset) == (3597.2, 3600.7)  # the clock, two seconds; drift over an hour, 0.7 s
    assert in_s(only(short).reset) == (3596.2, 3601.7)


def test_given_no_reset_then_the_windows_of_the_clock_are_told_where_they_count() -> None:
    listener = Listener(periods_ns=(HOUR_NS, 20 * S), by_clock=True)
    middle = replace(answer(), headers={"date": "Sun, 22 Nov 2026 14:00:05 GMT"})

    found = listener.hear(middle)

    assert [(told.period_ns, told.from_clock, told.remaining_units) for told in found.told] == [
        (HOUR_NS, True, None),
        (20 * S, True, None),
    ]
    assert in_s(found.told[1].reset) == (12.9, 15)
    # and not where the API says itself when they end
    reported = listener.hear(replace(middle, headers={**middle.headers, "x-ratelimit-reset": "9"}))
    assert [told.from_clock for told in reported.told] == [False]


def test_given_a_clock_that_is_not_known_well_enough_then_it_is_not_certain_which_window_it_is() -> None:
    offset = Offset(Span(EPOCH_S * S - BOOT_NS - S, EPOCH_S * S - BOOT_NS + S), BOOT_NS)

    assert clock_reset(offset, 20 * S, BOOT_NS) is None
    assert clock_reset(offset, 20 * S, BOOT_NS + 10 * S) is not None
    assert clock_reset(offset, S, BOOT_NS + 10 * S) is None


# A simulated API, which knows the truth


@dataclass(frozen=True)
class Api:
    """Its clock shows `offset_ns` more than the boot clock and runs `drift_ppm` faster; windows end every `period_s`,
    `phase_ms` later than the multiples of that. Its date is made anew `date_every_ms` after the last; None: each time.
    """

    offset_ns: int
    drift_ppm: int
    period_s: int
    phase_ms: int
    form: str
    rounding: str
    date_every_ms: int | None

    def clock(self, boot_ns: int) -> int:
        return boot_ns + self.offset_ns + boot_ns * self.drift_ppm // 1_000_000

    def boot(self, clock_ns: int) -> int:
        return int(Fraction(clock_ns - self.offset_ns) / (1 + Fraction(self.drift_ppm, 1_000_000)))

    def end(self, boot_ns: int) -> int:
        """The end of the window at `boot_ns`, by its own clock."""
        period_ns, phase_ns = self.period_s * S, self.phase_ms * MS
        return ((self.clock(boot_ns) - phase_ns) // period_ns + 1) * period_ns + phase_ns

    def rounded(self, value_ns: int, grain_ns: int) -> int:
        down = value_ns // grain_ns
        if self.rounding == "nearest":
            return (value_ns + grain_ns // 2) // grain_ns
        return down if self.rounding == "down" else -(-value_ns // grain_ns)

    def headers(self, made_ns: int) -> dict[str, str]:
        now_ns, end_ns = self.clock(made_ns), self.end(made_ns)
        after_ns = end_ns - now_ns
        dated_ns = now_ns if self.date_every_ms is None else now_ns - now_ns % (self.date_every_ms * MS)
        date = format_datetime(datetime.fromtimestamp(dated_ns // S, UTC), usegmt=True)
        match self.form:
            case "epoch":
                said = str(self.rounded(end_ns, S))
            case "epoch ms":
                said = str(self.rounded(end_ns, MS))
            case "fraction":
                tenths = self.rounded(end_ns, S // 10)
                said = f"{tenths // 10}.{tenths % 10}"
            case "delta":
                said = str(self.rounded(after_ns, S))
            case "go":
                ms = self.rounded(after_ns, MS)
                said = f"{ms // 60_000}m{ms // 1000 % 60}.{ms % 1000:03}s"
            case _:
                said = format_datetime(datetime.fromtimestamp(self.rounded(end_ns, S), UTC), usegmt=True)
        return {"date": date, "x-ratelimit-remaining": "5", "x-ratelimit-reset": said}


apis = st.builds(
    Api,
    offset_ns=st.integers(-3 * 10**8, 3 * 10**8).map(lambda s: (EPOCH_S + s) * S + 123_456_789),
    drift_ppm=st.integers(-90, 90),
    period_s=st.sampled_from([1, 20, 60, 900, 3600, 86_400]),
    phase_ms=st.integers(0, 10**6),
    form=st.sampled_from(["epoch", "epoch ms", "fraction", "delta", "go", "date"]),
    rounding=st.sampled_from(["down", "up", "nearest"]),
    date_every_ms=st.none() | st.integers(990, 1100),
)
#: (ms since the last call, ms until the answer is made, ms until it arrives)
calls = st.lists(st.tuples(st.integers(0, 100_000), st.integers(0, 800), st.integers(0, 800)), min_size=1, max_size=12)


@given(apis, calls)
def test_given_any_clock_latency_and_rounding_then_the_truth_is_in_every_span(
    api: Api, made: list[tuple[int, int, int]]
) -> None:
    # Given a listener that does not know the period, so that no reset counts as exact
    listener, aligned = Listener(), Listener(periods_ns=(api.period_s * S,), by_clock=True)
    now_ns = BOOT_NS
    for pause_ms, there_ms, back_ms in made:
        sent_ns = now_ns + pause_ms * MS
        made_ns = sent_ns + there_ms * MS
        now_ns = made_ns + back_ms * MS
        headers = api.headers(made_ns)

        # When it answers, this machine's own clock being anywhere
        heard = listener.hear(Answer(200, headers, sent_ns, now_ns, 0))

        # Then its clock and the end of its window are in what was heard
        assert heard.offset is not None
        truth_ns = api.clock(now_ns) - now_ns
        assert heard.offset.span.lo_ns <= truth_ns <= heard.offset.span.hi_ns
        reset, ends_ns = only(heard).reset, api.boot(api.end(made_ns))
        assert reset is not None
        assert reset.lo_ns - 1 <= ends_ns <= reset.hi_ns + 1

        # and, for windows that are aligned to the clock, also in what follows from the clock alone
        if api.phase_ms == 0:
            for told in aligned.hear(Answer(200, {"date": headers["date"]}, sent_ns, now_ns, 0)).told:
                assert told.reset is not None
                assert told.reset.lo_ns - 1 <= api.boot(api.end(now_ns)) <= told.reset.hi_ns + 1


@given(apis, st.integers(0, 100_000), st.integers(0, 800), st.integers(0, 800), st.booleans())
def test_given_a_retry_after_then_the_truth_is_in_the_wait(
    api: Api, wait_ms: int, there_ms: int, back_ms: int, as_date: bool
) -> None:
    made_ns = BOOT_NS + there_ms * MS
    served_ns = made_ns + wait_ms * MS
    served = api.clock(served_ns)
    after = str(api.rounded(served - api.clock(made_ns), S))
    date = format_datetime(datetime.fromtimestamp(api.rounded(served, S), UTC), usegmt=True)
    headers = {**api.headers(made_ns), "retry-after": date if as_date else after}

    found = read(Answer(429, headers, BOOT_NS, made_ns + back_ms * MS, 0), style=Style.AUTO).wait

    assert found is not None
    assert found.lo_ns - 1 <= served_ns <= found.hi_ns + 1


# Soup

NAMES = st.sampled_from(
    [
        "age",
        "date",
        "ratelimit",
        "ratelimit-limit",
        "ratelimit-policy",
        "ratelimit-remaining",
        "ratelimit-reset",
        "retry-after",
        "retry-after-ms",
        "x-github-request-id",
        "x-rate-limit-limit",
        "x-rate-limit-remaining",
        "x-rate-limit-reset",
        "x-ratelimit-limit-requests",
        "x-ratelimit-remaining-tokens",
        "x-ratelimit-reset",
        "x-ratelimit-reset-after",
        "x-ratelimit-resource",
    ]
) | st.text(max_size=30)
VALUES = (
    st.text(max_size=40)
    | st.integers(-(10**25), 10**25).map(str)
    | st.floats().map(str)
    | st.from_regex(r'"?[a-z]*"?(;[a-z]{1,2}=-?[0-9:"?]*){0,4},? ?', fullmatch=True)
    | st.from_regex(r"([0-9]{1,3}(\.[0-9]*)?(h|m|s|ms|us|ns|d)){1,4}", fullmatch=True)
    | st.sampled_from([DATE, "0", "5", "-0", "999999999999999", str(EPOCH_S), "Mon, 01 Jan 0001 00:00:00 -2359"])
)
INSTANTS = st.integers(0, 2**62)


@given(
    st.lists(
        st.tuples(st.integers(100, 599), st.dictionaries(NAMES, VALUES, max_size=8), INSTANTS, INSTANTS, INSTANTS),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(Style),
    st.binary(max_size=20),
)
def test_given_any_soup_of_headers_then_nothing_fails_and_nothing_absurd_is_said(
    soups: list[tuple[int, dict[str, str], int, int, int]], style: Style, body: bytes
) -> None:
    listener = Listener(style, (HOUR_NS, 15 * S), by_clock=True)
    for status, headers, one_ns, other_ns, wall_ns in soups:
        sent_ns, received_ns = sorted((one_ns, other_ns))

        heard = listener.hear(Answer(status, headers, sent_ns, received_ns, wall_ns, body))

        assert heard.refused or heard.wait is None
        if heard.wait is not None:
            assert sent_ns <= heard.wait.lo_ns <= heard.wait.hi_ns <= received_ns + MAX_WAIT_NS
        for told in heard.told:
            assert told.remaining_units is None or 0 <= told.remaining_units <= 10**12
            assert told.limit_units is None or 0 <= told.limit_units <= 10**12
            assert told.reset is None or told.reset.lo_ns <= told.reset.hi_ns
            limit_of(told, [Limit(5, HOUR_NS)])
