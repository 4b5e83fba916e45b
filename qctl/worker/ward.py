"""The ward, seen from its worker process: suspects go in, endings come out, and its death ends no worker.

The ward is a child process (`qctl.worker.isolated`) without a connection to the broker. It is started for the first
suspect, kept while there are more, and ended IDLE_S after the last. One thread of the worker process talks to it, for
ever: the kernel ends a child together with the thread that started it.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from qctl.broker.message import CRASHES
from qctl.worker.delivery import Delivery, Settled
from qctl.worker.isolation import culprits, next_in
from qctl.worker.judge import tell
from qctl.worker.outcome import GIVE_BACK, crashed
from qctl.worker.plan import Plan
from qctl.worker.rules import Rules

log = logging.getLogger(__name__)

#: A ward without work is kept for this long; starting one takes about half a second.
IDLE_S = 5.0
#: What a suspect may take until it runs: the start of the ward, imports, admission.
START_S = 60.0
#: Beyond its timeout a suspect gets this long to end by itself.
MARGIN_S = 5.0
#: How long an orderly end may take to write the ward's settlements down.
CLOSING_S = 3.0
#: Wards in a row that die before anything ran in them, after which all who wait are given back.
MAX_STILLBORN = 3
STILLBORN_PAUSE_S = 1.0


@dataclass(slots=True, eq=False)
class Patient:
    """A suspect that waits for the ward or is in it.

    asks: from before it is looked whether it may start until `started` says so. is_inside: its handler is entered.
    """

    bed: Bed
    delivery: Delivery
    alone: bool
    started: bool = False
    deadline_s: float = 0.0
    asks: bool = False
    is_inside: bool = False

    @property
    def consumer(self) -> str:
        """Its consumer's name."""
        return self.bed.rules.consumer.name


class Bed:
    """One consumer's part of the ward: its executor hands suspects in here. Any thread."""

    def __init__(
        self,
        ward: Ward,
        rules: Rules,
        settled: Callable[[Settled], None],
        may_start: Callable[[Delivery], bool | None],
    ) -> None:
        """settled, may_start: as of the executor."""
        self.rules = rules
        self.settled = settled
        self.may_start = may_start
        self._ward = ward

    def put(self, delivery: Delivery) -> None:
        """Hand in a suspect; it leaves through `settled`, or by `take_back`. Never blocks."""
        # Who is known to have ended a process is alone from the first.
        self._ward.put(Patient(self, delivery, alone=CRASHES in (delivery.properties.headers or {})))

    @property
    def waiting(self) -> int:
        """Suspects that are not in the ward yet."""
        return self._ward.count(self, waiting=True)

    @property
    def inside(self) -> int:
        """Suspects in the ward: they run, or are about to."""
        return self._ward.count(self, waiting=False)

    def take_back(self, which: Callable[[Delivery], bool]) -> list[Delivery]:
        """Everything, of this kind, that is not in the ward yet; it will not be run."""
        return self._ward.take_back(self, which)

    def is_starting(self, which: Callable[[Delivery], bool]) -> bool:
        """Whether a suspect of this kind was allowed to start, and is not inside its handler for certain."""
        return self._ward.is_starting(self, which)

    def expire(self) -> None:
        """End the ward when somebody in it is over time."""
        self._ward.expire()


class Ward:
    """All suspects of a worker process."""

    def __init__(self, plan: Plan, origin: str) -> None:
        """origin: of its lines in the log."""
        self._plan = plan
        self._origin = origin
        self._lock = threading.Lock()
        self._waiting: deque[Patient] = deque()
        self._inside: dict[int, Patient] = {}
        self._child: subprocess.Popen[bytes] | None = None
        self._overdue: set[Patient] = set()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    # Any thread

    def put(self, patient: Patient) -> None:
        """See Bed."""
        with self._lock:
            self._waiting.append(patient)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="ward", daemon=True)
                self._thread.start()
        os.eventfd_write(self._wake, 1)

    def count(self, bed: Bed, *, waiting: bool) -> int:
        """See Bed."""
        if self._thread is None:
            return 0
        with self._lock:
            return sum(one.bed is bed for one in (self._waiting if waiting else self._inside.values()))

    def take_back(self, bed: Bed, which: Callable[[Delivery], bool]) -> list[Delivery]:
        """See Bed."""
        if self._thread is None:
            return []
        with self._lock:
            found = {one: one.delivery for one in self._waiting if one.bed is bed and which(one.delivery)}
            self._waiting = deque(one for one in self._waiting if one not in found)
        return list(found.values())

    def is_starting(self, bed: Bed, which: Callable[[Delivery], bool]) -> bool:
        """See Bed."""
        with self._lock:
            inside = [one for one in self._inside.values() if one.bed is bed and which(one.delivery)]
            return any(one.asks or (one.started and not one.is_inside) for one in inside)

    def expire(self) -> None:
        """See Bed. From here and not from the ward's thread: that one may wait for a child that reads nothing."""
        if not self._inside:
            return
        now_s = time.monotonic()
        with self._lock:
            self._overdue |= {one for one in self._inside.values() if now_s > one.deadline_s}
            if self._overdue and self._child is not None:
                self._child.kill()

    def close(self) -> None:
        """End in order: the ward writes down what it spent. Nobody may be in it."""
        self._closing = True
        if self._thread is not None:
            os.eventfd_write(self._wake, 1)
            self._thread.join(CLOSING_S + 1)

    # The ward's thread

    def _run(self) -> None:
        stillborn = 0
        while not self._closing:
            try:
                if not self._waiting:
                    _await(self._wake)
                    continue
                stillborn = 0 if self._serve() else stillborn + 1
            # Whatever goes wrong here must not end the thread: nobody else looks after suspects.
            except Exception:
                log.critical("the ward failed", exc_info=True)
                stillborn += 1
            if stillborn >= MAX_STILLBORN:
                log.error("the process for suspects does not start; giving back what was to run in it")
                self._give_up()
                stillborn = 0
            elif stillborn:
                time.sleep(STILLBORN_PAUSE_S)

    def _serve(self) -> bool:
        """Start a child and feed it until nobody is left or it dies; False when it died before anything ran in it."""
        ours, its = socket.socketpair()
        with its:
            child = subprocess.Popen(
                [sys.executable, "-m", "qctl.worker.isolated", str(its.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                pass_fds=(its.fileno(),),
            )
        log.info("process for suspects started pid=%d", child.pid)
        ran = False
        with Connection(ours.detach()) as pipe:
            with self._lock:
                self._child, self._overdue = child, set()
            try:
                pipe.send((self._plan, self._origin))
                for told in self._converse(child, pipe):
                    ran = self._hear(pipe, *told) or ran
                ran = True  # it lived until nobody needed it
            except (OSError, EOFError) as error:
                log.debug("the ward is gone: %s", error)
                ran = self._last_words(pipe) or ran
            finally:  # whatever went wrong: who was in it must not be kept for one that is no more
                pipe.close()
                self._end(child)
        return ran

    def _last_words(self, pipe: Connection) -> bool:
        """What the child said before it died counts: these have ended, and ended nothing. True if there were any."""
        ran = False
        with suppress(OSError, EOFError):
            while pipe.poll():
                what, *words = pipe.recv()
                ran = (what == "settled" and self._hear(pipe, what, *words)) or ran
        return ran

    def _converse(self, child: subprocess.Popen[bytes], pipe: Connection) -> Iterator[tuple[Any, ...]]:
        """Send in who may go in; yield what the child says until it is no longer needed. Raises EOFError at its death,
        OSError."""
        ended = os.pidfd_open(child.pid)
        try:
            while True:
                self._feed(pipe)
                idle = not self._inside
                if idle and self._closing:
                    return
                # Its death is looked for by itself: what a task has left behind may hold the pipe open.
                ready = _await(self._wake, pipe.fileno(), ended, timeout_s=IDLE_S if idle else None)
                if pipe.fileno() in ready:
                    yield pipe.recv()
                elif ended in ready:
                    raise EOFError("it has ended")
                elif idle and not ready and not self._waiting:
                    return
        finally:
            os.close(ended)

    def _feed(self, pipe: Connection) -> None:
        while True:
            with self._lock:
                slots = {one.consumer: one.bed.rules.consumer.concurrency for one in self._waiting}
                patient = next_in(self._waiting, self._inside.values(), slots)
                if patient is None:
                    return
                self._waiting.remove(patient)
                patient.started, patient.deadline_s = False, time.monotonic() + START_S
                patient.asks = patient.is_inside = False
                self._inside[id(patient)] = patient
            one = patient.delivery
            about = (patient.consumer, one.redelivered, one.properties, one.body, one.received_s)
            pipe.send(("run", id(patient), *about))

    def _hear(self, pipe: Connection, what: str, number: int, *words: Any) -> bool:
        """Obey the child; True when a task has started."""
        patient = self._inside[number]
        if what == "inside":
            patient.is_inside = True
            return True
        if what == "settled":
            (settled,) = words
            patient.bed.settled(replace(settled, delivery=patient.delivery))
            with self._lock:  # last: in between it would be neither inside nor on its way out
                del self._inside[number]
            return True
        assert what == "may start"
        patient.asks = True  # before looking: who forbids it meanwhile must not overlook it
        allowed = patient.bed.may_start(patient.delivery)
        with self._lock:
            allowance_s = patient.bed.rules.consumer.timeout_s + MARGIN_S if allowed else START_S
            patient.asks = False
            patient.started, patient.deadline_s = allowed is True, time.monotonic() + allowance_s
        pipe.send(("may start", number, allowed))
        return allowed is True

    def _end(self, child: subprocess.Popen[bytes]) -> None:
        """The pipe is closed: see the child end, and find out who is to blame for it."""
        try:
            code = child.wait(CLOSING_S)
        except subprocess.TimeoutExpired:
            child.kill()
            code = child.wait()
        with self._lock:
            self._child = None
            inside, self._inside = list(self._inside.values()), {}
            overdue = self._overdue
        if not inside:
            return
        blamed = culprits(inside, overdue)
        log.error("process for suspects pid=%d %s; ran in it: %d task(s)", child.pid, _ended(code), len(blamed))
        for one in inside:
            one.alone = one.alone or one in blamed or one in overdue  # it was ended for this one: not again with others
        if len(blamed) == 1:
            (one,) = blamed
            inside.remove(one)
            self._blame(one, "did not end in time" if one in overdue else _ended(code))
        with self._lock:
            self._waiting.extendleft(reversed(inside))

    def _blame(self, patient: Patient, how: str) -> None:
        rules, delivery = patient.bed.rules, patient.delivery
        headers: Mapping[str, Any] = delivery.properties.headers or {}
        outcome = crashed(f"the process that ran it alone {how}", headers, rules.consumer.retry, rules.ladder_s)
        tell(outcome, delivery.properties)
        patient.bed.settled(Settled(delivery, outcome))

    def _give_up(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, deque()
        for one in waiting:
            one.bed.settled(Settled(one.delivery, GIVE_BACK))


def _await(wake: int, *others: int, timeout_s: float | None = None) -> set[int]:
    """Wait for any of these descriptors; which are ready. Resets `wake`."""
    with selectors.DefaultSelector() as selector:
        for fd in (wake, *others):
            selector.register(fd, selectors.EVENT_READ)
        ready = {key.fd for key, _ in selector.select(timeout_s)}
    if wake in ready:
        with suppress(BlockingIOError):
            os.eventfd_read(wake)
    return ready


def _ended(code: int) -> str:
    if code < 0:
        with suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
    return f"ended with {code}"
