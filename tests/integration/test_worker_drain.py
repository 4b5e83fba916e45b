"""How a worker ends: in order, at once, by force; and who else ends with it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qctl.broker.session import HEARTBEAT_S
from qctl.control.host_answer import HostAnswer
from qctl.worker import claim
from tests.brokers import Vhost
from tests.fleet import STOP_TIMEOUT_S, Fleet, Worker, wait_until
from tests.integration.worker_harness import (
    Wire,
    alive,
    assert_no_traceback,
    await_consuming,
    await_history,
    children,
    close_connections,
    group_members,
    start_consuming,
    wire,
)
from tests.wire import connected

HANDLERS = """
    import os, pathlib, subprocess

    def waits(task):
        note("started", task.id)
        while not pathlib.Path(GATE).exists():
            time.sleep(0.01)
        note("done", task.id)

    def quick(task):
        note("quick", os.getpid())

    def plain(task):
        note("ran", task.id)

    async def coroutine(task):
        note("ran", task.id)
"""
CONCURRENCY = 4
ENOUGH = 20


@dataclass(frozen=True, slots=True)
class Site:
    fleet: Fleet
    wire: Wire
    gate: Path

    def start(self, *arguments: str, processes: int = 1) -> Worker:
        return start_consuming(self.fleet, "web-1", "waits", "quick", arguments=arguments, processes=processes)

    def fill(self, count: int) -> set[str]:
        """Enqueue tasks that wait at the gate, and wait until all slots are taken."""
        names = {f"task-{number}" for number in range(count)}
        for name in sorted(names):
            self.wire.task("waits", {}, message_id=name)
        await_history(self.fleet, "started", min(count, CONCURRENCY))
        return names

    def done(self) -> Counter[str]:
        return Counter(self.fleet.history("done"))


@pytest.fixture
def build(tmp_path: Path) -> Callable[[Vhost], Any]:
    """Make a site on a virtual host; nothing runs yet."""

    @contextmanager
    def building(vhost: Vhost) -> Iterator[Site]:
        gate = tmp_path / "gate"
        consumers = {
            name: {"handler": {"python": f"handlers:{name}"}, "quota": {}, "concurrency": CONCURRENCY}
            for name in ("waits", "quick")
        }
        source = f"    GATE = {str(gate)!r}\n" + HANDLERS
        with (
            Fleet(vhost, tmp_path, source, consumers=consumers, hosts={"web-1": None, "web-2": None}) as fleet,
            wire(vhost) as connected,
        ):
            yield Site(fleet, connected, gate)

    return building


@pytest.fixture
def site(local_vhost: Vhost, build: Callable[[Vhost], Any]) -> Iterator[Site]:
    with build(local_vhost) as found:
        yield found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_given_a_signal_then_what_runs_is_finished_once_and_what_has_not_started_is_given_back(
    vhost: Vhost, build: Callable[[Vhost], Any], number: signal.Signals
) -> None:
    with build(vhost) as site:
        worker = site.start()
        names = site.fill(ENOUGH)

        # When it is told to end, as Ctrl-C does it: the whole group
        os.killpg(worker.process.pid, number)
        worker.await_log("web-1/waits draining")

        # Then what it had not started is back before what runs is done
        wait_until("the rest is back", lambda: site.wire.depth("waits") == ENOUGH - CONCURRENCY, timeout_s=10)
        assert worker.process.poll() is None
        site.gate.touch()
        assert worker.process.wait(STOP_TIMEOUT_S) == 0
        assert site.done() == Counter(site.fleet.history("started"))
        assert len(site.done()) == CONCURRENCY

        # and a later worker does the rest, and nothing twice
        later = site.start()
        wait_until("all of it", lambda: len(site.done()) == ENOUGH)
        assert later.stop() == 0
        assert site.done() == Counter(names)
        assert_no_traceback(worker.log())


def test_race_of_a_drain_and_tasks_that_just_start_runs_nothing_twice(local_vhost: Vhost, tmp_path: Path) -> None:
    # Given more short tasks, plain and async, than a worker does before it is told to end
    kinds, each, drains = ("plain", "coroutine"), 3_000, 3
    consumers = {kind: {"handler": {"python": f"handlers:{kind}"}, "quota": {}} for kind in kinds}
    with Fleet(local_vhost, tmp_path, HANDLERS, consumers=consumers, hosts={"web-1": None}) as fleet:
        for kind in kinds:
            fleet.enqueue(kind, range(each))

        # When it is, again and again
        for _ in range(drains):
            before = len(fleet.history("ran"))
            worker = start_consuming(fleet, "web-1", *kinds)
            await_history(fleet, "ran", min(before + 300, len(kinds) * each))
            assert worker.stop() == 0

        # Then each task has run once
        last = start_consuming(fleet, "web-1", *kinds)
        await_history(fleet, "ran", len(kinds) * each)
        assert last.stop() == 0
        times = Counter(fleet.history("ran"))
        assert (len(times), max(times.values())) == (len(kinds) * each, 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_given_a_second_signal_then_nothing_is_finished_and_the_exit_code_says_so(
    site: Site, number: signal.Signals
) -> None:
    worker = site.start(processes=2)
    names = site.fill(2 * CONCURRENCY)
    pids = worker.pids()

    worker.process.send_signal(number)
    worker.await_log("web-1/waits draining")
    worker.process.send_signal(number)

    assert worker.process.wait(5) == 1
    assert not any(alive(pid) for pid in pids)
    assert site.done() == Counter()
    wait_until("all of it is back", lambda: site.wire.depth("waits") == len(names), timeout_s=10)
    assert_no_traceback(worker.log())


def test_given_a_task_longer_than_the_drain_timeout_then_the_exit_code_says_so_and_somebody_else_gets_it(
    site: Site,
) -> None:
    worker = site.start("--drain-timeout", "1s")
    site.fill(1)

    assert worker.stop() == 1
    assert "still running after 1 s, given up: 1 task" in worker.log()

    other = site.fleet.start("web-2", ready=False)
    await_history(site.fleet, "started", 2)
    site.gate.touch()
    await_history(site.fleet, "done", 1)
    assert site.fleet.history("started") == ["task-0", "task-0"]
    assert other.stop() == 0


def test_given_an_idle_worker_then_a_signal_ends_it_at_once(site: Site) -> None:
    worker = site.start(processes=2)

    started = time.monotonic()
    assert worker.stop() == 0

    assert time.monotonic() - started < 10
    assert group_members(worker.process.pid) == []


@pytest.mark.parametrize(
    ("number", "delays_s"), [(signal.SIGTERM, (0.4, 0.7)), (signal.SIGINT, (0.3, 0.45, 0.6, 0.75, 0.9))]
)
def test_race_of_a_signal_and_a_start_ends_without_a_traceback_at_any_moment(
    site: Site, number: signal.Signals, delays_s: tuple[float, ...]
) -> None:
    for delay_s in delays_s:
        worker = site.fleet.start("web-1", "--processes", "2", ready=False)
        with pytest.raises(TimeoutError):
            _wait(worker, delay_s)

        os.killpg(worker.process.pid, number)

        # Before it has installed its handlers the signal ends it like any program
        assert worker.process.wait(15) in (0, -number, 130)
        assert group_members(worker.process.pid) == []
        assert_no_traceback(worker.log())


def _wait(worker: Worker, delay_s: float) -> None:
    """Let it run for a moment; raises TimeoutError when it does, which it should."""
    deadline = time.monotonic() + delay_s
    while worker.process.poll() is None:
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.005)


def test_given_one_process_killed_then_the_supervisor_starts_it_anew_and_its_tasks_run_again(site: Site) -> None:
    worker = site.start(processes=2)
    names = site.fill(2 * CONCURRENCY)
    await_history(site.fleet, "started", 2 * CONCURRENCY)
    victim, neighbour = worker.pids()

    os.kill(victim, signal.SIGKILL)

    worker.await_log("was killed by SIGKILL")
    wait_until("two processes", lambda: len(set(worker.pids()) - {victim}) == 2)
    assert neighbour in worker.pids()
    await_history(site.fleet, "started", 3 * CONCURRENCY)
    site.gate.touch()
    wait_until("all done", lambda: set(site.done()) == names)
    assert max(Counter(site.fleet.history("started")).values()) == 2
    assert worker.stop() == 0


def test_given_the_supervisor_killed_then_its_processes_end_too(site: Site) -> None:
    worker = site.start(processes=2)
    site.fill(2 * CONCURRENCY)
    pids = worker.pids()
    assert len(pids) == 2

    worker.process.kill()

    wait_until("both are gone", lambda: not any(alive(pid) for pid in pids), timeout_s=2)
    wait_until("all of it is back", lambda: site.wire.depth("waits") == 2 * CONCURRENCY, timeout_s=10)


def test_given_a_supervisor_gone_before_its_process_looks_then_the_process_ends_at_once() -> None:
    # The plan, which never comes, is not waited for
    orphan = [sys.executable, "-m", "qctl.worker.process", "2", str(os.getpid() + 1)]

    with subprocess.Popen(orphan, stdin=subprocess.PIPE) as process:
        try:
            assert process.wait(ENOUGH) == 1
        finally:
            process.kill()


def test_given_a_process_that_ends_by_itself_again_and_again_then_it_is_not_started_in_a_hot_loop(site: Site) -> None:
    worker = site.start()

    for _ in range(3):
        pid = wait_until("a process", lambda: children(worker.process.pid))[0]
        os.kill(pid, signal.SIGKILL)
        wait_until("it is gone", lambda pid=pid: pid not in worker.pids())

    waits = [line for line in worker.log().splitlines() if "starting it anew in" in line]
    assert len(waits) == 3
    await_consuming(worker, "quick", processes=2)
    site.wire.task("quick", {})
    await_history(site.fleet, "quick", 1)
    assert worker.stop() == 0


# One host, one supervisor


def test_given_a_host_that_runs_then_a_second_start_is_refused_and_names_the_holder(site: Site) -> None:
    first = site.start()

    second = site.fleet.start("web-1", ready=False)

    assert second.process.wait(10) == 5
    said = [line for line in second.log().splitlines() if line.startswith("qctl: error:")]
    assert len(said) == 1
    assert f"host web-1 is already run on this machine by process {first.process.pid} since 20" in said[0]
    assert first.stop() == 0
    # and once it has ended, another may
    assert site.start().stop() == 0


def test_given_a_host_that_runs_elsewhere_then_a_second_start_is_refused_at_once_and_names_the_holder(
    site: Site, tmp_path: Path
) -> None:
    first = site.start()

    # When another machine, with a state of its own, starts as the same host
    second = Worker(site.fleet, "web-1", ["--state-dir", str(tmp_path / "elsewhere")])
    site.fleet.workers.append(second)

    # Then it is refused by the word of the first, long before a dead connection would be given up
    assert second.process.wait(10) == 5
    said = [line for line in second.log().splitlines() if line.startswith("qctl: error:")]
    holder = f"machine {socket.gethostname()}, process {first.process.pid}, since 20"
    assert said[0].startswith(f"qctl: error: host web-1 is already run by {holder}")
    assert_no_traceback(second.log())
    # and it ran nothing
    site.wire.task("quick", {})
    assert json.loads(await_history(site.fleet, "quick", 1)[0]) in first.pids()
    assert first.stop() == 0


def test_given_a_host_name_held_by_who_does_not_answer_then_a_start_is_refused_after_its_patience(site: Site) -> None:
    # A dead connection may hold the name until the broker has noticed; here the start waits for two seconds only.
    assert claim.PATIENCE_S >= 2 * HEARTBEAT_S
    site.wire.channel.queue_declare("qctl.host.web-1", exclusive=True)
    impatient = "import sys, qctl.worker.presence as one; one.PATIENCE_S = 2.0; from qctl.cli.main import main; "
    site.fleet.command[1:3] = ["-c", impatient + "sys.exit(main())"]

    worker = site.fleet.start("web-1", ready=False)

    assert worker.process.wait(30) == 5
    assert "host web-1 is taken on the broker; waiting for a dead connection to be noticed" in worker.log()
    assert "qctl: error: host web-1 is already run from another connection" in worker.log()
    assert "consuming" not in worker.log()
    assert_no_traceback(worker.log())


def test_given_a_host_name_that_another_machine_took_meanwhile_then_the_first_one_drains_and_ends_refused(
    site: Site,
) -> None:
    # Given a supervisor that was stopped until the broker gave its name to another machine
    first = site.start()
    supervisor = "qctl web-1 supervisor"
    first.process.send_signal(signal.SIGSTOP)
    wait_until("the broker lets go of it", lambda: close_connections(site.fleet.vhost, supervisor))
    with held_elsewhere(site.fleet.vhost, "web-1"):
        # When it goes on
        first.process.send_signal(signal.SIGCONT)

        # Then it ends, and says who has the name
        assert first.process.wait(30) == 5
    assert "host web-1 is already run by machine elsewhere, process 17, since then; draining" in first.log()
    assert "drained in" in first.log()
    assert_no_traceback(first.log())


@contextmanager
def held_elsewhere(vhost: Vhost, host: str) -> Iterator[None]:
    """Another machine that runs as this host, inside the block."""
    taken, release = threading.Event(), threading.Event()

    async def hold() -> None:
        async with connected(vhost) as connection:
            me = HostAnswer(host, "elsewhere", 17, "then", "x", HEARTBEAT_S, ())
            await claim.claim(connection, host, me.run, lambda: me, patience_s=ENOUGH)
            taken.set()
            await asyncio.to_thread(release.wait)

    thread = threading.Thread(target=lambda: asyncio.run(hold()))
    thread.start()
    try:
        assert taken.wait(ENOUGH)
        yield
    finally:
        release.set()
        thread.join()
