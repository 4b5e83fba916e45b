"""What an entry of the control log tells an operator, and how instants are written."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from qctl.control.event import Command, Hello, Notice, Record, Verb
from qctl.control.history import Entry
from qctl.control.target import Target
from qctl.ops.events import happened
from qctl.ops.when import clock, instant, iso, local, span

NOON_S = datetime(2026, 11, 22, 12, 0, tzinfo=UTC).timestamp()


def entry(command: Command | Hello | Notice | None, refused: str = "", user: str = "oncall") -> Entry:
    """An entry at offset 7."""
    return Entry(Record(7, "qctl.control", "a" * 32, user, b"{}"), command, refused)


PAUSE = Command(
    "a" * 32, "2026-11-22T12:00:00.000Z", Verb.PAUSE, Target("web-1", "timeline"), "slow", NOON_S, "ann@laptop"
)


def test_a_command_tells_who_what_when_and_why() -> None:
    found = happened(entry(PAUSE))

    assert found is not None
    item = found.item()
    assert (item["by"], item["as"], item["verb"], item["target"]) == (
        "oncall",
        "ann@laptop",
        "pause",
        "web-1/timeline",
    )
    assert (item["until"], item["reason"], item["ignored"]) == ("2026-11-22T12:00:00.000Z", "slow", None)


def test_a_quota_command_names_its_quota_and_rates() -> None:
    wanted = Command("b" * 32, "", Verb.QUOTA_SET, Target("*"), quota="twitter", rates=("5/m",))

    found = happened(entry(wanted))
    assert found is not None
    assert (found.target, found.rates) == ("*/twitter", ("5/m",))


def test_what_is_not_obeyed_is_there_with_the_reason() -> None:
    refused = happened(entry(PAUSE, "user mallory is not an operator", user="mallory"))
    strange = happened(entry(None, "not understood: no JSON", user=""))

    assert refused is not None
    assert strange is not None
    assert (refused.user, refused.ignored) == ("mallory", "user mallory is not an operator")
    assert (strange.item()["by"], strange.item()["verb"], strange.ignored) == (None, None, "not understood: no JSON")


def test_greetings_of_workers_are_no_events() -> None:
    assert happened(entry(Hello("n", "web-1", 0, "l", "m", 1))) is None


def test_an_instant_of_another_day_says_which() -> None:
    assert clock(NOON_S, now_s=NOON_S + 60, zone=UTC) == "12:00:00 UTC"
    assert clock(NOON_S, now_s=NOON_S + 86_400, zone=UTC) == "2026-11-22 12:00:00 UTC"
    tokyo = timezone(timedelta(hours=9), "JST")
    assert local(NOON_S, zone=tokyo) == "2026-11-22 21:00:00 JST"


def test_instants_of_no_calendar_do_no_harm() -> None:
    assert iso(1e30) is None
    assert instant("2026-11-22T12:00:00") is None
    assert instant("soon") is None
    assert instant(iso(NOON_S)) == NOON_S
    assert "calendar" in clock(1e30, now_s=NOON_S)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.44, "0.4s"), (9.96, "10s"), (59.6, "1m00s"), (192.0, "3m12s"), (7_500.0, "2h05m"), (792_000.0, "9d04h")],
)
def test_a_length_of_time_at_a_glance(seconds: float, words: str) -> None:
    assert span(seconds) == words


def test_what_a_host_found_out_is_an_event_with_its_numbers() -> None:
    notice = Notice(
        "c" * 32,
        "2026-11-22T12:00:00.000Z",
        "web-1",
        "mail",
        begins=True,
        units=212,
        most=212,
        ours=600,
        limit_units=1_000,
        limit=1_000,
        remaining=188,
        since="2026-11-22T11:58:00.000Z",
    )

    found = happened(entry(notice, user="worker"))

    assert found is not None
    item = found.item()
    assert (item["by"], item["verb"], item["target"], item["ignored"]) == ("worker", None, "web-1/mail", None)
    assert (item["notice"], item["since"]) == ("foreign spending begins", "2026-11-22T11:58:00.000Z")
    assert item["reason"] == "the API counts 812 of 1000 used; this host spent 600; 212 by someone else"


def test_at_its_end_it_is_told_how_much_it_was_and_till_when() -> None:
    notice = Notice(
        "c" * 32,
        "2026-11-22T12:00:30.000Z",
        "web-1",
        "mail",
        begins=False,
        units=7,
        most=9,
        ours=51,
        limit_units=60,
        limit=60,
        remaining=0,
        since="2026-11-22T11:58:00.000Z",
        until="2026-11-22T12:00:00.000Z",
    )

    found = happened(entry(notice, user="worker"))

    assert found is not None
    assert (found.found_out, found.reason) == (
        "spending by someone else ends",
        "at most 7 to 9 of 60 at one time",
    )
    assert found.item()["until"] == "2026-11-22T12:00:00.000Z"
