"""What the control log's records mean, and which of them mean nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qctl.control.desired import Desired, fold
from qctl.control.event import (
    MAX_EVENT_BYTES,
    MAX_RATES,
    Command,
    Hello,
    Notice,
    NotUnderstood,
    Record,
    Verb,
    read,
)
from qctl.control.target import Target

HELLO = Hello("n-1", "web-1", 0, "ledger-a", "box", 17, at="2026-11-22T21:00:00.000Z", user="tasks")
ID = "0123456789abcdef0123456789abcdef"
AT = "2026-11-22T21:00:00.123Z"
PAUSE = Command(
    ID,
    AT,
    Verb.PAUSE,
    Target(host="web-1", consumer="timeline"),
    reason="the API is sick",
    until_s=1795381200.5,
    claimed_by="ann@desk",
    user="oncall",
)
SET = Command(
    ID, AT, Verb.QUOTA_SET, Target(host="web-*"), quota="twitter", rates=("300/15m", "20000/h"), user="oncall"
)


def record(
    body: bytes | None = None, *, user: str = "tasks", exchange: str = "qctl.hello", nonce: str = "n-1"
) -> Record:
    return Record(7, exchange, nonce, user, HELLO.body() if body is None else body)


def changed(**fields: Any) -> bytes:
    return json.dumps({**json.loads(HELLO.body()), **fields}).encode()


def commanded(command: Command | bytes, *, user: str = "oncall", identity: str = ID) -> Record:
    body = command if isinstance(command, bytes) else command.body()
    return Record(7, "qctl.control", identity, user, body, "answers")


def edited(command: Command = PAUSE, **fields: Any) -> bytes:
    return json.dumps({**json.loads(command.body()), **fields}).encode()


def test_given_a_hello_then_it_is_read_as_it_was_said() -> None:
    assert read(record()) == HELLO


def test_given_a_hello_of_an_earlier_version_then_it_does_not_say_when() -> None:
    fields = json.loads(HELLO.body())
    del fields["at"]

    found = read(record(json.dumps(fields).encode()))

    assert isinstance(found, Hello)
    assert found.at is None


@pytest.mark.parametrize("until", ["9998-12-31T23:59:59.999Z", "0002-01-01T00:00:00Z"])
def test_given_a_time_that_is_understood_then_it_can_be_written_again(until: str) -> None:
    found = read(commanded(edited(until=until)))

    assert isinstance(found, Command)
    assert isinstance(read(commanded(found)), Command)


def test_given_fields_of_a_later_version_then_they_are_left_alone() -> None:
    assert read(record(changed(mood="good"))) == HELLO
    assert read(commanded(edited(mood="good"))) == PAUSE


@pytest.mark.parametrize(
    "command",
    [
        PAUSE,
        SET,
        Command(ID, AT, Verb.RESUME, Target(tag="qctl/web-1/timeline/0"), user="oncall"),
        Command(ID, AT, Verb.QUOTA_CLEAR, Target(host="web-1"), quota="*", user="oncall"),
        Command(ID, AT, Verb.PAUSE, Target(host="web-1"), local=True, user="oncall"),
    ],
)
def test_given_a_command_then_it_is_read_as_it_was_given(command: Command) -> None:
    assert read(commanded(command)) == command


def test_given_one_rate_alone_then_it_is_a_list_of_one() -> None:
    found = read(commanded(edited(SET, args={"quota": "twitter", "limit": "900/15m"})))

    assert isinstance(found, Command)
    assert found.rates == ("900/15m",)
    assert found.limits == ((900, 900 * 10**9),)


def test_given_a_reason_that_is_long_or_has_control_characters_then_it_is_made_fit_to_be_shown() -> None:
    found = read(commanded(edited(reason="\x1b[2J" + "long " * 1000, **{"as": "ann\n@desk"})))

    assert isinstance(found, Command)
    assert found.reason is not None
    assert found.reason.isprintable()
    assert len(found.reason) == 500
    assert found.claimed_by == "ann @desk"


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (record(user=""), "no user_id"),
        (record(exchange="qctl.control"), "verb None is not known"),
        (record(exchange="qctl.telemetry"), "exchange 'qctl.telemetry'"),
        (record(exchange=""), "exchange ''"),
        (record(PAUSE.body(), nonce=ID), "nonce must be"),
        (record(b"{"), "not JSON"),
        (record(b"\xff"), "not UTF-8"),
        (record(b"[" * 50_000), "nested too deeply"),
        (record(b"[]"), "not a JSON object"),
        (record(b" " * (MAX_EVENT_BYTES + 1)), "too large"),
        (record(changed(v=2)), "version 2"),
        (record(changed(v=True)), "version True"),
        (record(changed(v=[[1]] * 9_000)), "version [["),
        (record(b'{"v":' + b"[" * 900 + b"]" * 900 + b"}"), "version [["),
        (record(changed(host="")), "host must be"),
        (record(changed(host="x" * 256)), "host must be"),
        (record(changed(host=["web-1"])), "host must be"),
        (record(changed(host="web\n1")), "host has characters"),
        (record(changed(host="\ud800")), "host has characters"),
        (record(changed(ledger=None)), "ledger must be"),
        (record(changed(index=-1)), "index must be"),
        (record(changed(index=True)), "index must be"),
        (record(changed(index=0.0)), "index must be"),
        (record(nonce="n-2"), "message_id"),
        (commanded(PAUSE, user=""), "no user_id"),
        (commanded(PAUSE, identity="f" * 32), "message_id"),
        (commanded(edited(v=2)), "version 2"),
        (commanded(edited(verb="explode")), "verb 'explode' is not known"),
        (commanded(edited(verb=None)), "verb None"),
        (commanded(edited(verb=["pause"])), "verb ['pause']"),
        (commanded(edited(verb={})), "verb {}"),
        (commanded(edited(id="")), "id must be 32"),
        (commanded(edited(id="F" * 32)), "id must be 32"),
        (commanded(edited(id=7)), "id must be 32"),
        (commanded(edited(at=None)), "at must be"),
        (commanded(edited(at="yesterday")), "at must be"),
        (commanded(edited(until="2026-13-22T21:00:00Z")), "until must be"),
        (commanded(edited(until="2026-11-22T21:00:00+01:00")), "until must be"),
        (commanded(edited(until=1795381200)), "until must be"),
        (commanded(edited(until="2026-11-22T21:00:00Z\n")), "until must be"),
        (commanded(edited(until="9999-12-31T23:59:59.999999Z")), "until must be"),
        (commanded(edited(until="9998-12-31T23:59:59.999999Z")), "until must be"),  # rounded up, the year after
        (commanded(edited(until="0001-01-01T00:00:00Z")), "until must be"),
        (commanded(edited(target=None)), "names nothing"),
        (commanded(edited(target={})), "names nothing"),
        (commanded(edited(target={"hsot": "web-1"})), "does not know: 'hsot'"),
        (commanded(edited(target={"host": "web\x00"})), "host must be"),
        (commanded(edited(target="web-1")), "target must be"),
        (commanded(edited(reason=7)), "reason must be"),
        (commanded(edited(**{"as": []})), "as must be"),
        (commanded(edited(args=[])), "args must be"),
        (commanded(edited(args={"local": 1})), "args.local"),
        (commanded(edited(verb="resume")), "`until` makes no sense"),
        (commanded(edited(SET, args={"limit": "20000/h"})), "args.quota must be"),
        (commanded(edited(SET, args={"quota": 7, "limit": "20000/h"})), "args.quota must be"),
        (commanded(edited(SET, args={"quota": "twitter"})), "args.limit must be"),
        (commanded(edited(SET, args={"quota": "twitter", "limit": []})), "args.limit must be"),
        (commanded(edited(SET, args={"quota": "twitter", "limit": [7]})), "args.limit must be"),
        (commanded(edited(SET, args={"quota": "twitter", "limit": ["1/h"] * (MAX_RATES + 1)})), "args.limit must be"),
        (commanded(edited(SET, args={"quota": "twitter", "limit": "0/h"})), "args.limit: a limit is between"),
        (commanded(edited(SET, args={"quota": "twitter", "limit": "99999999999999/h"})), "args.limit: "),
        (commanded(edited(SET, target={"queue": "timeline"})), "is a host and nothing else"),
        (commanded(edited(SET, target={"host": "web-1", "consumer": "c"})), "is a host and nothing else"),
        (commanded(b'{"v":1,"until":NaN}'), "NaN is not JSON"),
        (commanded(b'{"v":1e999}'), "too large a number"),
        (commanded(b'{"v":' + b"1" * 50_000 + b"}"), "not JSON"),
    ],
)
def test_given_what_is_no_event_then_it_is_refused_with_the_reason(found: Record, reason: str) -> None:
    with pytest.raises(NotUnderstood) as refused:
        read(found)

    assert reason in str(refused.value)
    assert len(str(refused.value)) < 600


values = st.recursive(
    st.none() | st.booleans() | st.text(max_size=5) | st.integers() | st.floats(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=5,
)


@given(st.binary(max_size=200) | values.map(lambda value: json.dumps(value).encode()))
def test_whatever_stands_in_the_log_costs_no_more_than_a_refusal(body: bytes) -> None:
    for found in (record(body), commanded(body)):
        with pytest.raises(NotUnderstood):
            read(found)


@given(st.sampled_from(sorted(json.loads(SET.body()))), values)
def test_whatever_stands_in_a_field_of_a_command_costs_no_more_than_a_refusal(key: str, value: Any) -> None:
    try:
        found = read(commanded(edited(SET, **{key: value})))
    except NotUnderstood:
        return
    assert isinstance(found, Command)
    assert read(commanded(found)) == found


# Notices


NOTICE = Notice(ID, AT, "web-1", "mail", True, 212, 260, 600, 1_000, 1_000, 188, AT, user="tasks")


def noticed(**fields: Any) -> Record:
    body = json.dumps({**json.loads(NOTICE.body()), **fields}).encode()
    return Record(7, "qctl.hello", ID, "tasks", body)


@pytest.mark.parametrize("fields", [{}, {"limit": None}, {"remaining": None}, {"since": None}])
def test_a_notice_is_read_as_it_was_written(fields: dict[str, Any]) -> None:
    assert read(noticed(**fields)) == replace(NOTICE, **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"notice": "the sky falls"},
        {"notice": ["foreign spending begins"]},
        {"notice": None},
        {"id": "b" * 32},
        {"at": "yesterday"},
        {"since": 12},
        {"host": ""},
        {"quota": "a\x1b[2J"},
        {"units": -1},
        {"units": 1 << 60},
        {"ours": 1.5},
        {"most": True},
        {"limit": "1000"},
        {"remaining": -1},
        {"limit_units": None},
    ],
)
def test_a_notice_that_cannot_be_is_none(fields: dict[str, Any]) -> None:
    with pytest.raises(NotUnderstood):
        read(noticed(**fields))


def test_a_notice_changes_nothing_of_what_holds() -> None:
    before = fold(Desired(), [HELLO, PAUSE])

    assert fold(before, [NOTICE]) == before
