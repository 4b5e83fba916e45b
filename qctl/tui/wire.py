"""All that comes over AMQP, and goes on coming: readings, supervisors, the control log, the depths of queues.

Two connections, as for a look that is taken once: one asks and may be blocked by an alarm, the other only reads. Each
part is begun anew by itself when it fails, and what it has learnt until then stays, with its age.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qctl.broker.connect import Login, backoff, connect, stay_connected
from qctl.broker.core import now_s
from qctl.broker.login import login_for
from qctl.broker.refusals import LOOK_S, Refusal, mark_of, wait_s
from qctl.broker.session import ChannelLost, Connection
from qctl.control.desired import Desired
from qctl.control.following import NOTHING, Known
from qctl.control.history import Pass, follow
from qctl.control.host_answer import HostAnswer
from qctl.control.reading import Goodbye, HostReading
from qctl.control.stream import BeginningLost
from qctl.control.telemetry import MAX_HOSTS, Hearing, listen
from qctl.control.telemetry_log import last_minutes
from qctl.errors import BrokerUnreachable, ControlLogError, LoginRefused, QctlError
from qctl.inventory.model import Inventory
from qctl.ops.depths import look_at
from qctl.ops.events import Happened, happened, told
from qctl.ops.found import Depth, Silence
from qctl.ops.memory import Remembered
from qctl.ops.sources import look_back_s
from qctl.ops.supervisors import Asker
from qctl.tui.snapshot import MAX_EVENTS

log = logging.getLogger(__name__)

#: Tries of one part are at most so far apart: who brings a broker back sees it soon.
PAUSE_S = 3.0
#: One try to connect; an address that says nothing must not keep it for longer.
DIAL_S = 6.0
#: Supervisors are asked, and queues looked at, so often, and never more often than each NEVER_SOONER_S.
ASK_EVERY_S = 5.0
NEVER_SOONER_S = 1.0
#: A log of readings is read anew for hosts that nothing is known of, so often; about so many entries of it.
LOG_AGAIN_S = 600.0
MAX_LOG_ENTRIES = 1_000
#: How often what was read of the control log is kept for the next start.
KEEP_EVERY_S = 60.0
#: A broker that is blocked tells when it is not any more; that is looked at so often.
BLOCKED_LOOK_S = 0.25


@dataclass(slots=True)
class Part:
    """How one thing that may fail is. at_s: wall clock, when it last said something; failed: why it does not now."""

    at_s: float | None = None
    failed: str = ""

    def works(self) -> None:
        """It said something just now."""
        self.at_s, self.failed = time.time(), ""


class Wire:
    """What has come so far; use from the loop's thread. `changed` is called when there is something worth showing."""

    def __init__(self, inventory: Inventory, changed: Callable[[], None]) -> None:
        self.inventory = inventory
        self.hearing = Hearing(expected=inventory.hosts.keys())
        self.supervisors: dict[str, HostAnswer | Silence] = {}
        self.last: dict[str, HostReading | Goodbye] = {}
        self.looked_back_s = 0.0
        #: What the control log said when it was last read to its end; whether it is at that again.
        self.desired: Desired | None = None
        self.caught_up = False
        self.events: deque[Happened] = deque(maxlen=MAX_EVENTS)
        self.depths: dict[str, Depth] = {}
        self.depths_at_s: float | None = None
        #: Of the broker, the workers' readings, the control log.
        self.broker, self.workers, self.control_log = Part(), Part(), Part()
        #: Of the supervisors, who are asked over the other connection.
        self.supervision = Part()
        #: The instant by `core.now_s` since which readings are listened to; None while they are not.
        self.listening_s: float | None = None
        self.connected_once = False
        self.last_error: QctlError | None = None
        self._reading: Connection | None = None
        self._asking: Connection | None = None
        self._opened: list[Connection] = []
        self._open = asyncio.Event()
        self._ask_now = asyncio.Event()
        self._look_now = asyncio.Event()
        self._names: Sequence[str] = ()
        self._refusal: Refusal | None = None
        self._known: Known = NOTHING
        self._remembered: Remembered | None = None
        self._cut_off = False
        self._kept, self._kept_s = NOTHING.offset, 0.0
        self._log_read_s: float | None = None
        self._changed = changed

    # What others ask

    @property
    def blocked(self) -> bool:
        """An alarm of the broker: nothing that is published gets through, the workers' readings neither."""
        return self._asking is not None and self._asking.is_open and self._asking.blocked

    @property
    def is_open(self) -> bool:
        """There is a connection, as far as is known."""
        return self._reading is not None and self._reading.is_open

    def silent_s(self) -> float:
        """Seconds since anything was read from the broker; 0 without a connection."""
        return self._reading.silent_s() if self._reading is not None and self._reading.is_open else 0.0

    def ask_soon(self) -> None:
        """Have the supervisors asked before it is time."""
        self._ask_now.set()

    def look_at(self, names: Sequence[str]) -> None:
        """The queues whose depth is wanted from now on; at most a thousand or so."""
        if set(names) - self.depths.keys():
            self._look_now.set()
        self._names = names

    def refresh(self) -> None:
        """Ask all of it anew now."""
        self._ask_now.set()
        self._look_now.set()

    def keep(self) -> None:
        """Keep what was read of the control log for the next start. Blocks."""
        if self._remembered is None or self.desired is None or self._known.offset == self._kept:
            return
        self._kept, self._kept_s = self._known.offset, time.monotonic()
        self._remembered.keep(self._known, self.events)

    # The connections

    async def run(self) -> None:
        """For ever; cancel it to end."""
        await asyncio.gather(
            stay_connected(
                lambda: self._dial("qctl tui"), self._read, what="reading", on_lost=self._on_lost, longest_s=PAUSE_S
            ),
            stay_connected(self._dial_asking, self._ask, what="asking", longest_s=PAUSE_S),
        )

    def abort(self) -> None:
        """Drop the connections without waiting for the broker."""
        for connection in self._opened:
            connection.abort("the console has ended")

    async def _dial_asking(self) -> Connection:
        await self._open.wait()  # a login that is refused need not be refused twice
        return await self._dial("qctl tui asking")

    async def _dial(self, name: str) -> Connection:
        try:
            login = await self._login()
            while (left_s := wait_s(self._refusal, mark_of(login), time.monotonic())) > 0:
                await asyncio.sleep(min(left_s, LOOK_S))
                login = await self._login()
            try:
                connection = await asyncio.wait_for(connect(login, name=name), DIAL_S)
            except LoginRefused:
                tries = self._refusal.tries if self._refusal is not None else 0
                self._refusal = Refusal(mark_of(login), tries + 1, time.monotonic())
                raise
            except TimeoutError:
                where = ", ".join(str(address) for address in login.addresses)
                raise BrokerUnreachable(f"{where} does not answer within {DIAL_S:g} s") from None
        except QctlError as error:
            self.last_error = error
            raise
        self._refusal, self.last_error = None, None
        self._opened = [*(one for one in self._opened if one.is_open), connection]
        return connection

    async def _login(self) -> Login:
        broker, path = self.inventory.broker, self.inventory.path
        return await asyncio.to_thread(login_for, broker, path, prefer_environment=True)

    def _on_lost(self, why: str) -> None:
        self.broker.failed = why
        self.workers.failed = self.control_log.failed = self.supervision.failed = ""
        self._changed()

    async def _read(self, connection: Connection) -> None:
        """Listen, and follow the control log, each by itself, while the connection lasts."""
        self._reading = connection
        self.connected_once = True
        self.broker.works()
        self._open.set()
        self._changed()
        try:
            await _until_lost(
                connection,
                self._again(lambda: self._listen(connection), connection, self.workers),
                self._again(lambda: self._follow(connection), connection, self.control_log),
                self._again(lambda: self._look(connection), connection, Part()),
            )
        finally:
            self._open.clear()
            self._reading = None

    async def _ask(self, connection: Connection) -> None:
        self._asking = connection
        try:
            await _until_lost(connection, self._again(lambda: self._ask_all(connection), connection, self.supervision))
        finally:
            self._asking = None
            self.supervisors.clear()

    async def _again(self, work: Callable[[], Awaitable[None]], connection: Connection, part: Part) -> None:
        """Work until the connection is lost, and begin anew when it fails before."""
        pauses = backoff(PAUSE_S)
        while connection.is_open:
            started_s = time.monotonic()
            try:
                await work()
            except (QctlError, ChannelLost) as error:
                part.failed = error.message if isinstance(error, QctlError) else str(error)
                log.info("a source of the console fails: %s", part.failed)
                self._changed()
            if time.monotonic() - started_s > PAUSE_S:
                pauses = backoff(PAUSE_S)
            await asyncio.sleep(next(pauses))

    # The parts

    async def _listen(self, connection: Connection) -> None:
        try:
            async with listen(connection, self.hearing) as listener:
                self.listening_s = now_s()
                self.workers.failed = ""
                if await listener.until(lambda: bool(self.hearing.heard), NEVER_SOONER_S):
                    self._changed()
                raise await listener.lost
        finally:
            self.listening_s = None

    async def _follow(self, connection: Connection) -> None:
        """What is commanded, and what was; a log without its beginning tells of the rest, and of nothing that holds."""
        self._remembered = self._remembered or Remembered(self.inventory, connection)
        if self._known is NOTHING and not self._cut_off:
            self._known, events = await asyncio.to_thread(self._remembered.recall)
            self.events.extend(events)
        operators = frozenset(self.inventory.operators) or None
        known = NOTHING if self._cut_off else self._known
        is_first, self.caught_up = known.offset < 0, False
        try:
            async for step in follow(connection, operators=operators, known=known, anywhere=self._cut_off):
                self._take(step, afresh=step.again or is_first)
                is_first = False
        except ControlLogError as error:
            self._cut_off = isinstance(error, BeginningLost)
            raise told(error) from None

    def _take(self, step: Pass, *, afresh: bool) -> None:
        if afresh:
            self.events.clear()
        self.events.extend(event for entry in step.entries if (event := happened(entry)) is not None)
        if self._cut_off:  # what it says is not all that holds
            self._changed()
            return
        self._known = step.known
        if step.at_end:
            self.desired, self.caught_up = step.known.desired, True
            self.control_log.works()
            if time.monotonic() - self._kept_s > KEEP_EVERY_S:
                self.keep()
            self._changed()

    async def _look(self, connection: Connection) -> None:
        while True:
            self._look_now.clear()
            names = tuple(self._names)
            if names:
                depths: dict[str, Depth] = {}
                await look_at(connection, names, depths)
                self.depths, self.depths_at_s = depths, time.time()
                self._changed()
            await asyncio.sleep(NEVER_SOONER_S)
            await _either(self._look_now, ASK_EVERY_S - NEVER_SOONER_S)

    async def _ask_all(self, connection: Connection) -> None:
        asker = await Asker.open(connection)
        while True:
            self._ask_now.clear()
            if connection.blocked:
                # What was answered before the alarm says nothing of now.
                self.supervisors.clear()
                self._changed()
                while connection.blocked:  # noqa: ASYNC110 - pika tells the connection, which keeps no list of listeners
                    await asyncio.sleep(BLOCKED_LOOK_S)
            hosts = tuple({**dict.fromkeys(self.inventory.hosts), **dict.fromkeys(self.hearing.hosts)})
            answers: dict[str, HostAnswer | Silence] = {}
            await asker.ask(hosts, answers.__setitem__)
            if not connection.blocked:
                changed = answers.keys() != self.supervisors.keys()
                self.supervisors = answers
                self.supervision.works()
                await self._remember(connection)
                if changed:
                    self._changed()
            await asyncio.sleep(NEVER_SOONER_S)
            await _either(self._ask_now, ASK_EVERY_S - NEVER_SOONER_S)

    async def _remember(self, connection: Connection) -> None:
        """Of hosts that nobody answers for and nothing is known of, what they wrote to the log of readings."""
        missing = [
            host
            for host in self.inventory.hosts
            if not isinstance(self.supervisors.get(host), HostAnswer)
            and host not in self.hearing.hosts
            and host not in self.last
        ]
        begun_s = time.monotonic()
        if not missing or (self._log_read_s is not None and begun_s - self._log_read_s < LOG_AGAIN_S):
            return
        back_s = look_back_s(len(self.inventory.hosts), MAX_LOG_ENTRIES)
        tail = await last_minutes(connection, back_s)
        self._log_read_s, self.looked_back_s = begun_s, back_s
        if tail.why:
            log.info("the log of readings: %s", tail.why)
        entries = sorted(tail.last().items(), key=lambda found: found[0] not in self.inventory.hosts)
        self.last = {**dict(entries[: len(self.inventory.hosts) + MAX_HOSTS]), **self.last}
        self._changed()


async def _until_lost(connection: Connection, *works: Awaitable[None]) -> None:
    """Return when the connection is lost; the works, which never end, are ended with it."""
    tasks = [asyncio.ensure_future(work) for work in works]
    waiting: set[asyncio.Future[Any]] = {connection.closed, *tasks}
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _either(event: asyncio.Event, timeout_s: float) -> None:
    """Wait for the event, at most so long."""
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except TimeoutError:
        return
