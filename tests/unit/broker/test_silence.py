"""A broker that was not heard for too long: whatever comes then, its deliveries are not ours any more."""

from __future__ import annotations

import time

import pytest
from pika.adapters.asyncio_connection import AsyncioConnection

from qctl.broker import core
from qctl.broker.core import CoreConnection

PATIENCE_S = 20.0


class Raw(CoreConnection):  # type: ignore[misc]  (pika has no types)
    """A connection without a socket."""

    def __init__(self) -> None:
        self.heard_at_s = 100.0
        self.late = 0
        self.on_late = self.count

    def count(self) -> None:
        self.late += 1


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What pika was given of what came."""
    found: list[bytes] = []
    monkeypatch.setattr(AsyncioConnection, "_on_data_available", lambda _self, data: found.append(data))
    return found


@pytest.mark.parametrize("silent_s", [PATIENCE_S, 37.0])
def test_given_a_process_that_was_stopped_then_what_waited_in_its_socket_does_not_end_the_silence(
    monkeypatch: pytest.MonkeyPatch, taken: list[bytes], silent_s: float
) -> None:
    raw = Raw()
    raw.patience_s = PATIENCE_S

    # when it wakes, and reads heartbeats that came while it was stopped, one piece after the other
    for at_s in (100.0 + silent_s, 100.1 + silent_s):
        monkeypatch.setattr(core, "now_s", lambda at_s=at_s: at_s)
        raw._on_data_available(b"old")

    # then nobody takes the broker for alive, nothing of it is taken in, and it is said at once
    assert raw.heard_at_s == 100.0
    assert taken == []
    assert raw.late == 2


def test_given_a_silence_that_is_short_enough_then_what_comes_ends_it(
    monkeypatch: pytest.MonkeyPatch, taken: list[bytes]
) -> None:
    raw = Raw()
    raw.patience_s = PATIENCE_S
    for at_s in (119.9, 139.8):
        monkeypatch.setattr(core, "now_s", lambda at_s=at_s: at_s)
        raw._on_data_available(b"new")

    assert raw.heard_at_s == 139.8
    assert taken == [b"new", b"new"]
    assert raw.late == 0


def test_given_a_connection_that_is_not_open_yet_then_no_silence_is_too_long(
    monkeypatch: pytest.MonkeyPatch, taken: list[bytes]
) -> None:
    raw = Raw()
    raw.heard_at_s = 0.0
    monkeypatch.setattr(core, "now_s", lambda: 1e6)

    raw._on_data_available(b"welcome")

    assert taken == [b"welcome"]


def test_given_a_machine_that_slept_then_that_counts_as_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core.time, "clock_gettime", {time.CLOCK_BOOTTIME: 7.0}.__getitem__)

    assert core.now_s() == 7.0


def test_given_a_system_without_such_a_clock_then_the_steady_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(core.time, "CLOCK_BOOTTIME")
    monkeypatch.setattr(core.time, "monotonic", lambda: 8.0)

    assert core.now_s() == 8.0
