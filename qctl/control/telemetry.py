"""Hearing what the workers say of themselves: live, a reading a second from each process.

Readings are transient and come through an exclusive queue that drops its head: who listens slowly hears the newest.
A reading without a verified user, or that cannot be read, is ignored, counted, and reported once for each reason.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Container
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from qctl.broker import topology
from qctl.broker.core import now_s
from qctl.broker.message import Properties, short, text
from qctl.broker.session import Channel, ChannelLost, Connection
from qctl.control.event import NotUnderstood
from qctl.control.reading import Goodbye, Reading
from qctl.control.reading_parse import parse
from qctl.errors import BrokerRefused

log = logging.getLogger(__name__)

#: Readings that the broker keeps for who listens: a second or more of the largest fleet.
MAX_QUEUED = 5_000
MAX_QUEUED_BYTES = 64 << 20
#: Readings on their way to us, and how many of them are acknowledged at once.
PREFETCH = 500
ACK_EVERY = 100
#: None waits longer for its acknowledgement: the broker ends a channel that keeps one for its consumer_timeout.
ACK_WITHIN_S = 1.0
#: Processes that are kept in mind, of one host and in all, and hosts beside those that one expects; and different
#: reasons for which something was ignored.
MAX_OF_A_HOST = 256
MAX_PROCESSES = 20_000
MAX_HOSTS = 2_000
MAX_REASONS = 100
#: What was said before a goodbye may come so much later; a reading after that is of one who is there again, whatever
#: its clock says.
LATE_S = 3.0


@dataclass(frozen=True, slots=True)
class Heard:
    """The last reading of a process. heard_s: when it came, by `core.now_s` here; user: who sent it, verified."""

    reading: Reading
    heard_s: float
    user: str


class Hearing:
    """What has been heard so far, over one connection or several.

    heard: by host and index. goodbyes: by host and index, None for the whole host, until a later reading of it, by its
    own clock or by ours.
    ignored: how many for each reason. expected: hosts that are heard however many others there are.
    """

    def __init__(self, expected: Container[str] = ()) -> None:
        self.heard: dict[tuple[str, int], Heard] = {}
        self.goodbyes: dict[tuple[str, int | None], Goodbye] = {}
        self.ignored: dict[str, int] = {}
        #: When each goodbye came, by the clock of `heard_s`.
        self._parted_s: dict[tuple[str, int | None], float] = {}
        #: Processes of each host that was heard.
        self.hosts: dict[str, int] = {}
        self._expected = expected

    def take(self, body: bytes, *, user: str, routing_key: str) -> None:
        """A message that came: it is kept, or ignored with its reason."""
        try:
            if not user:
                raise NotUnderstood("nobody's: it has no user_id")
            said = parse(body)
            if routing_key != f"host.{said.host}":
                raise NotUnderstood("its routing key is not its host's")
            if isinstance(said, Goodbye):
                self._part(replace(said, user=user))
            else:
                self._hear(said, user)
        except NotUnderstood as why:
            self._ignore(str(why), user, routing_key)

    def of(self, host: str) -> tuple[Heard, ...]:
        """What was heard last of each process of a host, by index."""
        return tuple(heard for (name, _), heard in sorted(self.heard.items()) if name == host)

    def said_goodbye(self, host: str, index: int | None) -> Goodbye | None:
        """The goodbye of a process, or of its whole host, that no later reading has overtaken."""
        return self.goodbyes.get((host, index)) or self.goodbyes.get((host, None))

    def _part(self, said: Goodbye) -> None:
        if len(self.goodbyes) < MAX_PROCESSES:
            self.goodbyes[said.host, said.index] = said
            self._parted_s[said.host, said.index] = now_s()

    def _hear(self, said: Reading, user: str) -> None:
        key = (said.host, said.index)
        if key not in self.heard:
            self._make_room(said.host)
        heard_s = now_s()
        self.heard[key] = Heard(said, heard_s, user)
        for left in (key, (said.host, None)):
            if left in self.goodbyes and (
                self.goodbyes[left].at_s < said.at_s or heard_s - self._parted_s[left] > LATE_S
            ):
                del self.goodbyes[left], self._parted_s[left]

    def _make_room(self, host: str) -> None:
        of_host = self.hosts.get(host, 0)
        if len(self.heard) >= MAX_PROCESSES:
            raise NotUnderstood(f"there are more than {MAX_PROCESSES} processes")
        if of_host >= MAX_OF_A_HOST:
            raise NotUnderstood(f"a host has more than {MAX_OF_A_HOST} processes")
        if not of_host and len(self.hosts) >= MAX_HOSTS and host not in self._expected:
            raise NotUnderstood(f"there are more than {MAX_HOSTS} hosts")
        self.hosts[host] = of_host + 1

    def _ignore(self, why: str, user: str, routing_key: str) -> None:
        if why not in self.ignored and len(self.ignored) >= MAX_REASONS:
            why = "other reasons"
        if why not in self.ignored:
            log.warning("a reading is ignored: %s (key=%s user=%s)", why, short(routing_key), short(user) or "-")
        self.ignored[why] = self.ignored.get(why, 0) + 1


class Listener:
    """Hears over one channel; use from the loop's thread. Made by `listen`. lost: done when nothing more is heard."""

    def __init__(self, channel: Channel, hearing: Hearing | None = None) -> None:
        self.hearing = hearing or Hearing()
        self.lost: asyncio.Future[ChannelLost] = asyncio.get_running_loop().create_future()
        self._channel = channel
        self._last_tag = 0
        self._unacknowledged = 0
        self._later: asyncio.TimerHandle | None = None
        self._came = asyncio.Event()
        channel.closed.add_done_callback(lambda closed: self._lose(closed.result()))
        channel.raw.add_on_cancel_callback(
            lambda _frame: self._lose(ChannelLost(0, "the broker ended the listening: its queue was deleted"))
        )

    @property
    def heard(self) -> dict[tuple[str, int], Heard]:
        """As in Hearing."""
        return self.hearing.heard

    @property
    def goodbyes(self) -> dict[tuple[str, int | None], Goodbye]:
        """As in Hearing."""
        return self.hearing.goodbyes

    @property
    def ignored(self) -> dict[str, int]:
        """As in Hearing."""
        return self.hearing.ignored

    def of(self, host: str) -> tuple[Heard, ...]:
        """As in Hearing."""
        return self.hearing.of(host)

    def said_goodbye(self, host: str, index: int | None) -> Goodbye | None:
        """As in Hearing."""
        return self.hearing.said_goodbye(host, index)

    async def until(self, enough: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until `enough()` is true, asked whenever something was heard; False after timeout_s or when lost."""
        deadline_s = time.monotonic() + timeout_s
        while not enough():
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or self.lost.done():
                return False
            self._came.clear()
            came: asyncio.Future[Any] = asyncio.ensure_future(self._came.wait())
            await asyncio.wait({came, self.lost}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            came.cancel()
        return True

    def deliver(self, _channel: object, method: Any, properties: Properties, body: bytes) -> None:
        """A message of the queue."""
        self._last_tag = method.delivery_tag
        self._unacknowledged += 1
        if self._unacknowledged >= ACK_EVERY:
            self._acknowledge()
        elif self._later is None:
            self._later = asyncio.get_running_loop().call_later(ACK_WITHIN_S, self._acknowledge)
        self.hearing.take(body, user=text(properties.user_id), routing_key=text(method.routing_key))
        self._came.set()

    def _acknowledge(self) -> None:
        if self._later is not None:
            self._later.cancel()
            self._later = None
        if self._unacknowledged and self._channel.is_open:
            self._unacknowledged = 0
            self._channel.raw.basic_ack(self._last_tag, multiple=True)

    def _lose(self, why: ChannelLost) -> None:
        if not self.lost.done():
            self.lost.set_result(why)


@asynccontextmanager
async def listen(connection: Connection, hearing: Hearing | None = None) -> AsyncIterator[Listener]:
    """Listen to all readings inside the block; each process sends one a second. hearing: what was heard before.

    Raises BrokerRefused where it may not be listened, TopologyMismatch, ChannelLost.
    """
    await topology.ensure(connection, topology.telemetry()[:1])
    channel = await connection.channel()
    listener = Listener(channel, hearing)
    queue = f"qctl.listen.{secrets.token_hex(8)}"  # a name of qctl's, so that rights on `qctl.*` suffice
    limits = {"x-max-length": MAX_QUEUED, "x-max-length-bytes": MAX_QUEUED_BYTES, "x-overflow": "drop-head"}
    try:
        await channel.call("queue_declare", queue=queue, exclusive=True, auto_delete=True, arguments=limits)
        await channel.call("queue_bind", queue=queue, exchange=topology.TELEMETRY, routing_key="host.#")
        await channel.call("basic_qos", prefetch_count=PREFETCH)
        await channel.call("basic_consume", queue=queue, on_message_callback=listener.deliver, consumer_tag=queue)
    except ChannelLost as error:
        if error.code != topology.ACCESS_REFUSED:
            raise
        raise BrokerRefused(
            f"the workers' readings may not be listened to: {error.text}",
            hint=f"Its user needs to configure, write and read `qctl.listen.*` and to read {topology.TELEMETRY}.",
        ) from None
    try:
        yield listener
    finally:
        await channel.close()
