"""The metered session: a `requests.Session` whose every real call is paid for before it goes out.

Redirects are calls too, because each passes through the adapter. So is every retry of an adapter that a handler mounts:
it carries the calls, but makes one try of each, and the metered adapter in front of it makes the others.
"""

from __future__ import annotations

import io
import threading
import time
import weakref
from contextlib import suppress
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from weakref import WeakKeyDictionary

import requests
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.utils import rewind_body
from urllib3 import HTTPResponse
from urllib3.exceptions import ConnectTimeoutError, HTTPError, MaxRetryError, NewConnectionError, ProtocolError
from urllib3.util.retry import Retry

from qctl.quota.upstream import Answer, wants_body
from qctl.worker.meter import Meter
from qctl.worker.upstream import unreachable
from qctl.worker.watched import Carried, cut, watch

#: Connections that one thread keeps open to one server.
POOL_CONNECTIONS = 4
#: (connect, read) seconds of a call whose caller names no timeout; the task's own timeout still rules.
CALL_TIMEOUT_S = (10.0, 60.0)
#: A task that is nearly over time may still try to connect for this long; zero is no timeout that a socket knows.
MIN_CONNECT_S = 0.1
#: Of a refusal that only its body tells the kind of, so much is looked at, and nothing that comes later than this.
BODY_BYTES, BODY_S = 64 << 10, 2.0

#: One try a call: every further one is the metered adapter's, which pays for it.
_NO_RETRIES = Retry(0, read=False)

_per_thread = threading.local()

#: What adapters that handlers have mounted were made to do themselves.
_retries: WeakKeyDictionary[HTTPAdapter, Retry] = WeakKeyDictionary()
_taming = threading.Lock()


class _Transport(HTTPAdapter):
    """requests' own way out, over watched connections."""

    def get_connection_with_tls_context(self, *arguments: Any, **options: Any) -> Any:
        return watch(super().get_connection_with_tls_context(*arguments, **options))


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
            _have_watched(adapter)
        return _retries[adapter]


def _have_watched(adapter: HTTPAdapter) -> None:
    """Whatever pool it hands out, of a proxy too, makes watched connections; those that it had open are dropped."""
    kind, itself = type(adapter), weakref.ref(adapter)  # in a cycle, one mounted by each task would stay for a while

    def handed_out(*arguments: Any, **options: Any) -> Any:
        return watch(kind.get_connection_with_tls_context(itself(), *arguments, **options))  # type: ignore[arg-type]

    adapter.get_connection_with_tls_context = handed_out  # type: ignore[method-assign]
    for manager in (adapter.poolmanager, *adapter.proxy_manager.values()):
        manager.clear()


class _MeteredAdapter(BaseAdapter):
    """Pays for each call that goes out, retries included, and hears what the upstream says of its limit."""

    def __init__(self, meter: Meter, mounted: BaseAdapter | None = None) -> None:
        """mounted: an adapter of the handler's own, which carries the calls."""
        super().__init__()
        self._meter = meter
        self._mounted = mounted
        self._retries = _NO_RETRIES if mounted is None else _tamed(mounted)
        meter.cut = cut

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
                if not self._in_time(retries, None):
                    raise
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
            if not self._in_time(retries, response):
                return response
            response.close()
            self._again(request, retries, response)

    def _in_time(self, retries: Retry, response: requests.Response | None) -> bool:
        """Whether the wait before the next try ends before the task does."""
        asked_s = None
        if response is not None and retries.respect_retry_after_header:
            asked_s = retries.get_retry_after(response.raw)
        return time.monotonic() + (asked_s or retries.get_backoff_time()) < self._meter.deadline_s

    def _again(self, request: requests.PreparedRequest, retries: Retry, response: requests.Response | None) -> None:
        """Wait as the handler's retries say, and make the request ready to be sent once more."""
        retries.sleep(None if response is None else response.raw)
        body: object = request.body
        if not isinstance(body, str | bytes | None):
            rewind_body(request)  # or raise: a body that is used up must not go out as an empty one

    def _try(
        self, request: requests.PreparedRequest, *arguments: Any, timeout: Any = None, **options: Any
    ) -> requests.Response:
        url, meter, carrier = request.url or "", self._meter, _transport(self._mounted)
        options["timeout"] = _in_time(timeout or CALL_TIMEOUT_S, meter)
        call = Carried(meter, url)
        meter.seen = None
        sent_ns = meter.clock.now_ns()
        try:
            with call:
                response = carrier.send(request, *arguments, **options)
        except BaseException as error:
            not_connected = not call.sent and _not_connected(error)
            # What others mount may carry a call by ways that are not watched; it has to say so itself.
            call.end(sent=bool(call.sent) or not (not_connected or isinstance(carrier, _Transport)), ambiguous=True)
            if not_connected:
                meter.seen = unreachable(url)
            meter.check()  # cut off: that is the cause, whatever became of the call
            raise
        call.end(sent=True, ambiguous=False)
        response.connection = self  # type: ignore[assignment]  # by which requests' auth sends what it has to send again
        try:
            if call.cut:
                meter.check()  # headers that were cut off look like whole ones
            limited = meter.hear(url, _answer(response, meter, url, sent_ns))
            meter.check()
        except BaseException:
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
    if isinstance(timeout, tuple) and len(timeout) != 2:
        raise ValueError(f"a timeout is seconds, or (connect, read) seconds; found {timeout!r}")
    connect_s, read_s = timeout if isinstance(timeout, tuple) else (timeout, timeout)
    left_s = max(MIN_CONNECT_S, meter.deadline_s - time.monotonic())
    return left_s if connect_s is None else min(connect_s, left_s), read_s


def _not_connected(error: BaseException) -> bool:
    """True when nobody took the connection, so that the upstream cannot have counted a call."""
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
        body = _beginning(response)
    return Answer(response.status_code, headers, sent_ns, received_ns, wall_ns, body)


def _beginning(response: requests.Response) -> bytes:
    """The beginning of the body; who reads the body after this gets all of it, or what went wrong."""
    raw = response.raw
    if not isinstance(raw, HTTPResponse):
        return b""  # of an adapter that is none of requests': it stays unknown
    begun, error, until_s = bytearray(), None, time.monotonic() + BODY_S
    try:
        while len(begun) < BODY_BYTES and time.monotonic() < until_s:
            if not (piece := raw.read1(BODY_BYTES, decode_content=False)):
                break
            begun += piece
    except (HTTPError, OSError) as failure:
        error = failure
    rest = io.BufferedReader(_Rest(bytes(begun), raw, error))
    response.raw = _as(raw, rest)
    with suppress(HTTPError):  # half of a compressed one may say nothing
        return _as(raw, io.BytesIO(begun)).read(BODY_BYTES, decode_content=True)
    return b""


def _as(raw: HTTPResponse, body: io.BufferedIOBase) -> HTTPResponse:
    """The same answer with another body, which is as it was sent: compressed, but in no chunks."""
    return HTTPResponse(
        body,
        headers=raw.headers,
        status=raw.status,
        version=raw.version,
        reason=raw.reason,
        preload_content=False,
        decode_content=False,
        enforce_content_length=False,
    )


class _Rest(io.RawIOBase):
    """A body whose beginning was read already, and perhaps not to its end for an error."""

    def __init__(self, begun: bytes, raw: HTTPResponse, error: Exception | None) -> None:
        super().__init__()
        self._begun = begun
        self._raw = raw
        self._error = error

    def readable(self) -> bool:
        """As of io."""
        return True

    def readinto(self, buffer: Any) -> int:
        """As of io."""
        if self._begun:
            piece, self._begun = self._begun[: len(buffer)], self._begun[len(buffer) :]
        elif self._error is not None:
            raise self._error
        else:
            piece = self._raw.read1(len(buffer), decode_content=False)
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        """As of io: the connection goes with it, unless it was free already."""
        if not self.closed:
            self._raw.close()
        super().close()


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
