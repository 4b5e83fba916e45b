"""Answers of worker processes, as they come off the wire."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from qctl.control.answer import MAX_ANSWER_BYTES, MAX_ROWS, parse_answer, sift

ROW = {
    "consumer": "timeline",
    "queue": "timeline",
    "tag": "qctl/web-1/timeline/0",
    "state": "paused",
    "why": "by oncall",
    "since": "2026-11-22T21:00:00.123Z",
    "cancelled_at": "2026-11-22T21:00:00.123Z",
    "running": 2,
    "given_back": 7,
    "remains": [{"id": "a", "target": "web-1", "by": "oncall", "reason": None, "until": None}],
}
ANSWER = {
    "v": 1,
    "id": "e",
    "host": "web-1",
    "index": 0,
    "pid": 10,
    "at": "x",
    "rows": [ROW],
    "quotas": [],
    "refused": None,
}


def body(**changed: Any) -> bytes:
    return json.dumps({**ANSWER, **changed}).encode()


def row(**changed: Any) -> bytes:
    return body(rows=[{**ROW, **changed}])


def test_an_answer_is_read() -> None:
    found = parse_answer(body())
    assert (found.id, found.host, found.index, found.pid, found.refused) == ("e", "web-1", 0, 10, "")
    one = found.rows[0]
    assert (one.state, one.cancelled_at_s, one.running, one.given_back) == ("paused", 1795381200.123, 2, 7)
    assert (one.remains[0].target, one.remains[0].by) == ("web-1", "oncall")


def test_quotas_are_read() -> None:
    found = parse_answer(body(rows=[], quotas=[{"quota": "twitter", "limits": ["20000/h"], "override": None}]))
    assert (found.quotas[0].quota, found.quotas[0].limits) == ("twitter", ("20000/h",))


def test_what_a_later_version_adds_is_passed_over() -> None:
    assert parse_answer(row(colour="red")).rows[0].state == "paused"


def test_words_for_people_are_one_line_without_control_characters() -> None:
    assert parse_answer(row(why="a\x1b[31m\nb")).rows[0].why == "a [31m b"


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        body(v=2),
        body(v=True),
        body(id=None),
        body(id=""),
        body(host="x" * 300),
        body(index=-1),
        body(index="0"),
        body(index=True),
        body(pid=1.5),
        body(rows={}),
        body(rows=[1]),
        body(rows=[ROW] * (MAX_ROWS + 1)),
        body(refused=1),
        row(tag=None),
        row(state=1),
        row(running=-1),
        row(given_back="7"),
        row(cancelled_at="yesterday"),
        row(cancelled_at="2026-11-22T21:00:00"),
        row(cancelled_at=5),
        row(remains=[{}]),
        row(remains=[{"id": "a", "target": "t", "by": None}]),
        body(quotas=[{"quota": "q", "limits": "20000/h"}]),
        body(why="x" * MAX_ANSWER_BYTES),
    ],
    ids=lambda wrong: wrong[:60].decode("latin1"),
)
def test_anything_else_is_no_answer(wrong: bytes) -> None:
    with pytest.raises(ValueError):
        parse_answer(wrong)


def test_answers_count_under_the_user_that_each_process_has() -> None:
    # given a process of another user than the rest, and a forger
    fields = {"v": 1, "id": "e", "host": "web-1"}
    one = parse_answer(json.dumps({**fields, "index": 0, "pid": 10}).encode())
    as_w2, as_w3, forged = (replace(one, user=user) for user in ("w2", "w3", "mallory"))
    given = {(0, 10): (as_w3,), (1, 11): (forged, as_w2), (2, 12): (as_w3,)}

    # when the supervisor says that process 0 is w3's, and the others its own
    believed, strangers = sift(given, lambda process: {(0, 10): "w3"}.get(process, "w2"))

    # then each counts under its own
    assert believed == {(0, 10): (as_w3,), (1, 11): (as_w2,)}
    assert strangers == {(1, 11): "mallory", (2, 12): "w3"}
