"""F08: an operator closes every connection, again and again."""

from __future__ import annotations

import time

from tests.faults.operators import Operator
from tests.faults.rows import row
from tests.faults.scene import Scene
from tests.fleet import wait_until

#: So few that web-1's consumer of calls is held for longer than the test takes.
FEW, LONG_S = 20, 300.0


@row("F08", "close_all_connections; one host has a consumer that is held, the other one that is paused")
def test_the_consumers_are_exactly_those_that_should_be_after_each_close(scene: Scene) -> None:
    # Given two hosts, of which one has spent its quota and is held, and the other has a consumer that is paused
    rounds = 10 if scene.thorough else 2
    scene.stage("web-1", "web-2", limit=FEW, window_s=LONG_S)
    scene.enqueue("calls", FEW)
    held = scene.start("web-1", processes=2, consumers=("plain",))
    scene.await_ended()
    held.await_log("calls held")
    scene.start("web-2")
    someone = Operator(scene)
    someone.pause("web-2/plain")
    expected = sorted(["qctl/web-1/plain/0", "qctl/web-1/plain/1", "qctl/web-2/calls/0"])
    _await_tags(scene, expected)
    scene.enqueue("plain", 40, s=0.05)
    scene.await_ended()
    scene.steady()

    # When all connections are closed, again and again, while there is something to do
    slowest_s, wrong = 0.0, 0
    for _ in range(rounds):
        scene.enqueue("plain", 60, s=0.4)
        scene.vhost.ctl("close_all_connections", "closed by a test")
        since_s = time.monotonic()
        _await_tags(scene, expected)
        slowest_s = max(slowest_s, time.monotonic() - since_s)
        wrong += sorted(scene.fleet.consumer_tags()) != expected

    # Then the same consumers are there each time, and the held and the paused one are not
    scene.may_duplicate = rounds * 3 * 4
    scene.record.figure("rounds", rounds)
    scene.record.figure("slowest return of all consumers, s", slowest_s, at_most=10)
    scene.record.figure("rounds with other consumers than there should be", wrong, equals=0)
    owners = wait_until("both hosts' names held", lambda: _names(scene))
    scene.record.figure("host names held on the broker", len(owners), equals=2)
    someone.resume("web-2/plain")
    _await_tags(scene, sorted([*expected, "qctl/web-2/plain/0"]))


def _await_tags(scene: Scene, expected: list[str]) -> None:
    wait_until(f"exactly {expected}", lambda: sorted(scene.fleet.consumer_tags()) == expected)


def _names(scene: Scene) -> list[str]:
    rows = scene.vhost.ctl("list_queues", "name").splitlines()
    found = [name for name in rows if name.startswith("qctl.host.")]
    return found if len(found) == 2 else []
