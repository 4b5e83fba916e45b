"""What a handler leaves behind: threads and coroutines that go on when their task has ended. A real ledger and API."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

import pytest

from qctl.broker.message import Message, Properties
from qctl.inventory.model import Consumer, PythonHandler, Quota, Rate
from qctl.quota import Grant, Leases, Limit, Policy
from qctl.testing.purse import Purse
from qctl.units import NS_PER_S
from qctl.worker.delivery import Delivery, Settled
from qctl.worker.exceptions import TimedOut
from qctl.worker.execute import CoroutineLoop, Executor
from qctl.worker.handlers import Handler
from qctl.worker.meter import Meter
from qctl.worker.rules import Rules
from qctl.worker.tariff import tariff
from qctl.worker.task import Task
from tests.fleet import wait_until
from tests.upstream import Upstream

LIMIT = 5
HOUR_NS = 3600 * NS_PER_S


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as running:
        yield running


@pytest.fixture
def leases(tmp_path: Path) -> Iterator[Leases]:
    running = Leases.open(tmp_path / "web-1", [Policy("api", (Limit(LIMIT, HOUR_NS),))])
    yield running
    running.close()


def ended(leases: Leases, handler: Handler) -> None:
    """One task of this handler was run to its end."""
    consumer = Consumer("calls", "calls", PythonHandler("nobody:nothing", {}), {"api": 1})
    quotas = {"api": Quota("api", (Rate(LIMIT, HOUR_NS),))}
    rules = Rules("web-1", consumer, quotas, (1.0,), 1000, lambda: pytest.fail("nothing is enqueued here"))
    left: SimpleQueue[Settled] = SimpleQueue()
    priced = leases.register("calls", {"api": 1})
    executor = Executor(rules, handler, leases, priced, left.put, lambda _: True)
    executor.start(CoroutineLoop().loop if handler.run_async else None)
    executor.put(Delivery(cast(Any, None), 1, False, Properties(), b"", 0.0))
    left.get(timeout=5)


def used(leases: Leases) -> list[int]:
    return [part.used(leases.clock.now_ns()) for part in leases.look()["api"].limits]


def test_given_a_thread_that_first_calls_when_its_task_has_ended_then_it_is_refused(
    leases: Leases, upstream: Upstream
) -> None:
    over, errors = threading.Event(), list[BaseException]()
    before = len(upstream.calls())

    def later(task: Task) -> None:
        over.wait(5)
        for call in (lambda: task.http.get(upstream.address), lambda: task.spend(1)):
            try:
                call()
            except BaseException as error:  # noqa: BLE001
                errors.append(error)

    threads: list[threading.Thread] = []

    def leaves(task: Task) -> None:
        threads.append(threading.Thread(target=later, args=(task,)))
        threads[0].start()

    ended(leases, Handler(run=cast(Any, leaves)))
    over.set()
    threads[0].join(5)

    assert [(type(error), str(error)) for error in errors] == [(TimedOut, "the task is over; no more calls")] * 2
    assert len(upstream.calls()) == before
    wait_until("the declared cost, and no more", lambda: used(leases) == [1])


def test_given_a_coroutine_that_first_calls_when_its_task_has_ended_then_it_is_refused(
    leases: Leases, upstream: Upstream
) -> None:
    over, results = threading.Event(), SimpleQueue[object]()
    kept: list[asyncio.Task[None]] = []
    before = len(upstream.calls())

    async def later(task: Task) -> None:
        await asyncio.to_thread(over.wait, 5)
        for call in (lambda: task.http_async.get(upstream.address), lambda: task.spend_async(1)):
            try:
                results.put(await call())
            except BaseException as error:  # noqa: BLE001
                results.put(type(error))

    async def leaves(task: Task) -> None:
        kept.append(asyncio.create_task(later(task)))

    ended(leases, Handler(run_async=leaves))
    over.set()

    assert [results.get(timeout=5) for _ in range(2)] == [TimedOut, TimedOut]
    assert len(upstream.calls()) == before
    wait_until("the declared cost, and no more", lambda: used(leases) == [1])


def test_given_a_meter_whose_grant_was_settled_then_it_refuses_whoever_has_it(leases: Leases) -> None:
    grant = leases.acquire(leases.register("calls", {"api": 2}))
    assert isinstance(grant, Grant)
    meter = Meter(leases, grant, tariff({"api": 2}, {}, {}))

    leases.settle(grant, {})

    assert grant.reserved("api") == 0
    with pytest.raises(TimedOut, match="the task is over; no more calls"):
        meter.begin("http://api.test/")
    with pytest.raises(TimedOut, match="the task is over; no more calls"):
        meter.spend(1)


def test_given_a_task_that_is_over_and_not_settled_yet_then_a_meter_that_is_opened_now_refuses(leases: Leases) -> None:
    grant = leases.acquire(leases.register("calls", {"api": 2}))
    assert isinstance(grant, Grant)
    task = Task(
        Message(b"", Properties()),
        host="web-1",
        consumer="calls",
        start_meter=lambda: Meter(leases, grant, tariff({"api": 2}, {}, {})),
        make_outbox=lambda: pytest.fail("nothing is enqueued here"),
    )

    task.followups()

    with pytest.raises(TimedOut, match="the task is over; no more calls"):
        task.spend(1)


def test_given_threads_that_all_make_the_first_call_then_the_task_has_one_meter_and_one_session() -> None:
    # Given that it takes a moment to start a meter
    meters: list[Meter] = []

    def start() -> Meter:
        purse = Purse({})
        meters.append(
            Meter(
                cast(Leases, purse),
                cast(Grant, purse.take(purse.price("calls", {"api": 1}))),
                tariff({"api": 1}, {}, {}),
            )
        )
        time.sleep(0.02)
        return meters[-1]

    task = Task(
        Message(b"", Properties()),
        host="web-1",
        consumer="calls",
        start_meter=start,
        make_outbox=lambda: pytest.fail("nothing is enqueued here"),
    )
    sessions: list[object] = []
    threads = [threading.Thread(target=lambda: sessions.append(task.http)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)

    assert len(meters) == 1
    assert len({id(one) for one in sessions}) == 1
