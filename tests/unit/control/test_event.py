"""What the control log's records mean, and which of them mean nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qctl.control.event import MAX_EVENT_BYTES, Hello, NotUnderstood, Record, read

HELLO = Hello(nonce="n-1", host="web-1", index=0, ledger="ledger-a", machine="box", pid=17)


def record(
    body: bytes | None = None, *, user: str = "tasks", exchange: str = "qctl.hello", nonce: str = "n-1"
) -> Record:
    return Record(7, exchange, nonce, user, HELLO.body() if body is None else body)


def changed(**fields: Any) -> bytes:
    return json.dumps({**json.loads(HELLO.body()), **fields}).encode()


def test_given_a_hello_then_it_is_read_as_it_was_said() -> None:
    assert read(record()) == HELLO


def test_given_fields_of_a_later_version_then_they_are_left_alone() -> None:
    assert read(record(changed(mood="good"))) == HELLO


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (record(user=""), "no user_id"),
        (record(exchange="qctl.control"), "exchange 'qctl.control'"),
        (record(exchange=""), "exchange ''"),
        (record(b"{"), "not JSON"),
        (record(b"\xff"), "not UTF-8"),
        (record(b"[" * 50_000), "nested too deeply"),
        (record(b"[]"), "not a JSON object"),
        (record(b" " * (MAX_EVENT_BYTES + 1)), "too large"),
        (record(changed(v=2)), "version 2"),
        (record(changed(v=True)), "version True"),
        (record(changed(v=[[1]] * 9_000)), "version [["),
        (record(changed(host="")), "host must be"),
        (record(changed(host="x" * 256)), "host must be"),
        (record(changed(host=["web-1"])), "host must be"),
        (record(changed(ledger=None)), "ledger must be"),
        (record(changed(index=-1)), "index must be"),
        (record(changed(index=True)), "index must be"),
        (record(changed(index=0.0)), "index must be"),
        (record(nonce="n-2"), "message_id"),
    ],
)
def test_given_what_is_no_event_then_it_is_refused_with_the_reason(found: Record, reason: str) -> None:
    with pytest.raises(NotUnderstood) as refused:
        read(found)

    assert reason in str(refused.value)
    assert len(str(refused.value)) < 600


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.text() | st.integers(), st.lists, max_leaves=5).map(
        lambda value: json.dumps(value).encode()
    )
)
def test_whatever_stands_in_the_log_costs_no_more_than_a_refusal(body: bytes) -> None:
    with pytest.raises(NotUnderstood):
        read(record(body))
