"""What comes over AMQP, without a broker: what is read again, and by which clock a reading grows old."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest

from qctl.broker import core
from qctl.broker.session import ChannelLost, Connection
from qctl.control.reading import HostReading, Reading
from qctl.control.telemetry_log import Tail
from qctl.inventory.load import load
from qctl.inventory.model import Inventory
from qctl.ops.status import State
from qctl.tui import wire
from qctl.tui.live import _Work
from qctl.tui.snapshot import Focus
from qctl.tui.wire import Wire
from tests.wire import scenario

NOW_S = 1_790_000_000.0


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    document = {
        "version": 1,
        "broker": {"amqp": "amqp://127.0.0.1:1/", "username": "guest", "password": {"value": "guest"}},
        "consumers": {"calls": {"handler": {"exec": ["true"]}, "quota": {}}},
        "hosts": {"web-1": {}},
    }
    path = tmp_path / "inventory.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    return load(path)


@scenario
async def test_the_log_of_readings_that_could_not_be_read_is_read_again(
    inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a connection that is lost while the log is read
    answers: list[Tail | ChannelLost] = [
        ChannelLost(0, "gone"),
        Tail((HostReading(NOW_S, "web-1", "box", 7),)),
        Tail(why="never asked"),
    ]

    async def last_minutes(_connection: object, _seconds: float) -> Tail:
        answer = answers.pop(0)
        if isinstance(answer, ChannelLost):
            raise answer
        return answer

    monkeypatch.setattr(wire, "last_minutes", last_minutes)
    made = Wire(inventory, lambda: None)
    with pytest.raises(ChannelLost):
        await made._remember(cast(Connection, None))

    # when there is another one, then it is read over that, and not soon again
    await made._remember(cast(Connection, None))
    assert list(made.last) == ["web-1"]
    made.last.clear()
    await made._remember(cast(Connection, None))
    assert len(answers) == 1


@scenario
async def test_readings_grow_old_while_the_machine_sleeps(
    inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a host that was heard before the machine slept for two hours
    made = _Work(inventory, None, 10.0, Focus())
    made.wire.hearing.take(
        Reading(NOW_S, "web-1", 0, 7, "box", NOW_S, 1.0).body(), user="worker", routing_key="host.web-1"
    )
    before_s = core.now_s()
    monkeypatch.setattr(core, "now_s", lambda: before_s + 7_200)

    # then it is not taken to be heard by now
    shown = made.snapshot()
    [row] = shown.status.hosts
    assert row.state is State.UNKNOWN
    assert row.seen is not None
    assert shown.at_s - row.seen.at_s == pytest.approx(7_200, abs=5)
