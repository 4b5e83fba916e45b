"""Listening to a fleet: everything that `picture` is made from, within about a second and a half.

Two connections: one asks and may be blocked by an alarm of the broker, the other only reads and never is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

from qctl.broker import core, management
from qctl.broker.connect import Login, connect_within
from qctl.broker.login import login_for
from qctl.broker.session import ChannelLost, Connection
from qctl.control.desired import Desired
from qctl.control.host_answer import HostAnswer
from qctl.control.reading import Goodbye, HostReading
from qctl.control.telemetry import Listener, listen
from qctl.control.telemetry_log import last_minutes
from qctl.errors import BrokerUnreachable, QctlError
from qctl.inventory.model import Inventory
from qctl.ops.depths import MAX_QUEUES, look_at, queues_to_look_at
from qctl.ops.found import Depth, Flow, Found, Heard, Silence
from qctl.ops.memory import commanded
from qctl.ops.supervisors import Asker

#: Every process says something each second: who is silent for longer than this is not waited for.
LISTEN_S = 1.5
#: Listened at least, where hosts that nobody asks are wanted as well, or could not be asked.
STRANGERS_S = 1.1
#: What else is asked may take so long.
PATIENCE_S = 3.0
MANAGEMENT_S = 1.5
#: A long control log is read in seconds, once; after that from where it was left.
CONTROL_LOG_S = 60.0
#: Up to so many queues the management API is asked for each; for more it lists all.
FEW_QUEUES = 20
#: The log of readings is read so far back that it brings about so many entries, one a host each half minute.
MAX_ENTRIES = 4_000
LOG_PERIOD_S = 30.0
MAX_LOOK_BACK_S = 7 * 86_400.0
#: How often it is looked whether the broker blocks what is published.
_LOOK_S = 0.05

T = TypeVar("T")


async def listen_to(
    inventory: Inventory,
    *,
    hosts: Sequence[str] = (),
    strangers: bool = False,
    ahead: bool = False,
    connect_timeout_s: float,
) -> Found:
    """All that can be learnt. hosts: whose queues are looked at, all by default; of the hosts themselves all are
    listened to, since whoever takes from a queue counts for it. strangers: also those that the inventory does not have.
    ahead: it is about what will be, so the queues are looked at when all else was heard, that none is older than what
    workers say. What comes into queues is what has come all the time lately, which a bulk of messages has not.

    What cannot be learnt is a note of the result. Raises SecretError, BrokerUnreachable, BrokerRefused when there is
    no connection, or when it is lost.
    """
    login = login_for(inventory.broker, inventory.path, prefer_environment=True)
    async with _connections(login, connect_timeout_s) as (reading, asking):
        try:
            return await _Ear(inventory, login, reading, asking).all(hosts, strangers, ahead)
        except ChannelLost as error:
            raise BrokerUnreachable(
                f"the connection to {reading.address} was lost: {error}", hint="Try again; is the broker up?"
            ) from None


@asynccontextmanager
async def _connections(login: Login, timeout_s: float) -> AsyncIterator[tuple[Connection, Connection]]:
    reading = await connect_within(login, name="qctl status", timeout_s=timeout_s)
    try:
        asking = await connect_within(login, name="qctl status asking", timeout_s=timeout_s)
        try:
            yield reading, asking
        finally:
            await asking.close()
    finally:
        await reading.close()


class _Ear:
    def __init__(self, inventory: Inventory, login: Login, reading: Connection, asking: Connection) -> None:
        self.inventory, self.login, self.reading, self.asking = inventory, login, reading, asking
        self.hosts = tuple(inventory.hosts)
        self.notes: list[str] = []
        self.supervisors: dict[str, HostAnswer | Silence] = {}
        self.listed: frozenset[str] | None = None
        self.before: Mapping[str, HostReading] = {}
        self.asked = False

    async def all(self, hosts: Sequence[str], strangers: bool, ahead: bool) -> Found:
        queues = self._queues(hosts)
        unheard: tuple[Heard, ...] = ()
        uncounted: dict[str, Flow] = {}
        others = asyncio.gather(
            self._past(),
            self._in_time(self._desired, CONTROL_LOG_S, None, "the control log"),
            self._depths(() if ahead else queues),
            self._in_time(partial(self._flows, queues), PATIENCE_S, uncounted, "the management API"),
        )
        try:
            live = await self._in_time(partial(self._live, strangers), PATIENCE_S, unheard, "the workers' readings")
            (last, looked_back_s), desired, depths, flows = await others
            if ahead:
                depths = await self._depths(queues)
        finally:
            others.cancel()
        known = {name: Depth(flow.ready) for name, flow in flows.items() if flow.ready is not None}
        return Found(
            at_s=time.time(),
            blocked=self.asking.blocked,
            live=live,
            last=last,
            looked_back_s=looked_back_s,
            before=self.before if ahead else {},  # what a host had spent before it said goodbye still counts
            supervisors=self.supervisors,
            listed=self.listed,
            desired=desired,
            depths={**known, **depths},
            flows=flows,
            notes=tuple(dict.fromkeys(self.notes)),
        )

    async def _in_time(self, work: Callable[[], Awaitable[T]], timeout_s: float, otherwise: T, what: str) -> T:
        """What one source says; the lack of one is a note and no reason to keep the others back.

        work: begun here, so that what is cancelled before it could begin leaves nothing behind.
        """
        try:
            return await asyncio.wait_for(work(), timeout_s)
        except TimeoutError:
            self.notes.append(f"{what}: no answer within {timeout_s:g} s")
        except QctlError as error:
            self.notes.append(f"{what}: {error.message}")
        except ChannelLost as error:
            if not (self.reading.is_open and self.asking.is_open):
                raise
            self.notes.append(f"{what}: {error}")
        return otherwise

    # What the workers say

    async def _live(self, strangers: bool) -> tuple[Heard, ...]:
        started_s = time.monotonic()

        def enough() -> bool:
            if self.asking.blocked:
                return True
            # Of whom no supervisor told, it is not known whether there is anybody to wait for.
            all_told = not strangers and self.supervisors.keys() >= set(self.hosts)
            waited = all_told or time.monotonic() - started_s >= STRANGERS_S
            return waited and self.asked and not self._missing(listener)

        async with listen(self.reading) as listener:
            while not enough() and (left_s := started_s + LISTEN_S - time.monotonic()) > 0:
                await listener.until(enough, min(left_s, _LOOK_S))
                if listener.lost.done():
                    raise listener.lost.result()
            now_s, wall_s = core.now_s(), time.time()
            if listener.ignored:
                self.notes.append(f"ignored {sum(listener.ignored.values())} readings: {next(iter(listener.ignored))}")
            return tuple(
                Heard(heard.reading, wall_s - (now_s - heard.heard_s))
                for (host, index), heard in sorted(listener.heard.items())
                if listener.said_goodbye(host, index) is None
            )

    def _missing(self, listener: Listener) -> bool:
        """Whether a process that is connected has not been heard."""
        return any(
            (host, process.index) not in listener.heard
            for host, answer in self.supervisors.items()
            if isinstance(answer, HostAnswer)
            for process in answer.processes
            if process.state == "connected"
        )

    async def _ask_supervisors(self) -> None:
        try:
            asker = await Asker.open(self.asking)
            await asker.ask(self.hosts, self.supervisors.__setitem__)
        finally:
            self.asked = True

    async def _past(self) -> tuple[Mapping[str, HostReading | Goodbye], float]:
        """Ask the supervisors; and of hosts that have none to answer, the newest entry in the log of readings."""
        await self._in_time(self._ask_supervisors, PATIENCE_S, None, "the supervisors")
        nowhere: tuple[Mapping[str, HostReading | Goodbye], float] = {}, 0.0
        if self.asking.blocked or all(isinstance(self.supervisors.get(host), HostAnswer) for host in self.hosts):
            return nowhere
        found, self.listed = await asyncio.gather(
            self._in_time(self._log, PATIENCE_S, nowhere, "the log of readings"),
            self._in_time(self._listed, PATIENCE_S, None, "the management API"),
        )
        return found

    async def _listed(self) -> frozenset[str] | None:
        """Whose connections the broker lists: of who has no supervisor now, one may not be given up yet."""
        api = management.api_of(self.inventory.broker, self.inventory.path, self.login)
        if api is None or Silence.ABSENT not in self.supervisors.values():
            return None
        return await management.in_thread(lambda: management.hosts(api), timeout_s=MANAGEMENT_S)

    async def _log(self) -> tuple[Mapping[str, HostReading | Goodbye], float]:
        back_s = look_back_s(len(self.inventory.hosts), MAX_ENTRIES)
        tail = await last_minutes(self.asking, back_s)
        self.before = tail.before()
        if tail.why:
            self.notes.append(f"the log of readings: {tail.why}")
        return tail.last(), back_s

    async def _desired(self) -> Desired | None:
        return await commanded(self.inventory, self.reading)

    # What the broker says

    def _queues(self, hosts: Sequence[str]) -> tuple[str, ...]:
        """Work queues, and those of qctl's own in which tasks may wait or lie."""
        found = queues_to_look_at(self.inventory, hosts=hosts)
        if len(found) > MAX_QUEUES:
            self.notes.append(f"only {MAX_QUEUES} of {len(found)} queues were looked at")
        return found[:MAX_QUEUES]

    async def _depths(self, names: Sequence[str]) -> dict[str, Depth]:
        """How many tasks are ready in each. The queue itself says it; the management API may be five seconds late."""
        found = {name: Depth(None, "it did not answer") for name in names}
        await self._in_time(partial(look_at, self.reading, names, found), PATIENCE_S, None, "the queues")
        return found

    async def _flows(self, names: Sequence[str]) -> dict[str, Flow]:
        api = management.api_of(self.inventory.broker, self.inventory.path, self.login)
        if api is None:
            return {}
        work = [name for name in names if not name.startswith("qctl.") and not name.endswith(".dead")]
        looks = await management.in_thread(lambda: _ask_management(api, work), timeout_s=MANAGEMENT_S)
        return {
            look.name: Flow(look.unacked, look.lasting_in_per_s, look.out_per_s, look.ready)
            for look in looks
            if look.name
        }


def look_back_s(hosts: int, entries: int) -> float:
    """How far back the log of readings has about so many entries, if that many hosts write to it."""
    return min(MAX_LOOK_BACK_S, max(4 * LOG_PERIOD_S, entries * LOG_PERIOD_S / max(1, hosts)))


def _ask_management(api: management.Api, names: Sequence[str]) -> list[management.QueueLook]:
    asked = management.Management(api)
    try:
        if len(names) > FEW_QUEUES:
            wanted = set(names)
            return [look for look in asked.queues(lasting=True) if look.name in wanted]
        return [look for name in names if (look := asked.queue(name, lasting=True)) is not None]
    finally:
        asked.close()
