"""Running tasks: parse, pay, run, settle, decide; in threads, or as coroutines on one event loop.

A task starts only here, after admission, and every delivery that comes in leaves exactly once through `settled`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from qctl.broker.message import DeadReason, Malformed, Message, parse, text
from qctl.quota import Grant, Hold, Leases, Priced
from qctl.worker.delivery import Delivery, Settled
from qctl.worker.exceptions import TimedOut
from qctl.worker.handlers import Answer, Handler
from qctl.worker.inside import is_inside
from qctl.worker.isolation import is_suspect
from qctl.worker.judge import judge, words
from qctl.worker.logs import current_task
from qctl.worker.meter import Meter
from qctl.worker.outcome import GIVE_BACK, dead, decide, spared
from qctl.worker.rules import Rules
from qctl.worker.tariff import Tariff, tariff_of
from qctl.worker.task import Task

if TYPE_CHECKING:
    from qctl.worker.ward import Bed

log = logging.getLogger(__name__)

#: How often a start that the broker's silence forbids is looked at again.
SILENCE_POLL_S = 0.1
#: A cancelled coroutine gets this long to clean up before its slot counts as lost.
CLEANUP_S = 5.0
#: A run that is over its time for this long costs the process: its message must not stay unsettled for ever.
HOPELESS_S = 20.0
#: A task that costs more than an operator allows for now is looked at again after this.
BEYOND_S = 60.0


@dataclass(slots=True, eq=False)
class Run:
    """A task that is being run."""

    task: Task
    deadline_s: float
    delivery: Delivery
    thread: int
    overdue: bool = False


class Executor:
    """The slots of one consumer in one process.

    `put` hands in a delivery; `settled` is called, from any thread, once for each that leaves. `may_start` is asked
    right before each start; while it is False nothing starts and what was handed in comes back as GIVE_BACK.
    """

    def __init__(
        self,
        rules: Rules,
        handler: Handler,
        leases: Leases,
        priced: Priced,
        settled: Callable[[Settled], None],
        may_start: Callable[[Delivery], bool | None],
        bed: Bed | None = None,
    ) -> None:
        """bed: where suspects go; None: they run here like any other."""
        self.rules = rules
        self._bed = bed
        self.running: dict[int, Run] = {}
        self._starting: set[Delivery] = set()
        self._paying: set[Delivery] = set()
        self._handler = handler
        self._leases = leases
        self._priced = priced
        self._settled = settled
        self._may_start = may_start
        self._tariff: Tariff = tariff_of(rules.consumer.cost, rules.quotas)
        self._queue: SimpleQueue[Delivery] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slots = threading.Semaphore(rules.consumer.concurrency)

    def start(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Start the threads. loop: where coroutines of an async handler run, in a thread of its own."""
        self._loop = loop
        feeding = self._handler.run is None
        for index in range(1 if feeding else self.rules.consumer.concurrency):
            target = self._feed_loop if feeding else self._thread_loop
            threading.Thread(target=target, name=f"{self.rules.address}/{index}", daemon=True).start()

    def put(self, delivery: Delivery) -> None:
        """Hand in a delivery. Never blocks; what may wait here is bounded by the prefetch."""
        headers = delivery.properties.headers
        if (
            (delivery.redelivered or headers)
            and self._bed is not None
            and is_suspect(headers, redelivered=delivery.redelivered)
            and len(delivery.body) <= self.rules.max_body_bytes
        ):
            self._bed.put(delivery)
        else:
            self._queue.put(delivery)

    @property
    def waiting(self) -> int:
        """Deliveries handed in that no slot has taken yet."""
        return self._queue.qsize() + (self._bed.waiting if self._bed else 0)

    @property
    def active(self) -> int:
        """Tasks that run or are about to."""
        starting = len(self._starting)  # first, since a task goes from here to there
        return starting + len(self.running) + (self._bed.inside if self._bed else 0)

    @property
    def paying(self) -> int:
        """Deliveries in slots that wait for quota."""
        return len(self._paying)

    def is_starting(self, which: Callable[[Delivery], bool]) -> bool:
        """Whether anything of this kind was allowed to start, or asks, and is not inside its handler for certain."""
        if any(which(one) for one in tuple(self._starting)):
            return True
        threads = {run.thread for run in list(self.running.values()) if which(run.delivery)}
        return not all(map(is_inside, threads)) or (self._bed is not None and self._bed.is_starting(which))

    def take_back(self, which: Callable[[Delivery], bool] = lambda _: True) -> list[Delivery]:
        """Everything, of this kind, that no slot has taken yet; it will not be run."""
        found = self._bed.take_back(which) if self._bed else []
        for _ in range(self._queue.qsize()):
            with contextlib.suppress(Empty):
                delivery = self._queue.get_nowait()
                (found.append if which(delivery) else self._queue.put)(delivery)
        return found

    @property
    def lost_slots(self) -> int:
        """Slots whose run is over time and goes on all the same; nobody can say whether it ever ends."""
        patience_s = CLEANUP_S if self._handler.run is None else 0.0
        return sum(run.overdue and self._late_s(run) > patience_s for run in list(self.running.values()))

    @property
    def hopeless(self) -> bool:
        """True when a run is over time for so long that only the end of the process will end it."""
        return any(run.overdue and self._late_s(run) > HOPELESS_S for run in list(self.running.values()))

    @staticmethod
    def _late_s(run: Run) -> float:
        return time.monotonic() - run.deadline_s

    @property
    def stuck(self) -> str:
        """Why tasks that are over time make this process not worth keeping, "" while they do not."""
        if 2 * self.lost_slots >= self.rules.consumer.concurrency:
            return "half of its slots run tasks that are over time"
        return "a task is over its time and does not end" if self.hopeless else ""

    def expire(self) -> float:
        """Tell runs that are over time that they are; a thread cannot be ended, but its calls can be refused.

        Returns how long the oldest run takes by now, in seconds.
        """
        if self._bed is not None:
            self._bed.expire()
        now_s = time.monotonic()
        oldest_s = 0.0
        for run in list(self.running.values()):
            oldest_s = max(oldest_s, now_s - run.deadline_s + self.rules.consumer.timeout_s)
            if now_s > run.deadline_s and not run.overdue:
                run.overdue = True
                timeout_s = self.rules.consumer.timeout_s
                log.warning("%s task over its timeout of %g s id=%s", self.rules.address, timeout_s, run.task.id)
                try:
                    run.task.stop()
                # A connection that cannot be cut off, of whatever library, must not keep the others from their ends.
                except Exception:
                    log.critical("%s task cannot be stopped id=%s", self.rules.address, run.task.id, exc_info=True)
        return oldest_s

    def _thread_loop(self) -> None:
        while True:
            self.work(self._queue.get())

    def work(self, delivery: Delivery) -> None:
        """Admit and run one delivery to its end, here in the calling thread."""
        admitted = self._admit(delivery)
        if admitted is not None:
            self._run(delivery, *admitted)

    def _feed_loop(self) -> None:
        assert self._loop is not None
        while True:
            self._slots.acquire()  # a slot first, so that nothing is reserved for a task that only waits
            delivery = self._queue.get()
            admitted = self._admit(delivery)
            if admitted is None:
                self._slots.release()
                continue
            asyncio.run_coroutine_threadsafe(self._run_async(delivery, *admitted), self._loop)

    def _admit(self, delivery: Delivery) -> tuple[Message, Grant] | None:
        """Parse and pay; None when the delivery has left already."""
        try:
            return self._admitted(delivery)
        # A bug of ours with this one message must cost neither the slot nor the message.
        except Exception as error:
            log.critical("%s task cannot be admitted", self.rules.address, exc_info=True)
            self._starting.discard(delivery)
            self._settled(Settled(delivery, dead(DeadReason.MALFORMED, f"cannot be admitted: {type(error).__name__}")))
            return None

    def _admitted(self, delivery: Delivery) -> tuple[Message, Grant] | None:
        try:
            message = self._check(delivery)
            priced = self._priced if message.cost is None else self._price(message.cost)
        except Malformed as error:
            outcome = dead(error.reason, str(error))
            identity = text(delivery.properties.message_id) or "-"
            log.error("%s task %s id=%s: %s", self.rules.address, words(outcome), identity, outcome.error)
            self._settled(Settled(delivery, outcome))
            return None
        got = self._leases.take(priced) or self._wait_to_pay(delivery, priced)
        if got is None:
            return None
        self._starting.add(delivery)  # before asking: who drains must not overlook what was just allowed
        while (allowed := self._may_start(delivery)) is None:
            time.sleep(SILENCE_POLL_S)
        if not allowed:
            self._leases.settle(got, {})
            self._settled(Settled(delivery, GIVE_BACK))
            self._starting.discard(delivery)
            return None
        return message, got

    def _wait_to_pay(self, delivery: Delivery, priced: Priced) -> Grant | None:
        """None when the delivery has left."""
        if why := self._beyond(priced):
            log.warning("%s task id=%s: %s", self.rules.address, text(delivery.properties.message_id) or "-", why)
            self._settled(Settled(delivery, spared(why, BEYOND_S, self.rules.ladder_s)))
            return None
        self._paying.add(delivery)
        try:
            got = self._leases.acquire(priced)
            if isinstance(got, Hold):
                self._settled(Settled(delivery, GIVE_BACK))
                return None
            self._starting.add(delivery)  # it is never neither
            return got
        finally:
            self._paying.discard(delivery)

    def _beyond(self, priced: Priced) -> str:
        """Why no waiting helps a task that names its own cost, "" where it may: the limit in force was lowered."""
        if priced is self._priced:
            return ""  # the consumer is judged, and held, by this cost
        readings = self._leases.readings()
        for quota, units in priced.cost.items():
            most = (
                min((part.limit.units for part in readings[quota].limits), default=units)
                if quota in readings
                else units
            )
            if units > most:
                return f"it needs {units} units of {quota}, more than the limit of {most} that holds now"
        return ""

    def _check(self, delivery: Delivery) -> Message:
        if len(delivery.body) > self.rules.max_body_bytes:
            raise Malformed(
                f"the body has {len(delivery.body)} bytes, max_body is {self.rules.max_body_bytes}",
                DeadReason.TOO_LARGE,
            )
        return parse(delivery.properties, delivery.body)

    def _price(self, asked: Mapping[str, int]) -> Priced:
        """The price of a task that names its own cost. Lowering is only believed where calls are metered."""
        cost = dict(self.rules.consumer.cost)
        for quota, units in asked.items():
            if quota not in cost:
                known = ", ".join(sorted(cost)) or "none"
                raise Malformed(f"qctl-cost names quota {quota!r}; this consumer's are {known}", DeadReason.COST)
            if units > (most := self._tariff.most[quota]):
                raise Malformed(
                    f"qctl-cost asks {units} of {quota}, more than the {most} it can ever pay at once", DeadReason.COST
                )
            cost[quota] = units if self.rules.proven else max(units, cost[quota])
        return self._leases.price(self.rules.consumer.name, cost)

    def _begin(self, delivery: Delivery, message: Message, grant: Grant) -> tuple[Task, Run]:
        rules = self.rules
        deadline_s = time.monotonic() + rules.consumer.timeout_s
        task = Task(
            message,
            host=rules.host,
            consumer=rules.consumer.name,
            start_meter=lambda: Meter(self._leases, grant, self._tariff, deadline_s),
            make_outbox=rules.make_outbox,
        )
        run = Run(task, deadline_s, delivery, threading.get_ident())
        self.running[id(run)] = run
        return task, run

    def _run(self, delivery: Delivery, message: Message, grant: Grant) -> None:
        assert self._handler.run is not None
        task, run = self._begin(delivery, message, grant)
        started_s = time.perf_counter()
        token = current_task.set(f"{self.rules.address} {message.id or '-'}")
        answer, failure = None, None
        try:
            if message.is_json:
                task.payload  # noqa: B018  (parsed here, so that a broken body is dead whatever the handler does)
            self._starting.discard(delivery)  # only now: from here `is_inside` can tell
            answer = self._handler.run(task)
        # A handler is the user's code and may raise anything, SystemExit too; each ends its own task, not the worker.
        except BaseException as error:  # noqa: BLE001
            failure = error
        self._end(delivery, message, grant, run, failure, answer, time.perf_counter() - started_s)
        current_task.reset(token)

    async def work_async(self, delivery: Delivery) -> None:
        """Admit and run one delivery of an async handler to its end, on the calling loop."""
        admitted = self._admit(delivery)
        if admitted is not None:
            await self._run_async(delivery, *admitted)

    async def _run_async(self, delivery: Delivery, message: Message, grant: Grant) -> None:
        assert self._handler.run_async is not None
        task, run = self._begin(delivery, message, grant)
        started_s = time.perf_counter()
        current_task.set(f"{self.rules.address} {message.id or '-'}")
        failure: BaseException | None = None
        limit = asyncio.timeout(self.rules.consumer.timeout_s)
        try:
            if message.is_json:
                task.payload  # noqa: B018
            async with limit:
                self._starting.discard(delivery)  # as above
                await self._handler.run_async(task)
        # As above: the user's code, and a cancelled coroutine is a failed task.
        except BaseException as error:  # noqa: BLE001
            failure = error
        if limit.expired():  # also when the handler swallowed the cancellation
            failure = TimedOut(f"the task ran longer than {self.rules.consumer.timeout_s:g} s")
        try:
            self._end(delivery, message, grant, run, failure, None, time.perf_counter() - started_s)
        finally:
            self._slots.release()

    def _end(
        self,
        delivery: Delivery,
        message: Message,
        grant: Grant,
        run: Run,
        failure: BaseException | None,
        answer: Answer | None,
        run_s: float,
    ) -> None:
        """Settle the units, then let the delivery leave; it leaves whatever goes wrong in here."""
        seen = None
        try:
            outcome, seen = judge(self.rules, self._leases, grant, run, message, failure, run_s)
        # A bug of ours must cost neither the slot nor the message: the task counts as failed.
        except Exception as error:
            log.critical("%s task cannot be judged", self.rules.address, exc_info=True)
            with contextlib.suppress(ValueError):
                self._leases.settle(grant)
            consumer = self.rules.consumer
            outcome = decide(error, message, consumer.retry, self.rules.ladder_s)
        self._starting.discard(delivery)  # still there when its body was broken
        self._settled(Settled(delivery, outcome, answer, run_s, seen))
        self.running.pop(id(run), None)  # last: in between it would be neither running nor on its way out


class CoroutineLoop:
    """The event loop of async handlers, in a thread of its own: one that blocks cannot stop the heartbeats."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="handlers", daemon=True).start()
