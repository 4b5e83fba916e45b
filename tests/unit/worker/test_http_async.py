"""`task.http_async`: what the calls of coroutines cost, by a real ledger, and a real server that counts them."""

from __future__ import annotations

import asyncio
import gc
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast
from unittest import mock

import aiohttp
import pytest

from qctl.broker.message import Malformed, Message, Properties
from qctl.errors import HandlerError
from qctl.inventory.model import Consumer, PythonHandler, Quota, Rate
from qctl.quota import Grant, Hold, Leases, Ledger, Limit, Policy
from qctl.units import NS_PER_S
from qctl.worker import http_async
from qctl.worker.delivery import Delivery, Settled
from qctl.worker.exceptions import RateLimited, TimedOut, Unpaid
from qctl.worker.execute import CoroutineLoop, Executor
from qctl.worker.handlers import Handler
from qctl.worker.http_async import MeteredClient
from qctl.worker.meter import Meter
from qctl.worker.rules import Rules
from qctl.worker.tariff import tariff
from qctl.worker.task import Task
from qctl.worker.upstream import Sight
from tests.upstream import LONG_BYTES, Upstream

LIMIT = 50
HOLD_AFTER_S = 0.5


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as running:
        yield running


class Host:
    """One process of a host with the quota `api`, and one task of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.leases = Leases.open(
            directory, [Policy("api", (Limit(LIMIT, 3600 * NS_PER_S),))], hold_after_s=HOLD_AFTER_S
        )

    def meter(self, units: int = 1, *, within_s: float = 20.0) -> Meter:
        grant = self.leases.acquire(self.leases.register("calls", {"api": units}))
        assert isinstance(grant, Grant)
        self.grant = grant
        return Meter(self.leases, grant, tariff({"api": units}, {}, {"api": LIMIT}), time.monotonic() + within_s)

    def spent(self, meter: Meter) -> int:
        """What the ledger has when the task is over and everything unused has come back."""
        self.leases.settle(self.grant, meter.close(proven=True))
        self.leases.close()
        ledger = Ledger.open(self.directory)
        try:
            return sum(ledger.readings()["api"].used(ledger.clock.now_ns()))
        finally:
            ledger.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    running = Host(tmp_path / "web-1")
    yield running
    running.leases.close()


def run(meter: Meter, handler: Callable[[MeteredClient], Awaitable[None]]) -> None:
    async def go() -> None:
        async with asyncio.timeout(15):
            await handler(MeteredClient(meter))

    asyncio.run(go())


async def fetch(call: Any) -> None:
    async with call as answer:
        await answer.read()


def test_given_calls_then_each_that_goes_out_is_paid_redirects_too(host: Host, upstream: Upstream) -> None:
    meter = host.meter(units=1)
    before = len(upstream.calls())

    async def handler(http: MeteredClient) -> None:
        async with http.post(upstream.address + "/users", json={"n": 1}) as answer:
            assert (answer.status, (await answer.json())["body"]) == (200, '{"n": 1}')
        async with http.get(upstream.address + "/redirect") as answer:
            assert answer.url.path == "/away"
        await asyncio.gather(*(fetch(http.put(f"{upstream.address}/many/{n}")) for n in range(5)))

    run(meter, handler)

    assert len(upstream.calls()) - before == 8
    assert host.spent(meter) == 8
    assert meter.used() == {"api": 8}


def test_given_a_connection_that_the_server_closes_then_the_second_try_is_paid_too(host: Host) -> None:
    # Given a server that closes every connection without an answer, and a method that may be repeated
    meter = host.meter()
    connections = 0

    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.close()

    async def handler(http: MeteredClient) -> None:
        async with await asyncio.start_server(close, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(aiohttp.ClientError):
                await http.get(f"http://127.0.0.1:{port}/")

    run(meter, handler)

    assert connections == 2
    assert host.spent(meter) == 2


def test_given_a_middleware_of_the_handlers_own_that_tries_again_then_each_try_is_paid(
    host: Host, upstream: Upstream
) -> None:
    meter = host.meter()

    async def twice(request: aiohttp.ClientRequest, carry: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        (await carry(request)).release()
        return await carry(request)

    async def handler(http: MeteredClient) -> None:
        await fetch(http.get(upstream.address + "/users", middlewares=[twice]))

    run(meter, handler)

    assert host.spent(meter) == 2


def test_given_a_middleware_that_calls_around_the_meter_then_that_is_refused(host: Host, upstream: Upstream) -> None:
    meter = host.meter()

    async def around(request: aiohttp.ClientRequest, _: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        return await request.session.get(upstream.address + "/around")

    async def handler(http: MeteredClient) -> None:
        with pytest.raises(RuntimeError, match=r"made by task\.http_async"):
            await http.get(upstream.address + "/users", middlewares=[around])

    run(meter, handler)

    assert not upstream.calls("/around")
    assert host.spent(meter) == 0


def test_given_nobody_there_then_the_unit_comes_back_and_the_trouble_is_known(host: Host) -> None:
    meter = host.meter()

    async def handler(http: MeteredClient) -> None:
        with socket.socket() as unused:  # bound and not listening
            unused.bind(("127.0.0.1", 0))
            with pytest.raises(aiohttp.ClientConnectorError):
                await http.get(f"http://127.0.0.1:{unused.getsockname()[1]}/users")
        with pytest.raises(aiohttp.ClientConnectorError):
            await http.get("http://no-such-host.invalid/")

    run(meter, handler)

    assert meter.seen is not None
    assert meter.seen.sight is Sight.UNREACHABLE
    assert host.spent(meter) == 0


@pytest.mark.parametrize("path", ["/wait/5", "/half"])
def test_given_no_whole_answer_then_the_call_counts(host: Host, upstream: Upstream, path: str) -> None:
    meter = host.meter()

    async def handler(http: MeteredClient) -> None:
        with pytest.raises((aiohttp.ClientError, TimeoutError)):
            async with http.get(upstream.address + path, timeout=0.3) as answer:
                await answer.read()

    run(meter, handler)

    assert host.spent(meter) == 1


@pytest.mark.parametrize("path", ["/retry-after/30", "/spent/30"])
def test_given_a_429_then_it_is_raised_and_nothing_more_is_granted(host: Host, upstream: Upstream, path: str) -> None:
    meter = host.meter()

    async def handler(http: MeteredClient) -> None:
        with pytest.raises(RateLimited) as limited:
            await http.get(upstream.address + path)
        assert (limited.value.retry_after_s, limited.value.quota) == (30, "api")
        with pytest.raises(Unpaid):
            await http.get(upstream.address + "/more")

    run(meter, handler)

    assert isinstance(meter.limited, RateLimited)
    assert not upstream.calls("/more")
    assert host.spent(meter) == 1


def test_given_githubs_secondary_limit_then_its_body_is_read_and_still_there(host: Host, upstream: Upstream) -> None:
    meter = host.meter()
    words = "You have exceeded a secondary rate limit"

    async def handler(http: MeteredClient) -> None:
        params = {"status": "403", "x-github-request-id": "A1", "x-ratelimit-remaining": "9"}
        async with http.get(upstream.address + "/say", params={**params, "body": "Must have admin rights"}) as answer:
            assert await answer.text() == "Must have admin rights"
        with pytest.raises(RateLimited, match="a secondary limit") as limited:
            await http.get(upstream.address + "/say", params={**params, "body": words})
        assert limited.value.retry_after_s == 60

    run(meter, handler)


@pytest.mark.parametrize("path", ["/long-refused", "/drip-refused"])
def test_given_a_refusal_with_a_long_or_a_slow_body_then_it_is_not_waited_for_and_stays_whole(
    host: Host, upstream: Upstream, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_async, "BODY_S", 0.2)
    meter, before_bytes = host.meter(), upstream.sent_bytes

    async def handler(http: MeteredClient) -> None:
        async with http.get(upstream.address + path) as answer:
            assert upstream.sent_bytes - before_bytes < LONG_BYTES / 2
            if path == "/drip-refused":
                assert await answer.content.readexactly(2) == b".."
                return
            size, first = 0, b""
            async for piece in answer.content.iter_any():
                first, size = first or piece[:2], size + len(piece)
            assert (size, first) == (LONG_BYTES, b"\0\0")

    run(meter, handler)

    assert meter.seen is not None
    assert meter.seen.sight is Sight.REFUSED
    assert host.spent(meter) == 1


def test_given_a_429_that_comes_when_the_task_is_over_time_then_others_are_spared_it(
    host: Host, upstream: Upstream
) -> None:
    meter = host.meter()

    async def handler(http: MeteredClient) -> None:
        asyncio.get_running_loop().call_later(0.1, meter.stop)
        with pytest.raises(TimedOut):
            await http.get(upstream.address + "/limited/late-429/0.3")

    run(meter, handler)

    assert isinstance(host.leases.acquire(host.leases.price("calls", {"api": 1})), Hold)
    assert host.spent(meter) == 1


def test_given_more_calls_than_the_host_can_pay_then_the_loop_goes_on_while_it_waits(
    host: Host, upstream: Upstream
) -> None:
    # Given a task that has spent all there is
    other = host.leases.acquire(host.leases.register("calls", {"api": LIMIT}))
    assert isinstance(other, Grant)
    meter = Meter(host.leases, other, tariff({"api": LIMIT}, {}, {"api": LIMIT}))
    meter.spend(LIMIT)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    async def handler(http: MeteredClient) -> None:
        ticking = asyncio.create_task(tick())
        for pay in (lambda: http.get(upstream.address + "/unpaid"), lambda: meter.spend_async(2)):
            ticks_before, started_s = ticks, time.monotonic()
            with pytest.raises(Unpaid, match=r"quota api cannot pay for [12] more"):
                await pay()
            # Then it waited for what might come back, and everybody else went on
            assert ticks - ticks_before >= (time.monotonic() - started_s) / 0.01 / 4
            assert ticks > ticks_before
        ticking.cancel()

    run(meter, handler)
    host.leases.settle(other, {})

    assert not upstream.calls("/unpaid")


def test_given_a_coroutine_that_swallows_its_cancellation_then_its_call_is_cut_off_all_the_same(
    host: Host, upstream: Upstream
) -> None:
    meter = host.meter(within_s=0.3)
    started_s = time.monotonic()

    async def handler(http: MeteredClient) -> None:
        answer = await http.get(upstream.address + "/drip", timeout=aiohttp.ClientTimeout(total=60))
        with pytest.raises(TimeoutError):
            await answer.read()
        meter.stop()
        with pytest.raises(TimedOut):
            await http.get(upstream.address + "/late")
        with pytest.raises(TimedOut):
            await meter.spend_async(1)

    run(meter, handler)

    assert 0.3 <= time.monotonic() - started_s < 5
    assert not upstream.calls("/late")
    assert host.spent(meter) == 1


def test_given_a_call_under_way_when_the_task_is_cancelled_then_it_counts_and_the_cancellation_stands(
    host: Host, upstream: Upstream
) -> None:
    meter = host.meter()

    async def handler(http: MeteredClient) -> None:
        call = asyncio.create_task(fetch(http.get(upstream.address + "/wait/5")))
        while meter._in_flight.get("api") != 1:
            await asyncio.sleep(0.005)
        meter.stop()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    run(meter, handler)

    assert host.spent(meter) == 1


def test_given_spend_async_then_it_is_as_spend(host: Host) -> None:
    meter = host.meter()

    async def handler(_: MeteredClient) -> None:
        await asyncio.gather(*(meter.spend_async(2) for _ in range(4)))
        with pytest.raises(ValueError, match="whole number"):
            await meter.spend_async(-1)
        with pytest.raises(Malformed, match="more than the 50 it can ever pay"):
            await meter.spend_async(LIMIT + 1)

    run(meter, handler)

    assert host.spent(meter) == 8


def test_given_two_tasks_then_they_share_connections_and_no_cookies(host: Host, upstream: Upstream) -> None:
    meter = host.meter(units=2)

    async def handler(http: MeteredClient) -> None:
        await fetch(http.get(upstream.address + "/say?set-cookie=a=b"))
        await fetch(MeteredClient(meter).get(upstream.address + "/pool/2"))

    run(meter, handler)

    # and when the loop is over, nothing of it is left
    gc.collect()
    assert not [loop for loop in http_async._sessions if loop.is_closed()]
    first, second = upstream.calls("/say")[-1], upstream.calls("/pool/2")[-1]
    assert first.connection == second.connection
    assert "cookie" not in second.headers


def test_given_no_aiohttp_then_the_error_names_the_extra() -> None:
    message = Message(b"", Properties())
    task = Task(message, host="web-1", consumer="calls", start_meter=mock.Mock(), make_outbox=mock.Mock())

    with mock.patch.dict(sys.modules, {"aiohttp": None}):
        sys.modules.pop("qctl.worker.http_async")
        with pytest.raises(HandlerError, match="needs aiohttp") as refused:
            task.http_async  # noqa: B018

    assert "qctl[aiohttp]" in refused.value.hint


def test_given_a_coroutine_over_its_time_then_its_call_is_cut_off_and_counts(host: Host, upstream: Upstream) -> None:
    # Given a worker's executor and its event loop
    consumer = Consumer("calls", "calls", PythonHandler("nobody:nothing", {}), {"api": 1}, timeout_s=0.3)
    quotas = {"api": Quota("api", (Rate(LIMIT, 3600 * NS_PER_S),))}
    rules = Rules("web-1", consumer, quotas, (1.0,), 1000, lambda: pytest.fail("nothing is enqueued here"))

    async def handler(task: Task) -> None:
        await fetch(task.http_async.get(upstream.address + "/wait/5"))

    left: SimpleQueue[Settled] = SimpleQueue()
    priced = host.leases.register("calls", {"api": 1})
    executor = Executor(rules, Handler(run_async=handler), host.leases, priced, left.put, lambda _: True)
    coroutines = CoroutineLoop()
    executor.start(coroutines.loop)

    # When a task waits for an answer longer than it may run
    executor.put(Delivery(cast(Any, None), 1, False, Properties(), b"", 0.0))
    outcome = left.get(timeout=5).outcome

    # Then it ends on time, and what it called counts
    assert outcome.error == "the task ran longer than 0.3 s"
    host.leases.close()
    ledger = Ledger.open(host.directory)
    assert sum(ledger.readings()["api"].used(ledger.clock.now_ns())) == 1
    ledger.close()


ENDING = """
import asyncio, sys
from qctl.testing.purse import Purse
from qctl.worker.execute import CoroutineLoop
from qctl.worker.http_async import MeteredClient
from qctl.worker.meter import Meter
from qctl.worker.tariff import tariff

purse = Purse({})
meter = Meter(purse, purse.take(purse.price("calls", {"api": 1})), tariff({"api": 1}, {}, {}))

async def call():
    async with MeteredClient(meter).get(sys.argv[1]) as answer:
        await answer.read()

asyncio.run_coroutine_threadsafe(call(), CoroutineLoop().loop).result()
"""


def test_given_a_process_that_ends_with_connections_open_then_it_says_nothing(upstream: Upstream) -> None:
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", ENDING, upstream.address + "/users"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
