"""What a supervisor answers of itself and its processes, and what is none of its answers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from qctl.control.host_answer import (
    MAX_ANSWER_BYTES,
    MAX_PROCESSES,
    HostAnswer,
    ProcessLook,
    ProcessState,
    parse_answer,
)
from qctl.worker.claim import Holder, parse_holder

ANSWER = HostAnswer("web-1", "box", 17, "2026", "r", 10, (ProcessLook(0, 18, ProcessState.CONNECTED, "2026"),))


def test_an_answer_is_read_as_it_was_written_and_by_who_claims_the_name_too() -> None:
    assert parse_answer(ANSWER.body()) == ANSWER
    assert parse_holder(ANSWER.body()) == Holder("box", 17, "2026", "r")


def test_the_answer_of_the_largest_host_is_read() -> None:
    look = ProcessLook(255, 4_194_304, ProcessState.DISCONNECTED, "2026-11-22T15:35:01.463Z")
    largest = HostAnswer("w" * 63, "m" * 64, 17, "2026-11-22T15:35:01.463Z", "r" * 16, 10, (look,) * 256)

    assert parse_answer(largest.body()) == largest
    assert parse_holder(largest.body()) is not None


def test_what_is_not_known_is_passed_over() -> None:
    more = json.dumps({**json.loads(ANSWER.body()), "more": 1}).encode()

    assert parse_answer(more) == ANSWER


def changed(**fields: Any) -> bytes:
    return json.dumps({**json.loads(ANSWER.body()), **fields}).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"17",
        changed(v=2),
        changed(v=True),
        changed(pid=-1),
        changed(pid="x"),
        changed(processes=None),
        changed(processes=[1]),
        changed(processes=[{"index": 0, "pid": 1, "state": "asleep", "since": ""}]),
        changed(processes=[{"index": True, "pid": 1, "state": "ended", "since": ""}]),
        changed(processes=[{}] * (MAX_PROCESSES + 1)),
        changed(more="x" * MAX_ANSWER_BYTES),
        json.dumps({"machine": "box", "pid": 17, "since": "2026", "run": "r"}).encode(),
    ],
)
def test_what_is_no_answer_says_nothing(body: bytes) -> None:
    assert parse_answer(body) is None


def test_control_characters_are_not_passed_on() -> None:
    found = parse_answer(changed(machine="a\x1b[2J", host="w\n"))

    assert found is not None
    assert found.machine == "a [2J"
    assert found.host == "w"


def test_a_supervisor_of_an_earlier_version_names_no_users() -> None:
    fields = json.loads(replace(ANSWER, processes=(replace(ANSWER.processes[0], user="w3"),)).body())
    assert parse_answer(json.dumps(fields).encode()).processes[0].user == "w3"  # type: ignore[union-attr]
    del fields["processes"][0]["user"]
    assert parse_answer(json.dumps(fields).encode()) == ANSWER
