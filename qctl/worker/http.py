"""The metered session: a `requests.Session` whose every real call is paid for before it goes out.

Redirects are calls too, because each passes through the adapter; so is every try of a handler's own retry adapter that
is mounted on top of it.
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import MaxRetryError, NewConnectionError

from qctl.worker.meter import MAX_RETRY_AFTER_S, Meter

#: Connections that one thread keeps open to one server.
POOL_CONNECTIONS = 4
#: (connect, read) seconds of a call whose caller names no timeout; the task's own timeout still rules.
CALL_TIMEOUT_S = (10.0, 60.0)

RATE_LIMIT_HEADERS = ("x-ratelimit-remaining", "x-rate-limit-remaining", "ratelimit-remaining", "ratelimit")

_per_thread = threading.local()


def _transport() -> HTTPAdapter:
    """This thread's pool of connections; sessions come and go with tasks, connections stay open."""
    if not hasattr(_per_thread, "transport"):
        _per_thread.transport = HTTPAdapter(pool_connections=POOL_CONNECTIONS, pool_maxsize=POOL_CONNECTIONS)
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

    def send(  # type: ignore[override]
        self, request: requests.PreparedRequest, *, timeout: Any = None, **options: Any
    ) -> requests.Response:
        url = request.url or ""
        call = self._meter.begin(url)
        try:
            response = _transport().send(request, timeout=timeout or CALL_TIMEOUT_S, **options)
        except BaseException as error:
            if call is not None:
                call.end(sent=not _never_sent(error), ambiguous=True)
            raise
        if call is not None:
            call.end()
        if says_rate_limited(response):
            response.close()
            raise self._meter.upstream_limited(url, retry_after_s(response.headers.get("retry-after")))
        return response

    def close(self) -> None:
        """Nothing to close: the connections belong to the thread."""


def _never_sent(error: BaseException) -> bool:
    """True when no connection was made, so that the upstream cannot have counted a call."""
    cause: Any = error.args[0] if isinstance(error, requests.ConnectionError) and error.args else None
    if isinstance(cause, MaxRetryError):
        cause = cause.reason
    return isinstance(cause, NewConnectionError)


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
