"""F23: dead letters looked at by qctl itself, and replayed while the broker goes away."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time

import pika
import pytest

from qctl.broker.walk import WINDOW
from qctl.inventory.load import load
from qctl.ops import dead, peek
from tests.faults.rows import row
from tests.faults.scene import Scene, ended_at_last
from tests.fleet import wait_until
from tests.integration.worker_harness import wire
from tests.wire import stranger

LOOKS, LOOKED_AT = 100, 20
LETTERS = 10_000
#: So many are replayed when the broker goes.
BEFORE = 2_000
AWAY_S = 3.0


def bury(scene: Scene, count: int) -> None:
    """Put so many tasks among the dead letters of `plain`, as a worker does that gives up on them."""
    scene.enqueue("plain", 1)  # makes the queues
    names = [f"plain-{number}" for number in range(1, count + 1)]
    scene.history.note("attempted", names)
    said = {"qctl-reason": "attempts", "qctl-attempt": 5, "qctl-died-at": "2026-11-22T14:00:07.120Z"}
    with stranger(scene.vhost) as channel:
        for name in names:
            if name == names[-1]:
                channel.confirm_delivery()  # on one channel they are taken in order
            body = json.dumps({"task": name}).encode()
            properties = pika.BasicProperties(delivery_mode=2, message_id=name, headers=said)
            channel.basic_publish("", "plain.dead", body, properties)
    scene.history.note("confirmed", names)


@row("F23", "100 looks of qctl's own at 20 dead letters, among them all and the first", selected=True)
def test_what_qctl_looks_at_a_hundred_times_is_all_there_and_in_order(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given twenty dead letters
    scene.stage()
    bury(scene, LOOKED_AT)
    for name, value in scene.vhost.environment().items():
        monkeypatch.setenv(name, value)
    inventory = load(scene.directory / "inventory.yaml")

    # When they are looked at a hundred times, some of them and all in turn
    async def look() -> list[str]:
        for _ in range(LOOKS // 2):
            some = await peek.look(inventory, "plain.dead", LOOKED_AT // 2, connect_timeout_s=10)
            assert len(some.messages) == LOOKED_AT // 2
            every = await dead.letters(inventory, "plain.dead", connect_timeout_s=10)
        return [letter.id for letter in every.letters]

    seen = asyncio.run(look())

    # Then each is there, once
    with wire(scene.vhost) as own:
        scene.record.figure("looks", LOOKS)
        scene.record.figure("still there", own.depth("plain.dead"), equals=LOOKED_AT)
    scene.record.figure("different ones seen by the last look", len(set(seen)), equals=LOOKED_AT)
    scene.start(consumers=("plain",))


@row("F23", "`dead replay --all` of 10,000, and the broker is stopped in the middle, 3 s away, started again")
def test_a_replay_that_loses_its_broker_loses_no_letter_and_counts_truly(scene: Scene) -> None:
    # Given ten thousand dead letters, and a replay in the middle of them
    scene.stage()
    bury(scene, LETTERS)
    broker = scene.vhost.broker
    command = [*scene.fleet.command, "-o", "json", "dead", "replay", "plain", "--all", "--yes", "--rate", "2000/s"]
    where = {"env": scene.fleet.environment, "cwd": scene.directory, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, **where) as process:
        with wire(scene.vhost) as own:
            wait_until("the first thousands", lambda: own.depth("plain") >= BEFORE)

        # When the broker stops, and is back
        with ended_at_last(broker.start_app):
            broker.stop_app()
            in_the_middle = process.poll() is None
            time.sleep(AWAY_S)
        stdout, stderr = process.communicate(timeout=120)
    assert in_the_middle, "the replay was done before the broker was stopped"
    assert b"Traceback" not in stderr

    # Then it goes on by itself, and says that all are replayed
    (said,) = json.loads(stdout)["items"]
    scene.record.figure("exit code", process.returncode, equals=0)
    scene.record.figure("replayed, as it says", said["done"], equals=LETTERS)
    scene.record.figure("may be there twice, as it says", said["maybe_twice"], at_most=2 * WINDOW)
    scene.record.figure("took, s", said["seconds"])

    # and none is left behind, and no more are there than it says
    with wire(scene.vhost) as own:
        scene.record.figure("left among the dead", own.depth("plain.dead"), equals=0)
        more = own.depth("plain") - LETTERS - 1
        scene.record.figure("there twice", more, at_least=0, at_most=said["maybe_twice"])
    scene.may_duplicate = said["maybe_twice"]
    scene.settles_within_s = 120.0
    scene.start(consumers=("plain",))
