"""What the scenario shows of a host while it runs, and what it leaves behind when it cannot start."""

from __future__ import annotations

import os
import signal
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from qctl.demo import scenario
from qctl.demo.commands import environment, signals_deferred
from qctl.demo.judge import Call, Upstream
from qctl.demo.scenario import host_progress
from qctl.errors import QctlError

LIMIT = Upstream("web-1", limit_units=2, window_s=10.0)


def call(at_s: float, *, host: str = "web-1", status: int = 200) -> Call:
    return Call(round(at_s * 1e9), host, "GET", "/", "t", status)


def test_given_calls_within_the_window_when_looked_at_then_used_counts_the_granted_ones_of_this_host() -> None:
    calls = [call(1), call(5), call(6, status=429), call(6, host="web-2")]

    seen = host_progress(calls, LIMIT, now_ns=8 * 10**9)

    assert (seen.used_units, seen.refused, seen.spent, seen.more_in_s) == (2, 1, True, 3.0)


def test_given_calls_that_have_left_the_window_when_looked_at_then_they_are_no_longer_used() -> None:
    seen = host_progress([call(1), call(5)], LIMIT, now_ns=11 * 10**9)

    assert (seen.used_units, seen.spent, seen.more_in_s) == (1, False, 4.0)


def test_given_no_calls_when_looked_at_then_nothing_is_used_and_there_is_nothing_to_wait_for() -> None:
    seen = host_progress([], LIMIT, now_ns=0)

    assert (seen.used_units, seen.spent, seen.more_in_s) == (0, False, None)


def test_given_a_signal_inside_the_block_when_the_block_ends_then_it_is_delivered_and_not_before() -> None:
    delivered: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: delivered.append(number))
    try:
        with signals_deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            inside = list(delivered)
        after = list(delivered)
    finally:
        signal.signal(signal.SIGTERM, before)

    assert inside == []
    assert after == [signal.SIGTERM]


def test_the_commands_of_the_scenario_do_not_see_the_callers_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCTL_INVENTORY", "/elsewhere")
    monkeypatch.setenv("QCTL_PASSWORD", "x")

    assert not [name for name in environment() if name.startswith("QCTL_")]
    assert "PATH" in environment()


def test_given_a_machine_without_a_broker_when_run_then_the_error_keeps_its_hint_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_: Path) -> AbstractContextManager[None]:
        raise QctlError("rabbitmq-server is not installed on this machine", hint="Install it.")

    monkeypatch.setattr(scenario, "private_node", missing)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    with pytest.raises(QctlError) as failed:
        list(scenario.run(window_s=60.0, keep=False))

    assert failed.value.hint == "Install it."
    assert list(tmp_path.iterdir()) == []


def test_given_a_run_that_left_logs_when_it_fails_then_they_are_kept_and_the_error_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crashing(directory: Path) -> AbstractContextManager[None]:
        directory.mkdir(parents=True)
        raise QctlError("the node ended", hint="See its log.")

    monkeypatch.setattr(scenario, "private_node", crashing)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    with pytest.raises(QctlError) as failed:
        list(scenario.run(window_s=60.0, keep=False))

    [left] = tmp_path.iterdir()
    assert failed.value.hint == f"See its log. The logs are in {left}."
