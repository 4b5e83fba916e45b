"""Watched connections: what goes out of each call is seen where it goes out, and a call under way can be cut off.

Whatever carries a call, an adapter of the handler's own or a proxy: in the end a connection of urllib3 sends the head
of each request. There it is counted, and there alone it is certain that nothing was sent.
"""

from __future__ import annotations

import functools
import http.client
import socket
import threading
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

from urllib3.connectionpool import HTTPConnectionPool

from qctl.worker.meter import Call, Meter

_per_thread = threading.local()

#: Which call each socket works for: its last user. A socket that is kept open goes from task to task.
_users: WeakKeyDictionary[Any, Carried] = WeakKeyDictionary()
_users_lock = threading.Lock()


class Carried:
    """A call on its way, in one thread: `with` it, what the thread sends is this call's.

    sent: how often its head went out. cut: its connection was shut down, so that what came may not be whole.
    """

    __slots__ = ("_before", "_paid", "cut", "meter", "sent", "url")

    def __init__(self, meter: Meter, url: str) -> None:
        """Pays for the call. Raises Unpaid, TimedOut."""
        self.meter = meter
        self.url = url
        self.sent = 0
        self.cut = False
        self._paid: list[Call | None] = [meter.begin(url)]

    def __enter__(self) -> Carried:
        self._before: Carried | None = getattr(_per_thread, "carried", None)
        _per_thread.carried = self
        return self

    def __exit__(self, *_: object) -> None:
        _per_thread.carried = self._before

    def go_out(self) -> None:
        """Its head is sent now; where that is not the first time, somebody repeats, and that is paid too."""
        if self.sent:
            self._paid.append(self.meter.begin(self.url))
        self.sent += 1

    def end(self, *, sent: bool, ambiguous: bool) -> None:
        """The call is over; what became of all but the last try is not known."""
        for call in self._paid:
            if call is not None:
                call.end(sent=sent, ambiguous=ambiguous or call is not self._paid[-1])


def _use(sock: Any) -> Carried | None:
    """The current call works with this socket. Raises TimedOut when its task is over time: too late to be cut off."""
    carried: Carried | None = getattr(_per_thread, "carried", None)
    if carried is not None:
        with _users_lock:
            _users[sock] = carried
        carried.meter.check()
    return carried


def cut(meter: Meter) -> None:
    """Shut down what this task's calls are waiting for, be it headers or a body; who reads gets an error."""
    with _users_lock:
        for sock, user in _users.items():
            if user.meter is meter:
                user.cut = True
                _shut(sock)


def _shut(sock: Any) -> None:
    """Of TLS too, without a word of TLS, whose state belongs to who reads. One that cannot be shut down stays open."""
    with suppress(OSError, AttributeError):  # closed already; or it has no socket below it
        while not isinstance(sock, socket.socket):
            sock = sock.socket  # TLS in TLS, by way of a proxy; TLS of another library
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


class _Watched:
    """What a connection does beside: say which socket the current call waits for, and when its head goes out."""

    sock: Any
    auto_open: int

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        _use(self.sock)

    def endheaders(self, *arguments: Any, **options: Any) -> None:
        if self.sock is None and self.auto_open:
            self.connect()  # as it would by itself, but before it counts
        if self.sock is not None and (carried := _use(self.sock)) is not None:
            carried.go_out()
        super().endheaders(*arguments, **options)  # type: ignore[misc]


@functools.cache
def _watched(kind: type) -> type:
    return type(f"Watched{kind.__name__}", (_Watched, kind), {})


def watch(pool: Any) -> Any:
    """Have a pool make watched connections, of its own kind: certificates that it pins, source addresses stay."""
    kind = getattr(pool, "ConnectionCls", None)
    if (
        isinstance(pool, HTTPConnectionPool)
        and isinstance(kind, type)
        and issubclass(kind, http.client.HTTPConnection)
        and not issubclass(kind, _Watched)
    ):
        pool.ConnectionCls = _watched(kind)  # type: ignore[arg-type]
    return pool
