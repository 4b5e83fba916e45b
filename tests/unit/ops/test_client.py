"""What a client says before and without a broker."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

import qctl
from qctl.broker.message import Outgoing, Properties
from qctl.broker.session import Connection
from qctl.errors import BrokerBlocked, BrokerUnreachable, InventoryError, QctlError, UnknownName, UsageError
from qctl.ops.client import _Attempt, _names


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    """The broker of this one is not there."""
    document = {
        "version": 1,
        "broker": {"amqp": "amqp://127.0.0.1:1/", "username": "u", "password": {"value": "p"}},
        "worker": {"max_body": "1KiB"},
        "quotas": {"api": "100/h"},
        "consumers": {"work": {"handler": {"exec": ["cat"]}, "quota": {"api": 1}}},
        "hosts": {"web-1": None},
    }
    path = tmp_path / "inventory.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        ({"consumer": "wrok", "payload": 1}, UnknownName, "no consumer 'wrok'"),
        ({"consumer": "work", "payload": {1, 2}}, UsageError, "cannot be written as JSON"),
        ({"consumer": "work", "payload": float("nan")}, UsageError, "cannot be written as JSON"),
        ({"consumer": "work", "payload": "\ud800"}, UsageError, "cannot be written as JSON"),
        ({"consumer": "work", "payload": "x" * 1025}, UsageError, "longer than 1KiB"),
        ({"consumer": "work", "payload": 1, "cost": {"api": -1}}, UsageError, "whole number"),
        ({"consumer": "work", "payload": 1, "delay": "-1s"}, UsageError, "-1s"),
        ({"consumer": "work", "payload": 1, "delay": float("inf")}, UsageError, "zero or more seconds"),
    ],
)
def test_given_a_mistake_then_nothing_is_contacted(
    inventory: Path, call: dict[str, object], kind: type[QctlError], words: str
) -> None:
    # given a broker that is not there
    with qctl.Client(inventory) as client, pytest.raises(kind, match=words):
        client.enqueue(**call)  # type: ignore[arg-type]


def test_given_nobody_at_the_address_then_a_call_ends_in_time(inventory: Path) -> None:
    started_s = time.monotonic()

    with qctl.Client(inventory, timeout_s=1.0) as client, pytest.raises(BrokerUnreachable, match="it is not enqueued"):
        client.enqueue("work", 1)

    assert time.monotonic() - started_s < 3


def test_given_no_path_then_the_inventory_is_found_as_by_the_commands(
    inventory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QCTL_INVENTORY", str(inventory))
    assert qctl.Client().inventory.path == inventory

    monkeypatch.setenv("QCTL_INVENTORY", str(inventory.parent / "none.yaml"))
    with pytest.raises(InventoryError, match="there is no inventory"):
        qctl.Client()


def test_given_only_the_import_of_qctl_then_nothing_heavy_is_imported() -> None:
    words = "import sys, qctl; qctl.Client; print(*{'pika', 'pydantic', 'requests', 'yaml'} & set(sys.modules))"
    light = "import sys, qctl; print(*[name for name in sys.modules if name.startswith('qctl.')])"

    def printed(source: str) -> str:
        return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True).stdout.strip()

    assert printed(light) == ""
    assert "requests" not in printed(words)


def test_given_clients_that_are_forgotten_then_their_threads_end(inventory: Path) -> None:
    before = set(threading.enumerate())
    for _ in range(3):
        with pytest.raises(BrokerUnreachable):
            qctl.Client(inventory, timeout_s=0.1).enqueue("work", 1)

    gc.collect()

    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("said", "is_ours"),
    [
        ("ACCESS_REFUSED - write access to exchange 'qctl.tasks' in vhost '/' refused for user 'u'", True),
        ("PRECONDITION_FAILED - message size 3 is larger than configured max size 2", True),
        ("ACCESS_REFUSED - write access to exchange 'qctl.retry' in vhost '/' refused for user 'u'", False),
        ("PRECONDITION_FAILED - message size 30 is larger than configured max size 2", False),
        ("INTERNAL_ERROR", False),
    ],
)
def test_given_a_channel_that_was_lost_then_it_is_known_whether_for_this_task(said: str, is_ours: bool) -> None:
    assert _names(said, Outgoing("qctl.tasks", "work", b"123", Properties())) is is_ours


def test_given_an_alarm_that_came_after_the_task_was_sent_then_it_says_both() -> None:
    attempt = _Attempt(time.monotonic())
    attempt.sent = True
    attempt.on = cast("Connection", SimpleNamespace(is_open=True, blocked=True))

    failure = attempt.failure(Outgoing("qctl.tasks", "work", b"", Properties(message_id="t")))

    assert isinstance(failure, BrokerBlocked)
    assert "(memory or disk alarm); it may be enqueued" in failure.message
