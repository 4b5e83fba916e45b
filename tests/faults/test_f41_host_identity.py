"""F41: who runs as a host, and what its ledger cannot know: two machines, a lost disk, another name."""

from __future__ import annotations

import json
import shutil
import socket
import time

from tests.faults.proxy import Proxy, Way
from tests.faults.rows import row
from tests.faults.scene import Scene
from tests.fleet import Worker, wait_until
from tests.integration.worker_harness import assert_no_traceback

#: A short window, since two of the tests wait for its end; and how long it counts when nobody knows what was spent.
LIMIT, WINDOW_S = 100, 4.0
COUNTS_S = 2 * WINDOW_S
#: What the broker needs at most to notice a dead connection, a retry, and the start itself.
BACK_AFTER_POWER_LOSS_S = 40.0


@row("F41", "a second machine starts under the name of a host that runs", selected=True)
def test_a_second_machine_of_the_same_name_is_refused_and_told_who_has_it(scene: Scene) -> None:
    # Given a host at work
    scene.stage()
    first = scene.start()
    scene.enqueue("calls", 100, s=0.1)
    scene.await_count("done", 10)
    scene.steady()

    # When another machine, whose state is its own, starts under the same name
    since_s = time.monotonic()
    second = Worker(scene.fleet, "web-1", ["--state-dir", str(scene.directory / "elsewhere")])
    second.log_path = scene.directory / "web-1.log"
    scene.fleet.workers.append(second)
    code = second.process.wait(60)

    # Then it is refused, is told who has the name, and ran nothing
    scene.record.figure("exit code of the second start", code, equals=5)
    scene.record.figure("refused within, s", time.monotonic() - since_s, at_most=10)
    holder = f"already run by machine {socket.gethostname()}, process {first.process.pid}, since"
    scene.record.figure("names the holder", holder in second.log(), equals=True)
    ran = {event.pid for event in scene.history.events() if event.event == "started"}
    scene.record.figure("processes that ran tasks", len(ran - set(first.pids())), equals=0)


@row("F41", "a state directory is lost between two runs, with most of a window spent", selected=True)
def test_a_lost_state_directory_counts_as_a_spent_window(scene: Scene) -> None:
    # Given a host that has just spent most of a window
    scene.stage(limit=LIMIT, window_s=WINDOW_S)
    worker = scene.start()
    _spend(scene)
    assert worker.stop() == 0

    # When its disk is lost and it starts again
    shutil.rmtree(scene.fleet.state)
    again = scene.start(consumers=("plain",))

    # Then it says so, and makes no call before a window has gone by
    _judge_wait(scene)
    assert "host web-1 spent from another ledger before (" in again.log()
    assert again.log().count("assuming nothing was spent") == 1  # the first start


@row("F41", "a host is renamed, with most of a window spent under its old name")
def test_a_renamed_host_counts_what_it_spent_under_its_old_name(scene: Scene) -> None:
    # Given a host that has just spent most of a window; the API knows the machine, not its name
    api = scene.judge_api("web-1", limit=LIMIT, window_s=WINDOW_S)
    url = api.url("web-1")
    scene.stage("web-1", limit=LIMIT, window_s=WINDOW_S, urls={"web-1": url, "web-9": url})
    worker = scene.start()
    _spend(scene)
    assert worker.stop() == 0

    # When the inventory gives it another name
    path = scene.directory / "inventory.yaml"
    document = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**document, "hosts": {"web-9": None}}), encoding="utf-8")
    renamed = scene.start("web-9", consumers=("plain",))

    # Then it says so, and makes no call before a window has gone by
    _judge_wait(scene)
    assert "host web-1 is not in the inventory any more and spent here: every window counts as spent" in renamed.log()

    # and once only: when it starts again there is nothing new to count
    assert renamed.stop() == 0
    assert scene.start("web-9").log().count("is not in the inventory any more") == 1


@row("F41", "power is lost: the broker still holds the name for the dead connection when the machine is back")
def test_a_machine_that_is_back_after_a_power_loss_has_its_name_again(scene: Scene) -> None:
    # Given a host behind a way that can be made to swallow everything, the end of a connection too
    scene.stage()
    with Proxy.to(scene.vhost.broker.amqp_port) as way:
        worker = scene.start(amqp=scene.through(way))
        scene.enqueue("plain", 10)
        scene.await_count("done", 10)
        way.hold(Way.UP)
        way.hold(Way.DOWN)

        # When the machine loses power and starts again
        worker.kill()
        since_s = time.monotonic()
        again = scene.start(consumers=())
        wait_until("it consumes", lambda: again.log().count(" web-1/plain consuming") == 2, 2 * BACK_AFTER_POWER_LOSS_S)

        # Then it waits for the broker to notice, and no longer
        scene.record.figure("back after, s", time.monotonic() - since_s, at_most=BACK_AFTER_POWER_LOSS_S)
        assert "host web-1 is taken on the broker; waiting for a dead connection to be noticed" in again.log()
        assert_no_traceback(again.log())


def _spend(scene: Scene) -> None:
    """Spend most of the window, at once."""
    scene.enqueue("calls", LIMIT * 9 // 10)
    scene.await_count("called", LIMIT * 9 // 10)


def _judge_wait(scene: Scene) -> None:
    """More work is waiting than a window admits: by the API's log, nothing of it before a window has gone by."""
    scene.enqueue("plain", 20)
    scene.enqueue("calls", LIMIT)
    before = [call.at_ns for call in scene.api.calls()]
    assert len(before) >= LIMIT * 9 // 10
    wait_until("a call", lambda: len(scene.api.calls()) > LIMIT * 9 // 10, timeout_s=30)
    calls = sorted(call.at_ns for call in scene.api.calls())
    gap_s = (calls[LIMIT * 9 // 10] - calls[LIMIT * 9 // 10 - 1]) / 1e9
    scene.record.figure("no call for, s", gap_s, at_least=WINDOW_S, at_most=COUNTS_S + 10)
