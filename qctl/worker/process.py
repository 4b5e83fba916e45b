"""The life of one worker process: two connections, the host's consumers, and an orderly end.

Started by the supervisor as `python -m qctl.worker.process REPORT_FD PARENT`, with the plan and then orders on stdin.
The main thread runs the loop that alone touches the broker; handlers run in threads of their own. When stdin closes
the supervisor is gone, and so is this process.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from qctl.broker import topology
from qctl.broker.connect import stay_connected
from qctl.broker.login import login_for
from qctl.broker.publisher import Publisher
from qctl.broker.refusals import RECORD, dial
from qctl.broker.session import ChannelLost, Connection
from qctl.errors import Exit, QctlError
from qctl.quota import Leases, Standing
from qctl.worker import handlers, logs
from qctl.worker import plan as plans
from qctl.worker.consumer import LiveConsumer
from qctl.worker.execute import CoroutineLoop, Executor, Rules
from qctl.worker.identity import Identity
from qctl.worker.plan import Plan
from qctl.worker.ward import Bed, Ward

log = logging.getLogger(__name__)

TICK_S = 0.5
HELLO_AGAIN_S = 5.0
#: Both connections are usually there at once; after so long it is news that one is missing.
SLOW_PUBLISHER_S = 2.0
#: How long after the last task an orderly end may take to send settlements and close connections.
CLOSING_S = 10.0
_PR_SET_PDEATHSIG = 1


class WorkerProcess:
    """One process of a host. `run` returns its exit code."""

    def __init__(self, plan: Plan, index: int) -> None:
        self.plan = plan
        self.index = index
        self.origin = f"{plan.host.name}/{index}"
        self._loop = asyncio.get_running_loop()
        self._publisher: Publisher | None = None
        self._publishing = asyncio.Event()
        self._username = ""
        self._dialing = asyncio.Lock()  # a password that is wrong is tried once a process, not by both connections
        self._flush_asked = False
        self._go = asyncio.Event()
        self._draining = asyncio.Event()
        self._consumers: dict[str, LiveConsumer] = {}
        loaded = {
            consumer.name: handlers.load(consumer, base=plan.base, python_path=plan.settings.python_path)
            for consumer in plan.host.consumers.values()
        }
        self._leases = Leases.open(
            plan.state_directory / plan.host.name,
            plans.policies(plan.host),
            hold_after_s=plan.settings.hold_after_s,
            on_standing=lambda name, standing: self._call_soon(self._apply_standing, name, standing),
        )
        self._identity = Identity(plan.host.name, index, self._leases, plan.state_directory / plan.host.name)
        self._identity.count_former(plan.former)
        self._ward = Ward(plan, self.origin)
        coroutines: CoroutineLoop | None = None
        for name, handler in loaded.items():
            if handler.run_async is not None and coroutines is None:
                coroutines = CoroutineLoop()
            self._consumers[name] = self._make(name, handler, coroutines)

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
            publisher=lambda: self._publisher,
        )
        rules = Rules.of(plan, consumer)
        priced = self._leases.register(name, consumer.cost, backlog=lambda: live.backlog(consumer.cost))
        bed = Bed(self._ward, rules, live.on_settled, live.may_start)
        live.executor = Executor(rules, handler, self._leases, priced, live.on_settled, live.may_start, bed)
        live.executor.start(coroutines.loop if coroutines else None)
        self._apply(live, self._leases.standing(name))
        return live

    def _call_soon(self, function: Any, *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            log.debug("the loop is closed; dropped %s", function)

    def _apply_standing(self, name: str, standing: Standing) -> None:
        if name in self._consumers:
            self._apply(self._consumers[name], standing)

    def _apply(self, live: LiveConsumer, standing: Standing) -> None:
        held = standing.held
        if held is None:
            live.release("quota")
            return
        until = ""
        if held.until_ns is not None:
            left_s = max(0.0, (held.until_ns - self._leases.clock.now_ns()) / 1e9)
            until = f", returns in about {left_s:.0f} s"
        what = f"{held.cause} {held.quota}" if held.quota else str(held.cause)
        live.hold("quota", what + until)

    def _flush_soon(self) -> None:
        if not self._flush_asked:
            self._flush_asked = True
            self._call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_asked = False
        for live in self._consumers.values():
            live.flush()

    async def _dial(self, purpose: str) -> Connection:
        plan = self.plan
        async with self._dialing:
            connection = await dial(
                lambda: login_for(plan.inventory.broker, plan.inventory.path, prefer_environment=False),
                plan.state_directory / plan.host.name / RECORD,
                name=f"qctl {self.origin} {purpose}",
                properties={"qctl_host": plan.host.name, "qctl_index": str(self.index)},
            )
        if purpose == "publish":
            self._username = connection.username
        return connection

    async def _consume(self, connection: Connection) -> None:
        try:
            await self._introduce(connection, self._say_down)
        except QctlError as error:
            self._say_down(error.message)
            raise
        known = self._loop.create_task(self._stay_known(connection))
        try:
            await asyncio.gather(*(live.serve(connection) for live in self._consumers.values()))
        finally:
            known.cancel()

    async def _stay_known(self, connection: Connection) -> None:
        """Say hello again when the ledger was replaced: its evidence is worth the least waiting while it is fresh."""
        while True:
            await asyncio.sleep(TICK_S)
            if self._identity.outdated and self._publisher is not None:
                try:
                    await self._introduce(connection, lambda why: log.info("hello with the new ledger: %s", why))
                except (QctlError, ChannelLost) as error:
                    log.warning("hello with the new ledger, trying again in %g s: %s", HELLO_AGAIN_S, error)
                    await asyncio.sleep(HELLO_AGAIN_S)

    async def _introduce(self, connection: Connection, on_delay: Callable[[str], None]) -> None:
        """Nothing is consumed before it is known what holds; the hello goes out on the other connection."""
        publishing: asyncio.Future[Any] = asyncio.ensure_future(self._publishing.wait())
        either: list[asyncio.Future[Any]] = [publishing, connection.closed]
        done, _ = await asyncio.wait(either, timeout=SLOW_PUBLISHER_S, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            on_delay("waiting for the connection to publish on")
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        publishing.cancel()
        if not connection.is_open:
            raise connection.closed.result()
        if self._publisher is None:
            raise ChannelLost(0, "the connection to publish on was lost again")
        await self._identity.introduce(connection, self._publisher, self._username, on_delay)

    def _say_down(self, why: str) -> None:
        for live in self._consumers.values():
            live.say_down(why)

    async def _publish(self, connection: Connection) -> None:
        self._publisher = await Publisher.open(connection)
        self._publishing.set()
        # A channel can be lost alone: an exchange deleted, a permission taken, a message too large.
        await asyncio.wait([connection.closed, self._publisher.channel.closed], return_when=asyncio.FIRST_COMPLETED)
        if self._publisher.channel.closed.done():
            raise self._publisher.channel.closed.result()

    def _lost_publisher(self, _why: str) -> None:
        self._publisher = None
        self._publishing.clear()

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
        links = [] if stop.done() else self._links()
        await asyncio.wait([stop, *links], return_when=asyncio.FIRST_COMPLETED)
        if not stop.done():
            for link in links:
                if link.done() and (error := link.exception()):
                    raise error
        finished = await self._finish()
        for link in links:
            link.cancel()
        if links:
            await asyncio.wait(links, timeout=CLOSING_S)
        self._ward.close()
        self._leases.close()
        return 0 if finished else 1

    def _links(self) -> list[asyncio.Task[None]]:
        """The two connections, each kept by a task that never ends by itself."""
        return [
            self._loop.create_task(stay_connected(lambda: self._dial("consume"), self._consume, what="consuming")),
            self._loop.create_task(
                stay_connected(
                    lambda: self._dial("publish"), self._publish, what="publishing", on_lost=self._lost_publisher
                )
            ),
            self._loop.create_task(self._ticks()),
        ]

    async def _finish(self) -> bool:
        """Give back what has not started and wait for the rest, at most the drain timeout."""
        started_s = time.monotonic()
        log.info("draining")
        for name, live in self._consumers.items():
            live.drain()
            self._leases.withdraw(name)
        while busy := sum(live.busy for live in self._consumers.values()):
            if time.monotonic() - started_s > self.plan.drain_timeout_s:
                log.error("still running after %g s, given up: %d task(s)", self.plan.drain_timeout_s, busy)
                return False
            await asyncio.sleep(0.02)
        log.info("drained in %.1f s", time.monotonic() - started_s)
        return True

    async def _ticks(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            for live in self._consumers.values():
                live.tick()
                if (why := live.stuck) and not self._draining.is_set():
                    log.error("%s: %s; replacing this process", live.address, why)
                    self.drain()  # the supervisor starts it anew


def _orders(process: WorkerProcess, loop: asyncio.AbstractEventLoop) -> None:
    """Obey the supervisor: `go`, `drain`; anything else, or the end of input, ends the process at once."""
    known = {b"go": process.go, b"drain": process.drain}
    for line in sys.stdin.buffer:
        order = known.get(line.strip())
        if order is None:
            break
        loop.call_soon_threadsafe(order)
    os._exit(int(Exit.FAILED))


async def _main(plan: Plan, index: int, report: Any) -> int:
    process = WorkerProcess(plan, index)
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
    with os.fdopen(int(sys.argv[1]), "w", encoding="utf-8") as pipe:

        def report(**event: Any) -> None:
            pipe.write(json.dumps(event) + "\n")
            pipe.flush()

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
