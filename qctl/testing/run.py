"""One task, through the worker's own executor, in the test's own thread."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast
from unittest import mock

from qctl.broker.message import ATTEMPT, DEFERRALS, Properties
from qctl.broker.request import encode_payload
from qctl.broker.subscription import Subscription
from qctl.inventory.load import load
from qctl.inventory.model import FIXED_LADDER_S, Consumer, Inventory, PythonHandler, Quota, RetryPolicy
from qctl.quota import Leases, Priced
from qctl.testing.api import Call, FakeApi, UnexpectedCall
from qctl.testing.purse import Purse
from qctl.units import MAX_UNITS, NS_PER_S, Rate, parse_duration
from qctl.worker import handlers, http
from qctl.worker.delivery import Delivery, Settled
from qctl.worker.execute import Executor
from qctl.worker.handlers import Answer, Handler
from qctl.worker.handlers import python as python_handlers
from qctl.worker.outbox import Outbox
from qctl.worker.outcome import Ending
from qctl.worker.rules import Rules
from qctl.worker.task import Task

#: The host and the consumer of a handler that is given as a function.
HOST, CONSUMER = "test-host", "test"
MAX_BODY_BYTES = 1 << 20
DEFAULT_TIMEOUT_S = 30.0
#: A task over its time is told so this much later.
OVERDUE_LOOK_S = 0.01

#: One run at a time has the network of its process.
_running = threading.RLock()


@dataclass(frozen=True, slots=True)
class Enqueued:
    """What the task enqueued, in its own words."""

    consumer: str
    payload: Any
    id: str
    type: str | None = None
    cost: Mapping[str, int] | None = None
    delay: float | str | None = None
    host: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """How a task ended.

    outcome: "ack", "retry" (after `delay_s`), "deferred" (after `delay_s`), "given back" (to other hosts, at once), or
    "dead" (`reason` is the dead letter's `qctl-reason`). error: what the message's `qctl-error` would say. spent: units
    by quota. enqueued: what the broker would be sent; nothing unless the outcome is "ack". exception: what the handler
    raised. log: what was logged meanwhile, from INFO on. answer: of an `http` handler, for `reply_to`.
    """

    outcome: str
    delay_s: float = 0.0
    reason: str = ""
    error: str = ""
    spent: Mapping[str, int] = field(default_factory=dict)
    calls: tuple[Call, ...] = ()
    enqueued: tuple[Enqueued, ...] = ()
    exception: BaseException | None = None
    log: tuple[str, ...] = field(default=(), repr=False)
    answer: Answer | None = field(default=None, repr=False)


def run_task(
    handler: Callable[[Task], Any] | str,
    payload: Any = None,
    *,
    quota: Mapping[str, int] | None = None,
    urls: Mapping[str, Sequence[str]] | None = None,
    left: Mapping[str, int] | None = None,
    api: FakeApi | None = None,
    body: bytes | None = None,
    type: str | None = None,  # noqa: A002  (the property's name in AMQP)
    id: str = "task-1",  # noqa: A002
    headers: Mapping[str, Any] | None = None,
    attempt: int = 1,
    retry: RetryPolicy | None = None,
    timeout: float | str | None = None,
    inventory: Inventory | str | Path | None = None,
    host: str | None = None,
) -> Result:
    """Run one task and say how it ended, as a worker would decide it.

    handler: the function, `def` or `async def`; or the name of a consumer of `inventory`, whose handler (of any kind),
    cost, timeout and retries then count, as overridden on `host`. payload: becomes JSON; `body` is sent in its place as
    it is, without a content type. quota: the units the task is expected to cost; urls: which calls each quota counts,
    default all. left: units that the host can still pay, by quota; default: no end. api: what `task.http` meets;
    default: no call is expected. attempt: which run this is.

    A plain function runs in the calling thread, so that a debugger, a database transaction and a monkeypatch reach it.
    Raises UnexpectedCall for a call that `api` has no answer for, TypeError for arguments that do not go together.
    """
    sent: list[Enqueued] = []
    if isinstance(handler, str):
        if inventory is None or quota is not None or urls is not None or retry is not None or timeout is not None:
            raise TypeError(
                "the name of a consumer goes with `inventory`, which says its quota, urls, retry and timeout"
            )
        rules, found = _of_inventory(handler, inventory, host, sent)
    else:
        if inventory is not None:
            raise TypeError("`inventory` goes with the name of a consumer, not with a function")
        consumer = Consumer(
            CONSUMER,
            CONSUMER,
            PythonHandler(function=CONSUMER),
            dict(quota or {}),
            timeout_s=parse_duration(timeout) if isinstance(timeout, str) else timeout or DEFAULT_TIMEOUT_S,
            retry=retry or RetryPolicy(),
        )
        quotas = {
            name: Quota(name, (Rate(MAX_UNITS, NS_PER_S),), urls=tuple((urls or {}).get(name, ())))
            for name in consumer.cost
        }
        ladder_s = tuple(sorted({*FIXED_LADDER_S, *consumer.retry.delays_s}))
        opened = partial(_Recorder, None, MAX_BODY_BYTES, sent)
        rules = Rules(host or HOST, consumer, quotas, ladder_s, MAX_BODY_BYTES, opened)
        found = python_handlers.of(handler)
    properties = Properties(
        content_type="application/json" if body is None else None,
        headers={**({ATTEMPT: attempt} if attempt != 1 else {}), **(headers or {})} or None,
        message_id=id,
        type=type,
    )
    raw = encode_payload(payload, rules.max_body_bytes) if body is None else body
    return _run(rules, found, Purse(left or {}), api or FakeApi(), sent, properties, raw)


def _of_inventory(
    name: str, inventory: Inventory | str | Path, host: str | None, sent: list[Enqueued]
) -> tuple[Rules, Handler]:
    """What a worker of that host would go by. Raises UnknownName, InventoryError, HandlerError, SecretError."""
    if not isinstance(inventory, Inventory):
        inventory = load(Path(inventory))
    consumer, quotas = inventory.consumer(name), inventory.quotas
    if host is not None:
        quotas = inventory.host(host).quotas
        consumer = inventory.host(host).consumers.get(name, consumer)
    opened = partial(_Recorder, inventory, inventory.worker.max_body_bytes, sent)
    rules = Rules(host or HOST, consumer, quotas, inventory.ladder_s, inventory.worker.max_body_bytes, opened)
    return rules, handlers.load(consumer, base=inventory.base, python_path=inventory.worker.python_path)


class _Recorder(Outbox):
    """An outbox that also notes what went in; without an inventory any name goes."""

    def __init__(self, inventory: Inventory | None, max_body_bytes: int, sent: list[Enqueued]) -> None:
        super().__init__(cast("Inventory", inventory))
        self._checks = inventory is not None
        self._max_body_bytes = max_body_bytes
        self._sent = sent

    def add(self, consumer: str, payload: Any, options: Mapping[str, Any]) -> str:
        """As of Outbox."""
        identity = options["id"] or str(uuid.uuid4())
        options = {**options, "id": identity}
        if self._checks:
            super().add(consumer, payload, options)
        else:
            encode_payload(payload, self._max_body_bytes)
            self.check()
        self._sent.append(Enqueued(consumer, payload, **options))
        return str(identity)


def _run(
    rules: Rules, found: Handler, purse: Purse, api: FakeApi, sent: list[Enqueued], properties: Properties, body: bytes
) -> Result:
    settled: list[Settled] = []
    raised: list[BaseException] = []
    executor = Executor(
        rules,
        _watched(found, raised),
        cast("Leases", purse),
        cast("Priced", purse.price(rules.consumer.name, rules.consumer.cost)),
        settled.append,
        lambda _: True,
    )
    delivery = Delivery(cast("Subscription", None), 0, False, properties, body, time.time())
    before = len(api.calls)
    done = threading.Event()
    # Looked at again and again, as a worker does: a busy machine may start the task later than this.
    overdue = threading.Thread(target=_expire_until, args=(executor, done), name="run_task overdue", daemon=True)
    transport = _Transport(api, http._transport(None))  # noqa: SLF001
    with (
        _running,
        mock.patch.object(http, "_transport", return_value=transport),
        _async_calls(api, found),
        _logged() as log,
    ):
        overdue.start()
        try:
            _go(executor, delivery, in_thread=found.run is not None)
        finally:
            done.set()
            overdue.join()
    for error in raised:
        if not isinstance(error, Exception | SystemExit | asyncio.CancelledError):
            raise error  # Ctrl-C, and what test frameworks end a test with
    if api.unexpected:
        raise UnexpectedCall(api.unexpected[0])
    (end,) = settled
    word = _word(end)
    return Result(
        outcome=word,
        delay_s=end.outcome.delay_s,
        reason=end.outcome.reason or "",
        error=end.outcome.error,
        spent=purse.spent,
        calls=tuple(api.calls[before:]),
        enqueued=tuple(sent) if word == "ack" else (),
        exception=raised[0] if raised else None,
        log=tuple(log),
        answer=end.answer,
    )


def _expire_until(executor: Executor, done: threading.Event) -> None:
    while not done.wait(OVERDUE_LOOK_S):
        executor.expire()


def _word(end: Settled) -> str:
    words = {Ending.ACK: "ack", Ending.GIVE_BACK: "given back", Ending.DEAD: "dead", Ending.LATER: "retry"}
    return "deferred" if DEFERRALS in end.outcome.headers else words[end.outcome.ending]


def _go(executor: Executor, delivery: Delivery, *, in_thread: bool) -> None:
    if in_thread:
        executor.work(delivery)
        return
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(executor.work_async(delivery))
        return
    # A test that is a coroutine itself: its loop waits for this call.
    thread = threading.Thread(target=lambda: asyncio.run(executor.work_async(delivery)), name="run_task")
    thread.start()
    thread.join()


def _watched(handler: Handler, raised: list[BaseException]) -> Handler:
    """The same handler, which also notes what it raises."""
    run, run_async = handler.run, handler.run_async

    def noting(task: Task) -> Answer | None:
        assert run is not None
        try:
            return run(task)
        except BaseException as error:
            raised.append(error)
            raise

    async def noting_async(task: Task) -> None:
        assert run_async is not None
        try:
            await run_async(task)
        except BaseException as error:
            raised.append(error)
            raise

    return Handler(run=noting if run else None, run_async=noting_async if run_async else None)


class _Transport:
    """In place of the network: carries the calls of a session to the FakeApi."""

    def __init__(self, api: FakeApi, real: Any) -> None:
        self._api = api
        self._real = real

    def send(self, request: Any, **_: Any) -> Any:
        """As of the adapters of requests."""
        answer = self._api.answer(request.method, request.url, _whole(request.body), dict(request.headers))
        return self._real.build_response(request, answer)


def _whole(body: Any) -> bytes:
    """A body, in any of the forms that requests sends: a file and an iterator are read to their ends."""
    if hasattr(body, "read"):
        body = body.read()
    if isinstance(body, str):
        return body.encode()
    if isinstance(body, bytes | bytearray | memoryview):
        return bytes(body)
    return b"".join(map(_whole, body or ()))


@contextmanager
def _async_calls(api: FakeApi, found: Handler) -> Iterator[None]:
    """Carry the calls of `task.http_async` to the FakeApi, where aiohttp is installed."""
    if found.run_async is None or find_spec("aiohttp") is None:
        yield
        return
    from qctl.testing.api_async import FakeConnector
    from qctl.worker import http_async

    with mock.patch.object(http_async, "_connector", partial(FakeConnector, api)):
        yield


class _Lines(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.INFO)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the words."""
        self._lines.append(record.getMessage())


@contextmanager
def _logged() -> Iterator[list[str]]:
    """What is logged meanwhile, from INFO on."""
    lines: list[str] = []
    root, handler = logging.getLogger(), _Lines(lines)
    level = root.level
    root.addHandler(handler)
    root.setLevel(min(level, logging.INFO))
    try:
        yield lines
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
