"""Listening to a fleet with what rights one has: what cannot be asked is a note, and never hides what can be heard."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from qctl.broker import topology
from qctl.broker.message import Outgoing, Properties
from qctl.broker.publisher import Publisher
from qctl.broker.session import Connection
from qctl.control.reading import Reading
from qctl.errors import BrokerRefused
from qctl.inventory.load import load
from qctl.ops.events import followed, recorded
from qctl.ops.found import Silence
from qctl.ops.sources import listen_to
from tests.brokers import Vhost
from tests.wire import connected, scenario


async def speak(connection: Connection, host: str) -> None:
    """A reading a few times a second, as a worker process sends them."""
    await topology.ensure(connection, topology.telemetry())
    publisher = await Publisher.open(connection)
    while True:
        now_s = time.time()
        body = Reading(now_s, host, 0, 1, "m1", now_s, 10.0).body()
        properties = Properties(user_id=connection.username)
        publisher.send(Outgoing(topology.TELEMETRY, f"host.{host}", body, properties), lambda _fate: None)
        await asyncio.sleep(0.2)


@scenario
async def test_who_may_not_ask_supervisors_still_hears_the_workers(
    local_vhost: Vhost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a user who may listen, and not publish to anybody
    broker, name = local_vhost.broker, f"looker-{local_vhost.name}"
    broker.api("PUT", f"/users/{name}", {"password": "pw", "tags": ""})
    rights = {"configure": "^qctl\\.listen", "write": "^qctl\\.listen", "read": ".*"}
    broker.api("PUT", f"/permissions/{local_vhost.name}/{name}", rights)
    for variable, value in (("QCTL_USERNAME", name), ("QCTL_PASSWORD", "pw"), ("XDG_CACHE_HOME", str(tmp_path))):
        monkeypatch.setenv(variable, value)
    document = {
        "version": 1,
        "broker": {key: value for key, value in local_vhost.inventory_broker().items() if key != "management"},
        "consumers": {"timeline": {"handler": {"exec": ["true"]}, "quota": {}}},
        "hosts": {"web-1": {}},
    }
    path = tmp_path / "inventory.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")

    async with connected(local_vhost) as connection:
        await topology.ensure(connection, topology.control_log())
        speaking = asyncio.ensure_future(speak(connection, "web-1"))
        try:
            # when
            found = await listen_to(load(path), connect_timeout_s=5.0)
        finally:
            speaking.cancel()
            broker.api("DELETE", f"/users/{name}")

    # then
    assert [heard.reading.host for heard in found.live] == ["web-1"]
    assert found.supervisors.get("web-1", Silence.UNASKED) is Silence.UNASKED
    assert any("403" in note for note in found.notes)


@scenario
async def test_who_may_not_read_the_control_log_is_refused_and_told_that_right_alone(local_vhost: Vhost) -> None:
    # given a user with no rights in a virtual host that has the log
    broker, name = local_vhost.broker, f"blind-{local_vhost.name}"
    broker.api("PUT", f"/users/{name}", {"password": "pw", "tags": ""})
    rights = {"configure": "^$", "write": "^$", "read": "^$"}
    broker.api("PUT", f"/permissions/{local_vhost.name}/{name}", rights)
    try:
        async with connected(local_vhost) as connection:
            await topology.ensure(connection, topology.control_log())
        async with connected(local_vhost, username=name, password="pw") as connection:
            for found in (
                recorded(connection, operators=None, since_s=None),
                followed(lambda: _same(connection), operators=None, since_s=None, say=lambda _words: None),
            ):
                # when
                with pytest.raises(BrokerRefused) as refused:
                    await anext(found)

                # then
                assert refused.value.hint == "Its user needs to read qctl.control.log."
    finally:
        broker.api("DELETE", f"/users/{name}")


async def _same(connection: Connection) -> Connection:
    return connection
