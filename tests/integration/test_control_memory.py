"""What a command keeps of the control log: the next one goes on from there, and never misses or invents a command."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import pytest

from qctl.broker import topology
from qctl.broker.message import utc
from qctl.broker.session import Connection
from qctl.control.asking import asking
from qctl.control.event import Command, Verb
from qctl.control.following import NOTHING
from qctl.control.history import follow
from qctl.control.target import Target
from qctl.inventory.load import load
from qctl.inventory.model import Inventory
from qctl.ops import memory
from qctl.ops.events import happened
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


@scenario
async def test_a_log_that_is_followed_goes_on_from_what_was_kept_and_says_when_it_is_another(
    local_vhost: Vhost, inventory: Inventory
) -> None:
    async with connected(local_vhost) as connection:
        # given a log whose commands were read and kept with what they tell
        await pause(connection, ["web-1", "web-2"])
        remembered = memory.Remembered(inventory, connection)
        assert remembered.recall() == (NOTHING, ())
        async with aclosing(follow(connection, operators=None)) as passes:
            first = await anext(passes)
            assert (len(first.entries), first.at_end, first.again) == (2, True, False)
            events = tuple(event for entry in first.entries if (event := happened(entry)) is not None)
            remembered.keep(first.known, events)

            # when something comes to it, then it is told
            await pause(connection, ["web-3"])
            assert [entry.event.target.host for entry in (await anext(passes)).entries] == ["web-3"]

        # then who looks again has the old ones from what was kept, and reads the new ones alone
        known, recalled = memory.Remembered(inventory, connection).recall()
        assert [event.target for event in recalled] == ["web-1", "web-2"]
        async with aclosing(follow(connection, operators=None, known=known)) as passes:
            step = await anext(passes)
        assert [entry.event.target.host for entry in step.entries] == ["web-3"]
        assert [one.target.host for one in step.known.desired.pauses] == ["web-1", "web-2", "web-3"]

        # when the log is another one, then that is said, and it is read from its beginning
        channel = await connection.channel()
        await channel.call("queue_delete", queue=topology.CONTROL_LOG)
        await channel.close()
        await pause(connection, ["web-9"])
        async with aclosing(follow(connection, operators=None, known=step.known)) as passes:
            step = await anext(passes)
            await pause(connection, ["web-8"])
            assert not (await anext(passes)).again  # what came is not to be forgotten for what comes
        assert step.again
        assert [one.target.host for one in step.known.desired.pauses] == ["web-9"]

        # and of events that are not of the same reading as the place nothing is believed
        [kept] = Path(os.environ["XDG_CACHE_HOME"]).rglob("events.json")
        kept.write_text(kept.read_text().replace(known.id, secrets.token_hex(16)))
        assert remembered.recall() == (NOTHING, ())


def test_a_folder_that_others_may_write_to_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a folder in which anybody could leave a file
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    directory = memory._directory("amqp://rabbit/")
    assert directory is not None
    directory.chmod(0o777)

    # then nothing is read from it
    assert memory._directory("amqp://rabbit/") is None
