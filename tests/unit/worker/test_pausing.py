"""A pause of one subscription: what it keeps from starting, and when it counts as complete. No broker."""

from __future__ import annotations

import asyncio
import dis
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qctl.broker.message import Properties
from qctl.control.desired import Pause
from qctl.control.target import Target
from qctl.inventory.model import Consumer, PythonHandler, RetryPolicy
from qctl.quota import Grant, Leases, Limit, Policy
from qctl.worker import execute
from qctl.worker.delivery import Delivery, Settled
from qctl.worker.execute import Executor
from qctl.worker.handlers.python import of
from qctl.worker.in_line import InLine
from qctl.worker.inside import is_inside
from qctl.worker.outcome import ACK
from qctl.worker.rules import Rules
from qctl.worker.state import State
from qctl.worker.task import Task
from tests.fleet import wait_until
from tests.unit.worker.stand_ins import Place, Slots, hearing

WORK, OWN = "work", "work@web-1"


def pause(**changes: Any) -> Pause:
    fields = {"claimed_by": None, "at": "", "reason": None, "until_s": None, "target": Target(host="web-1")}
    return Pause(**{"id": "1", "user": "ops", **fields, **changes})


class Scene:
    """A consumer with a directed queue, both subscribed as far as it can tell."""

    def __init__(self) -> None:
        self.live = hearing("calls", {WORK: "tag", OWN: "tag/directed"})
        self.slots = Slots()
        self.live.executor = cast(Any, self.slots)
        self.places = {queue: Place(queue) for queue in (WORK, OWN)}

    def deliver(self, queue: str) -> Delivery:
        self.live.deliver(cast(Any, self.places[queue]), 1, False, Properties(message_id="a"), b"{}")
        return self.slots.deliveries[-1]

    def states(self) -> list[State]:
        return [state for _, _, state in self.live.subscriptions()]


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_given_a_pause_of_one_queue_then_nothing_of_it_starts_and_the_other_goes_on(scene: Scene) -> None:
    taken, other, waiting = scene.deliver(WORK), scene.deliver(OWN), scene.deliver(WORK)
    scene.slots.deliveries.remove(taken)

    scene.live.pause({WORK: (pause(),), OWN: ()})

    # Then what a slot has taken may not start, what waits is given back, and what comes goes back
    assert scene.live.may_start(taken) is False
    assert scene.slots.deliveries == [other]
    assert scene.places[WORK].back == [waiting.tag]
    scene.live.deliver(cast(Any, scene.places[WORK]), 2, False, Properties(), b"")
    assert scene.places[WORK].back == [waiting.tag, 2]
    # and the other queue is as it was
    assert scene.live.may_start(other) is True
    assert scene.places[OWN].back == []
    assert scene.states() == [State.PAUSED, State.CONSUMING]
    assert scene.live.state is State.PAUSED
    # until it is resumed
    scene.live.pause({WORK: (), OWN: ()})
    assert scene.live.may_start(taken) is True


def test_of_what_keeps_a_consumer_from_consuming_the_first_shows_and_each_ends_alone(scene: Scene) -> None:
    both = {WORK: (pause(reason="deploy"),), OWN: (pause(reason="deploy"),)}
    scene.live.hold("quota", "quota api")
    assert (scene.live.state, scene.live.why) == (State.HELD, "quota api")

    # When it is paused while it is held, and the hold ends
    scene.live.pause(both)
    assert (scene.live.state, scene.live.why) == (State.PAUSED, "web-1, by ops: deploy")
    scene.live.release("quota")
    # Then it stays paused
    assert scene.live.state is State.PAUSED
    assert not scene.live.wants(WORK)

    # When it is held while it is paused, and resumed
    scene.live.hold("quota", "quota api")
    scene.live.pause({})
    # Then it is held
    assert scene.live.state is State.HELD
    assert not scene.live.wants(WORK)
    scene.live.release("quota")
    assert scene.live.state is State.CONSUMING

    # When it drains, or hears no more what is commanded, that shows first
    scene.live.pause(both)
    scene.live.drain()
    assert scene.live.state is State.DRAINING
    scene.live.stop_hearing("the control log is gone")
    assert (scene.live.state, scene.live.why) == (State.DOWN, "the control log is gone")


def test_given_a_process_that_does_not_hear_what_is_commanded_then_nothing_starts(scene: Scene) -> None:
    taken = scene.deliver(WORK)
    assert scene.live.may_start(taken) is True

    scene.live.stop_hearing("the control log is gone")

    assert scene.live.may_start(taken) is False
    assert not scene.live.wants(WORK)
    assert scene.places[WORK].back == [taken.tag]


def test_a_pause_is_complete_when_its_tag_is_cancelled_and_nothing_of_it_can_start(scene: Scene) -> None:
    async def scenario() -> None:
        keeper = scene.live._keepers[WORK]
        keeper.subscribed = True
        other, taken = scene.deliver(OWN), scene.deliver(WORK)
        scene.live.pause({WORK: (pause(),)})
        complete = asyncio.create_task(scene.live.paused([WORK]))

        async def is_waiting() -> bool:
            await asyncio.wait({complete}, timeout=0.06)
            return not complete.done()

        # While the tag is there, and then while something of it may be about to start, it is not
        assert await is_waiting()
        scene.slots.starting = [other, taken]
        keeper.subscribed = False
        assert await is_waiting()
        # Then it is, whatever starts of the other queue
        scene.slots.starting = [other]
        await asyncio.wait_for(complete, 5)

        # and when it is resumed meanwhile there is nothing to wait for
        scene.slots.starting = [taken]
        again = asyncio.create_task(scene.live.paused([WORK]))
        await asyncio.wait({again}, timeout=0.06)
        assert not again.done()
        scene.live.pause({})
        await asyncio.wait_for(again, 5)

    asyncio.run(scenario())


def test_a_pause_sends_the_cancel_in_the_same_turn_of_the_loop_and_of_its_queue_alone(scene: Scene) -> None:
    asked: list[str] = []
    for queue, keeper in scene.live._keepers.items():
        subscription = SimpleNamespace(
            gave_back=False, scattered=False, prefetch=scene.live.prefetch, ask_cancel=lambda it=queue: asked.append(it)
        )
        keeper._consuming = cast(Any, subscription)

    scene.live.pause({WORK: (pause(),)})

    assert asked == [WORK]


def test_a_row_says_what_runs_of_its_queue_and_what_was_given_back(scene: Scene) -> None:
    running, done = scene.deliver(WORK), scene.deliver(WORK)
    scene.slots.deliveries.clear()
    scene.deliver(WORK)
    assert scene.live.may_start(running)
    assert scene.live.may_start(done)
    scene.live.on_settled(Settled(done, ACK, run_s=1.0))
    keeper = scene.live._keepers[WORK]

    scene.live.pause({WORK: (pause(),)})
    keeper.cancelled_at_s = 12.5

    row, other = scene.live.rows()
    assert (row.tag, row.state, row.cancelled_at_s, row.running, row.given_back) == ("tag", State.PAUSED, 12.5, 1, 1)
    assert (other.tag, other.state, other.running, other.given_back) == ("tag/directed", State.CONSUMING, 0, 0)


def test_pauses_that_are_alike_are_told_once(scene: Scene) -> None:
    alike = [pause(id=str(number), reason="deploy") for number in range(3)]
    scene.live.pause({WORK: (*alike, pause(id="8", reason="deploy", until_s=9.0), pause(id="9", user="ann"))})

    assert scene.live.why == "web-1, by ops: deploy (3 times); web-1, by ops: deploy; web-1, by ann"
    assert len(scene.live.pauses) == 5


def test_given_all_of_it_is_over_then_the_end_of_its_connection_is_no_news(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    # Given a connection that is lost while it drains, which is
    scene.live.drain()
    scene.live.stop_hearing("the broker is gone")
    assert scene.live.state is State.DOWN
    scene.live._deaf = False
    scene.live.changed()
    assert [one.levelname for one in caplog.records] == ["INFO", "WARNING", "INFO"]

    # When it has drained, and its connection is closed
    scene.live.end()
    scene.live.stop_hearing("closed")
    scene.live.lost("200 Normal shutdown")

    assert scene.live.state is State.DRAINING
    assert len(caplog.records) == 3


# Quota


class Gate:
    """Where a thread says that it has come, and waits to be let on."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def pass_through(self) -> None:
        self.reached.set()
        assert self.opened.wait(20)


def test_given_a_task_that_waits_for_quota_when_all_is_paused_then_it_is_back_before_that_counts_as_complete(
    scene: Scene, tmp_path: Path
) -> None:
    # Given a task that waits for units which another one has, for a minute if need be
    live, hour = scene.live, 3600 * 10**9
    with Leases.open(tmp_path / "web-1", [Policy("api", (Limit(1, hour),))], hold_after_s=60.0) as leases:
        live.in_line = InLine(leases, "calls", {"api": 1}, backlog=dict, hold=live.hold, release=live.release)
        grant = leases.acquire(live.in_line.priced)
        assert isinstance(grant, Grant)
        consumer = Consumer("calls", WORK, PythonHandler("nobody:nothing", {}), {}, concurrency=1, retry=RetryPolicy())
        rules = Rules("web-1", consumer, {}, (1.0,), 1000, lambda: pytest.fail("nothing is enqueued"))
        handler = of(lambda _: pytest.fail("nothing runs"))
        way_back = Gate()

        def slowly(settled: Settled) -> None:
            way_back.pass_through()
            live.on_settled(settled)

        live.executor = Executor(rules, handler, leases, live.in_line.priced, slowly, live.may_start)
        live.executor.start(None)
        live.deliver(cast(Any, scene.places[WORK]), 1, False, Properties(message_id="a"), b"{}")
        wait_until("it waits and stands in line", lambda: leases._ledger.readings()["api"].claims)
        assert live.executor.paying == 1

        # When one queue is paused, and then the other
        live.pause({OWN: (pause(),)})
        assert leases.standing("calls").consuming
        both = {WORK: (pause(),), OWN: (pause(),)}
        live.pause(both)
        assert way_back.reached.wait(10)
        threading.Timer(0.1, way_back.opened.set).start()
        asyncio.run(asyncio.wait_for(live.paused([WORK, OWN]), 10))

        # Then it is back and counted, no hold shows, and nobody else waits behind it
        assert [row.given_back for row in live.rows()] == [1, 0]
        assert scene.places[WORK].back == [1]
        assert (live.state, dict(live.holds)) == (State.PAUSED, {})
        live.in_line.judge()
        assert dict(live.holds) == {}
        wait_until("no claim", lambda: not leases._ledger.readings()["api"].claims)

        # When it is resumed while there is no quota, then it is held, and why is true
        leases.settle(grant)
        wait_until("written", lambda: not leases.readings()["api"].leased_units)
        live.pause({OWN: (pause(),)})
        assert (live.state_of(WORK), dict(live.holds)) == (State.HELD, {"quota": "quota api"})
        assert not live.wants(WORK)

        # When the quota returns during a pause, then that stays, and afterwards it consumes
        live.pause(both)
        assert dict(live.holds) == {}
        leases.configure([Policy("api", (Limit(1000, hour),))])
        live.in_line.judge()
        assert live.state is State.PAUSED
        live.pause({})
        assert (live.state, dict(live.holds)) == (State.CONSUMING, {})
        # and one that has drained meanwhile does not stand in line again
        live.pause(both)
        live.drain()
        live.pause({})
        assert not leases.standing("calls").consuming


# The gap between the look and the handler


@pytest.fixture
def leases(tmp_path: Path) -> Iterator[Leases]:
    running = Leases.open(tmp_path / "web-1", ())
    yield running
    running.close()


def executor_of(leases: Leases, function: Callable[[Task], Any]) -> tuple[Executor, list[Settled]]:
    consumer = Consumer("calls", "calls", PythonHandler("nobody:nothing", {}), {}, concurrency=1, retry=RetryPolicy())
    rules = Rules("web-1", consumer, {}, (1.0,), 1000, lambda: pytest.fail("nothing is enqueued"))
    left: list[Settled] = []
    priced = leases.register("calls", {})
    executor = Executor(rules, of(function), leases, priced, left.append, lambda _: True)
    return executor, left


def json_delivery() -> Delivery:
    return Delivery(cast(Any, None), 1, False, Properties(content_type="application/json"), b"{}", 0.0)


def test_a_task_is_starting_from_before_it_is_looked_whether_it_may_until_it_is_inside_its_handler(
    leases: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given three places on the way to the handler where a thread may be kept for long, and the handler
    looking, parsing, handling = Gate(), Gate(), Gate()
    executor, left = executor_of(leases, lambda _: handling.pass_through())
    monkeypatch.setattr(executor, "_may_start", lambda _: looking.pass_through() or True)
    monkeypatch.setattr(Task, "payload", property(lambda _: parsing.pass_through()))
    one = json_delivery()
    thread = threading.Thread(target=executor.work, args=(one,), daemon=True)
    assert not executor.is_starting(lambda _: True)
    thread.start()

    # Then it is starting at each of them
    for gate in (looking, parsing):
        assert gate.reached.wait(5)
        assert executor.is_starting(lambda it: it is one)
        assert not executor.is_starting(lambda it: it is not one)
        gate.opened.set()
    # and no longer once the handler has begun, which may take as long as it likes
    assert handling.reached.wait(5)
    assert not executor.is_starting(lambda _: True)
    assert executor.active == 1
    # unless its thread cannot be seen to be there
    with monkeypatch.context() as patched:
        patched.setattr(execute, "is_inside", lambda ident: ident != thread.ident)
        assert executor.is_starting(lambda it: it is one)
        assert not executor.is_starting(lambda it: it is not one)
    handling.opened.set()
    thread.join(5)
    assert executor.active == 0
    assert len(left) == 1


def test_a_thread_on_its_way_to_the_handler_is_not_inside() -> None:
    # Given a function of the module that runs tasks, and one of a handler, each about to wait in C
    source = "def stand(lock):\n    with lock:\n        pass\n"
    for module, inside in (("qctl.worker.execute", False), ("qctl.worker.handlers.python", False), ("theirs", True)):
        found: dict[str, Any] = {"__name__": module}
        exec(source, found)  # noqa: S102
        lock = threading.Lock()
        with lock:
            thread = threading.Thread(target=found["stand"], args=(lock,), daemon=True)
            thread.start()
            wait_until("it stands there", lambda: _top(thread) == "stand")  # noqa: B023
            wait_until("it waits", lambda: is_inside(cast(int, thread.ident)) is inside)  # noqa: B023
            assert is_inside(cast(int, thread.ident)) is inside
        thread.join(5)
        assert is_inside(cast(int, thread.ident))


def _top(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(cast(int, thread.ident))
    return frame.f_code.co_name if frame else ""


def test_a_function_that_is_called_and_has_not_begun_is_not_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    def handler(task: object) -> object:
        return lambda: task  # a variable of a closure, so that its first instruction is not where it begins

    def frame(at: int) -> Any:
        return SimpleNamespace(f_globals={"__name__": "theirs"}, f_code=handler.__code__, f_lasti=at)

    places = {one.opname: one.offset for one in dis.get_instructions(handler)}
    for at, inside in ((places["RESUME"] - 2, False), (places["RESUME"], False), (places["RESUME"] + 2, True)):
        monkeypatch.setattr(sys, "_current_frames", lambda at=at: {7: frame(at)})
        assert is_inside(7) is inside
