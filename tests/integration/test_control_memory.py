"""What a command keeps of the control log: the next one goes on from there, and never misses or invents a command."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from pathlib import Path

import pytest

from qctl.broker import topology
from qctl.broker.message import utc
from qctl.broker.session import Connection
from qctl.control.asking import asking
from qctl.control.event import Command, Verb
from qctl.control.target import Target
from qctl.inventory.load import load
from qctl.inventory.model import Inventory
from qctl.ops import memory
from tests.brokers import Vhost
from tests.wire import connected, scenario


@pytest.fixture
def inventory(local_vhost: Vhost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Inventory:
    """An inventory of this broker, and a place for what is kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "inventory.yaml"
    document = {
        "version": 1,
        "broker": local_vhost.inventory_broker(),
        "consumers": {"timeline": {"handler": {"exec": ["true"]}, "quota": {}}},
        "hosts": {"web-1": {}},
    }
    path.write_text(json.dumps(document), encoding="utf-8")
    return load(path)


async def pause(connection: Connection, hosts: Sequence[str]) -> None:
    """Pause these hosts, all at once: they come to lie in one chunk of the stream."""
    async with asking(connection) as giving:
        now = utc(1_795_000_000.0)
        await giving.give([Command(secrets.token_hex(16), now, Verb.PAUSE, Target(host)) for host in hosts])


async def paused(inventory: Inventory, connection: Connection) -> list[str | None]:
    """The hosts that are paused, by the log."""
    return [one.target.host for one in (await memory.commanded(inventory, connection)).pauses]


@scenario
async def test_it_goes_on_from_what_it_kept(local_vhost: Vhost, inventory: Inventory, tmp_path: Path) -> None:
    async with connected(local_vhost) as connection:
        # given three commands that came at once, read and kept
        await pause(connection, ["web-1", "web-2", "web-3"])
        assert await paused(inventory, connection) == ["web-1", "web-2", "web-3"]
        [kept] = (tmp_path / "cache" / "qctl").glob("*/control.json")

        # then the next reading finds them again, and what came since
        assert await paused(inventory, connection) == ["web-1", "web-2", "web-3"]
        await pause(connection, ["web-4", "web-5"])
        assert await paused(inventory, connection) == ["web-1", "web-2", "web-3", "web-4", "web-5"]

        # and of a file that is spoilt nothing is believed
        kept.write_text("{}")
        assert len(await paused(inventory, connection)) == 5


@scenario
async def test_what_it_kept_of_another_log_is_forgotten(local_vhost: Vhost, inventory: Inventory) -> None:
    async with connected(local_vhost) as connection:
        # given a log that was deleted after it was read, and a shorter one in its place
        await pause(connection, ["web-1", "web-2", "web-3"])
        assert len(await paused(inventory, connection)) == 3
        channel = await connection.channel()
        await channel.call("queue_delete", queue=topology.CONTROL_LOG)
        await channel.close()
        await pause(connection, ["web-9"])

        # then
        assert await paused(inventory, connection) == ["web-9"]


def test_a_folder_that_others_may_write_to_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a folder in which anybody could leave a file
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    directory = memory._directory("amqp://rabbit/")
    assert directory is not None
    directory.chmod(0o777)

    # then nothing is read from it
    assert memory._directory("amqp://rabbit/") is None
