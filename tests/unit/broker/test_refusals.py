"""A login that was refused is tried on a slow ladder, by one at a time; another login at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qctl.broker import refusals
from qctl.broker.connect import Login
from qctl.broker.refusals import LADDER_S, RECORD, Refusal, ask, mark_of, note_accepted, note_refused, wait_s
from qctl.inventory.model import Endpoint

#: What the row of the fault matrix allows, and in how long.
MOST_TRIES, OVER_S = 12, 300.0


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time as `refusals` sees it: one number, to be set."""
    now = [1_000.0]
    monkeypatch.setattr(refusals, "_now_s", lambda: now[0])
    return now


def a_login(password: str) -> Login:
    return Login((Endpoint("127.0.0.1", 5672, False, "/"),), "worker", password)


def test_who_was_never_refused_need_not_wait() -> None:
    assert wait_s(None, "aaaa", 5.0) == 0.0


def test_the_same_login_waits_longer_each_time_and_another_one_not_at_all() -> None:
    for tries, step_s in enumerate(LADDER_S, start=1):
        assert wait_s(Refusal("aaaa", tries, 100.0), "aaaa", 100.5) == step_s - 0.5
    assert wait_s(Refusal("aaaa", 99, 100.0), "aaaa", 100.0) == LADDER_S[-1]
    assert wait_s(Refusal("aaaa", 99, 100.0), "bbbb", 100.0) == 0.0


def test_a_record_from_before_a_restart_of_the_machine_holds_nobody_up() -> None:
    assert wait_s(Refusal("aaaa", 5, 100.0), "aaaa", 3.0) == 0.0


def test_five_connections_that_are_refused_at_once_try_twelve_times_in_five_minutes(
    tmp_path: Path, now: list[float]
) -> None:
    # Given two processes with two connections each, and their supervisor, three of which were refused at once
    record, tries = tmp_path / RECORD, 3
    for _ in range(tries):
        note_refused(record, "aaaa")

    # When all of them ask again and again, and every try is refused
    start_s = now[0]
    while now[0] < start_s + OVER_S:
        now[0] += 0.25
        for _ in range(5):
            if ask(record, "aaaa") == 0.0:
                tries += 1
                note_refused(record, "aaaa")

    # Then
    assert tries <= MOST_TRIES


def test_whose_turn_it_is_keeps_the_others_waiting(tmp_path: Path, now: list[float]) -> None:
    record = tmp_path / RECORD
    note_refused(record, "aaaa")
    now[0] += LADDER_S[0]
    assert ask(record, "aaaa") == 0.0
    assert ask(record, "aaaa") == LADDER_S[1]


def test_a_login_that_is_good_again_frees_all_of_them(tmp_path: Path) -> None:
    record = tmp_path / RECORD
    note_refused(record, "aaaa")
    note_accepted(record, "bbbb")  # of another one it says nothing
    assert ask(record, "aaaa") > 0.0
    note_accepted(record, "aaaa")
    assert ask(record, "aaaa") == 0.0


@pytest.mark.parametrize("content", [b"", b"not JSON", b"[1]", b'{"mark": "aaaa"}', b'{"mark":1,"tries":"x","at_s":0}'])
def test_a_record_that_cannot_be_read_holds_nobody_up(tmp_path: Path, content: bytes) -> None:
    (tmp_path / RECORD).write_bytes(content)
    assert ask(tmp_path / RECORD, "aaaa") == 0.0


def test_a_record_that_cannot_be_kept_holds_nobody_up(tmp_path: Path) -> None:
    record = tmp_path / "no such directory" / RECORD
    note_refused(record, "aaaa")
    assert ask(record, "aaaa") == 0.0
    note_accepted(record, "aaaa")


def test_the_record_says_next_to_nothing_about_the_password(tmp_path: Path) -> None:
    record = tmp_path / RECORD
    note_refused(record, mark_of(a_login("a secret word")))
    assert "secret" not in record.read_text()
    assert len(json.loads(record.read_text())["mark"]) == 4
    assert mark_of(a_login("a secret word")) != mark_of(a_login("another word"))
