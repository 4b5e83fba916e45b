"""What carries the calls of `task.http`: whatever a handler makes of it, each is paid, heard, and can be cut off."""

from __future__ import annotations

import gc
import hashlib
import http.client
import io
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any, cast

import pytest
import requests
from requests.adapters import BaseAdapter, HTTPAdapter
from requests.auth import HTTPDigestAuth
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.util.retry import Retry

from qctl.quota import Grant, Leases
from qctl.testing.purse import Purse
from qctl.worker import watched
from qctl.worker.exceptions import RateLimited, TimedOut, Unpaid
from qctl.worker.http import BODY_BYTES, MeteredSession
from qctl.worker.meter import Meter
from qctl.worker.tariff import tariff
from qctl.worker.upstream import Sight
from tests.upstream import LONG_BYTES, Upstream


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as running:
        yield running


class OneTask:
    """A task that reserved one unit of `api`, of a host that can pay `left`."""

    def __init__(self, left: int = 1_000, within_s: float = 20.0) -> None:
        self.purse = Purse({"api": left})
        self.grant = self.purse.take(self.purse.price("calls", {"api": 1}))
        rates = tariff({"api": 1}, {}, {})
        self.meter = Meter(
            cast(Leases, self.purse), cast(Grant, self.grant), rates, deadline_s=time.monotonic() + within_s
        )
        self.session = MeteredSession(self.meter)

    def mounted(self, adapter: BaseAdapter) -> MeteredSession:
        self.session.mount("http://", adapter)
        return self.session

    def spent(self) -> int:
        """What it has cost, now that it is over."""
        assert self.grant is not None
        self.purse.settle(self.grant, self.meter.close(proven=True))
        return self.purse.spent.get("api", 0)


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address that takes no connection."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{unused.getsockname()[1]}/"


# Auth that sends again


def test_given_digest_then_the_request_that_is_sent_again_is_paid_too(upstream: Upstream) -> None:
    task, before = OneTask(), len(upstream.calls("/digest"))

    answer = task.session.get(upstream.address + "/digest/200", auth=HTTPDigestAuth("user", "word"))

    assert answer.status_code == 200
    assert len(upstream.calls("/digest")) - before == task.spent() == 2


def test_given_digest_and_a_429_to_what_is_sent_again_then_it_is_heard(upstream: Upstream) -> None:
    task = OneTask()

    with pytest.raises(RateLimited):
        task.session.get(upstream.address + "/digest/429", auth=HTTPDigestAuth("user", "word"))

    assert task.purse.blocked == {"api"}
    assert task.spent() == 2


# Bodies of refusals


def test_given_a_refusal_with_a_long_body_then_only_its_beginning_is_read_and_the_handler_gets_all_of_it(
    upstream: Upstream,
) -> None:
    task, before_bytes = OneTask(), upstream.sent_bytes

    with task.session.get(upstream.address + "/long-refused", stream=True) as answer:
        assert upstream.sent_bytes - before_bytes < LONG_BYTES / 2
        found, expected, size = hashlib.sha256(), hashlib.sha256(), 0
        for piece in answer.iter_content(1 << 16):
            found.update(piece)
            size += len(piece)
    for number in range(LONG_BYTES >> 16):
        expected.update(number.to_bytes(2, "big") * (1 << 15))

    assert (size, found.digest()) == (LONG_BYTES, expected.digest())
    assert BODY_BYTES < LONG_BYTES
    assert task.spent() == 1


@pytest.mark.parametrize("stream", [True, False])
def test_given_a_compressed_refusal_then_it_is_understood_and_stays_readable(upstream: Upstream, stream: bool) -> None:
    task = OneTask()
    said = {"status": "403", "x-github-request-id": "A1", "content-encoding": "gzip"}

    answer = task.session.get(upstream.address + "/say", params={**said, "body": "No admin"}, stream=stream)
    assert answer.text == "No admin"
    assert task.meter.seen is not None
    assert task.meter.seen.sight is Sight.REFUSED
    with pytest.raises(RateLimited, match="secondary"):
        task.session.get(upstream.address + "/say", params={**said, "body": "a secondary rate limit"}, stream=stream)
    calls = upstream.calls("/say")[-2:]
    assert stream or calls[0].connection == calls[1].connection


def test_given_a_refusal_that_breaks_off_then_the_handler_does_not_take_it_for_whole(upstream: Upstream) -> None:
    with pytest.raises(requests.RequestException):
        OneTask().session.get(upstream.address + "/half-refused").content  # noqa: B018


# Cutting off


def test_given_a_proxy_then_calls_through_it_are_cut_off_with_their_task(upstream: Upstream) -> None:
    task, before = OneTask(), len(upstream.calls("/through"))
    stopping = threading.Timer(0.2, task.meter.stop)
    stopping.start()

    started_s = time.monotonic()
    with pytest.raises(TimedOut):
        task.session.get("http://api.test/through/wait/5", proxies={"http": upstream.address})
    stopping.join()

    assert time.monotonic() - started_s < 3
    assert len(upstream.calls("/through")) - before == task.spent() == 1


def test_given_headers_that_are_cut_off_then_nothing_is_made_of_them(upstream: Upstream) -> None:
    task = OneTask()
    stopping = threading.Timer(0.2, task.meter.stop)
    stopping.start()

    with pytest.raises(TimedOut):
        task.session.get(upstream.address + "/drip-headers")
    stopping.join()

    assert task.meter.seen is None
    assert task.spent() == 1


class _Wrapped:
    """As TLS in TLS: no socket itself, but one is below it."""

    def __init__(self, below: object) -> None:
        self.socket = below


def test_given_connections_that_are_no_plain_sockets_then_they_are_cut_off_as_well_as_can_be() -> None:
    task = OneTask()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(5)
        connections = [_Wrapped(None), _Wrapped(_Wrapped(ours))]
        with watched.Carried(task.meter, "http://api.test/") as carried:
            for one in connections:
                watched._use(one)

        task.meter.stop()

        assert theirs.recv(1) == b""
        assert carried.cut


def test_given_a_429_that_comes_when_the_task_is_over_time_then_others_are_spared_it() -> None:
    task = OneTask()

    class Late(BaseAdapter):
        def send(self, request: requests.PreparedRequest, *_: Any, **options: Any) -> requests.Response:
            task.meter.stop()
            answer = requests.Response()
            answer.status_code, answer.request, answer.raw = 429, request, io.BytesIO()
            return answer

        def close(self) -> None:
            pass

    with pytest.raises(TimedOut):
        task.mounted(Late()).get("http://api.test/")

    assert task.purse.blocked == {"api"}


# Adapters of the handler's own


def test_given_retries_that_would_wait_for_longer_than_the_task_has_then_it_gets_what_there_is(
    upstream: Upstream, nobody: str
) -> None:
    task, started_s = OneTask(within_s=2), time.monotonic()
    session = task.mounted(HTTPAdapter(max_retries=Retry(3, backoff_factor=30)))

    answer = session.get(upstream.address + "/say", params={"status": "503", "retry-after": "6"})
    with pytest.raises(requests.ConnectionError):
        session.get(nobody)

    assert answer.status_code == 503
    assert answer.json() == {}
    assert time.monotonic() - started_s < 1.5


class Repeating(HTTPAdapter):
    """Tries three times, of whatever it knows."""

    def send(self, *arguments: Any, **options: Any) -> requests.Response:
        for _ in range(2):
            super().send(*arguments, **options).close()
        return super().send(*arguments, **options)


def test_given_an_adapter_that_repeats_by_itself_then_each_try_is_paid_before_it_goes_out(upstream: Upstream) -> None:
    task, before = OneTask(), len(upstream.calls("/repeated"))
    task.mounted(Repeating()).get(upstream.address + "/repeated")
    assert len(upstream.calls("/repeated")) - before == task.spent() == 3

    poor, before = OneTask(left=2), len(upstream.calls("/repeated"))
    with pytest.raises(Unpaid):
        poor.mounted(Repeating()).get(upstream.address + "/repeated")
    assert len(upstream.calls("/repeated")) - before == poor.spent() == 2


def test_given_an_adapter_whose_last_try_is_refused_then_what_it_sent_before_counts(
    upstream: Upstream, nobody: str
) -> None:
    class Elsewhere(HTTPAdapter):
        def send(self, request: requests.PreparedRequest, *arguments: Any, **options: Any) -> requests.Response:
            super().send(request, *arguments, **options).close()
            request.url = nobody
            return super().send(request, *arguments, **options)

    task = OneTask()
    with pytest.raises(requests.ConnectionError):
        task.mounted(Elsewhere()).get(upstream.address + "/first")
    assert task.spent() == 1


def test_given_an_adapter_with_pools_of_its_own_then_they_stay_and_are_watched(upstream: Upstream) -> None:
    class Pinned(HTTPConnection):
        pinned: list[int] = []  # noqa: RUF012

        def connect(self) -> None:
            super().connect()
            self.pinned.append(1)

    class Pins(HTTPConnectionPool):
        ConnectionCls = Pinned

    adapter = Repeating()
    adapter.poolmanager.pool_classes_by_scheme = {"http": Pins}
    requests_session = requests.Session()  # one connection is open already, and nobody watches it
    requests_session.trust_env = False
    requests_session.mount("http://", adapter)
    requests_session.get(upstream.address + "/pinned")
    Pinned.pinned.clear()

    task, before = OneTask(), len(upstream.calls("/pinned"))
    task.mounted(adapter).get(upstream.address + "/pinned")

    assert len(Pinned.pinned) == 3
    assert len(upstream.calls("/pinned")) - before == task.spent() == 3


def test_given_no_connection_that_is_of_http_then_a_pool_is_left_alone() -> None:
    for other in (object(), HTTPConnectionPool("api.test")):
        if isinstance(other, HTTPConnectionPool):
            other.ConnectionCls = cast(Any, socket.socket)
        watched.watch(other)
        assert not hasattr(other, "ConnectionCls") or other.ConnectionCls is socket.socket
    pool = watched.watch(HTTPConnectionPool("api.test"))
    assert issubclass(pool.ConnectionCls, http.client.HTTPConnection)
    assert watched.watch(pool).ConnectionCls is pool.ConnectionCls


# What never gets as far as a connection


@pytest.mark.parametrize(
    ("url", "options", "error"),
    [
        ("http://api.test/", {"timeout": (1, 2, 3)}, ValueError),
        ("https://api.test/", {"verify": "/no/such/file"}, OSError),
        ("http://api.test/", {"proxies": {"http": "http://"}}, requests.RequestException),
    ],
)
def test_given_a_call_that_cannot_be_made_then_it_costs_nothing(
    url: str, options: dict[str, Any], error: type[Exception], upstream: Upstream
) -> None:
    task = OneTask()
    with pytest.raises(error):
        task.session.get(url, **options)
    assert task.meter.seen is None
    assert task.spent() == 0

    # And nothing of it stays in the thread: what others send there is not taken for its own
    shared = HTTPAdapter()
    last = OneTask()
    last.mounted(shared).get(upstream.address + "/users")
    last.meter.stop()
    other = requests.Session()
    other.mount("http://", shared)
    assert other.get(upstream.address + "/users").status_code == 200


# Ends


@pytest.mark.parametrize("mounts", [False, True])
def test_given_a_task_that_is_over_then_nothing_of_it_waits_for_the_collector(mounts: bool) -> None:
    gc.collect()
    gc.disable()
    try:
        task, adapter = OneTask(), HTTPAdapter()
        if mounts:
            task.mounted(adapter)
        left = [weakref.ref(task.meter), weakref.ref(adapter)]

        del task, adapter

        assert [one() for one in left] == [None, None]
    finally:
        gc.enable()
