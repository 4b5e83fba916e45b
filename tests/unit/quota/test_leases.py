"""Leases, as a worker uses them: threads, the ledger's own thread, real time. Windows are seconds here."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue

import pytest

from qctl.errors import LedgerError, UnknownName
from qctl.quota import Cause, Grant, Hold, Leases, Ledger, Limit, Policy, Priced, Standing, Window
from qctl.quota.foreign import SPREAD_NS
from qctl.quota.upstream import Heard as Heard_
from qctl.quota.upstream import Span, Told
from tests.unit.quota.model import S, no_writes

#: Longer than anything here may take on a busy machine; nobody waits for it unless something is wrong.
_LONG_S = 20.0
LONG_NS = 3600 * S


def api(units: int, period_ns: int = LONG_NS) -> Policy:
    return Policy("api", (Limit(units, period_ns),))


class Heard:
    """What the listener was told, to be awaited."""

    def __init__(self) -> None:
        self._queue: Queue[tuple[str, Standing]] = Queue()

    def __call__(self, consumer: str, standing: Standing) -> None:
        self._queue.put((consumer, standing))

    def next(self) -> tuple[str, Standing]:
        return self._queue.get(timeout=_LONG_S)

    @property
    def nothing(self) -> bool:
        return self._queue.empty()


Open = Callable[..., Leases]


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Leases as of one process each, on one ledger."""
    found: list[Leases] = []

    def open_one(*policies: Policy, hold_after_s: float = 1.0, heard: Heard | None = None) -> Leases:
        leases = Leases.open(
            tmp_path / "web-1", policies, hold_after_s=hold_after_s, on_standing=heard or (lambda *_: None)
        )
        found.append(leases)
        return leases

    yield open_one
    for leases in found:
        leases.close()


def acquire(leases: Leases, priced: Priced) -> Grant:
    got = leases.take(priced) or leases.acquire(priced)
    assert isinstance(got, Grant), got
    return got


def spend_all(leases: Leases, priced: Priced) -> int:
    """Spend until there is no more; returns the tasks that were paid."""
    for tasks in range(10**6):
        got = leases.take(priced) or leases.acquire(priced)
        if isinstance(got, Hold):
            return tasks
        leases.settle(got)
    raise AssertionError("endless quota")


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + _LONG_S
    while not condition():
        assert time.monotonic() < deadline_s, "never came true"
        time.sleep(0.005)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def used(leases: Leases, quota: str = "api") -> int:
    reading = leases._ledger.readings()[quota]
    return max(reading.used(leases.clock.now_ns()))


# -- paying


@pytest.mark.parametrize("cost", [1, 7])
def test_the_last_unit_of_a_window_is_usable(opened: Open, cost: int) -> None:
    leases = opened(api(200))
    priced = leases.register("timeline", {"api": cost})

    assert spend_all(leases, priced) == 200 // cost
    assert leases.standing("timeline").held is not None


def test_several_processes_together_use_all_of_a_window_and_no_more(opened: Open) -> None:
    processes = [opened(api(200)) for _ in range(8)]
    counts = [0] * len(processes)

    def work(index: int) -> None:
        leases = processes[index]
        counts[index] = spend_all(leases, leases.register("timeline", {"api": 1}))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(processes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_LONG_S)

    assert sum(counts) == 200


def test_the_units_of_an_idle_process_reach_the_one_that_needs_them(opened: Open) -> None:
    # Given a process that took a single unit and has a lease in memory
    idle, busy = opened(api(1000)), opened(api(1000))
    acquire(idle, idle.register("timeline", {"api": 1}))

    # When another spends all there is, it gets the rest of that lease too
    assert spend_all(busy, busy.register("timeline", {"api": 1})) == 999


def test_what_a_running_task_gives_back_pays_for_one_that_waits(opened: Open) -> None:
    leases = opened(api(5))
    priced = leases.register("timeline", {"api": 5})
    running = acquire(leases, priced)
    got: list[Grant | Hold] = []
    waiting = threading.Thread(target=lambda: got.append(leases.acquire(priced)))
    waiting.start()
    until(lambda: bool(leases._till.waiters) and leases._till.waiters[0].refused_ns is not None)

    leases.settle(running, {})

    waiting.join(_LONG_S)
    assert isinstance(got[0], Grant)


def test_what_expires_soon_is_waited_for(opened: Open, heard: Heard) -> None:
    # Given a window of half a second that is used up
    leases = opened(api(5, S // 2), heard=heard)
    priced = leases.register("timeline", {"api": 1})
    for _ in range(5):
        leases.settle(acquire(leases, priced))

    # When another task comes, then it is paid within hold_after and nobody is held
    acquire(leases, priced)
    assert heard.nothing


def test_a_running_task_may_reserve_more_while_there_is_more(opened: Open) -> None:
    leases = opened(api(5), Policy("mail", (Limit(1, LONG_NS),)))
    grant = acquire(leases, leases.register("timeline", {"api": 1}))

    assert leases.more(grant, "api", 4)
    assert leases.more(grant, "mail", 1)
    assert (grant.reserved("api"), grant.reserved("mail")) == (5, 1)
    start_s = time.monotonic()
    assert not leases.more(grant, "mail", 1)
    assert time.monotonic() - start_s < _LONG_S / 2

    leases.settle(grant)
    until(lambda: used(leases) == 5)


def test_what_was_spent_without_a_reservation_stops_the_next_task(opened: Open) -> None:
    leases = opened(api(10))
    priced = leases.register("timeline", {"api": 1})
    grant = acquire(leases, priced)

    leases.book(grant, "api", 30)
    leases.settle(grant)

    assert spend_all(leases, priced) == 0
    assert used(leases) == 30


# -- holding


def test_when_a_quota_is_gone_all_who_need_it_are_held_and_nobody_else(opened: Open, heard: Heard) -> None:
    leases = opened(api(20), Policy("mail", (Limit(20, LONG_NS),)), heard=heard)
    priced = leases.register("timeline", {"api": 1})
    leases.register("idle", {"api": 1})
    leases.register("both", {"api": 1, "mail": 1})
    other = leases.register("newsletter", {"mail": 1})
    free = leases.register("free", {})

    spend_all(leases, priced)

    held = dict(heard.next() for _ in range(3))
    assert set(held) == {"timeline", "idle", "both"}
    for standing in held.values():
        assert standing.held is not None
        assert (standing.held.quota, standing.held.cause) == ("api", Cause.QUOTA)
        assert standing.held.until_ns is not None
        assert standing.held.until_ns > leases.clock.now_ns() + LONG_NS - 60 * S
    assert leases.standing("newsletter").consuming
    leases.settle(acquire(leases, other))
    leases.settle(acquire(leases, free))
    assert heard.nothing


def test_who_waits_is_told_to_hold_after_the_listener_was(opened: Open) -> None:
    order: list[str] = []
    leases = opened(api(1), heard=lambda consumer, standing: order.append("listener"))  # type: ignore[arg-type]
    priced = leases.register("timeline", {"api": 1})
    acquire(leases, priced)

    # The unit that runs may come back, so this one waits, and then is held.
    assert isinstance(leases.acquire(priced), Hold)
    order.append("waiter")

    assert order == ["listener", "waiter"]


def test_nobody_waits_longer_than_hold_after(opened: Open) -> None:
    leases = opened(api(8), hold_after_s=0.3)
    priced = leases.register("timeline", {"api": 1})
    for _ in range(8):
        acquire(leases, priced)
    waited_s: list[float] = []

    def wait() -> None:
        start_s = time.monotonic()
        assert isinstance(leases.acquire(priced), Hold)
        waited_s.append(time.monotonic() - start_s)

    threads = [threading.Thread(target=wait) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_LONG_S)

    assert len(waited_s) == 8
    # Well before the margin after which a waiting thread would answer itself.
    assert max(waited_s) < 0.3 + 0.7


def test_a_backlog_that_cannot_be_paid_is_given_back_at_once(opened: Open) -> None:
    leases = opened(api(8), hold_after_s=_LONG_S)
    priced = leases.register("timeline", {"api": 1}, backlog=lambda: {"api": 500})
    for _ in range(8):
        acquire(leases, priced)

    start_s = time.monotonic()
    assert isinstance(leases.acquire(priced), Hold)
    assert time.monotonic() - start_s < _LONG_S / 4


def test_a_held_consumer_comes_back_when_the_window_has_moved_on(opened: Open, heard: Heard) -> None:
    leases = opened(api(40, 2 * S), heard=heard)
    priced = leases.register("timeline", {"api": 1})
    leases.register("idle", {"api": 1})
    assert spend_all(leases, priced) >= 40
    assert {heard.next()[0], heard.next()[0]} == {"timeline", "idle"}

    assert dict(heard.next() for _ in range(2)) == {"timeline": Standing(), "idle": Standing()}

    leases.settle(acquire(leases, priced))


def test_units_are_kept_for_a_consumer_that_comes_back(opened: Open, heard: Heard) -> None:
    # Given a costly consumer with a claim, held while a cheap one of the same process has spent all
    leases = opened(api(10, 2 * S), heard=heard)
    cheap = leases.register("cheap", {"api": 1})
    costly = leases.register("costly", {"api": 10})
    leases.settle(acquire(leases, cheap))
    assert isinstance(leases.acquire(costly), Hold)
    assert {heard.next()[0], heard.next()[0]} == {"cheap", "costly"}

    # When it comes back, its units are there, whatever the cheap one does
    while heard.next() != ("costly", Standing()):
        pass
    assert leases.take(cheap) is None
    assert leases.take(costly) is not None


def test_registering_judges_at_once(opened: Open) -> None:
    first = opened(api(3))
    spend_all(first, first.register("timeline", {"api": 1}))

    second = opened(api(3))
    second.register("timeline", {"api": 1})

    assert second.standing("timeline").held is not None


def test_a_withdrawn_consumer_waits_for_nothing_and_keeps_nobody_waiting(opened: Open) -> None:
    leases, other = opened(api(5), hold_after_s=_LONG_S), opened(api(5))
    priced = leases.register("timeline", {"api": 5})
    grant = acquire(leases, priced)
    answers: Queue[Grant | Hold] = Queue()
    threading.Thread(target=lambda: answers.put(leases.acquire(priced)), daemon=True).start()
    until(lambda: bool(leases._ledger.readings()["api"].claims))

    leases.withdraw("timeline")

    assert answers.get(timeout=_LONG_S) == Hold(None, Cause.WITHDRAWN)
    assert leases.standing("timeline").held == Hold(None, Cause.WITHDRAWN)
    assert leases.acquire(priced) == Hold(None, Cause.WITHDRAWN)
    until(lambda: not leases._ledger.readings()["api"].claims)
    # What runs is settled as ever; and it may be registered again.
    leases.settle(grant, {})
    assert spend_all(other, other.register("timeline", {"api": 1})) == 5
    leases.register("timeline", {"api": 5})
    assert leases.standing("timeline").held is not None


# -- limits and blocks


def test_a_lowered_limit_binds_the_very_next_task_of_every_process(opened: Open) -> None:
    one, other = opened(api(1000)), opened(api(1000))
    priced = one.register("timeline", {"api": 1})
    for _ in range(10):
        one.settle(acquire(one, priced))
    assert one._till.pools["api"].left > 0

    other.configure([api(10)])

    assert one.take(priced) is None
    assert isinstance(one.acquire(priced), Hold)


def test_a_raised_limit_brings_consumers_back(opened: Open, heard: Heard) -> None:
    one, other = opened(api(3), heard=heard), opened(api(3))
    priced = one.register("timeline", {"api": 1})
    spend_all(one, priced)
    assert heard.next()[1].held is not None

    other.configure([api(100)])

    assert heard.next() == ("timeline", Standing())
    assert spend_all(one, priced) == 97


def test_a_quota_that_is_new_can_be_used_once_it_is_configured(opened: Open) -> None:
    leases = opened(api(3))
    with pytest.raises(UnknownName, match="mail"):
        leases.register("newsletter", {"mail": 1})

    leases.configure([Policy("mail", (Limit(2, LONG_NS),))])

    assert spend_all(leases, leases.register("newsletter", {"mail": 1})) == 2


def test_race_of_a_start_and_a_quota_that_another_process_adds_while_it_looks(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = opened(api(3))
    look, added = Ledger.readings, []

    def then_add(ledger: Ledger, **options: float) -> object:
        found = look(ledger, **options)
        if not added:
            added.append(True)
            other.configure([Policy("mail", (Limit(2, LONG_NS),))])
        return found

    monkeypatch.setattr(Ledger, "readings", then_add)
    leases = opened(api(3))

    assert added
    assert spend_all(leases, leases.register("timeline", {"api": 1})) == 3


def test_a_block_holds_all_processes_until_it_ends(opened: Open, heard: Heard) -> None:
    one, other = opened(api(1000), heard=heard), opened(api(1000))
    priced = one.register("timeline", {"api": 1})
    one.settle(acquire(one, priced))
    until_ns = one.clock.now_ns() + 2 * S

    other.block("api", until_ns)

    assert one.take(priced) is None
    got = one.acquire(priced)
    assert isinstance(got, Hold)
    assert got.cause is Cause.BLOCKED
    assert got.until_ns is not None
    assert until_ns <= got.until_ns <= until_ns + SPREAD_NS
    assert heard.next()[1].held == got
    assert heard.next() == ("timeline", Standing())
    assert one.clock.now_ns() >= until_ns
    one.settle(acquire(one, priced))


# -- giving back, writing, breaking


def test_idle_units_go_back_and_an_idle_process_writes_nothing(opened: Open, tmp_path: Path) -> None:
    leases = opened(api(1000))
    leases.settle(acquire(leases, leases.register("timeline", {"api": 1})))
    assert leases._till.pools["api"].left > 0

    # A unit spent, and the rest of the lease, are in the ledger within seconds
    until(lambda: used(leases) == 1)

    file = tmp_path / "web-1" / "ledger.sqlite"
    before_ns = file.stat().st_mtime_ns
    rounds = leases._renewal._kept_house_ns
    until(lambda: leases._renewal._kept_house_ns >= rounds + 2 * S)
    assert file.stat().st_mtime_ns == before_ns


def test_settlements_reach_the_ledger_within_a_second_under_way(opened: Open) -> None:
    leases = opened(api(10**6))
    priced = leases.register("timeline", {"api": 1})
    acquire(leases, priced)
    for _ in range(10):
        leases.settle(acquire(leases, priced))

    until(lambda: leases._ledger.readings()["api"].limits[0].spent.used(leases.clock.now_ns()) == 10)


def test_closing_gives_back_what_is_unspent_and_counts_what_is_not_settled(opened: Open, tmp_path: Path) -> None:
    leases = opened(api(1000))
    priced = leases.register("timeline", {"api": 3})
    acquire(leases, priced)
    leases.settle(acquire(leases, priced), {"api": 1})

    leases.close()

    ledger = Ledger.open(tmp_path / "web-1")
    reading = ledger.readings()["api"]
    assert (reading.used(ledger.clock.now_ns()), reading.leased) == ((4,), {})
    assert list((tmp_path / "web-1" / "processes").iterdir()) == []
    ledger.close()


def test_closing_answers_who_waits(opened: Open) -> None:
    leases = opened(api(1), hold_after_s=_LONG_S)
    priced = leases.register("timeline", {"api": 1})
    acquire(leases, priced)
    answers: Queue[Grant | Hold] = Queue()
    threading.Thread(target=lambda: answers.put(leases.acquire(priced)), daemon=True).start()
    until(lambda: bool(leases._till.waiters))

    leases.close()

    assert answers.get(timeout=_LONG_S) == Hold(None, Cause.WITHDRAWN)
    assert leases.acquire(priced) == Hold(None, Cause.WITHDRAWN)


def test_a_ledger_that_cannot_be_written_holds_and_recovers_by_itself(opened: Open, heard: Heard) -> None:
    leases = opened(api(10**6), hold_after_s=0.3, heard=heard)
    free = leases.register("free", {})
    priced = leases.register("timeline", {"api": 50_000})

    with no_writes():
        start_s = time.monotonic()
        assert leases.acquire(priced) == Hold(None, Cause.LEDGER)
        assert time.monotonic() - start_s < 0.3 + 0.7
        assert heard.next() == ("timeline", Standing(Hold(None, Cause.LEDGER)))
        assert isinstance(leases.broken, LedgerError)
        # What needs no quota goes on.
        leases.settle(acquire(leases, free))

    assert heard.next() == ("timeline", Standing())
    assert leases.broken is None
    leases.settle(acquire(leases, priced))


def test_a_ledger_that_is_lost_under_running_workers_is_not_taken_for_a_fresh_start(
    opened: Open, tmp_path: Path, heard: Heard
) -> None:
    leases = opened(api(1000), heard=heard)
    priced = leases.register("timeline", {"api": 1})
    running = acquire(leases, priced)

    (tmp_path / "web-1" / "ledger.sqlite").unlink()
    spend_all(leases, priced)

    # A lease that was in memory may have been spent; then everything counts as spent, what runs included.
    assert heard.next()[1].held is not None
    until(lambda: used(leases) >= 1001)
    leases.settle(running)


def test_a_listener_that_fails_does_not_stop_the_ledger(opened: Open) -> None:
    def fail(consumer: str, standing: Standing) -> None:
        raise RuntimeError("listener")

    leases = opened(api(40, 2 * S), heard=fail)  # type: ignore[arg-type]
    priced = leases.register("timeline", {"api": 1})
    spend_all(leases, priced)

    until(lambda: leases.standing("timeline").consuming)
    until(lambda: isinstance(leases.take(priced) or leases.acquire(priced), Grant))


def test_no_descriptor_is_left_open(opened: Open) -> None:
    opened(api(10)).close()
    before = descriptors()

    for _ in range(3):
        opened(api(10)).close()

    assert descriptors() <= before


# -- what the API says


def answer(leases: Leases, remaining: int, *, sent_ns: int | None = None) -> Heard_:
    """An answer that has just come, to a call that was sent a moment ago."""
    now_ns = leases.clock.now_ns()
    return Heard_(told=(Told(remaining, None, None, None, now_ns if sent_ns is None else sent_ns, now_ns),))


def test_when_the_api_says_that_others_have_spent_the_rest_its_consumers_are_held_and_come_back_by_themselves(
    opened: Open, heard: Heard
) -> None:
    # Given a process with units in memory, and a window of two seconds
    leases = opened(api(1000, 2 * S), heard=heard)
    priced = leases.register("timeline", {"api": 1})
    leases.settle(acquire(leases, priced))
    assert leases._till.left("api") > 0

    # When an answer says that nothing remains
    said_ns = leases.clock.now_ns()
    leases.tell("api", answer(leases, 0))

    # Then nothing in memory is spent any more
    assert leases.take(priced) is None
    got = leases.acquire(priced)
    assert isinstance(got, Hold)
    assert (got.quota, got.cause) == ("api", Cause.QUOTA)
    found = leases.foreign()["api"]
    assert (found.lo_units, found.remaining_units, found.limit.units) == (999, 0, 1000)
    assert heard.next() == ("timeline", Standing(got))

    # and though no answer comes any more, since it is held, it is back a window later, for one task at first
    assert heard.next() == ("timeline", Standing())
    assert 2 * S <= leases.clock.now_ns() - said_ns <= 4 * S
    first = acquire(leases, priced)
    assert leases.take(priced) is None
    leases.tell("api", answer(leases, 999))
    leases.settle(first)
    until(lambda: leases.foreign() == {})
    one, other = acquire(leases, priced), acquire(leases, priced)
    for grant in (one, other):
        leases.settle(grant)


def spends_one(leases: Leases, priced: Priced) -> bool:
    got = leases.take(priced) or leases.acquire(priced)
    if isinstance(got, Grant):
        leases.settle(got)
    return isinstance(got, Grant)


def test_a_refusal_holds_all_processes_and_afterwards_one_task_goes_alone(opened: Open, heard: Heard) -> None:
    # Given two processes with units in memory
    one, other = opened(api(1000, 2 * S)), opened(api(1000, 2 * S), heard=heard)
    priced = [leases.register("timeline", {"api": 1}) for leases in (one, other)]
    for leases, price in zip((one, other), priced, strict=True):
        leases.settle(acquire(leases, price))

    # When the API refuses a call of one for longer than a task may wait
    served_ns = one.clock.now_ns() + 3 * S // 2
    one.tell("api", Heard_(refused=True, wait=Span(served_ns, served_ns)))

    # Then that one spends nothing from this moment on, and the other as soon as the ledger was told
    assert one.take(priced[0]) is None
    until(lambda: not spends_one(other, priced[1]))
    held = heard.next()[1].held
    assert held is not None
    assert held.cause is Cause.BLOCKED

    # and when it is over one task goes alone, until it was answered
    assert heard.next() == ("timeline", Standing())
    assert other.clock.now_ns() >= served_ns
    alone = acquire(other, priced[1])
    assert isinstance(one.acquire(priced[0]), Hold)
    other.settle(alone)
    until(lambda: one.standing("timeline").consuming)
    both = acquire(one, priced[0]), acquire(one, priced[0])
    for grant in both:
        one.settle(grant)


def test_a_refusal_right_before_the_end_is_written_down(opened: Open, tmp_path: Path) -> None:
    leases = opened(api(1000))
    until_ns = leases.clock.now_ns() + 30 * S
    leases._renewal.stop()
    leases.tell("api", Heard_(refused=True, wait=Span(until_ns, until_ns)))
    leases.close()

    ledger = Ledger.open(tmp_path / "web-1")
    assert ledger.readings()["api"].blocked_until_ns >= until_ns
    ledger.close()


# -- on an event loop


def test_a_coroutine_waits_for_units_while_its_loop_goes_on(opened: Open) -> None:
    leases = opened(api(3))
    priced = leases.register("timeline", {"api": 3})

    async def scene() -> None:
        running = await leases.acquire_async(priced)
        assert isinstance(running, Grant)
        waits = asyncio.create_task(leases.acquire_async(priced))
        while not leases._till.waiters:
            await asyncio.sleep(0.001)
        leases.settle(running, {})
        got = await asyncio.wait_for(waits, _LONG_S)
        assert isinstance(got, Grant)
        # There is no more for a task that runs, nor for another
        assert not await leases.more_async(got, "api", 1)
        assert isinstance(await leases.acquire_async(priced), Hold)
        leases.settle(got, {"api": 1})

    asyncio.run(scene())
    until(lambda: used(leases) == 1)


@pytest.mark.parametrize("served", [False, True])
def test_race_of_a_coroutine_that_is_cancelled_and_the_units_it_waits_for(opened: Open, served: bool) -> None:
    # Given a coroutine that waits, and is cancelled before it has got anything, or in the moment when it has
    leases = opened(api(2))
    priced = leases.register("timeline", {"api": 2})

    async def scene() -> None:
        running = await leases.acquire_async(priced)
        assert isinstance(running, Grant)
        waits = asyncio.create_task(leases.acquire_async(priced))
        while not leases._till.waiters:
            await asyncio.sleep(0.001)
        if served:
            leases.settle(running, {})
            deadline_s = time.monotonic() + _LONG_S
            while leases._till.waiters:  # the loop must not see the answer yet
                assert time.monotonic() < deadline_s
                time.sleep(0.001)
            time.sleep(0.01)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        await asyncio.sleep(0)
        if not served:
            assert leases._till.waiters == []
            leases.settle(running, {})

    asyncio.run(scene())

    # Then nothing stays reserved
    leases.settle(acquire(leases, priced), {})
    assert leases._till.pools["api"].running == 0


def test_race_of_a_coroutine_that_is_cancelled_and_the_thread_that_is_about_to_answer_it(opened: Open) -> None:
    leases = opened(api(2))
    priced = leases.register("timeline", {"api": 2})

    async def scene() -> None:
        running = await leases.acquire_async(priced)
        assert isinstance(running, Grant)
        waits = asyncio.create_task(leases.acquire_async(priced))
        while not leases._till.waiters:
            await asyncio.sleep(0.001)
        # Given that it is out of the line, and not answered yet
        (waiter,) = leases._till.waiters
        assert leases._till.dequeue(waiter)
        leases.settle(running, {})
        got = await leases.acquire_async(priced)
        assert isinstance(got, Grant)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        waiter.done(got)
        await asyncio.sleep(0)

    asyncio.run(scene())

    # Then what came for it is given back
    leases.settle(acquire(leases, priced), {})


# -- one at a time, and the costly one


def test_a_task_of_fifty_among_a_flood_of_ones_is_paid_within_a_window(opened: Open) -> None:
    # Given two processes that spend two hundred units in two seconds one by one, and want more
    window_ns = 2 * S
    flooding, leases = opened(api(200, window_ns)), opened(api(200, window_ns))
    over = threading.Event()

    def flood(process: Leases, priced: Priced) -> None:
        while not over.is_set():
            got = process.take(priced) or process.acquire(priced)
            if isinstance(got, Grant):
                over.wait(0.02)
                process.settle(got)
            else:
                over.wait(0.005)

    costly = leases.register("costly", {"api": 50})
    threads = [
        threading.Thread(target=flood, args=(process, process.register("cheap", {"api": 1})))
        for process in (flooding, leases)
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    try:
        until(lambda: used(leases) >= 200)

        # When a task of fifty comes, and comes again whenever it was given back
        came_ns = leases.clock.now_ns()
        while not isinstance(got := leases.take(costly) or leases.acquire(costly), Grant):
            until(lambda: leases.standing("costly").consuming)

        # Then it is paid as soon as what was spent before it is free again
        assert leases.clock.now_ns() - came_ns <= window_ns + S // 2
        leases.settle(got)
    finally:
        over.set()
        for thread in threads:
            thread.join(_LONG_S)


def test_a_bucket_is_used_at_its_full_rate_by_two_processes(opened: Open) -> None:
    # Given fifty units a second, of which eight may come at once, and calls of 20 ms in two processes
    paced = Policy("api", (Limit(5000, 100 * S),), Window.PACED, 8)
    processes = [opened(paced) for _ in range(2)]
    calls: list[float] = []
    end_s = time.monotonic() + 3.0

    def work(leases: Leases, priced: Priced) -> None:
        while time.monotonic() < end_s:
            got = leases.take(priced) or leases.acquire(priced)
            if isinstance(got, Grant):
                calls.append(time.monotonic())
                time.sleep(0.02)
                leases.settle(got)

    threads = [
        threading.Thread(target=work, args=(leases, leases.register("timeline", {"api": 1})))
        for leases in processes
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_LONG_S)

    # Then never more than the bucket admits, and after the first burst nearly all that it does
    calls.sort()
    for first, at_s in enumerate(calls):
        assert sum(at_s <= it <= at_s + 0.5 for it in calls[first:]) <= 8 + 25 + 1
    steady = [at_s for at_s in calls if end_s - 2.0 <= at_s < end_s]
    assert len(steady) >= 85
