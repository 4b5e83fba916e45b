"""F28: the password is rotated, is wrong for a while, or the user is gone."""

from __future__ import annotations

import asyncio
import time

from tests.faults.accounts import account
from tests.faults.proxy import Proxy
from tests.faults.rows import row
from tests.faults.scene import Scene
from tests.fleet import Worker, wait_until

BACK_S = 10.0
#: Tries of a login that is refused, in this long.
MOST_TRIES, OVER_S = 12, 300.0
PROCESSES = 2


def _await_back_s(worker: Worker, before: int, since_s: float) -> float:
    """Seconds until every process consumes both queues again."""

    def back() -> bool:
        said = worker.log()[before:]
        return all(said.count(f"web-1/{consumer} consuming") >= PROCESSES for consumer in ("calls", "plain"))

    wait_until("everything consumes again", back, timeout_s=60.0)
    return time.monotonic() - since_s


def _cut(scene: Scene) -> None:
    """Close all connections, as a broker does that is started anew."""
    scene.vhost.ctl("close_all_connections", "closed by a test")


class Counting(Proxy):
    """A way to the broker that counts who comes."""

    came = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.came += 1
        await super()._serve(reader, writer)


@row("F28", "password rotated in time; wrong for a while; user deleted and made again", timeout_s=500)
def test_a_worker_with_a_wrong_password_tries_seldom_and_is_back_with_the_right_one(scene: Scene) -> None:
    user = scene.keep(account(scene.vhost, scene.directory))
    way = scene.keep(Counting(scene.vhost.broker.amqp_port))
    way.listen()
    scene.stage()
    user.use(scene.fleet)
    worker = scene.start(processes=PROCESSES, amqp=scene.through(way))
    scene.await_ended(scene.enqueue("plain", 20, s=0.01))
    scene.steady()

    # When the password is rotated, first where it is read and then at the broker, then nobody is even refused
    user.write_password("second")
    user.set_password("second")
    before, at_s = len(worker.log()), time.monotonic()
    _cut(scene)
    scene.record.figure("back after a rotation, s", _await_back_s(worker, before, at_s), at_most=BACK_S)
    assert "refused the login" not in worker.log()[before:]

    # When the broker has another one than the worker, it is tried, but seldom, by all processes together
    user.set_password("third")
    before, watched_s = len(worker.log()), OVER_S if scene.thorough else 30.0
    came_before = way.came
    _cut(scene)
    wait_until("a refusal", lambda: "refused the login" in worker.log()[before:])
    time.sleep(watched_s)
    tries = way.came - came_before
    scene.record.figure(f"tries in {watched_s:g} s, of {PROCESSES} processes", tries, at_most=MOST_TRIES)
    assert worker.process.poll() is None

    # And with the right one it is back at once, however long it waited
    before, at_s = len(worker.log()), time.monotonic()
    user.write_password("third")
    scene.record.figure("back with the right password, s", _await_back_s(worker, before, at_s), at_most=BACK_S)
    scene.await_ended(scene.enqueue("plain", 20, s=0.01))

    # When the user is deleted, and soon there again
    before = len(worker.log())
    user.delete()
    wait_until("a refusal", lambda: "refused the login" in worker.log()[before:])
    user.set_password("third")
    before, at_s = len(worker.log()), time.monotonic()
    scene.record.figure("back with the user, s", _await_back_s(worker, before, at_s), at_most=BACK_S)
    scene.await_ended(scene.enqueue("plain", 20, s=0.01))
    scene.record.note("the supervisor's connection counts among the tries")
    assert "third" not in worker.log()
