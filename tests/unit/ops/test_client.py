"""What a client says before and without a broker."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import qctl
from qctl.errors import BrokerUnreachable, InventoryError, QctlError, UnknownName, UsageError


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
