"""The metered session: a `requests.Session` whose every real call is paid for before it goes out.

Redirects are calls too, because each passes through the adapter. So is every retry of an adapter that a handler mounts:
it carries the calls, but makes one try of each, and the metered adapter in front of it makes the others.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from functools import partial
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from weakref import WeakKeyDictionary

import requests
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.utils import rewind_body
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, HTTPError, MaxRetryError, NewConnectionError, ProtocolError
from urllib3.util.retry import Retry

from qctl.quota.upstream import Answer, wants_body
from qctl.worker.exceptions import TimedOut
from qctl.worker.meter import Meter
from qctl.worker.upstream import unreachable

#: Connections that one thread keeps open to one server.
POOL_CONNECTIONS = 4
#: (connect, read) seconds of a call whose caller names no timeout; the task's own timeout still rules.
CALL_TIMEOUT_S = (10.0, 60.0)
#: A task that is nearly over time may still try to connect for this long; zero is no timeout that a socket knows.
MIN_CONNECT_S = 0.1

#: One try a call: every further one is the metered adapter's, which pays for it.
_NO_RETRIES = Retry(0, read=False)

_per_thread = threading.local()

#: What adapters that handlers have mounted were made to do themselves.
_retries: WeakKeyDictionary[HTTPAdapter, Retry] = WeakKeyDictionary()
_taming = threading.Lock()

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


def _transport(mounted: BaseAdapter | None) -> BaseAdapter:
    """What carries the calls of this thread: what the handler has mounted, else a pool of connections of the thread's
    own. Sessions come and go with tasks, connections stay open."""
    if mounted is not None:
        return mounted
    if not hasattr(_per_thread, "transport"):
        _per_thread.transport = _Transport(pool_connections=POOL_CONNECTIONS, pool_maxsize=POOL_CONNECTIONS)
    transport: HTTPAdapter = _per_thread.transport
    return transport


def _tamed(adapter: BaseAdapter) -> Retry:
    """Have an adapter of a handler's own make one try a call, over watched connections; the retries that it had."""
    if not isinstance(adapter, HTTPAdapter):
        return _NO_RETRIES
    with _taming:
        if adapter not in _retries:  # one may be mounted by many tasks
            _retries[adapter] = adapter.max_retries
            adapter.max_retries = _NO_RETRIES
            adapter.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
        return _retries[adapter]


class _MeteredAdapter(BaseAdapter):
    """Pays for each call that goes out, retries included, and hears what the upstream says of its limit."""

    def __init__(self, meter: Meter, mounted: BaseAdapter | None = None) -> None:
        """mounted: an adapter of the handler's own, which carries the calls."""
        super().__init__()
        self._meter = meter
        self._mounted = mounted
        self._retries = _NO_RETRIES if mounted is None else _tamed(mounted)
        meter.cut = partial(_cut, meter)

    def send(self, request: requests.PreparedRequest, *arguments: Any, **options: Any) -> requests.Response:
        """As of requests, with the retries of what is mounted: as urllib3 makes them, but each passes the meter."""
        retries, method, url = self._retries, request.method, request.url
        while True:
            try:
                response = self._try(request, *arguments, **options)
            except (requests.ConnectionError, requests.Timeout) as error:
                try:
                    retries = retries.increment(method, url, error=_cause(error))
                except (HTTPError, OSError):
                    raise error from None
                self._again(request, retries, None)
                continue
            if not retries.is_retry(method or "", response.status_code, "retry-after" in response.headers):
                return response
            try:
                retries = retries.increment(method, url, response=response.raw)
            except MaxRetryError as error:
                if retries.raise_on_status:
                    response.close()
                    raise requests.exceptions.RetryError(error, request=request) from None
                return response
            response.close()
            self._again(request, retries, response)

    def _again(self, request: requests.PreparedRequest, retries: Retry, response: requests.Response | None) -> None:
        """Wait as the handler's retries say, and make the request ready to be sent once more."""
        retries.sleep(None if response is None else response.raw)
        body: object = request.body
        if not isinstance(body, str | bytes | None):
            rewind_body(request)  # or raise: a body that is used up must not go out as an empty one

    def _try(
        self, request: requests.PreparedRequest, *arguments: Any, timeout: Any = None, **options: Any
    ) -> requests.Response:
        url, meter = request.url or "", self._meter
        call = meter.begin(url)
        meter.seen, _per_thread.meter = None, meter
        sent_ns = meter.clock.now_ns()
        options["timeout"] = _in_time(timeout or CALL_TIMEOUT_S, meter)
        try:
            response = _transport(self._mounted).send(request, *arguments, **options)
        except BaseException as error:
            never_sent = _never_sent(error)
            if call is not None:
                call.end(sent=not never_sent, ambiguous=True)
            if never_sent:
                meter.seen = unreachable(url)
            meter.check()  # cut off: that is the cause, whatever became of the call
            raise
        finally:
            _per_thread.meter = None
        if call is not None:
            call.end()
        try:
            meter.check()  # headers that were cut off look like whole ones
            limited = meter.hear(url, _answer(response, meter, url, sent_ns))
        except TimedOut:
            response.close()
            raise
        if limited is not None:
            response.close()
            raise limited
        return response

    def close(self) -> None:
        """Nothing to close: the connections belong to the thread, or to who mounted them."""


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
    return isinstance(error, requests.ConnectTimeout) or isinstance(
        _cause(error), NewConnectionError | ConnectTimeoutError
    )


def _cause(error: BaseException) -> Exception:
    """What requests has wrapped."""
    cause: Any = error.args[0] if isinstance(error, requests.RequestException) and error.args else None
    if isinstance(cause, MaxRetryError):
        cause = cause.reason
    return cause if isinstance(cause, Exception) else ProtocolError(str(error))


def _answer(response: requests.Response, meter: Meter, url: str, sent_ns: int) -> Answer:
    """The head of an answer, and where only the body tells what was refused, that."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    received_ns, wall_ns = meter.clock.now_ns(), time.time_ns()
    body = b""
    if wants_body(response.status_code, headers, meter.style(url)):
        with suppress(requests.RequestException):  # it stays unknown; what reads it again meets the same
            body = response.content
    return Answer(response.status_code, headers, sent_ns, received_ns, wall_ns, body)


class MeteredSession(requests.Session):
    """`task.http`. Keeps no cookies and takes nothing from the environment, so that tasks do not affect each other.

    Raises RateLimited for 429 (and 403 with the headers of a rate limit) and when the host cannot pay for the call.
    """

    _meter: Meter | None = None  # while requests mounts what is replaced at once

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self._meter = meter
        self.trust_env = False
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        adapter = _MeteredAdapter(meter)
        self.mount("https://", adapter)
        self.mount("http://", adapter)

    def mount(self, prefix: str | bytes, adapter: BaseAdapter) -> None:
        """As of requests. What a handler mounts carries its calls and says how often each is tried; all is paid."""
        if self._meter is not None and not isinstance(adapter, _MeteredAdapter):
            adapter = _MeteredAdapter(self._meter, adapter)
        super().mount(prefix, adapter)
