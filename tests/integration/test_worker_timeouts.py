"""Tasks over their time: a coroutine is cancelled; a thread cannot be, but it may neither call nor spend any more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.brokers import Broker, Vhost, fresh_vhost
from tests.fleet import Fleet, Worker, wait_until
from tests.integration.worker_harness import Wire, await_history, spent, start_consuming, wire
from tests.upstream import Upstream

HANDLERS = """
    import asyncio, pathlib

    async def coroutine(task):
        note("coroutine", task.attempt)
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            note("cancelled", task.attempt)
            raise

    async def stubborn(task):
        note("stubborn", task.attempt)
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            return

    async def own(task):
        raise TimeoutError("the handler's own")

    def thread(task):
        note("thread", task.attempt)
        if task.attempt > 1:
            return
        task.spend(1)
        while not pathlib.Path(GATE).exists():
            time.sleep(0.01)
        for call in (lambda: task.http.get(URL + "/late"), lambda: task.spend(1)):
            try:
                call()
            except Exception as error:
                note("refused", type(error).__name__)
        note("over", task.attempt)

    def drips(task):
        note("drips", task.attempt)
        task.http.get(URL + "/" + task.payload, stream=task.payload == "streamed/drip").content

    def sleeps(task):
        note("sleeps", task.attempt)
        time.sleep(2)
"""


@dataclass(frozen=True, slots=True)
class Site:
    fleet: Fleet
    worker: Worker
    wire: Wire
    upstream: Upstream


@pytest.fixture(scope="module")
def site(local_broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A worker whose tasks have a second."""
    directory = tmp_path_factory.mktemp("timeouts")
    names = ("coroutine", "stubborn", "own", "thread", "drips", "sleeps")
    consumers = {
        name: {
            "handler": {"python": f"handlers:{name}"},
            "quota": {"api": 1},
            "timeout": "1s",
            "concurrency": 4,
            "retry": {"attempts": 2, "delays": ["1s"]},
        }
        for name in names
    }
    with (
        Upstream() as upstream,
        fresh_vhost(local_broker) as vhost,
        Fleet(
            vhost,
            directory,
            f"    GATE = {str(directory / 'gate')!r}\n    URL = {upstream.address!r}\n" + HANDLERS,
            quotas={"api": "1000/h"},
            consumers=consumers,
            hosts={"web-1": None},
        ) as fleet,
        wire(vhost) as connected,
    ):
        yield Site(fleet, start_consuming(fleet, "web-1", *names), connected, upstream)


@pytest.mark.parametrize("name", ["coroutine", "stubborn"])
def test_given_a_coroutine_over_its_time_then_it_is_cancelled_and_tried_as_often_as_it_may(
    site: Site, name: str
) -> None:
    site.wire.task(name, {})

    dead = site.wire.take(f"{name}.dead")

    assert dead.headers["qctl-error"] == "the task ran longer than 1 s"
    assert dead.headers["qctl-reason"] == "attempts"
    assert site.fleet.history(name) == ["1", "2"]
    if name == "coroutine":
        assert site.fleet.history("cancelled") == ["1", "2"]


def test_given_a_timeout_of_the_handlers_own_then_that_is_what_is_said(site: Site) -> None:
    site.wire.task("own", {}, headers={"qctl-attempt": 2})

    assert site.wire.take("own.dead").headers["qctl-error"] == "TimeoutError: the handler's own"


def test_given_a_thread_over_its_time_then_it_can_neither_call_nor_spend_and_is_retried_only_when_it_is_over(
    site: Site,
) -> None:
    # Given a task that is over its time
    site.wire.task("thread", {}, message_id="t-1")
    site.worker.await_log("task over its timeout of 1 s id=t-1")

    # Then it is not with anybody else while it goes on
    assert site.fleet.history("thread") == ["1"]
    assert site.wire.depth("qctl.retry.1s") == 0
    # and when it goes on to call and to spend, it may not
    (site.fleet.directory / "gate").touch()
    await_history(site.fleet, "over", 1)
    assert site.fleet.history("refused") == ["TimedOut", "TimedOut"]
    assert site.upstream.calls() == []
    # and only then it runs again
    assert await_history(site.fleet, "thread", 2) == ["1", "2"]


@pytest.mark.parametrize("path", ["drip-headers", "drip", "streamed/drip"])
def test_given_an_answer_that_never_ends_then_the_call_is_cut_off_when_the_time_is_over(site: Site, path: str) -> None:
    # Given a server that says a byte now and then, so that no read ever takes too long
    site.wire.task("drips", path, headers={"qctl-attempt": 2})

    dead = site.wire.take("drips.dead", 5)

    assert dead.headers["qctl-reason"] == "attempts"
    assert "over its timeout" in dead.headers["qctl-error"] or "its timeout of 1 s" in dead.headers["qctl-error"]


def test_given_a_thread_that_returns_too_late_then_its_result_does_not_count(site: Site) -> None:
    site.wire.task("sleeps", {}, headers={"qctl-attempt": 2})

    dead = site.wire.take("sleeps.dead")

    assert site.fleet.history("sleeps") == ["2"]
    assert "longer than its timeout of 1 s" in dead.headers["qctl-error"]


def test_given_all_that_then_every_run_counts_at_its_cost_and_the_worker_ends_in_order(site: Site) -> None:
    runs = sum(len(site.fleet.history(name)) for name in ("coroutine", "stubborn", "thread", "drips", "sleeps")) + 1

    wait_until("nothing runs", lambda: site.wire.depth("qctl.retry.1s") == 0)
    assert site.worker.stop() == 0

    assert spent(site.fleet, "web-1")["api"] == runs


def test_given_half_the_slots_lost_then_the_process_is_replaced_and_the_task_goes_to_another(
    local_vhost: Vhost, tmp_path: Path
) -> None:
    # Given a task that hangs in one of two slots, once
    handlers = """
        def hangs(task):
            note("hangs", os.getpid())
            while not task.payload and len(open(DIRECTORY + "/hangs").read().split()) == 1:
                time.sleep(0.05)
            note("done", task.id)
    """.replace("DIRECTORY", repr(str(tmp_path)))
    consumers = {
        "hangs": {"handler": {"python": "handlers:hangs"}, "quota": {}, "timeout": "1s", "concurrency": 2},
    }
    with Fleet(local_vhost, tmp_path, handlers, consumers=consumers, hosts={"web-1": None}) as fleet:
        worker = start_consuming(fleet, "web-1", "hangs", arguments=("--drain-timeout", "1s"))

        # When it is over its time
        fleet.enqueue("hangs", [0], "--type", "once")

        # Then the process is replaced, and another one runs the task
        worker.await_log("half of its slots run tasks that are over time; replacing this process")
        await_history(fleet, "done", 1)
        first, second = fleet.history("hangs")
        assert first != second
        assert worker.stop() == 0
