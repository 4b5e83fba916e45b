"""What a task's calls cost, by the ledger: a real one in a folder of the test's own, and a real server."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from qctl.broker.message import DeadReason, Malformed
from qctl.quota import Grant, Leases, Ledger, Limit, Policy
from qctl.quota.listener import Listener
from qctl.quota.upstream import Heard, Style
from qctl.units import NS_PER_S
from qctl.worker.exceptions import RateLimited, TimedOut, Unpaid
from qctl.worker.http import MeteredSession
from qctl.worker.meter import Meter, block
from qctl.worker.tariff import tariff
from qctl.worker.upstream import Seen, Sight
from tests.fleet import wait_until
from tests.upstream import Upstream

LIMIT = 50
#: With the window stretched for clock drift and the lease bounds, a host may hold this many at once.
ENOUGH = 10


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as running:
        yield running


class Host:
    """One process of a host with the quotas `api` and `mail`, fresh in each test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        policies = [Policy(name, (Limit(LIMIT, 3600 * NS_PER_S),)) for name in ("api", "mail")]
        self.leases = Leases.open(directory, policies, hold_after_s=0.2)

    def admit(self, **cost: int) -> Grant:
        """A task that is expected to cost this."""
        got = self.leases.acquire(self.leases.register("calls", cost))
        assert isinstance(got, Grant)
        return got

    def meter(self, grant: Grant, **urls: tuple[str, ...]) -> Meter:
        return Meter(self.leases, grant, tariff(grant.priced.cost, urls, {"api": LIMIT}))

    def spent(self) -> dict[str, int]:
        """What the ledger has at the end, when everything unused has come back."""
        self.leases.close()
        ledger = Ledger.open(self.directory)
        try:
            now_ns = ledger.clock.now_ns()
            return {name: sum(reading.used(now_ns)) for name, reading in ledger.readings().items()}
        finally:
            ledger.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    running = Host(tmp_path / "web-1")
    yield running
    running.leases.close()


def finish(host: Host, grant: Grant, meter: Meter, *, proven: bool = False) -> None:
    host.leases.settle(grant, meter.close(proven=proven))


# Calls


def test_given_a_call_then_one_unit_is_spent_and_the_rest_comes_back(host: Host, upstream: Upstream) -> None:
    grant = host.admit(api=3)
    meter = host.meter(grant)

    assert MeteredSession(meter).get(upstream.address + "/users").status_code == 200
    finish(host, grant, meter)

    assert host.spent() == {"api": 1, "mail": 0}


def test_given_more_calls_than_expected_then_each_is_paid(host: Host, upstream: Upstream) -> None:
    grant = host.admit(api=1)
    meter = host.meter(grant)
    session = MeteredSession(meter)

    for _ in range(ENOUGH):
        session.get(upstream.address + "/users")
    finish(host, grant, meter)

    assert host.spent()["api"] == ENOUGH


def test_given_a_redirect_then_both_calls_are_paid(host: Host, upstream: Upstream) -> None:
    grant = host.admit(api=1)
    meter = host.meter(grant)

    answer = MeteredSession(meter).get(upstream.address + "/redirect")
    finish(host, grant, meter)

    assert answer.json()["path"] == "/away"
    assert host.spent()["api"] == 2


@pytest.mark.parametrize("status", [400, 404, 500, 503])
def test_given_an_answer_that_is_no_success_then_the_call_was_made_all_the_same(
    host: Host, upstream: Upstream, status: int
) -> None:
    grant = host.admit(api=1)
    meter = host.meter(grant)

    MeteredSession(meter).get(f"{upstream.address}/status/{status}")
    finish(host, grant, meter)

    assert host.spent()["api"] == 1


def test_given_a_refused_connection_then_the_unit_comes_back(host: Host) -> None:
    with socket.socket() as unused:  # bound and not listening: nobody else can take the port meanwhile
        unused.bind(("127.0.0.1", 0))
        grant = host.admit(api=1)
        meter = host.meter(grant)

        with pytest.raises(requests.ConnectionError):
            MeteredSession(meter).get(f"http://127.0.0.1:{unused.getsockname()[1]}/users")
    finish(host, grant, meter)

    assert host.spent()["api"] == 0


def test_given_a_name_that_does_not_resolve_then_the_unit_comes_back(host: Host) -> None:
    grant = host.admit(api=1)
    meter = host.meter(grant)

    with pytest.raises(requests.ConnectionError):
        MeteredSession(meter).get("http://no-such-host.invalid/")
    finish(host, grant, meter)

    assert host.spent()["api"] == 0


@pytest.mark.parametrize("path", ["/wait/5", "/half"])
def test_given_no_whole_answer_then_the_call_counts_as_spent(host: Host, upstream: Upstream, path: str) -> None:
    grant = host.admit(api=1)
    meter = host.meter(grant)

    with pytest.raises((requests.Timeout, requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        MeteredSession(meter).get(upstream.address + path, timeout=0.3)
    finish(host, grant, meter)

    assert host.spent()["api"] == 1


def test_given_a_timeout_then_its_unit_counts_until_the_upstream_can_no_longer_count_it(
    host: Host, upstream: Upstream
) -> None:
    # Given one call that was answered and one that was not
    answered, grant = host.admit(api=1), host.admit(api=1)
    meters = host.meter(answered), host.meter(grant)
    MeteredSession(meters[0]).get(upstream.address + "/users")
    with pytest.raises(requests.Timeout):
        MeteredSession(meters[1]).get(upstream.address + "/wait/5", timeout=0.2)
    finish(host, answered, meters[0])
    finish(host, grant, meters[1])
    host.leases.close()

    # Then the second one leaves the window later than the first
    ledger = Ledger.open(host.directory)
    reading = ledger.readings()["api"]
    window_ns = reading.limits[0].limit.period_ns
    now_ns = ledger.clock.now_ns()
    ledger.close()
    assert sum(reading.used(now_ns)) == 2
    assert sum(reading.used(now_ns + window_ns + 30 * NS_PER_S)) == 1


def test_given_urls_then_only_calls_below_them_are_paid(host: Host, upstream: Upstream) -> None:
    grant = host.admit(api=1, mail=1)
    meter = host.meter(grant, api=(upstream.address + "/api/",), mail=(upstream.address + "/mail/",))
    session = MeteredSession(meter)

    for path in ("/api/1", "/api/2", "/mail/1", "/free/1"):
        session.get(upstream.address + path)
    finish(host, grant, meter)

    assert host.spent() == {"api": 2, "mail": 1}


# Settling


def test_given_no_call_at_all_then_the_declared_cost_counts_unless_every_call_is_metered(
    tmp_path: Path,
) -> None:
    for proven, units in ((False, 3), (True, 0)):
        host = Host(tmp_path / f"proven-{proven}")
        grant = host.admit(api=3)
        finish(host, grant, host.meter(grant), proven=proven)
        assert host.spent()["api"] == units


def test_given_two_quotas_and_calls_of_one_then_the_other_counts_at_its_declared_cost(
    host: Host, upstream: Upstream
) -> None:
    grant = host.admit(api=2, mail=3)
    meter = host.meter(grant, api=(upstream.address,))

    MeteredSession(meter).get(upstream.address + "/users")
    finish(host, grant, meter)

    assert host.spent() == {"api": 1, "mail": 3}


# Spending by other means


def test_given_spend_then_it_counts_instead_of_the_declared_cost(host: Host) -> None:
    grant = host.admit(api=5)
    meter = host.meter(grant)

    meter.spend(2)
    meter.spend(0)
    finish(host, grant, meter)

    assert host.spent()["api"] == 2


def test_given_spend_beyond_what_was_reserved_then_more_is_reserved(host: Host) -> None:
    grant = host.admit(api=1)
    meter = host.meter(grant)

    for _ in range(4):
        meter.spend(2, "api")
    finish(host, grant, meter)

    assert host.spent()["api"] == 8


@pytest.mark.parametrize("units", [-1, 1.5, True, "3", None, 10**12 + 1])
def test_given_units_that_cannot_be_then_nothing_is_spent(host: Host, units: object) -> None:
    grant = host.admit(api=1)
    meter = host.meter(grant)

    with pytest.raises(ValueError, match="whole number"):
        meter.spend(units)  # type: ignore[arg-type]
    finish(host, grant, meter, proven=True)

    assert host.spent()["api"] == 0


def test_given_a_quota_that_is_not_the_consumers_then_the_names_are_said(host: Host) -> None:
    grant = host.admit(api=1)

    with pytest.raises(ValueError, match="no quota 'mail'; it names api"):
        host.meter(grant).spend(1, "mail")


def test_given_several_quotas_then_spend_wants_a_name(host: Host) -> None:
    grant = host.admit(api=1, mail=1)

    with pytest.raises(ValueError, match="name the quota, one of api, mail"):
        host.meter(grant).spend(1)


def test_given_units_that_cannot_be_paid_then_nothing_is_spent_not_even_what_was_declared(host: Host) -> None:
    other = host.admit(api=LIMIT - 5)
    grant = host.admit(api=2)
    meter = host.meter(grant)

    with pytest.raises(Unpaid, match="quota api cannot pay for 40 more"):
        meter.spend(40)
    finish(host, grant, meter)
    host.leases.settle(other, {})

    assert host.spent()["api"] == 0


def test_given_more_units_than_the_limit_then_the_task_is_dead_whatever_the_handler_makes_of_it(host: Host) -> None:
    grant = host.admit(api=2)
    meter = host.meter(grant)

    with pytest.raises(Malformed, match="asks 51 of api, more than the 50 it can ever pay") as refused:
        meter.spend(LIMIT + 1)
    finish(host, grant, meter)

    assert refused.value.reason is DeadReason.COST
    assert meter.limited is refused.value
    assert host.spent()["api"] == 0


# Refusals


def test_given_nothing_left_then_the_call_is_not_made(host: Host, upstream: Upstream) -> None:
    grant = host.admit(api=1)
    meter = host.meter(grant)
    meter.spend(LIMIT)

    before = len(upstream.calls())
    with pytest.raises(Unpaid, match="quota api cannot pay"):
        MeteredSession(meter).get(upstream.address + "/users")
    with pytest.raises(RateLimited):
        meter.spend(1)
    finish(host, grant, meter)

    assert len(upstream.calls()) == before
    assert isinstance(meter.limited, Unpaid)
    assert host.spent()["api"] == LIMIT


@pytest.mark.parametrize(("path", "said_s"), [("/retry-after/30", 30.0), ("/spent/30", 30.0), ("/retry-after/x", None)])
def test_given_a_429_then_it_is_raised_and_nothing_more_is_granted(
    host: Host, upstream: Upstream, path: str, said_s: float | None
) -> None:
    grant = host.admit(api=1)
    meter = host.meter(grant)

    with pytest.raises(RateLimited) as limited:
        MeteredSession(meter).get(upstream.address + path)
    finish(host, grant, meter)

    assert (limited.value.retry_after_s, limited.value.quota) == (said_s, "api")
    assert meter.limited is limited.value
    assert not isinstance(host.leases.acquire(host.leases.price("calls", {"api": 1})), Grant)
    assert host.spent()["api"] == 1


def test_given_a_task_over_its_timeout_then_it_can_neither_call_nor_spend(host: Host, upstream: Upstream) -> None:
    grant = host.admit(api=1)
    meter = host.meter(grant)
    before = len(upstream.calls())

    meter.stop()

    with pytest.raises(TimedOut):
        MeteredSession(meter).get(upstream.address + "/users")
    with pytest.raises(TimedOut):
        meter.spend(1)
    finish(host, grant, meter, proven=True)
    assert len(upstream.calls()) == before
    assert host.spent()["api"] == 0


@pytest.mark.parametrize(
    ("path", "stream"), [("/drip-headers", False), ("/drip", False), ("/drip", True), ("/wait/60", False)]
)
def test_given_a_call_under_way_when_the_time_is_over_then_it_is_cut_off_and_counts(
    host: Host, upstream: Upstream, path: str, stream: bool
) -> None:
    # Given a call whose answer never comes to its end
    grant = host.admit(api=1)
    meter = host.meter(grant)
    before = len(upstream.calls())
    errors: list[BaseException] = []

    def call() -> None:
        try:
            with MeteredSession(meter).get(upstream.address + path, stream=stream) as answer:
                answer.content  # noqa: B018
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    wait_until("the call", lambda: len(upstream.calls()) > before)

    # When the task is over time
    meter.stop()

    # Then its thread is free again, and the call may have been counted
    thread.join(5)
    assert not thread.is_alive()
    assert isinstance(errors[0], TimedOut | requests.RequestException)
    finish(host, grant, meter)
    assert host.spent()["api"] == 1


def test_given_a_task_that_is_over_time_then_only_its_own_calls_are_cut_off(host: Host, upstream: Upstream) -> None:
    # Given a connection that another task has taken over
    first, second = host.admit(api=1), host.admit(api=1)
    late, next_one = host.meter(first), host.meter(second)
    MeteredSession(late).get(upstream.address + "/taken/over")
    answer = MeteredSession(next_one).get(upstream.address + "/size/100", stream=True)

    # When the one that had it before is over time
    late.stop()

    # Then the other one reads on
    assert len(answer.content) == 100
    finish(host, first, late)
    finish(host, second, next_one)


def test_given_a_task_over_its_timeout_then_calls_that_cost_nothing_are_refused_too(
    host: Host, upstream: Upstream
) -> None:
    grant = host.admit(api=1)
    meter = host.meter(grant, api=(upstream.address + "/paid/",))
    meter.stop()

    with pytest.raises(TimedOut):
        MeteredSession(meter).get(upstream.address + "/free")
    finish(host, grant, meter)


def test_given_little_time_left_then_nobody_waits_longer_for_a_connection(host: Host) -> None:
    grant = host.admit(api=1)
    meter = Meter(host.leases, grant, tariff(grant.priced.cost, {}, {}), time.monotonic() + 0.3)

    with socket.socket() as full:  # its queue of connections is full, so that further ones get no answer
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        with socket.create_connection(full.getsockname()):
            started_s = time.monotonic()
            with pytest.raises(requests.ConnectTimeout):
                MeteredSession(meter).get(f"http://127.0.0.1:{full.getsockname()[1]}/", timeout=(30, 30))
        assert 0.2 < time.monotonic() - started_s < 5
    finish(host, grant, meter)


# What a call says about the upstream


@pytest.mark.parametrize(
    ("path", "sight"),
    [
        ("/users", Sight.SERVED),
        ("/status/404", Sight.SERVED),
        ("/status/429", Sight.SERVED),
        ("/spent/1", Sight.SERVED),
        ("/status/401", Sight.REFUSED),
        ("/status/403", Sight.REFUSED),
        ("/status/500", Sight.FAILING),
        ("/status/599", Sight.FAILING),
        ("/half", Sight.SERVED),
        ("/wait/5", None),
    ],
)
def test_given_an_answer_then_it_is_known_what_the_upstream_did(
    host: Host, upstream: Upstream, path: str, sight: Sight | None
) -> None:
    grant = host.admit(api=1)
    meter = host.meter(grant)

    with suppress(RateLimited, requests.RequestException):
        MeteredSession(meter).get(upstream.address + path, timeout=0.3)
    finish(host, grant, meter)

    assert (meter.seen and meter.seen.sight) == sight


def test_given_nobody_there_then_that_is_known_and_said_without_what_a_url_may_hide(host: Host) -> None:
    grant = host.admit(api=1)
    meter = host.meter(grant)

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(requests.ConnectionError):
            MeteredSession(meter).get(f"http://user:secret@127.0.0.1:{port}/path?token=secret")
    finish(host, grant, meter)

    assert meter.seen == Seen(Sight.UNREACHABLE, f"http://127.0.0.1:{port} takes no connection")


# Threads


def test_given_a_handler_with_threads_of_its_own_then_every_call_is_paid_once(host: Host, upstream: Upstream) -> None:
    grant = host.admit(api=1)
    meter = host.meter(grant)
    session = MeteredSession(meter)

    threads = [threading.Thread(target=session.get, args=(f"{upstream.address}/thread/{n}",)) for n in range(ENOUGH)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    finish(host, grant, meter)

    assert host.spent()["api"] == ENOUGH


# The session


def test_given_two_calls_then_they_share_a_connection_and_no_cookies(host: Host, upstream: Upstream) -> None:
    grants = [host.admit(api=1) for _ in range(2)]
    sessions = [MeteredSession(host.meter(grant)) for grant in grants]

    sessions[0].get(upstream.address + "/pool/1", headers={"x": "1"})
    sessions[1].get(upstream.address + "/pool/2")

    calls = upstream.calls("/pool/")
    assert len({call.connection for call in calls}) == 1
    assert not any("cookie" in call.headers for call in calls)
    for grant in grants:
        host.leases.settle(grant)


# The end of a task


def test_given_a_call_still_under_way_when_the_task_ends_then_it_is_spent_and_no_more_calls_are_made(
    host: Host, upstream: Upstream
) -> None:
    # Given a call that a thread of the handler's makes
    grant = host.admit(api=3)
    meter = host.meter(grant)
    call = meter.begin(upstream.address + "/slow")
    assert call is not None

    # When the task ends without waiting for it
    finish(host, grant, meter)

    # Then it may neither call nor spend any more, the late answer is nobody's, and the call counts
    with pytest.raises(TimedOut, match="the task is over"):
        meter.begin(upstream.address + "/more")
    with pytest.raises(TimedOut, match="the task is over"):
        meter.spend(1)
    call.end()
    assert host.spent() == {"api": 1, "mail": 0}


def test_given_an_epoch_taken_for_a_delay_then_the_quota_is_blocked_for_a_day_at_most(host: Host) -> None:
    for seconds in (1.7e9, 1.7e12, float("inf")):
        block(host.leases, "api", seconds)

    until_ns = wait_until("the block", lambda: host.leases.look()["api"].blocked_until_ns)
    now_ns = host.leases.clock.now_ns()
    assert now_ns < until_ns <= now_ns + 86_401 * NS_PER_S  # and the spread of hosts that come back


# Retries of the session's own


def mounted(meter: Meter, retries: Retry) -> MeteredSession:
    session = MeteredSession(meter)
    session.mount("http://", HTTPAdapter(max_retries=retries))
    return session


@pytest.mark.parametrize(("attempts", "raise_on_status"), [(1, True), (3, True), (3, False)])
def test_given_an_adapter_with_retries_then_each_try_is_paid(
    host: Host, upstream: Upstream, attempts: int, raise_on_status: bool
) -> None:
    grant = host.admit(api=1)
    meter = host.meter(grant)
    retries = Retry(attempts - 1, status_forcelist=[503], backoff_factor=0, raise_on_status=raise_on_status)
    before = len(upstream.calls("/status/503"))

    if raise_on_status:
        with pytest.raises(requests.exceptions.RetryError):
            mounted(meter, retries).get(upstream.address + "/status/503")
    else:
        assert mounted(meter, retries).get(upstream.address + "/status/503").status_code == 503
    finish(host, grant, meter)

    assert len(upstream.calls("/status/503")) - before == attempts
    assert host.spent()["api"] == attempts
    assert meter.used() == {"api": attempts}


def test_given_no_answer_then_what_was_tried_again_counts_each_time(host: Host, upstream: Upstream) -> None:
    grant = host.admit(api=1)
    meter = host.meter(grant)
    before = len(upstream.calls("/wait"))

    with pytest.raises(requests.ReadTimeout):
        mounted(meter, Retry(2, backoff_factor=0)).get(upstream.address + "/wait/5", timeout=0.1)
    with pytest.raises(requests.ReadTimeout):  # which a POST is not
        mounted(meter, Retry(2, backoff_factor=0)).post(upstream.address + "/wait/5", timeout=0.1)
    finish(host, grant, meter)

    assert len(upstream.calls("/wait")) - before == 4
    assert host.spent()["api"] == 4


def test_given_retries_and_nobody_there_then_nothing_is_spent(host: Host) -> None:
    grant = host.admit(api=1)
    meter = host.meter(grant)

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(requests.ConnectionError):
            mounted(meter, Retry(3, backoff_factor=0)).get(f"http://127.0.0.1:{unused.getsockname()[1]}/")
    finish(host, grant, meter)

    assert host.spent()["api"] == 0


def test_given_retries_that_the_host_cannot_pay_then_they_are_not_made(host: Host, upstream: Upstream) -> None:
    grant = host.admit(api=1)
    meter = host.meter(grant)
    meter.spend(LIMIT - 2)
    before = len(upstream.calls("/status/503"))

    with pytest.raises(Unpaid):
        mounted(meter, Retry(5, status_forcelist=[503], backoff_factor=0)).get(upstream.address + "/status/503")
    finish(host, grant, meter)

    assert len(upstream.calls("/status/503")) - before == 2
    assert host.spent()["api"] == LIMIT


def test_given_one_adapter_that_many_tasks_mount_then_each_has_its_retries_and_redirects_are_paid_too(
    host: Host, upstream: Upstream
) -> None:
    shared = HTTPAdapter(max_retries=Retry(1, status_forcelist=[503], backoff_factor=0, raise_on_status=False))
    for _ in range(2):
        grant = host.admit(api=1)
        meter = host.meter(grant)
        session = MeteredSession(meter)
        session.mount("http://", shared)
        session.get(upstream.address + "/status/503")
        session.get(upstream.address + "/redirect")
        finish(host, grant, meter)
        assert meter.used() == {"api": 4}

    assert host.spent()["api"] == 8


def test_given_a_body_that_is_used_up_then_it_is_not_sent_again_empty(host: Host, upstream: Upstream) -> None:
    grant = host.admit(api=1)
    meter = host.meter(grant)
    before = len(upstream.calls("/status/503"))

    with pytest.raises(requests.exceptions.UnrewindableBodyError):
        mounted(meter, Retry(2, status_forcelist=[503], backoff_factor=0)).put(
            upstream.address + "/status/503", data=iter([b"once"]), headers={"content-length": "4"}
        )
    finish(host, grant, meter)

    assert len(upstream.calls("/status/503")) - before == 1


def test_given_a_task_over_its_time_then_the_calls_of_what_it_mounted_are_cut_off_too(
    host: Host, upstream: Upstream
) -> None:
    grant = host.admit(api=1)
    meter = host.meter(grant)
    session = mounted(meter, Retry(5, backoff_factor=0))
    stopping = threading.Timer(0.3, meter.stop)
    stopping.start()

    started_s = time.monotonic()
    with pytest.raises(TimedOut):
        session.get(upstream.address + "/wait/5")
    stopping.join()
    finish(host, grant, meter)

    assert time.monotonic() - started_s < 3
    assert host.spent()["api"] == 1


# What the API says


class Ear(Leases):
    """Notes what it is told."""

    told: list[tuple[str, Heard]]

    def tell(self, quota: str, heard: Heard) -> None:
        self.told.append((quota, heard))


def test_given_answers_then_the_ledger_hears_each_that_says_something(host: Host, upstream: Upstream) -> None:
    host.leases.__class__, host.leases.told = Ear, []  # type: ignore[attr-defined]
    grant = host.admit(api=3, mail=1)
    meter = host.meter(grant, mail=(upstream.address + "/mail/",))
    session = MeteredSession(meter)
    before_ns = host.leases.clock.now_ns()

    session.get(upstream.address + "/users")
    session.get(upstream.address + "/say", params={"x-ratelimit-remaining": "17", "x-ratelimit-limit": "50"})
    session.get(upstream.address + "/mail/say", params={"ratelimit": '"a";r=9;t=30'})
    with pytest.raises(RateLimited):
        session.get(upstream.address + "/say", params={"status": "429", "retry-after": "30"})
    finish(host, grant, meter)

    said = host.leases.told  # type: ignore[attr-defined]
    assert [(quota, [told.remaining_units for told in heard.told], heard.refused) for quota, heard in said] == [
        ("api", [17], False),
        ("mail", [9], False),
        ("api", [], True),
    ]
    told = said[0][1].told[0]
    assert before_ns < told.sent_ns < told.received_ns < host.leases.clock.now_ns()


def test_given_the_style_of_a_quota_then_other_headers_are_not_heard(host: Host, upstream: Upstream) -> None:
    host.leases.__class__, host.leases.told = Ear, []  # type: ignore[attr-defined]
    grant = host.admit(api=1)
    rates = tariff({"api": 1}, {}, {}, {"api": Listener(Style.NONE)})
    meter = Meter(host.leases, grant, rates)

    MeteredSession(meter).get(upstream.address + "/say", params={"x-ratelimit-remaining": "0"})
    finish(host, grant, meter)

    assert host.leases.told == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("stream", [True, False])
def test_given_a_403_of_github_then_its_body_says_which_it_is_and_stays_readable(
    host: Host, upstream: Upstream, stream: bool
) -> None:
    grant = host.admit(api=3)
    meter = host.meter(grant)
    session = MeteredSession(meter)
    said = {"status": "403", "x-github-request-id": "A1", "x-ratelimit-remaining": "9"}

    answer = session.get(upstream.address + "/say", params={**said, "body": "Must have admin rights"}, stream=stream)
    assert answer.text == "Must have admin rights"
    assert meter.seen is not None
    assert meter.seen.sight is Sight.REFUSED
    with pytest.raises(RateLimited, match="a secondary limit: the upstream answered 403") as limited:
        session.get(upstream.address + "/say", params={**said, "body": "a secondary rate limit"}, stream=stream)
    finish(host, grant, meter)

    assert limited.value.retry_after_s == 60
