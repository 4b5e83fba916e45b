"""Local commands on their way into the control log of a real broker: all, in order, once each, when it may be."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from pathlib import Path

import pytest

from qctl.broker import topology
from qctl.control.event import Command
from qctl.worker.pending import Pending, understand
from tests.brokers import Vhost
from tests.wire import connected, scenario, stranger, until


def command(verb: str) -> Command:
    fields = {
        "v": 1,
        "id": secrets.token_hex(16),
        "at": "2026-11-22T21:00:00.123Z",
        "verb": verb,
        "target": {"host": "web-1"},
        "args": {"local": True},
    }
    return understand(json.dumps(fields).encode(), "web-1")


def logged(vhost: Vhost) -> list[str]:
    """The ids in the control log, in order."""
    with stranger(vhost) as channel:
        channel.basic_qos(prefetch_count=10)
        found = []
        arguments = {"x-stream-offset": "first"}
        for method, properties, _ in channel.consume("qctl.control.log", inactivity_timeout=0.5, arguments=arguments):
            if method is None:
                break
            channel.basic_ack(method.delivery_tag)
            assert properties.user_id
            found.append(properties.message_id)
        return found


@scenario
async def test_given_a_user_who_may_not_command_then_it_is_said_once_and_entered_in_order_when_he_may(
    local_vhost: Vhost, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    api, name = local_vhost.broker.api, f"worker-{secrets.token_hex(4)}"
    rights = {"configure": ".*", "read": ".*", "write": "^qctl\\.(hello|control\\.log)$"}
    await asyncio.to_thread(api, "PUT", f"/users/{name}", {"password": "limited", "tags": ""})
    try:
        await asyncio.to_thread(api, "PUT", f"/permissions/{local_vhost.name}/{name}", rights)
        async with connected(local_vhost) as own:
            await topology.ensure(own, topology.control_log())
        # Given two commands that wait
        given = [command("pause"), command("resume")]
        caplog.set_level(logging.DEBUG, "qctl.worker.pending")
        waiting = Pending(tmp_path, "web-1")
        for one in given:
            await waiting.add(one)

        # When the user of the worker may not write to the exchange of commands
        async with connected(local_vhost, username=name, password="limited") as connection:
            entering = asyncio.create_task(waiting.enter(connection))
            await until("it is tried again and again", lambda: caplog.text.count("2 local command(s) are not in") >= 3)
            said = [one for one in caplog.records if one.name == "qctl.worker.pending" and one.levelno >= logging.INFO]
            assert len(said) == 1
            assert waiting.commands == tuple(given)

            # Then they are in the log, in their order, as soon as he may, and so is one that comes later
            await asyncio.to_thread(
                api, "PUT", f"/permissions/{local_vhost.name}/{name}", {**rights, "write": "^qctl\\..*"}
            )
            await until("entered", lambda: not waiting.commands)
            given.append(command("pause"))
            await waiting.add(given[-1])
            await until("entered", lambda: not waiting.commands)
            entering.cancel()
            await asyncio.wait([entering])
        assert await asyncio.to_thread(logged, local_vhost) == [one.id for one in given]
        assert Pending(tmp_path, "web-1").commands == ()
    finally:
        await asyncio.to_thread(api, "DELETE", f"/users/{name}")
