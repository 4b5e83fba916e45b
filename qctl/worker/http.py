"""The metered session: a `requests.Session` whose every real call is paid for before it goes out.

Redirects are calls too, because each passes through the adapter; so is every try of a handler's own retry adapter that
is mounted on top of it.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, MaxRetryError, NewConnectionError

from qctl.worker.exceptions import TimedOut
from qctl.worker.meter import MAX_RETRY_AFTER_S, Meter
from qctl.worker.upstream import SERVED, Seen, Sight

#: Connections that one thread keeps open to one server.
POOL_CONNECTIONS = 4
#: (connect, read) seconds of a call whose caller names no timeout; the task's own timeout still rules.
CALL_TIMEOUT_S = (10.0, 60.0)
#: A task that is nearly over time may still try to connect for this long; zero is no timeout that a socket knows.
MIN_CONNECT_S = 0.1

RATE_LIMIT_HEADERS = ("x-ratelimit-remaining", "x-rate-limit-remaining", "ratelimit-remaining", "ratelimit")

_per_thread = threading.local()

#: Which task's meter each socket works for: its last user. A socket that is kept open goes from task to task.
_users: WeakKeyDictionary[socket.socket, Meter] = WeakKeyDictionary()
_users_lock = threading.Lock()


def _use(sock: socket.socket | None) -> None:
    """The current call works with this socket. Raises TimedOut when its task is over time: too late to be cut off."""
    meter: Meter | None = getattr(_per_thread, "meter", None)
    if meter is None:
        return
    if sock is not None:
        with _users_lock:
            _users[sock] = meter
    meter.check()


def _cut(meter: Meter) -> None:
    """Shut down what this task's calls are waiting for, be it headers or a body; who reads gets an error."""
    with _users_lock:
        for sock, user in _users.items():
            if user is meter:
                with suppress(OSError):  # closed already
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)  # of TLS too: SSLSocket's own forgets its state


class _Watched:
    """What both kinds of connection do beside: say which socket the current call waits for."""

    sock: Any

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        _use(self.sock)

    def request(self, *arguments: Any, **options: Any) -> None:
        _use(self.sock)
        super().request(*arguments, **options)  # type: ignore[misc]


class _Connection(_Watched, HTTPConnection):
    pass


class _SecureConnection(_Watched, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class _Transport(HTTPAdapter):
    """requests' own way out, over watched connections."""

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}


def _transport() -> HTTPAdapter:
    """This thread's pool of connections; sessions come and go with tasks, connections stay open."""
    if not hasattr(_per_thread, "transport"):
        _per_thread.transport = _Transport(pool_connections=POOL_CONNECTIONS, pool_maxsize=POOL_CONNECTIONS)
    transport: HTTPAdapter = _per_thread.transport
    return transport


def retry_after_s(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds of a `Retry-After` header in either form (RFC 9110, 10.2.3); None when absent or malformed."""
    if not value:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(float(value), MAX_RETRY_AFTER_S) if len(value) < 10 else MAX_RETRY_AFTER_S
    try:
        until = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError):
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return min(max(0.0, (until - (now or datetime.now(UTC))).total_seconds()), MAX_RETRY_AFTER_S)


def says_rate_limited(response: requests.Response) -> bool:
    """True for 429, and for 403 with the headers of a rate limit."""
    if response.status_code == 429:
        return True
    if response.status_code != 403:
        return False
    return "retry-after" in response.headers or any(
        response.headers.get(name, "").strip() == "0" for name in RATE_LIMIT_HEADERS
    )


class _MeteredAdapter(HTTPAdapter):
    """Pays for each call that goes out, and notices when the upstream refuses to serve more."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self._meter = meter
        meter.cut = partial(_cut, meter)

    def send(  # type: ignore[override]
        self, request: requests.PreparedRequest, *, timeout: Any = None, **options: Any
    ) -> requests.Response:
        url, meter = request.url or "", self._meter
        call = meter.begin(url)
        meter.seen, _per_thread.meter = None, meter
        try:
            response = _transport().send(request, timeout=_in_time(timeout or CALL_TIMEOUT_S, meter), **options)
        except BaseException as error:
            never_sent = _never_sent(error)
            if call is not None:
                call.end(sent=not never_sent, ambiguous=True)
            if never_sent:
                meter.seen = Seen(Sight.UNREACHABLE, f"{_server(url)} takes no connection")
            meter.check()  # cut off: that is the cause, whatever became of the call
            raise
        finally:
            _per_thread.meter = None
        if call is not None:
            call.end()
        try:
            meter.check()  # headers that were cut off look like whole ones
        except TimedOut:
            response.close()
            raise
        meter.seen = _seen(response, url)
        if says_rate_limited(response):
            response.close()
            raise meter.upstream_limited(url, retry_after_s(response.headers.get("retry-after")))
        return response

    def close(self) -> None:
        """Nothing to close: the connections belong to the thread."""


def _in_time(timeout: Any, meter: Meter) -> Any:
    """A timeout, in any of the forms that requests takes, with a connect that ends when the time of the task does.

    What is connected is cut off then; what is not has no socket yet.
    """
    if not isinstance(timeout, int | float | tuple):
        return timeout
    connect_s, read_s = timeout if isinstance(timeout, tuple) else (timeout, timeout)
    left_s = max(MIN_CONNECT_S, meter.deadline_s - time.monotonic())
    return left_s if connect_s is None else min(connect_s, left_s), read_s


def _never_sent(error: BaseException) -> bool:
    """True when no connection was made, so that the upstream cannot have counted a call."""
    if isinstance(error, requests.ConnectTimeout):
        return True
    cause: Any = error.args[0] if isinstance(error, requests.ConnectionError) and error.args else None
    if isinstance(cause, MaxRetryError):
        cause = cause.reason
    return isinstance(cause, NewConnectionError | ConnectTimeoutError)


def _server(url: str) -> str:
    """Who was called, without the path: that may be long, or secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _seen(response: requests.Response, url: str) -> Seen:
    """What an answer says about who gave it."""
    status = response.status_code
    if status >= 500:
        return Seen(Sight.FAILING, f"{_server(url)} answers {status}")
    if status in (401, 403) and not says_rate_limited(response):
        return Seen(Sight.REFUSED, f"{_server(url)} answers {status}")
    return SERVED


class MeteredSession(requests.Session):
    """`task.http`. Keeps no cookies and takes nothing from the environment, so that tasks do not affect each other.

    Raises RateLimited for 429 (and 403 with the headers of a rate limit) and when the host cannot pay for the call.
    """

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self.trust_env = False
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        adapter = _MeteredAdapter(meter)
        self.mount("https://", adapter)
        self.mount("http://", adapter)
