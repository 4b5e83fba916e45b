"""A host's processes: start them, keep them running, end them in order.

The supervisor itself runs no task and spends no quota. It holds the host's name (a lock here, an exclusive queue on the
broker), starts `--processes N` worker processes, starts anew what dies, and passes signals on as orders.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from qctl.broker.login import login_for
from qctl.broker.session import ChannelLost, Connection, backoff, connect, stay_connected
from qctl.errors import BrokerUnreachable, Exit, HandlerError, QctlError
from qctl.worker import plan as plans
from qctl.worker.hostlock import HostLock, claim_host
from qctl.worker.plan import Plan

log = logging.getLogger(__name__)

#: A process that lived longer than this is started anew at once, one that did not after a growing pause.
STEADY_S = 5.0
#: Beyond the drain timeout a process gets this long to close before it is killed.
KILL_MARGIN_S = 15.0
#: The first one drains, the second one ends at once.
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: Bytes of one report line of a process.
MAX_REPORT_BYTES = 64 << 10


@dataclass(slots=True)
class Child:
    """One running worker process."""

    index: int
    process: asyncio.subprocess.Process
    started_s: float
    ready: asyncio.Future[bool]
    replaced: bool = False

    def order(self, words: bytes) -> None:
        """Write an order; a process that is gone needs none."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError, RuntimeError):
            self.process.stdin.write(words)


class Supervisor:
    """`run` returns the exit code of `qctl worker start`."""

    def __init__(self, plan: Plan, processes: int, replan: Callable[[], Plan]) -> None:
        """replan: reads the inventory anew, for SIGHUP; raises QctlError when it is not good."""
        self.plan = plan
        self._replan = replan
        self._replacing: asyncio.Task[None] | None = None
        self._spawned = asyncio.Event()
        self.processes = processes
        self._children: dict[int, Child] = {}
        self._listeners: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._claimed = False
        self._killed = False
        self._fatal: QctlError | None = None
        self._ready = 0

    async def run(self) -> int:
        """Hold the host's name, run the processes until a signal; 0 when all ended in order.

        Raises HostTaken, StateError, HandlerError, and BrokerRefused when the first connection is refused.
        """
        loop = asyncio.get_running_loop()
        for number in ENDING_SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        lock = HostLock(self.plan.state_directory, self.plan.host.name)
        try:
            return await self._run()
        finally:
            lock.release()

    async def _run(self) -> int:
        # The handlers are tried before the broker: a typing error in the inventory should not wait for a network.
        first = asyncio.create_task(self._keep(0))
        connected = asyncio.create_task(self._first_connection())
        stop = asyncio.create_task(self._stopping.wait())
        await asyncio.wait([first, connected, stop], return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        connection: Connection | None = None
        try:
            if self._stopping.is_set() or not connected.done():
                return await self._verdict([first])
            connection = connected.result()  # raises what refused it
            self._claimed = True
            self._order(b"go\n")
            presence = asyncio.create_task(self._presence(connection))
            keepers = [first, *(asyncio.create_task(self._keep(index)) for index in range(1, self.processes))]
            try:
                return await self._verdict(keepers)
            finally:
                presence.cancel()
                await asyncio.wait([presence])
        finally:
            connected.cancel()
            if not first.done():
                self._stop(b"stop\n")
                asyncio.get_running_loop().call_later(KILL_MARGIN_S, self._kill, "did not end in time")
                await asyncio.wait([first])
            if connection is not None:
                await connection.close()

    async def _verdict(self, keepers: list[asyncio.Task[int]]) -> int:
        await asyncio.wait(keepers)
        if self._fatal is not None:
            raise self._fatal
        return int(Exit.FAILED) if self._killed or any(keeper.result() for keeper in keepers) else int(Exit.DONE)

    # The host's name on the broker

    async def _dial(self) -> Connection:
        login = login_for(self.plan.broker, self.plan.inventory_path, prefer_environment=False)
        host = self.plan.host.name
        return await connect(login, name=f"qctl {host} supervisor", properties={"qctl_host": host})

    async def _first_connection(self) -> Connection:
        """Try for ever while the broker is unreachable; a refusal or a taken name is raised."""
        for pause_s in backoff():
            try:
                connection = await self._dial()
                await claim_host(connection, self.plan.host.name, patient=False)
                return connection
            except (BrokerUnreachable, ChannelLost) as error:
                hint = getattr(error, "hint", "")
                log.warning("%s; trying again in %.1f s. %s", error, pause_s, hint)
            await asyncio.sleep(pause_s)
        raise AssertionError("backoff() never ends")

    async def _presence(self, connection: Connection) -> None:
        """Keep the host's exclusive queue for as long as the supervisor lives."""
        await connection.closed

        async def hold(again: Connection) -> None:
            await claim_host(again, self.plan.host.name, patient=True)
            await again.closed

        await stay_connected(self._dial, hold, what="supervisor")

    # Processes

    async def _keep(self, index: int) -> int:
        """Keep the process `index` running until told to stop; the exit code of the last one."""
        pauses = backoff()
        while True:
            try:
                child = await self._spawn(index)
            except OSError as error:
                pause_s = next(pauses)
                log.error("process %d cannot be started, trying again in %.1f s: %s", index, pause_s, error.strerror)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), pause_s)
                    return int(Exit.DONE)
                continue
            code = await child.process.wait()
            await child.ready  # its report is read by then
            del self._children[index]
            if self._stopping.is_set() or self._fatal is not None:
                return code
            if child.replaced:
                continue
            lived_s = time.monotonic() - child.started_s
            if lived_s > STEADY_S:
                pauses = backoff()
            pause_s = 0.0 if lived_s > STEADY_S else next(pauses)
            log.error("process %d %s after %.0f s; starting it anew in %.1f s", index, ended(code), lived_s, pause_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause_s)
                return int(Exit.DONE)

    async def _spawn(self, index: int) -> Child:
        read_end, write_end = os.pipe()
        # A signal to the whole group must not end a process that cannot answer it yet; it unblocks them itself.
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "qctl.worker.process",
                str(write_end),
                stdin=asyncio.subprocess.PIPE,
                pass_fds=(write_end,),
            )
        except OSError:
            os.close(read_end)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING_SIGNALS)
            os.close(write_end)
        child = Child(index, process, time.monotonic(), asyncio.get_running_loop().create_future())
        self._children[index] = child
        self._spawned.set()
        log.info("process %d started pid=%d", index, process.pid)
        listener = asyncio.get_running_loop().create_task(self._listen(read_end, child))
        self._listeners.add(listener)  # the loop itself keeps only a weak reference
        listener.add_done_callback(self._listeners.discard)
        child.order(plans.write(self.plan, index))
        if self._claimed:
            child.order(b"go\n")
        if self._stopping.is_set():
            child.order(b"drain\n")
        return child

    async def _listen(self, read_end: int, child: Child) -> None:
        """Take a process's reports until it closes the pipe."""
        reader = asyncio.StreamReader(limit=MAX_REPORT_BYTES)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_end, "rb")
        )
        try:
            while line := await reader.readline():
                event = json.loads(line)
                if event["event"] == "ready":
                    self._ready += 1
                    child.ready.set_result(True)
                elif self._fatal is None and not self._ready:
                    # Only before anything ran: what fails later may heal, and the other processes go on.
                    self._fatal = HandlerError(event["message"], hint=event["hint"])
                    self._fatal.exit_code = Exit(event["exit_code"])
                    self._stop(b"stop\n")
                else:
                    log.error("process failed: %s", event["message"])
        finally:
            transport.close()
            if not child.ready.done():
                child.ready.set_result(False)

    # A new inventory

    def _on_hangup(self) -> None:
        if self._replacing is None or self._replacing.done():
            self._replacing = asyncio.get_running_loop().create_task(self._replace())

    async def _replace(self) -> None:
        """Take the inventory anew and replace the processes one by one; change nothing when it is not good."""
        try:
            plan = self._replan()
        except QctlError as error:
            log.error("SIGHUP: nothing changes: %s", "; ".join([error.message, *getattr(error, "mistakes", ())]))
            return
        log.info("SIGHUP: the inventory is good, replacing %d processes", self.processes)
        before, self.plan = self.plan, plan
        for index in range(self.processes):
            child = self._children.get(index)
            if child is not None:
                child.replaced = True
                child.order(b"drain\n")
            while (successor := self._children.get(index)) in (child, None) and not self._stopping.is_set():
                self._spawned.clear()
                await self._spawned.wait()
            if self._stopping.is_set():
                return
            if successor is not None and not await successor.ready:
                log.error("SIGHUP: process %d does not start with the new inventory; the old one goes on", index)
                self.plan = before
                return
        log.info("SIGHUP: all processes run with the new inventory")

    # The end

    def _on_signal(self, number: int) -> None:
        if not self._stopping.is_set():
            name, most_s = signal.Signals(number).name, self.plan.drain_timeout_s
            log.info("%s: draining, at most %g s; again to stop at once", name, most_s)
            self._stop(b"drain\n")
            loop = asyncio.get_running_loop()
            loop.call_later(self.plan.drain_timeout_s + KILL_MARGIN_S, self._kill, "did not end in time")
        else:
            self._kill(signal.Signals(number).name)

    def _stop(self, order: bytes) -> None:
        self._stopping.set()
        self._order(order)

    def _order(self, order: bytes) -> None:
        for child in self._children.values():
            child.order(order)

    def _kill(self, why: str) -> None:
        for child in list(self._children.values()):
            self._killed = True
            log.error("stopping process %d at once: %s", child.index, why)
            with contextlib.suppress(ProcessLookupError):
                child.process.kill()


def ended(code: int) -> str:
    """How a process ended, in words."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
    return f"ended with {code}"


def run(plan: Plan, processes: int, replan: Callable[[], Plan]) -> int:
    """Run a host's worker in the foreground until a signal ends it; the exit code. Raises as Supervisor.run."""

    async def main() -> int:
        return await Supervisor(plan, processes, replan).run()

    return asyncio.run(main())
