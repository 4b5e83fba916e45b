"""A host's processes: start them, keep them running, end them in order.

The supervisor itself runs no task and spends no quota. It holds the host's name (a lock here, an exclusive queue on the
broker), starts `--processes N` worker processes, starts anew what dies, and passes signals on as orders.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from qctl.broker.connect import backoff
from qctl.control.host_answer import ProcessLook
from qctl.control.reading import Reading
from qctl.errors import Exit, HandlerError, QctlError
from qctl.quota.directory import check_directory
from qctl.worker import plan as plans
from qctl.worker.child import READY_S, Child, Listeners, ended, spawn
from qctl.worker.former import former_hosts
from qctl.worker.hostlock import HostLock
from qctl.worker.ledger_watch import watch_ledger
from qctl.worker.local_control import LocalControl
from qctl.worker.pending import Pending
from qctl.worker.plan import Plan
from qctl.worker.presence import Presence

log = logging.getLogger(__name__)

#: A process that lived longer than this is started anew at once, one that did not after a growing pause.
STEADY_S = 5.0
#: Beyond the drain timeout a process gets this long to close before it is killed.
KILL_MARGIN_S = 15.0
#: The first one drains, the second one ends at once.
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: How long the supervisor's connection may take to close; the end of the process closes it all the same.
CLOSING_S = 2.0


class Supervisor:
    """`run` returns the exit code of `qctl worker start`."""

    def __init__(self, plan: Plan, processes: int, replan: Callable[[], Plan]) -> None:
        """replan: reads the inventory anew, for SIGHUP; raises QctlError when it is not good."""
        self.plan = plan
        self._replan = replan
        self._replacing: asyncio.Task[None] | None = None
        self._presence: Presence | None = None
        self._hung_up = False
        self._spawned = asyncio.Event()
        self.processes = processes
        self._children: dict[int, Child] = {}
        self._ended: dict[int, ProcessLook] = {}
        self._listeners = Listeners(self._on_ready, self._on_failed, self._on_answer)
        self._local: LocalControl
        self._stopping = asyncio.Event()
        self._claimed = False
        self._killed = False
        self._fatal: QctlError | None = None
        self._ready = 0

    async def run(self) -> int:
        """Hold the host's name, run the processes until a signal; 0 when all ended in order.

        Raises StateError, HostTaken, HandlerError, and BrokerRefused when the first connection is refused.
        """
        loop = asyncio.get_running_loop()
        for number in ENDING_SIGNALS:
            loop.add_signal_handler(number, self._on_signal, number)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        state, host = self.plan.state_directory, self.plan.host.name
        check_directory(state / host)
        lock = HostLock(state, host)
        watch = loop.create_task(watch_ledger(state / host))
        watch.add_done_callback(_say_why)
        try:
            pending = Pending(state / host, host)
            self._local = LocalControl(state / host, host, pending, self._living, self.looks)
            await self._local.open()
            try:
                self.plan = replace(self.plan, former=former_hosts(state, host, self.plan.inventory.hosts))
                return await self._run(Presence(lambda: self.plan, self.looks, self._readings, pending))
            finally:
                self._local.close()
        finally:
            watch.cancel()
            lock.release()

    async def _run(self, presence: Presence) -> int:
        self._presence = presence
        # The handlers are tried before the broker: a typing error in the inventory should not wait for a network.
        first = asyncio.create_task(self._keep(0))
        connected = asyncio.create_task(presence.take())
        stop = asyncio.create_task(self._stopping.wait())
        await asyncio.wait([first, connected, stop], return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        keeping: asyncio.Task[None] | None = None
        try:
            if self._stopping.is_set() or not connected.done():
                return await self._verdict([first])
            connection = connected.result()  # raises what refused it
            self._claimed = True
            self._order(b"go\n")
            keeping = asyncio.create_task(presence.keep(connection, self._give_up))
            keepers = [first, *(asyncio.create_task(self._keep(index)) for index in range(1, self.processes))]
            code = await self._verdict(keepers)
            await presence.say_goodbye()
            return code
        finally:
            connected.cancel()
            if not first.done():
                self._stop(b"stop\n")
                asyncio.get_running_loop().call_later(KILL_MARGIN_S, self._kill, "did not end in time")
                await asyncio.wait([first])
            if keeping is not None:
                keeping.cancel()
                await asyncio.wait([keeping], timeout=CLOSING_S)

    async def _verdict(self, keepers: list[asyncio.Task[int]]) -> int:
        # One that fails is a bug, and would leave its process's place empty for as long as the others run.
        done, _ = await asyncio.wait(keepers, return_when=asyncio.FIRST_EXCEPTION)
        if self._fatal is not None:
            raise self._fatal
        codes = [keeper.result() for keeper in done]
        return int(Exit.FAILED) if self._killed or any(codes) else int(Exit.DONE)

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
            code = await child.end()
            self._ended[index] = child.look()
            del self._children[index]
            self._local.on_end(child)
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
        child = await spawn(index, self._listeners)
        self._children[index] = child
        self._ended.pop(index, None)
        self._spawned.set()
        asyncio.get_running_loop().call_later(READY_S, child.kill_unless_ready)
        child.order(plans.write(self.plan, index))
        self._local.repeat_to(child)
        if self._claimed:
            child.order(b"go\n")
        if self._stopping.is_set():
            child.order(b"drain\n")
        return child

    def _living(self) -> tuple[Child, ...]:
        return tuple(self._children.values())

    def looks(self) -> tuple[ProcessLook, ...]:
        """How the processes are at this moment, by index; one that was never started is not there yet."""
        found = {**self._ended, **{index: child.look() for index, child in self._children.items()}}
        return tuple(found[index] for index in sorted(found))

    def _readings(self) -> tuple[Reading, ...]:
        readings = (child.reading for _, child in sorted(self._children.items()))
        return tuple(reading for reading in readings if reading is not None)

    def _on_ready(self) -> None:
        self._ready += 1

    def _on_failed(self, _child: Child, event: Mapping[str, Any]) -> None:
        """A process says why it ends."""
        if self._fatal is None and not self._ready:
            # Only before anything ran: what fails later may heal, and the other processes go on.
            self._fatal = HandlerError(event["message"], hint=event["hint"])
            self._fatal.exit_code = Exit(event["exit_code"])
            self._stop(b"stop\n")
        else:
            log.error("process failed: %s", event["message"])

    def _on_answer(self, child: Child, answer: Mapping[str, Any]) -> None:
        self._local.on_answer(child, answer)

    # A new inventory

    def _on_hangup(self) -> None:
        self._hung_up = True
        if self._replacing is None or self._replacing.done():
            self._replacing = asyncio.get_running_loop().create_task(self._replace_while_asked())

    async def _replace_while_asked(self) -> None:
        while self._hung_up and not self._stopping.is_set():
            self._hung_up = False
            await self._replace()

    async def _replace(self) -> None:
        """Take the inventory anew and replace the processes one by one; change nothing when it is not good."""
        try:
            plan = self._replan()
        except QctlError as error:
            log.error("SIGHUP: nothing changes: %s", "; ".join([error.message, *getattr(error, "mistakes", ())]))
            return
        if (plan.host.name, plan.state_directory) != (self.plan.host.name, self.plan.state_directory):
            # The lock, the name on the broker and the ledger are of the one that started.
            log.error(
                "SIGHUP: nothing changes: this machine would be host %s and runs as %s; restart the worker for that",
                plan.host.name,
                self.plan.host.name,
            )
            return
        log.info("SIGHUP: the inventory is good, replacing %d processes", self.processes)
        former = list(self._living())
        before, self.plan = self.plan, plan
        loop = asyncio.get_running_loop()
        for index in range(self.processes):
            child = self._children.get(index)
            if child is None and not self._claimed:
                continue  # not started yet; it starts with the new one
            if child is not None:
                child.replaced = True
                child.order(b"drain\n")
                loop.call_later(plan.drain_timeout_s + KILL_MARGIN_S, child.kill, "did not end in time")
            while (successor := self._children.get(index)) in (child, None) and not self._stopping.is_set():
                self._spawned.clear()
                await self._spawned.wait()
            if self._stopping.is_set():
                return
            if successor is not None and not await successor.ready:
                log.error("SIGHUP: process %d does not start with the new inventory; the old one goes on", index)
                self.plan = before
                return
            while successor is not None and former:
                former.pop().order(b"outdated\n")
        if self._presence is not None:
            await self._presence.log_in_anew()
        log.info("SIGHUP: all processes run with the new inventory")

    # The end

    def _on_signal(self, number: int) -> None:
        if not self._stopping.is_set():
            name, most_s = signal.Signals(number).name, self.plan.drain_timeout_s
            log.info("%s: draining, at most %g s; again to stop at once", name, most_s)
            self._stop(b"drain\n")
            self._kill_later()
        else:
            self._kill(signal.Signals(number).name)

    def _give_up(self, error: QctlError) -> None:
        """Drain, and end with this error."""
        log.error("%s; draining", error.message)
        self._fatal = error
        self._stop(b"drain\n")
        self._kill_later()

    def _stop(self, order: bytes) -> None:
        self._stopping.set()
        self._order(order)

    def _order(self, order: bytes) -> None:
        for child in self._children.values():
            child.order(order)

    def _kill_later(self) -> None:
        most_s = self.plan.drain_timeout_s + KILL_MARGIN_S
        asyncio.get_running_loop().call_later(most_s, self._kill, "did not end in time")

    def _kill(self, why: str) -> None:
        for child in list(self._children.values()):
            self._killed = True
            child.kill(f"is stopped at once: {why}")


def _say_why(watch: asyncio.Task[None]) -> None:
    if not watch.cancelled():
        log.critical("nobody looks any more who holds the ledger's lock", exc_info=watch.exception())


def run(plan: Plan, processes: int, replan: Callable[[], Plan]) -> int:
    """Run a host's worker in the foreground until a signal ends it; the exit code. Raises as Supervisor.run."""

    async def main() -> int:
        return await Supervisor(plan, processes, replan).run()

    return asyncio.run(main())
