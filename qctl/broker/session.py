"""Connections and channels: pika's asynchronous core on one asyncio loop, spoken to with coroutines.

Only the thread that runs the loop may touch what is in here. Every request to the broker has a time limit, because pika
has none; a request that runs into it closes the connection, since nothing is known about its state any more.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from functools import partial
from typing import Any

import pika
import pika.channel
import pika.exceptions

from qctl.broker.core import CoreConnection, now_s
from qctl.inventory.model import Endpoint

log = logging.getLogger(__name__)

#: Heartbeat asked of the broker, which sends one every half of it. A peer unheard for two of them is taken for dead.
HEARTBEAT_S = 10
#: How often it is looked whether the broker was heard.
WATCH_S = 1.0
#: A broker that has not answered a request for this long is given up on.
REPLY_TIMEOUT_S = 15.0
#: Channels of one connection that wait for an answer at the same time; one more, and the connection is dropped.
MAX_GIVEN_UP = 8
#: A close waits this long after the last settlement on it. A quorum queue's client in the broker sends 32 commands
#: ahead and keeps the rest; what it still keeps when its channel ends is forgotten: up to 468 of 500 acks, measured.
SETTLED_BEFORE_CLOSE_S = 1.0
#: Bytes of an error text of the broker that are kept.
MAX_REASON_CHARS = 300


class ChannelLost(Exception):
    """The channel (or its connection) is gone; code is AMQP's reply code, 0 when there was none."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}" if code else text)
        self.code = code
        self.text = text


def describe(error: BaseException) -> tuple[int, str]:
    """AMQP reply code (0 when none) and a short text for anything pika reports."""
    if isinstance(error, ChannelLost):
        return error.code, error.text
    if isinstance(error, pika.exceptions.ChannelClosed | pika.exceptions.ConnectionClosed):
        return int(error.reply_code), str(error.reply_text)[:MAX_REASON_CHARS]
    words = error.strerror if isinstance(error, OSError) else ""  # without its `[Errno 111]`
    return 0, (words or str(error) or type(error).__name__)[:MAX_REASON_CHARS]


async def moved_or(moved: asyncio.Event, *ends: asyncio.Future[Any], timeout_s: float) -> None:
    """Wait until `moved` is set, one of `ends` is done, or the time is over."""
    moving: asyncio.Future[Any] = asyncio.ensure_future(moved.wait())
    awaited: set[asyncio.Future[Any]] = {moving, *ends}
    try:
        await asyncio.wait(awaited, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        moving.cancel()


def _resolve(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


class Channel:
    """One channel. `closed` is done, with a ChannelLost as its result, once the channel is gone.

    `consumes`: set once deliveries may come to it.
    """

    def __init__(self, connection: Connection, raw: pika.channel.Channel) -> None:
        self.connection = connection
        self.raw = raw
        self.settled_s = -math.inf
        self.consumes = False
        self.closed: asyncio.Future[ChannelLost] = asyncio.get_running_loop().create_future()
        raw.add_on_close_callback(self._on_close)

    def _on_close(self, _channel: object, reason: BaseException) -> None:
        self.connection.given_up.discard(self)
        if not self.closed.done():
            self.closed.set_result(ChannelLost(*describe(reason)))

    @property
    def is_open(self) -> bool:
        """True while requests and settlements can be sent."""
        return bool(self.raw.is_open) and not self.closed.done() and self.connection.is_open

    async def call(self, method: str, /, **arguments: Any) -> Any:
        """Send one request of pika's Channel and wait for its reply frame.

        Raises ChannelLost when the channel closes first, or when no reply comes in REPLY_TIMEOUT_S.
        """
        return await self.reply_to(self.ask(method, **arguments), method)

    def ask(self, method: str, /, **arguments: Any) -> asyncio.Future[Any]:
        """Send one request now; `reply_to` waits for what this gives. Raises ChannelLost."""
        if not self.is_open:
            raise self.closed.result() if self.closed.done() else ChannelLost(0, "the channel is closing")
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            getattr(self.raw, method)(**arguments, callback=partial(_resolve, reply))
        except (pika.exceptions.AMQPError, AssertionError, OSError) as error:
            raise ChannelLost(*describe(error)) from error
        return reply

    async def reply_to(self, reply: asyncio.Future[Any], method: str) -> Any:
        """The reply frame of a request that was sent. Raises as `call`."""
        await asyncio.wait({reply, self.closed}, timeout=REPLY_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        if reply.done():
            return reply.result()
        if self.closed.done():
            raise self.closed.result()
        lost = ChannelLost(0, f"the broker did not answer {method} within {REPLY_TIMEOUT_S:g} s")
        self._give_up(lost)
        raise lost

    def _give_up(self, lost: ChannelLost) -> None:
        """A queue without a leader keeps its channel waiting; what else the connection does need not suffer.

        The close goes out when the broker answers after all. What a subscribed channel holds would wait with it, and
        many such channels are a broker in trouble: then the connection goes.
        """
        self.closed.set_result(lost)
        self.connection.given_up.add(self)
        if self.consumes or len(self.connection.given_up) > MAX_GIVEN_UP:
            self.connection.abort(lost.text)
            return
        try:
            self.raw.close()
        except (pika.exceptions.AMQPError, AssertionError, OSError) as error:
            log.debug("closing a channel that waits: %s", error)

    def note_settled(self) -> None:
        """Something was acknowledged or returned just now; a close leaves the broker time for it."""
        self.settled_s = self.connection.settled_s = time.monotonic()

    async def close(self) -> None:
        """Close the channel, not too soon after its last settlement; never raises."""
        await _wait_out(self.settled_s, self.closed)
        if self.is_open:
            self.raw.close()
            await asyncio.wait({self.closed}, timeout=REPLY_TIMEOUT_S)


async def _wait_out(settled_s: float, closed: asyncio.Future[ChannelLost]) -> None:
    left_s = settled_s + SETTLED_BEFORE_CLOSE_S - time.monotonic()
    if left_s > 0:
        await asyncio.wait({closed}, timeout=left_s)


class Connection:
    """One open connection. `closed` is done, with a ChannelLost as its result, once it is gone."""

    def __init__(self, raw: CoreConnection, address: Endpoint, username: str, heartbeat_s: int) -> None:
        self.raw = raw
        self.address = address
        self.username = username
        self.heartbeat_s = heartbeat_s
        self.blocked = False
        self.given_up: set[Channel] = set()
        self.settled_s = -math.inf
        self.closed: asyncio.Future[ChannelLost] = asyncio.get_running_loop().create_future()
        raw.heard_at_s, raw.patience_s, raw.on_late = now_s(), self.patience_s, self._on_late
        raw.add_on_close_callback(self._on_close)
        raw.add_on_connection_blocked_callback(lambda *_: self._on_blocked(True))
        raw.add_on_connection_unblocked_callback(lambda *_: self._on_blocked(False))
        self._watch()

    def _on_close(self, _connection: object, reason: BaseException) -> None:
        if not self.closed.done():
            self.closed.set_result(ChannelLost(*describe(reason)))

    def _on_blocked(self, blocked: bool) -> None:
        self.blocked = blocked
        log.warning("broker %s", "blocks publishes (memory or disk alarm)" if blocked else "takes publishes again")

    @property
    def is_open(self) -> bool:
        """True until the connection is lost or closed."""
        return not self.closed.done()

    @property
    def patience_s(self) -> float:
        """A broker unheard for so long is taken for dead, and nothing undoes that."""
        return 2.0 * self.heartbeat_s

    @property
    def server_version(self) -> str:
        """The version that the broker says it has, or ""."""
        properties = self.raw.server_properties or {}
        version = properties.get("version", b"")
        return version.decode("ascii", "replace") if isinstance(version, bytes) else str(version)

    def _watch(self) -> None:
        """Drop the connection when the broker is not heard any more; pika alone would take up to 30 s to notice."""
        if self.closed.done():
            return
        if self.silent_s() >= self.patience_s:
            self.abort(f"nothing was heard from the broker for {self.patience_s:g} s")
            return
        asyncio.get_running_loop().call_later(WATCH_S, self._watch)

    def _on_late(self) -> None:
        """Something came after all; how old it is, nobody knows, and the broker may not take us for alive any more."""
        self.abort(
            f"nothing was heard from the broker for {self.silent_s():.0f} s: "
            "it may have given our deliveries to others meanwhile"
        )

    def silent_s(self) -> float:
        """Seconds since anything, heartbeats included, was read from the broker. Any thread may ask."""
        return now_s() - self.raw.heard_at_s

    async def channel(self) -> Channel:
        """Open a channel. Raises ChannelLost."""
        opened: asyncio.Future[pika.channel.Channel] = asyncio.get_running_loop().create_future()
        if not self.is_open:
            raise self.closed.result()
        try:
            self.raw.channel(on_open_callback=partial(_resolve, opened))
        except (pika.exceptions.AMQPError, AssertionError, OSError) as error:
            raise ChannelLost(*describe(error)) from error
        await asyncio.wait({opened, self.closed}, timeout=REPLY_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        if opened.done():
            return Channel(self, opened.result())
        if self.closed.done():
            raise self.closed.result()
        self.abort(f"no channel within {REPLY_TIMEOUT_S:g} s")
        raise ChannelLost(0, f"the broker opened no channel within {REPLY_TIMEOUT_S:g} s")

    def abort(self, why: str) -> None:
        """Drop the connection without waiting for the broker."""
        if self.closed.done():
            return
        log.warning("dropping the connection to %s: %s", self.address, why)
        self.closed.set_result(ChannelLost(0, why))
        try:
            # The public close() would wait for a reply that is not going to come.
            self.raw._terminate_stream(pika.exceptions.AMQPConnectionError(why))  # noqa: SLF001
        except (pika.exceptions.AMQPError, AssertionError, OSError) as error:
            log.debug("terminating the stream: %s", error)

    async def close(self) -> None:
        """Close in order; after REPLY_TIMEOUT_S, or at once when the broker reads nothing, drop it. Never raises."""
        if self.blocked:
            self.abort("the broker is blocked and reads nothing, not even this close")
        await _wait_out(self.settled_s, self.closed)
        if self.closed.done():
            return
        try:
            self.raw.close()
        except (pika.exceptions.AMQPError, AssertionError, OSError) as error:
            log.debug("closing: %s", error)
        await asyncio.wait({self.closed}, timeout=REPLY_TIMEOUT_S)
        self.abort("no reply to close")
