"""Getting a connection, and getting it again when it is lost."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pika
import pika.exceptions
from pika.adapters.utils.connection_workflow import (
    AMQPConnectionWorkflow,
    AMQPConnectorException,
    AMQPConnectorStackTimeout,
)

from qctl.broker.core import CoreConnection, CoreWorkflow
from qctl.broker.session import HEARTBEAT_S, ChannelLost, Connection, describe
from qctl.errors import BrokerRefused, BrokerUnreachable, LoginRefused, QctlError
from qctl.inventory.model import Endpoint

log = logging.getLogger(__name__)

#: TCP, TLS and AMQP handshake of one address.
CONNECT_TIMEOUT_S = 10.0
#: Reconnecting waits at least and at most this long, doubling in between.
BACKOFF_FIRST_S = 0.2
BACKOFF_LAST_S = 6.0


@dataclass(frozen=True, slots=True)
class Login:
    """Who connects, and where to. `password` never shows in a repr."""

    addresses: tuple[Endpoint, ...]
    username: str
    password: str = field(repr=False)
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None


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
        socket_timeout=0.9 * CONNECT_TIMEOUT_S,  # apart from the next: pika stumbles when both end at once
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
        code, words = describe(leaf)
        if isinstance(leaf, pika.exceptions.ProbableAuthenticationError | pika.exceptions.AuthenticationError) or (
            code == 403
        ):
            return LoginRefused(
                f"{address} refused the login of user {login.username!r}",
                hint="Check `broker.username` and `broker.password`; commands prefer $QCTL_USERNAME, $QCTL_PASSWORD.",
            )
        if isinstance(leaf, pika.exceptions.ProbableAccessDeniedError) or code in (530, 404):
            said = words.partition(" - ")[2].strip("'\"") or words  # pika has wrapped the broker's
            return LoginRefused(
                f"{address} refused user {login.username!r} access to virtual host {address.vhost!r}: {said}",
                hint="Check the virtual host in `broker.amqp`, permissions (`rabbitmqctl list_permissions`) and limits "
                "(`rabbitmqctl list_vhost_limits`).",
            )
        if isinstance(leaf, ssl.SSLCertVerificationError):
            return BrokerUnreachable(
                f"{address} shows a certificate that is not trusted: {leaf.verify_message}",
                hint="Check `broker.tls.ca_file` and the host name in `broker.amqp`.",
            )
    last = leaves[-1]
    # pika's own words for these are a dump of the socket's address.
    silent = isinstance(last, AMQPConnectorStackTimeout) or (isinstance(last, TimeoutError) and last.errno is None)
    return BrokerUnreachable(
        f"{address} does not answer" + (f" within {CONNECT_TIMEOUT_S:g} s" if silent else f": {describe(last)[1]}"),
        hint="Is the broker running there? Check `broker.amqp`; a private one starts with `qctl broker up`.",
    )


def _abandon(workflow: AMQPConnectionWorkflow) -> None:
    """Give up an attempt. pika asserts that it is not in its AMQP handshake; there its own time limit ends it."""
    try:
        workflow.abort()
    except (AMQPConnectorException, AssertionError) as error:
        log.debug("abandoning a connection attempt: %s", error)


def _drop(result: Any) -> None:
    """End a connection of an attempt that was given up: nobody will take it."""
    if isinstance(result, CoreConnection) and result.is_open:
        result.close()


async def _connect_once(login: Login, address: Endpoint, name: str, properties: Mapping[str, str]) -> Connection:
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Any] = loop.create_future()

    def finished(result: Any) -> None:
        if not outcome.done():
            outcome.set_result(result)
        else:
            _drop(result)

    workflow = CoreConnection.create_connection(
        [_parameters(login, address, name, properties)],
        on_done=finished,
        custom_ioloop=loop,
        workflow=CoreWorkflow(),
    )
    try:
        await asyncio.wait({outcome}, timeout=2 * CONNECT_TIMEOUT_S)
    except asyncio.CancelledError:
        if outcome.done():
            _drop(outcome.result())
        outcome.cancel()
        _abandon(workflow)
        raise
    if not outcome.done():
        outcome.cancel()
        _abandon(workflow)
        raise BrokerUnreachable(f"{address} does not answer within {2 * CONNECT_TIMEOUT_S:g} s")
    result = outcome.result()
    if isinstance(result, BaseException):
        raise _translate(result, login, address) from None
    return Connection(result, address, login.username, int(result.params.heartbeat or HEARTBEAT_S))


async def connect(login: Login, *, name: str, properties: Mapping[str, str] | None = None) -> Connection:
    """Try every address once, in random order; return the first connection that opens.

    name: shown by the broker as the connection's name. Raises LoginRefused as soon as one address refuses the login,
    which the others would too; BrokerRefused for TLS files that cannot be used; else BrokerUnreachable naming the
    addresses.
    """
    failures: list[QctlError] = []
    for address in random.sample(login.addresses, len(login.addresses)):
        try:
            return await _connect_once(login, address, name, properties or {})
        except LoginRefused:
            raise
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


def backoff(longest_s: float = BACKOFF_LAST_S) -> Iterator[float]:
    """Seconds to wait before each next attempt: doubling from BACKOFF_FIRST_S to longest_s, with jitter."""
    step_s = BACKOFF_FIRST_S
    while True:
        yield step_s * random.uniform(0.5, 1.0)  # noqa: S311  (jitter is no secret)
        step_s = min(2 * step_s, longest_s)


async def stay_connected(
    dial: Callable[[], Awaitable[Connection]],
    use: Callable[[Connection], Awaitable[None]],
    *,
    what: str,
    on_lost: Callable[[str], None] = lambda _why: None,
    longest_s: float = BACKOFF_LAST_S,
) -> None:
    """Connect, `use` the connection until it is lost, and again, until cancelled.

    `dial` is called anew each time, so that a rotated password is read. `use` returns, or raises ChannelLost or a
    QctlError, when the connection no longer serves; a backoff with jitter, of at most longest_s, follows, which starts
    anew after a connection that served for longer than the longest backoff.
    """
    pauses = backoff(longest_s)
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
            pauses = backoff(longest_s)
        pause_s = next(pauses)
        log.warning("%s connection lost, trying again in %.1f s: %s", what, pause_s, why)
        on_lost(why)
        await asyncio.sleep(pause_s)
