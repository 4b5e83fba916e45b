"""The life of one worker process: two connections, the host's consumers, and an orderly end.

Started by the supervisor as `python -m qctl.worker.process REPORT_FD PARENT`, with the plan and then orders on stdin.
The main thread runs the loop that alone touches the broker; handlers run in threads of their own. When stdin closes
the supervisor is gone, and so is this process.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Coroutine
from typing import Any

from qctl.broker import topology
from qctl.errors import Exit, QctlError
from qctl.quota import Leases
from qctl.worker import handlers, logs
from qctl.worker import plan as plans
from qctl.worker.consumer import LiveConsumer
from qctl.worker.courier import Courier
from qctl.worker.execute import CoroutineLoop, Executor
from qctl.worker.identity import Identity
from qctl.worker.in_line import InLine
from qctl.worker.limits import Limits
from qctl.worker.links import Links
from qctl.worker.obey import Obeying
from qctl.worker.pace import allowance
from qctl.worker.plan import Plan
from qctl.worker.readings import Telemetry
from qctl.worker.reporting import Reporter
from qctl.worker.rules import Rules
from qctl.worker.sharing import Sharing
from qctl.worker.ward import Bed, Ward

log = logging.getLogger(__name__)

TICK_S = 0.5
#: How long after the last task an orderly end may take to send settlements and close connections.
CLOSING_S = 10.0
_PR_SET_PDEATHSIG = 1


class WorkerProcess:
    """One process of a host. `run` returns its exit code."""

    def __init__(self, plan: Plan, index: int, report: Reporter) -> None:
        self.plan = plan
        self.index = index
        self.origin = f"{plan.host.name}/{index}"
        self._loop = asyncio.get_running_loop()
        self._flush_asked = False
        self._go = asyncio.Event()
        self._draining = asyncio.Event()
        self._consumers: dict[str, LiveConsumer] = {}
        loaded = {
            consumer.name: handlers.load(consumer, base=plan.base, python_path=plan.settings.python_path)
            for consumer in plan.host.consumers.values()
        }
        directory = plan.state_directory / plan.host.name
        self._leases = Leases.open(
            directory,
            (),
            hold_after_s=plan.settings.hold_after_s,
            on_standing=lambda name, _standing: self._call_soon(self._judge, name),
        )
        limits = Limits(self._leases, plan.host.name, plans.policies(plan.host))
        identity = Identity(plan.host.name, index, self._leases, directory, plans.operators(plan))
        identity.count_former(plan.former)
        self._ward = Ward(plan, self.origin)
        costs = {name: consumer.cost for name, consumer in plan.host.consumers.items()}
        self._sharing = Sharing(costs, time.monotonic())
        coroutines: CoroutineLoop | None = None
        for name, handler in loaded.items():
            if handler.run_async is not None and coroutines is None:
                coroutines = CoroutineLoop()
            self._consumers[name] = self._make(name, handler, coroutines)
        courier = Courier()
        self.obeying = Obeying(
            host=plan.host.name,
            index=index,
            pid=os.getpid(),
            consumers=self._consumers,
            limits=limits,
            courier=courier,
            report=report,
        )
        self._telemetry = Telemetry(
            host=plan.host.name,
            index=index,
            leases=self._leases,
            consumers=self._consumers,
            policies=lambda: limits.policies,
            overrides=lambda: limits.overrides,
            offer=report.offer,
        )
        self._links = Links(
            plan,
            index,
            consumers=self._consumers,
            identity=identity,
            obeying=self.obeying,
            courier=courier,
            telemetry=self._telemetry,
            report=report,
        )

    def _make(self, name: str, handler: handlers.Handler, coroutines: CoroutineLoop | None) -> LiveConsumer:
        plan, consumer = self.plan, self.plan.host.consumers[name]
        tag = f"qctl/{plan.host.name}/{name}/{self.index}"
        queues = {consumer.queue: tag}
        directed = [plan.host.name] if consumer.directed else []
        for host in directed:
            queues[topology.directed_queue(consumer.queue, host)] = f"{tag}/directed"
        live = LiveConsumer(
            address=f"{plan.host.name}/{name}",
            host=plan.host.name,
            queues=queues,
            work_queue=consumer.queue,
            declarations=(
                *topology.exchanges(),
                *topology.ladder(plan.ladder_s),
                *topology.for_consumer(
                    consumer.queue, directed_hosts=directed, persistent=consumer.persistent, declare=consumer.declare
                ),
            ),
            persistent=consumer.persistent,
            ladder_s=plan.ladder_s,
            concurrency=consumer.concurrency,
            flush_soon=self._flush_soon,
            publisher=lambda: self._links.publisher,
            allowance=lambda: allowance(
                self._leases.readings(),
                consumer.cost,
                plan.settings.hold_after_s,
                self._sharing.beside(name, time.monotonic()),
            ),
        )
        rules = Rules.of(plan, consumer)
        live.in_line = InLine(
            self._leases,
            name,
            consumer.cost,
            backlog=lambda: {quota: units * live.waiting for quota, units in consumer.cost.items()},
            hold=live.hold,
            release=live.release,
        )
        bed = Bed(self._ward, rules, live.on_settled, live.may_start)
        priced = live.in_line.priced
        live.executor = Executor(rules, handler, self._leases, priced, live.on_settled, live.may_start, bed)
        live.executor.start(coroutines.loop if coroutines else None)
        return live

    def _call_soon(self, function: Any, *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            log.debug("the loop is closed; dropped %s", function)

    def _judge(self, name: str) -> None:
        if name in self._consumers and (in_line := self._consumers[name].in_line) is not None:
            in_line.judge()

    def _flush_soon(self) -> None:
        if not self._flush_asked:
            self._flush_asked = True
            self._call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_asked = False
        for live in self._consumers.values():
            if live.flush():
                self._flush_soon()

    def go(self) -> None:
        """Connect and consume; the supervisor says so once the host's name is ours on the broker."""
        self._go.set()

    def drain(self) -> None:
        """Stop consuming, let what runs finish, end."""
        self._draining.set()

    async def run(self) -> int:
        """Work, from `go` until told to drain; 0 when everything that ran was finished in time."""
        stop = self._loop.create_task(self._draining.wait())
        go = self._loop.create_task(self._go.wait())
        await asyncio.wait([stop, go], return_when=asyncio.FIRST_COMPLETED)
        links = (
            []
            if stop.done()
            else [*self._links.start(), self._start(self._ticks()), self._start(self._telemetry.run())]
        )
        await asyncio.wait([stop, *links], return_when=asyncio.FIRST_COMPLETED)
        if not stop.done():
            for link in links:
                if link.done() and (error := link.exception()):
                    raise error
        finished = await self._finish()
        self._telemetry.say_goodbye()
        for link in links:
            link.cancel()
        if links:
            await asyncio.wait(links, timeout=CLOSING_S)
        self._ward.close()
        self._leases.close()
        return 0 if finished else 1

    async def _finish(self) -> bool:
        """Give back what has not started and wait for the rest, at most the drain timeout."""
        started_s = time.monotonic()
        log.info("draining")
        for live in self._consumers.values():
            live.drain()
        while busy := sum(live.busy for live in self._consumers.values()):
            if time.monotonic() - started_s > self.plan.drain_timeout_s:
                log.error("still running after %g s, given up: %d task(s)", self.plan.drain_timeout_s, busy)
                return False
            await asyncio.sleep(0.02)
        log.info("drained in %.1f s", time.monotonic() - started_s)
        for live in self._consumers.values():
            live.end()
        return True

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._loop.create_task(coroutine)

    async def _ticks(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.obeying.look_after_limits()
            for name, live in self._consumers.items():
                active = live.executor.active if live.executor is not None else 0
                self._sharing.note(name, here=active + live.waiting, done=live.pace.done, now_s=time.monotonic())
                live.tick()
                if live.executor is not None and (why := live.executor.stuck) and not self._draining.is_set():
                    log.error("%s: %s; replacing this process", live.address, why)
                    self.drain()  # the supervisor starts it anew


def _orders(process: WorkerProcess, loop: asyncio.AbstractEventLoop) -> None:
    """Obey the supervisor: `go`, `drain`, `outdated`, `local EVENT`; anything else, or the end of input, ends it."""
    for line in sys.stdin.buffer:
        order, _, event = line.strip().partition(b" ")
        if order == b"local":
            loop.call_soon_threadsafe(process.obeying.obey_local, event)
        elif order == b"go":
            loop.call_soon_threadsafe(process.go)
        elif order == b"drain":
            loop.call_soon_threadsafe(process.drain)
        elif order == b"outdated":
            loop.call_soon_threadsafe(process.obeying.leave_limits)
        else:
            break
    os._exit(int(Exit.FAILED))


async def _main(plan: Plan, index: int, report: Reporter) -> int:
    process = WorkerProcess(plan, index, report)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, process.drain)
    threading.Thread(target=_orders, args=(process, loop), name="orders", daemon=True).start()
    report(event="ready")
    return await process.run()


def main() -> None:
    """The process: read the plan, work, end. Never returns."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[2]):
        os._exit(int(Exit.FAILED))  # the supervisor was gone before we asked to go with it
    # Ctrl-C and a terminal that closes reach the whole group; the supervisor decides. Until the loop runs, so does it
    # about SIGTERM.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, lambda *_: None)  # not ignored: what a handler starts should not inherit that
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    report = Reporter(int(sys.argv[1]))
    plan, index = plans.read(sys.stdin.buffer)
    logs.configure(f"{plan.host.name}/{index}", log_format=plan.log_format, verbosity=plan.verbosity)
    try:
        code = asyncio.run(_main(plan, index, report))
    except QctlError as error:
        report(event="failed", message=error.message, hint=error.hint, exit_code=int(error.exit_code))
        code = int(error.exit_code)
    # Whatever else ends the process is a bug; the supervisor starts it anew, and the log has the traceback.
    except Exception:
        log.critical("worker process failed", exc_info=True)
        code = int(Exit.FAILED)
    logging.shutdown()
    os._exit(code)  # handler threads may hang; nothing of theirs is needed any more


if __name__ == "__main__":
    main()
