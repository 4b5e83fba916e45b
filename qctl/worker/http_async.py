"""`task.http_async`: the calls of coroutines, over aiohttp, each paid for before it goes out.

A middleware of aiohttp sees every request that is really sent: redirects, and the second try on a connection that the
server had closed. Nothing here makes the event loop wait: what has to be waited for is awaited.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import aiohttp
from aiohttp import ClientHandlerType, ClientRequest, ClientResponse, ClientSession, ClientTimeout

from qctl.quota.upstream import Answer, wants_body
from qctl.worker.meter import Meter
from qctl.worker.upstream import unreachable

#: Connections that one event loop has open at a time; further calls wait for one.
MAX_CONNECTIONS = 1_000
#: Seconds to connect, and between two bytes, of a call whose caller names no timeout; the task's own still rules.
CONNECT_S, READ_S = 10.0, 60.0
#: A call is cut off so long after the task's time is over: the task itself is told first.
CUT_AFTER_S = 0.2
#: Of a refusal that only its body tells the kind of, so much is looked at, and nothing that comes later than this.
BODY_BYTES, BODY_S = 64 << 10, 2.0
_FOR_EVER_S = 1e9

#: No connection was made, so that the upstream cannot have counted a call.
_NEVER_SENT = (aiohttp.ClientConnectorError, aiohttp.ClientConnectorCertificateError, aiohttp.ConnectionTimeoutError)

#: The connections of each event loop; held by a task of that loop, which closes them when the loop ends, and not from
#: here, since they hold the loop.
_sessions: WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.ref[ClientSession]] = WeakKeyDictionary()
_sessions_lock = threading.Lock()


class MeteredClient:
    """`task.http_async`: as an `aiohttp.ClientSession`, without cookies and without anything from the environment.

    Raises RateLimited for 429 (and 403 with the headers of a rate limit) and when the host cannot pay for the call.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def request(self, method: str, url: Any, **options: Any) -> Any:
        """As of ClientSession: to be awaited, or used by `async with`. Middlewares given are asked before each try is
        paid for, so that what they repeat is paid again."""
        options["timeout"] = _in_time(options.pop("timeout", None), self._meter)
        options["middlewares"] = (*(options.pop("middlewares", None) or ()), self._paid)
        return _session().request(method, url, **options)

    def get(self, url: Any, **options: Any) -> Any:
        """As of ClientSession."""
        return self.request("GET", url, **options)

    def options(self, url: Any, **options: Any) -> Any:
        """As of ClientSession."""
        return self.request("OPTIONS", url, **options)

    def head(self, url: Any, **options: Any) -> Any:
        """As of ClientSession: follows no redirects unless told to."""
        return self.request("HEAD", url, **{"allow_redirects": False, **options})

    def post(self, url: Any, **options: Any) -> Any:
        """As of ClientSession."""
        return self.request("POST", url, **options)

    def put(self, url: Any, **options: Any) -> Any:
        """As of ClientSession."""
        return self.request("PUT", url, **options)

    def patch(self, url: Any, **options: Any) -> Any:
        """As of ClientSession."""
        return self.request("PATCH", url, **options)

    def delete(self, url: Any, **options: Any) -> Any:
        """As of ClientSession."""
        return self.request("DELETE", url, **options)

    async def __aenter__(self) -> MeteredClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing to close: the connections belong to the event loop."""

    async def _paid(self, request: ClientRequest, carry: ClientHandlerType) -> ClientResponse:
        """The middleware: one real call."""
        url, meter = str(request.url), self._meter
        call = await meter.begin_async(url)
        meter.seen = None
        sent_ns = meter.clock.now_ns()
        try:
            response = await carry(request)
        except BaseException as error:
            never_sent = isinstance(error, _NEVER_SENT)
            if call is not None:
                call.end(sent=not never_sent, ambiguous=True)
            if never_sent:
                meter.seen = unreachable(url)
            if isinstance(error, Exception):
                meter.check()  # over time: that is the cause, whatever became of the call
            raise
        if call is not None:
            call.end()
        try:
            limited = meter.hear(url, await _answer(response, meter, url, sent_ns))
            meter.check()  # only now: that others are refused as well is true whatever became of the task
        except BaseException:
            response.close()
            raise
        if limited is not None:
            response.close()
            raise limited
        return response


async def _answer(response: ClientResponse, meter: Meter, url: str, sent_ns: int) -> Answer:
    """The head of an answer, and where only the body tells what was refused, that."""
    received_ns, wall_ns = meter.clock.now_ns(), time.time_ns()
    headers: dict[str, str] = {}
    for name, value in response.headers.items():
        key = name.lower()
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    body = b""
    if wants_body(response.status, headers, meter.style(url)) and (response.content_length or 0) <= BODY_BYTES:
        # What is long, or comes late, stays unknown; who reads the body finds all of it, or what went wrong.
        with suppress(aiohttp.ClientError, TimeoutError):
            async with asyncio.timeout(BODY_S):
                await response.content.wait_eof()
            body = (await response.read())[:BODY_BYTES]
    return Answer(response.status, headers, sent_ns, received_ns, wall_ns, body)


def _in_time(timeout: Any, meter: Meter) -> ClientTimeout:
    """A timeout, in any of the forms that aiohttp takes, that ends when the time of the task does."""
    left_s = min(max(0.0, meter.deadline_s - time.monotonic()) + CUT_AFTER_S, _FOR_EVER_S / 2)
    if timeout is None:
        timeout = ClientTimeout(sock_connect=CONNECT_S, sock_read=READ_S)
    elif not isinstance(timeout, ClientTimeout):
        timeout = ClientTimeout(total=timeout)
    return ClientTimeout(
        total=min(timeout.total or left_s, left_s),
        connect=timeout.connect,
        sock_read=timeout.sock_read,
        sock_connect=timeout.sock_connect,
        ceil_threshold=_FOR_EVER_S,  # to the point, and not to the next whole second
    )


async def _unpaid(request: ClientRequest, carry: ClientHandlerType) -> ClientResponse:
    """In place of the metering: a middleware that calls by `request.session` gets around it otherwise."""
    del request, carry
    raise RuntimeError("calls are made by task.http_async, which pays for them, and not by the session below it")


def _connector() -> aiohttp.BaseConnector:
    return aiohttp.TCPConnector(limit=MAX_CONNECTIONS)


def _session() -> ClientSession:
    """The running event loop's; tasks come and go, connections stay open."""
    loop = asyncio.get_running_loop()
    with _sessions_lock:
        known = _sessions.get(loop)
    session = None if known is None else known()
    if session is None or session.closed:
        session = ClientSession(
            connector=_connector(), cookie_jar=aiohttp.DummyCookieJar(), trust_env=False, middlewares=(_unpaid,)
        )
        loop.create_task(_keep(session), name="http_async")  # noqa: RUF006  (what sleeps is held by its loop)
        with _sessions_lock:
            _sessions[loop] = weakref.ref(session)
    return session


async def _keep(session: ClientSession) -> None:
    """Keep it open until the loop ends; a loop that ends with its process, without a word, has nobody to close it."""
    async with session:
        await asyncio.sleep(_FOR_EVER_S)
