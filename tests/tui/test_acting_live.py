"""Acts from keys, carried out on a real broker by real workers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from textual.app import App
from textual.pilot import Pilot
from textual.widgets import Input, OptionList, Static

from qctl.inventory.load import load
from qctl.ops.status import QueueRow, Status
from qctl.tui.acts.acting import Acting, Selection
from qctl.tui.screens.letters import Letters
from qctl.tui.screens.outcome import Outcome
from qctl.tui.snapshot import Snapshot, View
from qctl.tui.theme import DEFAULT, THEMES
from tests.brokers import Vhost
from tests.fleet import Fleet, wait_until
from tests.integration.worker_harness import wire
from tests.wire import scenario

PATIENT_S = 30.0
CONSUMER = {"handler": {"python": "handlers:run"}, "quota": {"twitter": 1}, "retry": {"attempts": 1}}
HANDLERS = """
    from qctl import Reject
    def run(task):
        note("runs", task.payload)
        if task.payload == "bad":
            raise Reject("no good")
"""


class Console(App[None]):
    """As much of a console as acts need."""

    def __init__(self, inventory: Any) -> None:
        super().__init__()
        self.acting = Acting(self, inventory, read_only=False)
        self.told: list[str] = []
        for each in THEMES:
            self.register_theme(each)
        self.theme = DEFAULT

    def notify(self, message: str, **_: Any) -> None:
        self.told.append(message)

    def said(self) -> str:
        """Whatever can be read on the screen above."""
        return "\n".join(str(each.render()) for each in self.screen.query(Static) if each.display)


@pytest.fixture
def fleet(local_vhost: Vhost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in local_vhost.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("qctl.tui.screens.ask.SEEN_S", 0.001)
    hosts = {"web-1": {}, "web-2": {}}
    sections = {"quotas": {"twitter": "1000/h"}, "consumers": {"timeline": CONSUMER}, "hosts": hosts}
    with Fleet(local_vhost, tmp_path, HANDLERS, **sections) as found:
        yield found


def about(view: View, *keys: str, **changed: Any) -> Selection:
    now_s = time.time()
    return Selection(view, keys, Snapshot(now_s, Status(now_s, False), **changed))


def look(fleet: Fleet, queue: str) -> tuple[int, int]:
    """Messages and consumers of a queue, by the queue itself."""
    with wire(fleet.vhost) as seen:
        method = seen.channel.queue_declare(queue, passive=True).method
        return method.message_count, method.consumer_count


async def shown(app: Console, pilot: Pilot[None], *words: str) -> str:
    """Wait until the screen says all of it."""
    deadline_s = time.monotonic() + PATIENT_S
    while not all(each in app.said() for each in words):
        assert time.monotonic() < deadline_s, f"{words} not in:\n{app.said()}\n{app.told}"
        await pilot.pause(0.05)
    return app.said()


@scenario
async def test_a_consumer_is_paused_and_resumed_with_keys_and_the_workers_proof_is_shown(fleet: Fleet) -> None:
    # given a host with two processes that consume
    fleet.start("web-1", "--processes", "2")
    wait_until("two consumers", lambda: look(fleet, "timeline") == (0, 2))
    app = Console(load(fleet.directory / "inventory.yaml"))
    async with app.run_test(size=(120, 36)) as pilot:
        # when the row of one of them is paused: it is the consumer that is meant, in every process
        app.acting.perform("pause", about(View.CONSUMERS, "qctl/web-1/timeline/1"))
        await pilot.pause()
        await shown(app, pilot, "pause web-1/timeline, 1 consumer?")
        await shown(app, pilot, "y confirms")
        await pilot.press("y")
        words = await shown(app, pilot, "2 proven")
        # then the proof of each is there, with the instant
        assert isinstance(app.screen, Outcome)
        rows = [line for line in words.splitlines() if line.startswith("web-1/timeline/")]
        assert [row.split()[1:4] for row in rows] == [["✓", "proven", "paused"]] * 2
        assert look(fleet, "timeline") == (0, 0)
        await pilot.press("escape")

        # when a limit is set that no task can be paid from, for a while
        app.acting.perform("quota_set", about(View.QUOTAS, "web-1/twitter"))
        await pilot.pause()
        await shown(app, pilot, "y confirms")
        await pilot.press(*"500/h", "enter", *"10m", "enter", "enter")
        await pilot.press("right", "enter")
        words = await shown(app, pilot, "set web-1/twitter to 500/h until", "1 proven")
        assert "web-1/twitter  ✓ proven  500/h" in words
        await pilot.press("escape")

        # and when all of the host is resumed
        app.acting.perform("resume", about(View.HOSTS, "web-1"))
        await pilot.pause()
        await shown(app, pilot, "y confirms")
        await pilot.press("y")
        await shown(app, pilot, "resume web-1, by", "2 proven")
        assert app.told == []
    wait_until("it consumes again", lambda: look(fleet, "timeline") == (0, 2))


@scenario
async def test_tasks_are_enqueued_and_their_letters_looked_at_replayed_dropped_and_purged(fleet: Fleet) -> None:
    app = Console(load(fleet.directory / "inventory.yaml"))
    async with app.run_test(size=(120, 36)) as pilot:
        # when three tasks are enqueued that nobody can do
        app.acting.perform("enqueue", about(View.QUEUES, "timeline"))
        await pilot.pause()
        app.screen.query_one("#payload", Input).value = '"bad"'
        app.screen.query_one("#count", Input).value = "3"
        await pilot.pause()
        await shown(app, pilot, "enqueue 3 tasks for timeline?")
        app.screen.query_one("#cancel").focus()
        await shown(app, pilot, "y confirms")
        await pilot.press("y")
        await shown(app, pilot, "timeline: confirmed 3 of 3")
        await pilot.press("escape")

        # and somebody looks at the first of them, which takes none away
        app.acting.perform("peek", about(View.QUEUES, "timeline"))
        await pilot.pause()
        await shown(app, pilot, "timeline: 3 of 3", '"bad"')
        await pilot.press("escape")

        # and they die
        worker = fleet.start("web-1")
        wait_until("three letters", lambda: look(fleet, "timeline.dead") == (3, 0))
        worker.stop()

        # when they are replayed so slowly that somebody stops it after the first
        dead = about(View.DEAD, "timeline.dead", dead=(QueueRow("timeline.dead", work=False, ready=3),))
        app.acting.perform("replay", dead)
        await pilot.pause()
        await shown(app, pilot, "replay every dead letter of timeline.dead?", "3 there")
        app.screen.query_one("#rate", Input).value = "1/h"
        await shown(app, pilot, "y confirms")
        await pilot.press("y")
        await shown(app, pilot, "replayed 1 of 3")
        await pilot.press("S")
        await shown(app, pilot, "stopped; what was done until then is done", "timeline.dead: replayed 1 of 3")
        await pilot.press("escape")

        # then the others are still there, and one is marked and dropped
        app.acting.perform("peek", dead)
        await pilot.pause()
        assert isinstance(app.screen, Letters)
        await shown(app, pilot, "timeline.dead: 2 of 2", "no good")
        assert app.screen.query_one(OptionList).option_count == 2
        await pilot.press("space", "D")
        await shown(app, pilot, "drop 1 dead letter of timeline.dead?")
        await shown(app, pilot, "y confirms")
        await pilot.press("y")
        await shown(app, pilot, "timeline.dead: dropped 1 of 1")
        await pilot.press("escape")

        # and what is left is replayed as fast as the broker takes it
        app.acting.perform("replay", dead)
        await pilot.pause()
        await shown(app, pilot, "y confirms")
        await pilot.press("y")
        await shown(app, pilot, "timeline.dead: replayed 1 of 1")
        await pilot.press("escape")

        # and what waits purged
        app.acting.perform("purge", about(View.QUEUES, "timeline"))
        await pilot.pause()
        await shown(app, pilot, "y confirms")
        await pilot.press("y")
        await shown(app, pilot, "timeline: purged 2")
        assert app.told == []
    assert (look(fleet, "timeline"), look(fleet, "timeline.dead")) == ((0, 0), (0, 0))
