"""Connections and channels: pika's asynchronous core on one asyncio loop, spoken to with coroutines.

Only the thread that runs the loop may touch what is in here. Every request to the broker has a time limit, because pika
has none; a request that runs into it closes the connection, since nothing is known about its state any more.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pika
import pika.channel
import pika.exceptions
from pika.adapters.utils.connection_workflow import AMQPConnectionWorkflow, AMQPConnectorException

from qctl.broker.core import CoreConnection
from qctl.errors import BrokerRefused, BrokerUnreachable, QctlError
from qctl.inventory.model import Endpoint

log = logging.getLogger(__name__)

#: Heartbeat asked of the broker. A dead peer is noticed after at most 2 * (heartbeat + 5) seconds.
HEARTBEAT_S = 10
#: A broker that has not answered a request for this long is given up on.
REPLY_TIMEOUT_S = 15.0
#: TCP, TLS and AMQP handshake of one address.
CONNECT_TIMEOUT_S = 10.0
#: A close waits this long after the last settlement on it. A quorum queue's client in the broker sends 32 commands
#: ahead and keeps the rest; what it still keeps when its channel ends is forgotten: up to 468 of 500 acks, measured.
SETTLED_BEFORE_CLOSE_S = 1.0
#: Reconnecting waits at least and at most this long, doubling in between.
BACKOFF_FIRST_S = 0.2
BACKOFF_LAST_S = 8.0
#: Bytes of an error text of the broker that are kept.
MAX_REASON_CHARS = 300


@dataclass(frozen=True, slots=True)
class Login:
    """Who connects, and where to. `password` never shows in a repr."""

    addresses: tuple[Endpoint, ...]
    username: str
    password: str = field(repr=False)
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None


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


def _resolve(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


class Channel:
    """One channel. `closed` is done, with a ChannelLost as its result, once the channel is gone."""

    def __init__(self, connection: Connection, raw: pika.channel.Channel) -> None:
        self.connection = connection
        self.raw = raw
        self.settled_s = -math.inf
        self.closed: asyncio.Future[ChannelLost] = asyncio.get_running_loop().create_future()
        raw.add_on_close_callback(self._on_close)

    def _on_close(self, _channel: object, reason: BaseException) -> None:
        if not self.closed.done():
            self.closed.set_result(ChannelLost(*describe(reason)))

    @property
    def is_open(self) -> bool:
        """True while requests and settlements can be sent."""
        return bool(self.raw.is_open) and not self.closed.done()

    async def call(self, method: str, /, **arguments: Any) -> Any:
        """Send one request of pika's Channel and wait for its reply frame.

        Raises ChannelLost when the channel closes first, or when no reply comes in REPLY_TIMEOUT_S.
        """
        if not self.is_open:
            raise self.closed.result() if self.closed.done() else ChannelLost(0, "the channel is closing")
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            getattr(self.raw, method)(**arguments, callback=partial(_resolve, reply))
        except (pika.exceptions.AMQPError, AssertionError, OSError) as error:
            raise ChannelLost(*describe(error)) from error
        await asyncio.wait({reply, self.closed}, timeout=REPLY_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        if reply.done():
            return reply.result()
        if self.closed.done():
            raise self.closed.result()
        self.connection.abort(f"no reply to {method} within {REPLY_TIMEOUT_S:g} s")
        raise ChannelLost(0, f"the broker did not answer {method} within {REPLY_TIMEOUT_S:g} s")

    def note_settled(self) -> None:
        """Something was acknowledged or returned just now; a close leaves the broker time for it."""
        self.settled_s = self.connection.settled_s = time.monotonic()

    async def close(self) -> None:
        """Close the channel, not too soon after its last settlement; never raises."""
        await _wait_out(self.settled_s, self.closed)
        if self.raw.is_open:
            self.raw.close()
            await asyncio.wait({self.closed}, timeout=REPLY_TIMEOUT_S)


async def _wait_out(settled_s: float, closed: asyncio.Future[ChannelLost]) -> None:
    left_s = settled_s + SETTLED_BEFORE_CLOSE_S - time.monotonic()
    if left_s > 0:
        await asyncio.wait({closed}, timeout=left_s)


class Connection:
    """One open connection. `closed` is done, with a ChannelLost as its result, once it is gone."""

    def __init__(self, raw: CoreConnection, address: Endpoint, heartbeat_s: int) -> None:
        self.raw = raw
        self.address = address
        self.heartbeat_s = heartbeat_s
        self.blocked = False
        self.settled_s = -math.inf
        self.closed: asyncio.Future[ChannelLost] = asyncio.get_running_loop().create_future()
        raw.heard_at_s = time.monotonic()
        raw.add_on_close_callback(self._on_close)
        raw.add_on_connection_blocked_callback(lambda *_: self._on_blocked(True))
        raw.add_on_connection_unblocked_callback(lambda *_: self._on_blocked(False))

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
    def server_version(self) -> str:
        """The version that the broker says it has, or ""."""
        properties = self.raw.server_properties or {}
        version = properties.get("version", b"")
        return version.decode("ascii", "replace") if isinstance(version, bytes) else str(version)

    def silent_s(self) -> float:
        """Seconds since anything, heartbeats included, was read from the broker. Any thread may ask."""
        return time.monotonic() - self.raw.heard_at_s

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


def _tls_options(login: Login, address: Endpoint) -> pika.SSLOptions | None:
    if not address.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=login.ca_file)
        if login.cert_file:
            context.load_cert_chain(login.cert_file, login.key_file)
    except (OSError, ssl.SSLError) as error:
        raise BrokerRefused(
            f"the TLS files for {address} cannot be used: {error}", hint="Check `broker.tls` in the inventory."
        ) from error
    return pika.SSLOptions(context, address.host)


def _parameters(login: Login, address: Endpoint, name: str, properties: Mapping[str, str]) -> pika.ConnectionParameters:
    return pika.ConnectionParameters(
        host=address.host,
        port=address.port,
        virtual_host=address.vhost,
        credentials=pika.PlainCredentials(login.username, login.password),
        heartbeat=HEARTBEAT_S,
        socket_timeout=CONNECT_TIMEOUT_S,
        stack_timeout=CONNECT_TIMEOUT_S,
        blocked_connection_timeout=None,  # acknowledgements must go on; publishers watch `blocked` themselves
        ssl_options=_tls_options(login, address),
        client_properties={"connection_name": name, "product": "qctl", **properties},
    )


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors at the bottom of what pika's connection workflow reports."""
    inner = [*getattr(error, "exceptions", ()), getattr(error, "exception", None), error.__cause__]
    found = [one for one in inner if isinstance(one, BaseException)]
    if not found:
        yield error
    for one in found:
        yield from _leaves(one)


def _translate(error: BaseException, login: Login, address: Endpoint) -> QctlError:
    """What a failed connection attempt means to the user."""
    leaves = list(_leaves(error))
    for leaf in leaves:
        code, _ = describe(leaf)
        if isinstance(leaf, pika.exceptions.ProbableAuthenticationError | pika.exceptions.AuthenticationError) or (
            code == 403
        ):
            return BrokerRefused(
                f"{address} refused the login of user {login.username!r}",
                hint="Check `broker.username` and `broker.password`; commands prefer $QCTL_USERNAME, $QCTL_PASSWORD.",
            )
        if isinstance(leaf, pika.exceptions.ProbableAccessDeniedError) or code in (530, 404):
            return BrokerRefused(
                f"{address} refused user {login.username!r} access to virtual host {address.vhost!r}",
                hint="Check the virtual host in `broker.amqp`, and permissions with `rabbitmqctl list_permissions`.",
            )
        if isinstance(leaf, ssl.SSLCertVerificationError):
            return BrokerUnreachable(
                f"{address} shows a certificate that is not trusted: {leaf.verify_message}",
                hint="Check `broker.tls.ca_file` and the host name in `broker.amqp`.",
            )
    last = leaves[-1] if leaves else error
    return BrokerUnreachable(
        f"{address} does not answer: {describe(last)[1]}",
        hint="Is the broker running there? Check `broker.amqp`; a private one starts with `qctl broker up`.",
    )


def _abandon(workflow: AMQPConnectionWorkflow) -> None:
    """Give up an attempt. pika asserts that it is not in its AMQP handshake; there its own time limit ends it."""
    try:
        workflow.abort()
    except (AMQPConnectorException, AssertionError) as error:
        log.debug("abandoning a connection attempt: %s", error)


async def _connect_once(login: Login, address: Endpoint, name: str, properties: Mapping[str, str]) -> Connection:
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Any] = loop.create_future()

    def finished(result: Any) -> None:
        if not outcome.done():
            outcome.set_result(result)

    workflow = CoreConnection.create_connection(
        [_parameters(login, address, name, properties)], on_done=finished, custom_ioloop=loop
    )
    try:
        await asyncio.wait({outcome}, timeout=2 * CONNECT_TIMEOUT_S)
    except asyncio.CancelledError:
        _abandon(workflow)
        raise
    if not outcome.done():
        _abandon(workflow)
        raise BrokerUnreachable(f"{address} does not answer within {2 * CONNECT_TIMEOUT_S:g} s")
    result = outcome.result()
    if isinstance(result, BaseException):
        raise _translate(result, login, address) from None
    return Connection(result, address, int(result.params.heartbeat or HEARTBEAT_S))


async def connect(login: Login, *, name: str, properties: Mapping[str, str] | None = None) -> Connection:
    """Try every address once, in random order; return the first connection that opens.

    name: shown by the broker as the connection's name. Raises BrokerRefused when an address answered and said no,
    else BrokerUnreachable naming the addresses.
    """
    failures: list[QctlError] = []
    for address in random.sample(login.addresses, len(login.addresses)):
        try:
            return await _connect_once(login, address, name, properties or {})
        except QctlError as error:
            failures.append(error)
    refused = [error for error in failures if isinstance(error, BrokerRefused)]
    if refused or len(failures) == 1:
        raise (refused or failures)[0]
    raise BrokerUnreachable("; ".join(error.message for error in failures), hint=failures[0].hint)


async def connect_within(
    login: Login, *, name: str, timeout_s: float, properties: Mapping[str, str] | None = None
) -> Connection:
    """Keep trying to connect for `timeout_s` seconds. Raises as `connect` does."""
    deadline = time.monotonic() + timeout_s
    for pause_s in backoff():
        try:
            return await asyncio.wait_for(
                connect(login, name=name, properties=properties), max(0.1, deadline - time.monotonic())
            )
        except BrokerUnreachable:
            if time.monotonic() + pause_s >= deadline:
                raise
        except TimeoutError:
            where = ", ".join(str(address) for address in login.addresses)
            raise BrokerUnreachable(
                f"{where} did not answer within {timeout_s:g} s",
                hint="Check `broker.amqp` in the inventory and the network in between; --connect-timeout waits longer.",
            ) from None
        await asyncio.sleep(pause_s)
    raise AssertionError("backoff() never ends")


def backoff() -> Iterator[float]:
    """Seconds to wait before each next attempt: doubling from BACKOFF_FIRST_S to BACKOFF_LAST_S, with jitter."""
    step_s = BACKOFF_FIRST_S
    while True:
        yield step_s * random.uniform(0.5, 1.0)  # noqa: S311  (jitter is no secret)
        step_s = min(2 * step_s, BACKOFF_LAST_S)


async def stay_connected(
    dial: Callable[[], Awaitable[Connection]],
    use: Callable[[Connection], Awaitable[None]],
    *,
    what: str,
    on_lost: Callable[[str], None] = lambda _why: None,
) -> None:
    """Connect, `use` the connection until it is lost, and again, until cancelled.

    `dial` is called anew each time, so that a rotated password is read. `use` returns, or raises ChannelLost or a
    QctlError, when the connection no longer serves; a backoff with jitter follows, which starts anew after a
    connection that served for longer than the longest backoff.
    """
    pauses = backoff()
    while True:
        connection: Connection | None = None
        started_s = time.monotonic()
        try:
            connection = await dial()
            log.info("%s connection open address=%s broker=%s", what, connection.address, connection.server_version)
            await use(connection)
            why = describe(connection.closed.result())[1] if connection.closed.done() else "given up"
        except (QctlError, ChannelLost) as error:
            why = str(error)
        finally:
            if connection is not None:
                await asyncio.shield(connection.close())
        if time.monotonic() - started_s > BACKOFF_LAST_S:
            pauses = backoff()
        pause_s = next(pauses)
        log.warning("%s connection lost, trying again in %.1f s: %s", what, pause_s, why)
        on_lost(why)
        await asyncio.sleep(pause_s)
