"""`qctl queues`: what is there, looked at without a loss, and emptied only when that is wanted."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pika
import pytest

from qctl.broker import topology
from qctl.errors import BrokerRefused, Exit, UnknownName
from qctl.inventory.load import load
from qctl.inventory.model import Inventory
from qctl.ops import peek, queues
from qctl.ops.queues import Scope
from tests.brokers import Vhost
from tests.integration.test_dead import CONNECT_S, declare, run, running, write_inventory
from tests.wire import depth, fill, stranger, take_all


@pytest.fixture
def inventory(vhost: Vhost, tmp_path: Path) -> Inventory:
    found = write_inventory(vhost, tmp_path)
    declare(vhost, found)
    return found


def without_management(inventory: Inventory) -> Inventory:
    document = json.loads(inventory.path.read_text(encoding="utf-8"))
    del document["broker"]["management"]
    inventory.path.write_text(json.dumps(document), encoding="utf-8")
    return load(inventory.path)


def look(inventory: Inventory, queue: str, count: int = 10) -> peek.Looked:
    return asyncio.run(peek.look(inventory, queue, count, connect_timeout_s=CONNECT_S))


def test_a_look_takes_nothing_and_says_what_it_changes(inventory: Inventory, vhost: Vhost) -> None:
    # Given messages in queues of every kind
    for queue, kind in (("classic", "classic"), ("stream", "stream")):
        with stranger(vhost) as channel:
            channel.queue_declare(queue, durable=True, arguments={"x-queue-type": kind})
    bodies = {queue: fill(vhost, queue, 40) for queue in ("work", "classic", "stream")}

    # When they are looked at, then the first are shown
    for queue, kind in (("work", "quorum"), ("classic", "classic"), ("stream", "stream")):
        seen = look(inventory, queue, 35)
        assert (seen.kind, [one.body for one in seen.messages]) == (kind, bodies[queue][:35])
        assert bool(seen.notes) is (kind != "stream")

    # and all are there, in order
    for queue in ("work", "classic"):
        assert [found.body for found in take_all(vhost, queue)] == bodies[queue]


def test_where_a_look_could_cost_messages_none_is_taken(inventory: Inventory, vhost: Vhost) -> None:
    # Given a queue of somebody else with a low limit
    with stranger(vhost) as channel:
        arguments = {"x-queue-type": "quorum", "x-delivery-limit": 20}
        channel.queue_declare("theirs", durable=True, arguments=arguments)
    fill(vhost, "theirs", 3)

    # When it is looked at, then that is refused, and nothing was delivered
    with pytest.raises(BrokerRefused, match="gives a message up after 20 deliveries"):
        look(inventory, "theirs")
    assert [found.redelivered for found in take_all(vhost, "theirs")] == [False] * 3

    # and so it is where nobody says what the limit is, but not of a queue of qctl's own
    alone = without_management(inventory)
    with pytest.raises(BrokerRefused, match="its delivery limit is not known"):
        look(alone, "theirs")
    fill(vhost, "work", 1)
    assert len(look(alone, "work").messages) == 1
    with pytest.raises(UnknownName, match="has no queue 'wrok'") as caught:
        look(alone, "wrok")
    assert caught.value.hint == "Did you mean work?"


def test_the_queues_with_and_without_the_management_api(inventory: Inventory, vhost: Vhost) -> None:
    with stranger(vhost) as channel:
        channel.queue_declare("theirs", durable=True)
    fill(vhost, "outbox.dead", 2)

    def listed(of: Inventory, scope: Scope) -> dict[str, int | None]:
        found = asyncio.run(queues.listed(of, scope, connect_timeout_s=CONNECT_S))
        return {row.queue: row.ready for row in found.rows}

    assert listed(inventory, Scope.WORK).keys() == {"work", "outbox"}
    assert {"work", "outbox", "outbox.dead", "theirs", topology.UNROUTABLE} <= listed(inventory, Scope.ALL).keys()
    alone = without_management(inventory)
    assert listed(alone, Scope.OURS) == {"work": 0, "outbox": 0, "outbox.dead": 2}


def test_a_purge_empties_the_one_queue_and_counts(inventory: Inventory, vhost: Vhost) -> None:
    # Given messages in two queues, one of them in somebody's hands
    fill(vhost, "work", 5)
    fill(vhost, "outbox", 2)
    with stranger(vhost) as channel:
        channel.basic_get("work")

        # When one is purged
        dry = run(inventory, "queues", "purge", "work", "--dry-run", "-o", "json")
        done = run(inventory, "queues", "purge", "work", "--yes")

    # Then it says what was thrown away, and what is in hand stays
    assert (json.loads(dry.stdout)["count"], json.loads(dry.stdout)["dry_run"]) == (4, True)
    assert (done.returncode, done.stdout.startswith("work: purged 4 messages")) == (0, True)
    assert (depth(vhost, "work"), depth(vhost, "outbox")) == (1, 2)


def test_a_purge_that_is_interrupted_has_said_what_it_took(inventory: Inventory, vhost: Vhost) -> None:
    fill(vhost, "work", 5)
    said: list[int] = []

    async def interrupted() -> None:
        task = asyncio.current_task()
        assert task is not None

        def note(done: queues.Purged) -> None:
            said.append(done.count)
            task.cancel()

        await queues.purge(inventory, "work", connect_timeout_s=CONNECT_S, on_purged=note)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(interrupted())
    assert (said, depth(vhost, "work")) == ([5], 0)


def test_what_is_shown_is_no_command_to_a_terminal(local_vhost: Vhost, tmp_path: Path) -> None:
    # Given a message that would clear the screen, and ring
    inventory = write_inventory(local_vhost, tmp_path)
    declare(local_vhost, inventory)
    evil = "\x1b[2J\x07\u202e\x9b[/foo][@click=app.quit]\n\t"
    with stranger(local_vhost) as channel:
        properties = pika.BasicProperties(message_id=evil, type=evil, headers={evil: evil}, app_id=evil)
        channel.basic_publish("", "work", evil.encode() + b"\xff", properties)

    # When it is looked at in every form, then every character of it can be seen
    for form in ("table", "wide", "json", "name"):
        done = run(inventory, "queues", "peek", "work", "-o", form)
        assert done.returncode == Exit.DONE
        assert not {"\x1b", "\x07", "\u202e", "\x9b", "\t"} & set(done.stdout + done.stderr)
        assert "click" in done.stdout


def test_a_reader_that_leaves_costs_nothing(local_vhost: Vhost, tmp_path: Path) -> None:
    inventory = write_inventory(local_vhost, tmp_path)
    declare(local_vhost, inventory)
    fill(local_vhost, "work", 100)
    with running(inventory, "queues", "peek", "work", "-n", "100", "-o", "wide") as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        process.communicate(timeout=60)
    assert process.returncode == 141
    assert depth(local_vhost, "work") == 100
