"""What a supervisor does without a broker: it keeps its name, and no connection that it has no use for."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qctl.broker.session import ChannelLost
from qctl.inventory.load import load
from qctl.worker import presence, supervisor
from qctl.worker.pending import Pending
from qctl.worker.plan import Plan


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    document = {
        "version": 1,
        "broker": {"amqp": "amqp://127.0.0.1:1/", "username": "u", "password": {"value": "p"}},
        "consumers": {"work": {"handler": {"exec": ["cat"]}, "quota": {}}},
        "hosts": {"web-1": None, "web-1.example.com": None},
    }
    path = tmp_path / "inventory.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    inventory = load(path)
    return Plan(inventory, inventory.host("web-1"), inventory.ladder_s, tmp_path / "state", 30.0, "text", 0)


@pytest.mark.parametrize("other", ["name", "state"])
def test_given_an_inventory_in_which_this_machine_is_another_host_then_nothing_changes(
    plan: Plan, other: str, caplog: pytest.LogCaptureFixture
) -> None:
    if other == "name":
        changed = replace(plan, host=plan.inventory.host("web-1.example.com"))
    else:
        changed = replace(plan, state_directory=plan.state_directory / "elsewhere")

    async def main() -> Plan:
        one = supervisor.Supervisor(plan, 1, lambda: changed)
        await one._replace()
        return one.plan

    assert asyncio.run(main()) is plan
    assert "SIGHUP: nothing changes: this machine would be host web-1" in caplog.text


def test_given_a_name_that_could_not_be_claimed_then_the_connection_of_that_try_is_closed(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a broker that ends the channel of the first two claims
    opened: list[Any] = []
    closed: list[Any] = []

    async def dial(_self: object, *, patient: bool) -> Any:
        async def close() -> None:
            closed.append(connection)

        connection = SimpleNamespace(close=close, patient=patient)
        opened.append(connection)
        return connection

    async def claim(*_: Any, **__: Any) -> None:
        if len(opened) < 3:
            raise ChannelLost(541, "INTERNAL_ERROR")

    monkeypatch.setattr(presence.Presence, "_dial", dial)
    monkeypatch.setattr(presence, "claim", claim)
    monkeypatch.setattr(presence, "backoff", lambda: iter([0.0] * 5))

    # When the name is claimed at last
    async def main() -> Any:
        pending = Pending(plan.state_directory, plan.host.name)
        return await presence.Presence(lambda: plan, tuple, tuple, pending).take()

    kept = cast("Any", asyncio.run(main()))

    # Then one connection is open
    assert kept is opened[-1]
    assert closed == opened[:-1]


def test_given_a_keeper_that_fails_then_the_worker_does_not_go_on_without_its_process(plan: Plan) -> None:
    async def fails() -> int:
        raise RuntimeError("a bug")

    async def main() -> None:
        for_ever = asyncio.ensure_future(asyncio.Event().wait())
        keepers = [cast("asyncio.Task[int]", for_ever), asyncio.ensure_future(fails())]
        await asyncio.wait_for(supervisor.Supervisor(plan, 2, lambda: plan)._verdict(keepers), 5)

    with pytest.raises(RuntimeError, match="a bug"):
        asyncio.run(main())
