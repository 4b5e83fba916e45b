"""The slots of a consumer: whose slot counts as lost, and who is not let in. A real ledger in the test's own folder."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

import pytest

from qctl.broker.message import DeadReason, Properties
from qctl.control.quota_reading import CostReading
from qctl.inventory.model import Consumer, PythonHandler, Quota, Rate, RetryPolicy
from qctl.quota import Leases, Ledger, Limit, Policy
from qctl.units import NS_PER_S
from qctl.worker import execute
from qctl.worker.delivery import Delivery, Settled
from qctl.worker.execute import CoroutineLoop, Executor
from qctl.worker.handlers import Handler
from qctl.worker.outcome import Ending
from qctl.worker.rules import Rules
from qctl.worker.task import Task
from qctl.worker.ward import Bed
from tests.fleet import wait_until


def rules(**changes: Any) -> Rules:
    consumer = Consumer(
        name="calls",
        queue="calls",
        handler=PythonHandler("nobody:nothing", {}),
        cost={},
        concurrency=2,
        timeout_s=0.2,
        retry=RetryPolicy(),
        **changes,
    )
    return Rules("web-1", consumer, {}, (1.0, 30.0), 100, lambda: pytest.fail("nothing is enqueued here"))


def delivery(*, redelivered: bool = False, body: bytes = b"", **headers: object) -> Delivery:
    return Delivery(cast(Any, None), 1, redelivered, Properties(headers=headers or None), body, 0.0)


@pytest.fixture
def leases(tmp_path: Path) -> Iterator[Leases]:
    running = Leases.open(tmp_path / "web-1", ())
    yield running
    running.close()


def make(leases: Leases, handler: Handler, bed: Bed | None = None) -> tuple[Executor, SimpleQueue[Settled]]:
    """A started executor, and where what it settles goes."""
    left: SimpleQueue[Settled] = SimpleQueue()
    priced = leases.register("calls", {})
    executor = Executor(rules(), handler, leases, priced, left.put, lambda _: True, bed=bed)
    executor.start(CoroutineLoop().loop if handler.run_async else None)
    return executor, left


def test_given_a_coroutine_that_swallows_its_cancellation_then_its_slot_is_lost_when_it_had_time_to_clean_up(
    leases: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execute, "CLEANUP_S", 0.5)
    monkeypatch.setattr(execute, "HOPELESS_S", 1.0)
    ending = threading.Event()

    async def swallows(task: Task) -> None:
        while not ending.is_set():
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                continue

    executor, left = make(leases, Handler(run_async=swallows))
    executor.put(delivery())
    wait_until("it is over time", lambda: executor.expire() > 0.2)
    executor.expire()

    # Given that it may still be cleaning up
    assert executor.lost_slots == 0
    # When it goes on for longer, then the slot is lost, and at last the process with it
    wait_until("the slot is lost", lambda: executor.lost_slots == 1)
    assert not executor.hopeless
    wait_until("it is hopeless", lambda: executor.hopeless)
    # and when it ends after all, it ends as over time
    ending.set()
    assert left.get(timeout=5).outcome.error == "the task ran longer than 0.2 s"
    assert (executor.lost_slots, executor.hopeless) == (0, False)


def test_given_a_task_that_cannot_be_stopped_then_the_others_that_are_over_time_are_stopped_all_the_same(
    leases: Leases, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    both, stopped = threading.Barrier(2), threading.Event()
    ending, stops = threading.Event(), list[Task]()

    def stop(task: Task) -> None:
        stops.append(task)
        if len(stops) == 1:
            raise TypeError("no socket")
        stopped.set()

    def waits(task: Task) -> None:
        both.wait(5)
        ending.wait(5)

    monkeypatch.setattr(Task, "stop", stop)
    executor, left = make(leases, Handler(run=cast(Any, waits)))
    executor.put(delivery())
    executor.put(delivery())

    wait_until("both are told", lambda: executor.expire() > 0 and stopped.is_set())
    ending.set()

    assert "task cannot be stopped" in caplog.text
    assert [left.get(timeout=5).outcome.ending for _ in range(2)] == [Ending.LATER] * 2


class RecordingBed:
    """Where suspects go."""

    waiting = inside = 0

    def __init__(self) -> None:
        self.found: list[Delivery] = []

    def put(self, delivery: Delivery) -> None:
        self.found.append(delivery)

    def take_back(self, which: Callable[[Delivery], bool]) -> list[Delivery]:
        return [one for one in self.found if which(one)]

    def expire(self) -> None:
        """Nobody is over time."""


def test_given_a_suspect_then_it_goes_to_the_ward_unless_it_is_not_to_be_run_at_all(leases: Leases) -> None:
    bed = RecordingBed()
    executor, left = make(leases, Handler(run=lambda _: None), cast(Bed, bed))
    suspect = delivery(**{"qctl-crashes": 1})

    executor.put(suspect)
    executor.put(delivery(body=b"x" * 101, **{"qctl-crashes": 1}))
    executor.put(delivery(redelivered=True, **{"x-delivery-count": 2}))

    assert bed.found == [suspect]
    endings = {left.get(timeout=5).outcome.reason for _ in range(2)}
    assert endings == {DeadReason.TOO_LARGE, None}
    # and it is given back with those who wait here
    assert executor.take_back() == [suspect]


def test_given_a_kind_to_take_back_then_the_others_stay_in_their_order(leases: Leases) -> None:
    priced = leases.register("calls", {})
    bed = cast(Bed, RecordingBed())
    executor = Executor(rules(), Handler(run=lambda _: None), leases, priced, lambda _: None, lambda _: True, bed)
    deliveries = [delivery() for _ in range(5)]
    for one in deliveries:
        executor.put(one)

    assert executor.take_back(lambda one: one in deliveries[::2]) == deliveries[::2]
    assert executor.take_back() == deliveries[1::2]


def test_given_no_ward_then_suspects_run_here_as_anybody(leases: Leases) -> None:
    executor, left = make(leases, Handler(run=lambda _: None))

    executor.put(delivery(redelivered=True))

    assert left.get(timeout=5).outcome.ending is Ending.ACK


def test_given_a_task_that_costs_more_than_a_lowered_limit_then_it_waits_outside_and_counts_nothing(
    tmp_path: Path,
) -> None:
    # Given a limit of ten, lowered to four, and a task that says it needs five
    leases = Leases.open(tmp_path / "web-1", [Policy("api", (Limit(10, 10 * NS_PER_S),))], hold_after_s=5.0)
    quotas = {"api": Quota("api", (Rate(10, 10 * NS_PER_S),))}
    plain = rules()
    paying = replace(plain, quotas=quotas, consumer=replace(plain.consumer, cost={"api": 1}))
    left: list[Settled] = []
    ran: list[Task] = []
    executor = Executor(
        paying, Handler(run=ran.append), leases, leases.register("calls", {"api": 1}), left.append, lambda _: True
    )
    leases.configure([Policy("api", (Limit(4, 10 * NS_PER_S),))])
    wait_until("it is known", lambda: leases.readings()["api"].limits[0].limit.units == 4)

    # When it comes
    started_s = time.monotonic()
    executor.work(delivery(**{"qctl-cost": {"api": 5}}))

    # Then it goes to the delay queues at once, and one that can be paid runs
    assert time.monotonic() - started_s < 2.0
    (settled,) = left
    assert (settled.outcome.ending, settled.outcome.delay_s) == (Ending.LATER, 30.0)
    assert settled.outcome.headers == {"qctl-error": "it needs 5 units of api, more than the limit of 4 that holds now"}
    executor.work(delivery(**{"qctl-cost": {"api": 4}}))
    assert len(ran) == 1
    leases.close()


@pytest.mark.parametrize("swallows", [False, True])
@pytest.mark.parametrize(
    ("units", "quota", "words"),
    [
        (-1, "api", "a whole number"),
        (1.5, "api", "a whole number"),
        ("3", None, "a whole number"),
        (1, "mail", "no quota"),
    ],
)
def test_given_a_task_that_spends_what_cannot_be_then_it_is_dead_at_once(
    tmp_path: Path, units: Any, quota: str | None, words: str, swallows: bool
) -> None:
    # Given a task that may be tried again
    leases = Leases.open(tmp_path / "web-1", [Policy("api", (Limit(10, 10 * NS_PER_S),))], hold_after_s=0.2)
    quotas = {"api": Quota("api", (Rate(10, 10 * NS_PER_S),))}
    plain = rules()
    paying = replace(plain, quotas=quotas, consumer=replace(plain.consumer, cost={"api": 1}))

    def spends(task: Task) -> None:
        with suppress(Exception if swallows else ()):
            task.spend(units, quota)

    # When
    left: list[Settled] = []
    executor = Executor(
        paying, Handler(run=spends), leases, leases.register("calls", {"api": 1}), left.append, lambda _: True
    )
    executor.work(delivery())
    leases.close()

    # Then
    assert (left[0].outcome.ending, left[0].outcome.reason) == (Ending.DEAD, DeadReason.COST)
    assert words in left[0].outcome.error


@pytest.mark.parametrize("swallows", [False, True])
def test_given_a_task_that_spends_more_than_the_limit_then_it_is_dead_and_nothing_is_spent(
    tmp_path: Path, swallows: bool
) -> None:
    # Given a quota of ten, and a task that is admitted at one unit
    leases = Leases.open(tmp_path / "web-1", [Policy("api", (Limit(10, 10 * NS_PER_S),))], hold_after_s=0.2)
    quotas = {"api": Quota("api", (Rate(10, 10 * NS_PER_S),))}
    plain = rules()
    paying = replace(plain, quotas=quotas, consumer=replace(plain.consumer, cost={"api": 1}))

    def spends(task: Task) -> None:
        with suppress(Exception if swallows else ()):
            task.spend(11)

    # When it wants eleven
    left: list[Settled] = []
    executor = Executor(
        paying, Handler(run=spends), leases, leases.register("calls", {"api": 1}), left.append, lambda _: True
    )
    executor.work(delivery())
    leases.close()

    # Then
    assert (left[0].outcome.ending, left[0].outcome.reason) == (Ending.DEAD, DeadReason.COST)
    ledger = Ledger.open(tmp_path / "web-1")
    assert sum(ledger.readings()["api"].used(ledger.clock.now_ns())) == 0
    ledger.close()


def test_what_a_task_that_ended_well_used_is_learnt_and_nothing_of_the_others(tmp_path: Path) -> None:
    # Given a consumer that declares 2 of api, and 1 of mail which its tasks never meter
    hour_ns = 3_600 * NS_PER_S
    policies = [Policy(name, (Limit(1_000, hour_ns),)) for name in ("api", "mail")]
    with Leases.open(tmp_path / "web-1", policies, hold_after_s=5.0) as leases:
        plain = rules()
        cost = {"api": 2, "mail": 1}
        quotas = {name: Quota(name, (Rate(1_000, hour_ns),)) for name in cost}
        paying = replace(plain, quotas=quotas, consumer=replace(plain.consumer, cost=cost))
        acts: list[Callable[[Task], object]] = []
        left: list[Settled] = []
        executor = Executor(
            paying,
            Handler(run=lambda task: acts.pop(0)(task)),
            leases,
            leases.register("calls", cost),
            left.append,
            lambda _: True,
        )

        def fails(task: Task) -> None:
            task.spend(9, quota="api")
            raise ValueError("broken")

        # When one spends 5, one fails, one meters nothing, one names its own cost, and one meters and spends nothing
        acts += [lambda task: task.spend(5, quota="api"), fails, lambda _: None]
        acts += [lambda task: task.spend(7, quota="api"), lambda task: task.spend(0, quota="api")]
        for headers in ({}, {}, {}, {"qctl-cost": {"api": 7}}, {}):
            executor.work(delivery(**headers))

        # Then the first and the last have told what tasks cost
        assert [settled.outcome.ending for settled in left].count(Ending.ACK) == 4
        (found,) = paying.learned.readings("calls", cost, time.monotonic())
        assert found == CostReading("calls", "", "api", declared=2, tasks=2, p50=0, p95=5, mean=2.5)


def test_a_task_that_gave_up_for_want_of_units_tells_that_it_needed_more(tmp_path: Path) -> None:
    # Given a limit of 5, of which tasks are declared to cost 1
    hour_ns = 3_600 * NS_PER_S
    with Leases.open(tmp_path / "web-1", [Policy("api", (Limit(5, hour_ns),))], hold_after_s=0.05) as leases:
        plain, cost = rules(), {"api": 1}
        quotas = {"api": Quota("api", (Rate(5, hour_ns),))}
        paying = replace(plain, quotas=quotas, consumer=replace(plain.consumer, cost=cost))
        left: list[Settled] = []

        def spends(task: Task) -> None:
            for _ in range(3):
                task.spend(2)

        executor = Executor(
            paying, Handler(run=spends), leases, leases.register("calls", cost), left.append, lambda _: True
        )

        # When it has spent 4 and cannot have 2 more
        executor.work(delivery())

        # Then its like are known to need 6 at least
        assert left[0].outcome.ending is Ending.LATER
        (found,) = paying.learned.readings("calls", cost, time.monotonic())
        assert (found.tasks, found.gave_up, found.p50) == (1, 1, 6)
