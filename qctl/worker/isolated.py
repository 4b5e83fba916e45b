"""The ward itself: a process that runs suspects and has no connection to the broker.

Started by a worker process (`qctl.worker.ward`) as `python -m qctl.worker.isolated FD PARENT`. Deliveries come in by
the pipe FD, endings go out by it; in between the same executor runs them as anywhere else, paid by leases of its own
from the host's ledger. When the pipe closes it writes its spending down and ends.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, cast

from qctl.broker.message import Properties
from qctl.broker.subscription import Subscription
from qctl.errors import Exit
from qctl.quota import Leases
from qctl.worker import handlers, logs
from qctl.worker.delivery import Delivery, Settled
from qctl.worker.execute import CoroutineLoop, Executor
from qctl.worker.plan import Plan
from qctl.worker.rules import Rules

log = logging.getLogger(__name__)

TICK_S = 0.5
#: How often it is looked whether a run that may start is inside its handler.
LOOK_S = 0.002
_PR_SET_PDEATHSIG = 1
#: Nothing in here settles a delivery with the broker; its process does.
_NOWHERE = cast(Subscription, None)
#: The worker process has the delivery, and puts it in place of this.
_ELSEWHERE = cast(Delivery, None)


class Isolated:
    """Executors made as they are needed, and the pipe."""

    def __init__(self, plan: Plan, pipe: Connection) -> None:
        self._plan = plan
        self._pipe = pipe
        self._writing = threading.Lock()
        self._executors: dict[str, Executor] = {}
        self._coroutines: CoroutineLoop | None = None
        self._numbers: dict[Delivery, int] = {}
        self._answers: dict[int, SimpleQueue[bool | None]] = {}
        self._allowed: SimpleQueue[tuple[Executor, Delivery]] = SimpleQueue()
        # Without limits of its own: those of the ledger hold, which may be newer than this process's plan.
        directory = plan.state_directory / plan.host.name
        self._leases = Leases.open(directory, (), hold_after_s=plan.settings.hold_after_s)

    def run(self) -> None:
        """Obey the pipe until it closes."""
        threading.Thread(target=self._ticks, name="ticks", daemon=True).start()
        threading.Thread(target=self._watch_entries, name="entries", daemon=True).start()
        while True:
            try:
                what, number, *words = self._pipe.recv()
            except (EOFError, OSError):
                break
            if what == "run":
                self._take(number, *words)
            else:
                self._answers[number].put(words[0])
        self._leases.close()

    def _take(
        self, number: int, consumer: str, redelivered: bool, properties: Properties, body: bytes, received_s: float
    ) -> None:
        delivery = Delivery(_NOWHERE, 0, redelivered, properties, body, received_s)
        self._numbers[delivery], self._answers[number] = number, SimpleQueue()
        if consumer not in self._executors:
            self._executors[consumer] = self._make(consumer)
        self._executors[consumer].put(delivery)

    def _make(self, name: str) -> Executor:
        plan, consumer = self._plan, self._plan.host.consumers[name]
        handler = handlers.load(consumer, base=plan.base, python_path=plan.settings.python_path)
        if handler.run_async is not None and self._coroutines is None:
            self._coroutines = CoroutineLoop()
        priced = self._leases.register(name, consumer.cost)
        executor: Executor
        executor = Executor(
            Rules.of(plan, consumer),
            handler,
            self._leases,
            priced,
            self._settled,
            lambda delivery: self._may_start(executor, delivery),
        )
        executor.start(self._coroutines.loop if self._coroutines else None)
        return executor

    def _may_start(self, executor: Executor, delivery: Delivery) -> bool | None:
        """The process that has the connection knows; it also counts this run as begun from then on."""
        number = self._numbers[delivery]
        self._send(delivery, "may start", number)
        allowed = self._answers[number].get()
        if allowed:
            self._allowed.put((executor, delivery))
        return allowed

    def _settled(self, settled: Settled) -> None:
        number = self._numbers[settled.delivery]
        self._send(settled.delivery, "settled", number, replace(settled, delivery=_ELSEWHERE))

    def _send(self, delivery: Delivery, *words: Any) -> None:
        """Say this about a delivery; nothing follows its settlement, after which its number may be another's."""
        with self._writing:
            if delivery in self._numbers:
                self._pipe.send(words)
                if words[0] == "settled":
                    del self._answers[self._numbers.pop(delivery)]

    def _watch_entries(self) -> None:
        """Tell the worker process which runs are inside their handlers: a pause waits for it."""
        allowed: list[tuple[Executor, Delivery]] = []
        while True:
            if not allowed:
                allowed.append(self._allowed.get())
            while not self._allowed.empty():
                allowed.append(self._allowed.get())
            for executor, delivery in tuple(allowed):
                if not executor.is_starting(lambda one, it=delivery: one is it):  # type: ignore[misc]
                    self._send(delivery, "inside", self._numbers.get(delivery, 0))
                    allowed.remove((executor, delivery))
            time.sleep(LOOK_S)

    def _ticks(self) -> None:
        while True:
            time.sleep(TICK_S)
            for executor in tuple(self._executors.values()):
                executor.expire()


def _die_with(parent: int) -> None:
    """End together with the worker process, and by no signal that is meant for that one."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that was said
        os._exit(int(Exit.FAILED))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, lambda *_: None)  # not ignored: what a handler starts should not inherit that


def main() -> None:
    """The process. Never returns."""
    _die_with(int(sys.argv[2]))
    pipe = Connection(int(sys.argv[1]))
    os.set_inheritable(pipe.fileno(), False)  # a program that a handler starts has no use for it
    plan, origin = pipe.recv()
    logs.configure(origin, log_format=plan.log_format, verbosity=plan.verbosity)
    code = Exit.DONE
    try:
        Isolated(plan, pipe).run()
    # The worker process sees that this one has ended and goes on; why is for the log.
    except Exception:
        log.critical("process for suspects failed", exc_info=True)
        code = Exit.FAILED
    logging.shutdown()
    os._exit(int(code))  # handler threads may hang; nothing of theirs is needed any more


if __name__ == "__main__":
    main()
