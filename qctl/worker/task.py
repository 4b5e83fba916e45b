"""What a handler sees of its task."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from qctl.broker.message import Malformed, Message, decode_json
from qctl.errors import HandlerError
from qctl.worker.meter import OVER, OVERDUE, Meter
from qctl.worker.outbox import NONE, Followups, Outbox

if TYPE_CHECKING:
    from qctl.worker.http import MeteredSession
    from qctl.worker.http_async import MeteredClient

#: Few tasks call anybody or enqueue others: a lock for each would cost all of them. Who opens something looks then
#: whether the task is over, and who ends the task looks then what was opened: one of the two sees the other.
_opening = threading.Lock()


class Task:
    """One task, as its handler sees it."""

    __slots__ = (
        "_http",
        "_http_async",
        "_make_outbox",
        "_message",
        "_meter",
        "_outbox",
        "_over",
        "_parsed",
        "_start_meter",
        "consumer",
        "host",
    )

    def __init__(
        self,
        message: Message,
        *,
        host: str,
        consumer: str,
        start_meter: Callable[[], Meter],
        make_outbox: Callable[[], Outbox],
    ) -> None:
        self._message = message
        self._make_outbox = make_outbox
        self._outbox: Outbox | None = None
        self._over = ""
        self._start_meter = start_meter
        self._meter: Meter | None = None
        self._http: MeteredSession | None = None
        self._http_async: MeteredClient | None = None
        self._parsed: tuple[Any] | None = None
        self.host = host
        self.consumer = consumer

    def __repr__(self) -> str:
        return f"Task({self.id or '-'} {self.host}/{self.consumer} attempt {self.attempt})"

    @property
    def body(self) -> bytes:
        """The message's body, untouched."""
        return self._message.body

    @property
    def payload(self) -> Any:
        """The body as JSON. A body that is not JSON ends the task as a dead letter."""
        if self._parsed is None:
            try:
                self._parsed = (decode_json(self._message.body),)
            except ValueError as error:
                raise Malformed(f"the body is {error}") from None
        return self._parsed[0]

    @property
    def headers(self) -> Mapping[str, Any]:
        """The message's headers, as they came; not to be changed, since a retry keeps them."""
        return MappingProxyType(self._message.headers)

    @property
    def id(self) -> str:
        """The message's id, the same in every attempt."""
        return self._message.id

    @property
    def type(self) -> str:
        """The task's name, or ""."""
        return self._message.type

    @property
    def attempt(self) -> int:
        """Which run this is, from 1."""
        return self._message.attempt

    @property
    def meter(self) -> Meter:
        """What the task has used; started by the first call. Of a task that is over, or over time, it refuses all."""
        with _opening:  # a handler may have threads, and leave some behind
            if self._meter is None:
                self._meter = self._start_meter()
                if self._over:
                    self._meter.stop(self._over)
            return self._meter

    def stop(self) -> None:
        """The task is over time: its calls raise TimedOut from now on, also those of a meter not started yet."""
        self._close(OVERDUE)
        if self._meter is not None:
            self._meter.stop()

    @property
    def metered(self) -> Meter | None:
        """The meter, when it was started."""
        return self._meter

    @property
    def http(self) -> MeteredSession:
        """A `requests.Session` whose calls are paid from this host's quota.

        Raises RateLimited from a call when the upstream answers 429 or this host's quota cannot pay.
        """
        if self._http is None:
            from qctl.worker.http import MeteredSession

            session = MeteredSession(self.meter)
            with _opening:
                if self._http is None:
                    self._http = session
        return self._http

    @property
    def http_async(self) -> MeteredClient:
        """As an `aiohttp.ClientSession`, whose calls are paid from this host's quota; for `async def` handlers.

        Raises RateLimited from a call as `http` does; HandlerError where aiohttp is not installed.
        """
        if self._http_async is None:
            try:
                from qctl.worker.http_async import MeteredClient
            except ModuleNotFoundError as error:
                if error.name != "aiohttp":
                    raise
                raise HandlerError(
                    "task.http_async needs aiohttp, which is not installed",
                    hint="Install qctl with its extra: pip install 'qctl[aiohttp]'.",
                ) from None
            self._http_async = MeteredClient(self.meter)  # one is like another, but for its meter
        return self._http_async

    def spend(self, units: int = 1, quota: str | None = None) -> None:
        """Pay for calls made by other means than `task.http`, before making them.

        quota: needed when the consumer names several. Raises RateLimited when this host cannot pay, ValueError for
        units or quotas that cannot be; that, and what is above the quota's limit, ends the task as a dead letter.
        """
        self.meter.spend(units, quota)

    async def spend_async(self, units: int = 1, quota: str | None = None) -> None:
        """As `spend`, for `async def` handlers: where more has to be reserved, the event loop goes on meanwhile."""
        await self.meter.spend_async(units, quota)

    def enqueue(
        self,
        consumer: str,
        payload: Any,
        *,
        type: str | None = None,  # noqa: A002  (the property's name in AMQP)
        id: str | None = None,  # noqa: A002
        cost: Mapping[str, int] | None = None,
        delay: float | str | None = None,
        host: str | None = None,
    ) -> str:
        """Enqueue another task, for when this one has returned; returns its id. Never waits, also not in `async def`.

        It is sent when the handler has returned, and confirmed by the broker before this task is acknowledged; a run
        that raises sends nothing. payload: plain values, which become JSON. cost: units by quota, where the task
        needs more than declared. delay: seconds, or a duration such as "30s"; rounded up to a rung of the ladder.
        host: the only one that may run it, for consumers with `directed: true`.

        Raises UnknownName and UsageError for what cannot be enqueued, TimedOut when this task is over or over time.
        """
        options = {"type": type, "id": id, "cost": cost, "delay": delay, "host": host}
        return self._open_outbox().add(consumer, payload, options)

    def _open_outbox(self) -> Outbox:
        with _opening:
            if self._outbox is None:
                self._outbox = self._make_outbox()
                if self._over:
                    self._outbox.close(self._over)
            return self._outbox

    def followups(self) -> Followups:
        """The task is over: what it enqueued; from now on it enqueues nothing and calls nobody. For the executor."""
        return self._close(OVER)

    def _close(self, over: str) -> Followups:
        self._over = self._over or over
        return NONE if self._outbox is None else self._outbox.close(over)
