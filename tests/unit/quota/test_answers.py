"""What the upstream's answers change in the ledger: when windows end, what others have spent, what a refusal costs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from qctl.quota import Ledger, Limit, Policy, Window
from qctl.quota.exchange import Exchange, Want
from qctl.quota.upstream import Span, Told
from qctl.quota.window import LimitReading, free_units
from tests.unit.quota.model import FakeClock, S

FIXED = Policy("api", (Limit(100, 100 * S),), Window.FIXED)
SLIDING = Policy("api", (Limit(100, 100 * S),))
PACED = Policy("api", (Limit(100, 100 * S),), Window.PACED, burst_units=10)
Open = Callable[..., Ledger]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def join(tmp_path: Path, clock: FakeClock) -> Iterator[Open]:
    opened: list[Ledger] = []

    def open_one(policy: Policy) -> Ledger:
        ledger = Ledger.open(tmp_path / "web-1", clock=clock.clock())
        opened.append(ledger)
        ledger.configure([policy])
        ledger.join()
        return ledger

    yield open_one
    for ledger in opened:
        ledger.close()


def lease(ledger: Ledger, units: int, *, held: int = 0) -> bool:
    want = Want("timeline", {"api": units}, claim=False)
    return ledger.exchange(Exchange(held={"api": held}, wants=(want,))).granted == (True,)


def settle(ledger: Ledger, units: int, *, held: int = 0, sent_ns: int | None = None) -> None:
    """sent_ns: of a call that was answered and not refused."""
    served = {} if sent_ns is None else {"api": sent_ns}
    ledger.exchange(Exchange(held={"api": held}, settled={"api": {ledger.clock.now_ns(): units}}, served=served))


def told(
    ledger: Ledger, remaining: int | None = None, *, ends_s: tuple[float, float] | None = None, took_s: float = 0.0
) -> Told:
    """An answer that comes now. ends_s: from now until the window's end, at least and at most."""
    now_ns = ledger.clock.now_ns()
    reset = Span(*(now_ns + int(it * S) for it in ends_s)) if ends_s else None
    return Told(remaining, 100, None, reset, sent_ns=now_ns - int(took_s * S), received_ns=now_ns)


def hear(ledger: Ledger, *answers: Told, held: int = 0, running: int = 0) -> None:
    ledger.exchange(Exchange(held={"api": held}, running={"api": running}, told={"api": answers}))


def part(ledger: Ledger) -> LimitReading:
    return ledger.readings()["api"].limits[-1]


def free(ledger: Ledger) -> int:
    return free_units(ledger.readings()["api"], ledger.clock.now_ns())


# -- fixed windows


def test_a_reset_that_was_announced_frees_the_whole_limit(join: Open, clock: FakeClock) -> None:
    ledger = join(FIXED)
    assert lease(ledger, 100)
    settle(ledger, 100)
    hear(ledger, told(ledger, ends_s=(20, 21)))

    # Neither sooner than it has passed for certain, nor later than by the spread of a half of a per cent of the window
    clock.pass_ns(21 * S - 1)
    assert not lease(ledger, 1)
    clock.pass_ns(S // 2 + 1)
    assert lease(ledger, 100)
    # And the next window's hundred are counted until it ends, or for a window
    settle(ledger, 100)
    clock.pass_ns(99 * S)
    assert not lease(ledger, 1)
    clock.pass_ns(2 * S)
    assert lease(ledger, 100)


def test_without_a_reset_a_fixed_limit_slides(join: Open, clock: FakeClock) -> None:
    ledger = join(FIXED)
    assert lease(ledger, 100)
    settle(ledger, 100)

    clock.pass_ns(100 * S)
    assert not lease(ledger, 1)
    clock.pass_ns(S)
    assert lease(ledger, 100)


def test_what_is_out_at_a_reset_counts_before_and_after_it(join: Open, clock: FakeClock) -> None:
    ledger = join(FIXED)
    assert lease(ledger, 100)
    hear(ledger, told(ledger, ends_s=(20, 20)), held=100)
    clock.pass_ns(21 * S)

    assert not lease(ledger, 1, held=100)
    # What is settled later was perhaps counted later.
    settle(ledger, 60, held=40)
    assert free(ledger) == 0
    # And what was not used is free.
    ledger.exchange(Exchange())
    assert free(ledger) == 40


def test_a_reboot_forgets_when_windows_end(join: Open, clock: FakeClock) -> None:
    # Given a second window, all spent
    ledger = join(FIXED)
    hear(ledger, told(ledger, ends_s=(1, 1)))
    clock.pass_ns(2 * S)
    assert lease(ledger, 100)
    settle(ledger, 100)
    hear(ledger, told(ledger, ends_s=(99, 99)))
    ledger.close()

    # When the clock begins anew, where instants of before mean nothing
    clock.reboot()
    ledger = join(FIXED)

    # Then it slides
    clock.pass_ns(150 * S)
    assert free(ledger) == 0
    clock.pass_ns(12 * S)
    assert free(ledger) == 100


def test_a_longer_period_counts_a_fixed_window_more_than_a_sliding_limit_admits(join: Open, clock: FakeClock) -> None:
    # Given twice the limit, just before a reset and just after it, of which nobody remembers anything
    ledger = join(FIXED)
    hear(ledger, told(ledger, ends_s=(20, 20)))
    for _ in range(2):
        assert lease(ledger, 100)
        settle(ledger, 100)
        clock.pass_ns(21 * S)
    clock.pass_ns(90 * S)
    settle(ledger, 1)

    ledger.configure([Policy("api", (Limit(1_000, 1_000 * S),))])

    assert 201 <= 1_000 - free(ledger) <= 301


def test_an_answer_of_another_window_says_nothing_of_this_one(join: Open, clock: FakeClock) -> None:
    ledger = join(FIXED)
    late = told(ledger, 0, ends_s=(1, 1))
    hear(ledger, told(ledger, ends_s=(1, 1)))
    clock.pass_ns(3 * S)

    # When it is heard after the window's end, or after the next window was spoken of
    hear(ledger, late)
    assert part(ledger).foreign is None
    hear(ledger, told(ledger, ends_s=(98, 98)))
    hear(ledger, late)

    assert part(ledger).foreign is None
    assert free(ledger) == 100


def test_a_fixed_limit_that_slides_from_now_on_counts_what_was_forgotten(join: Open, clock: FakeClock) -> None:
    ledger = join(FIXED)
    assert lease(ledger, 70)
    settle(ledger, 70)
    hear(ledger, told(ledger, ends_s=(20, 20)))
    clock.pass_ns(21 * S)
    assert free(ledger) == 100

    ledger.configure([SLIDING])
    assert free(ledger) == 30

    # And does not forget at a reset of before
    ledger.configure([FIXED])
    assert free(ledger) == 30


# -- paced


def test_a_bucket_admits_its_burst_and_then_a_unit_an_interval(join: Open, clock: FakeClock) -> None:
    ledger = join(PACED)
    assert not lease(ledger, 11)
    assert lease(ledger, 10)
    clock.pass_ns(30 * S)
    # What runs does not run out
    assert not lease(ledger, 1, held=10)

    settle(ledger, 10)
    assert not lease(ledger, 1)
    clock.pass_ns(S + S // 1000)
    assert not lease(ledger, 2)
    assert lease(ledger, 1)


def test_a_bucket_is_as_full_after_a_change_of_its_rate(join: Open, clock: FakeClock) -> None:
    ledger = join(PACED)
    assert lease(ledger, 8)
    settle(ledger, 8)

    # Given ten times the rate
    ledger.configure([Policy("api", (Limit(1000, 100 * S),), Window.PACED, burst_units=10)])

    assert free(ledger) == 2
    clock.pass_ns(S // 10 + S // 100)
    assert free(ledger) == 3


def test_a_limit_that_is_paced_from_now_on_begins_with_a_full_bucket(join: Open, clock: FakeClock) -> None:
    ledger = join(SLIDING)

    ledger.configure([PACED])
    assert free(ledger) == 0
    clock.pass_ns(11 * S)
    assert free(ledger) == 10

    # And one that is no longer has had it all the time
    assert lease(ledger, 10)
    settle(ledger, 10)
    ledger.configure([SLIDING])
    assert free(ledger) == 90


def test_a_new_bucket_holds_what_may_be_counted_later(join: Open, clock: FakeClock) -> None:
    # Given a call that was not answered, when the limit becomes paced
    ledger = join(SLIDING)
    ledger.exchange(Exchange(doubtful={"api": {ledger.clock.now_ns(): 1}}))
    clock.pass_ns(S)
    ledger.configure([PACED])

    # Then when what was in the bucket has run out of it, that one may still have come last
    clock.pass_ns(9 * S + S // 2)
    assert free(ledger) == 0
    clock.pass_ns(11 * S)
    assert free(ledger) == 10


def test_a_reboot_begins_the_bucket_anew_as_full_as_it_was(join: Open, clock: FakeClock) -> None:
    ledger = join(PACED)
    assert lease(ledger, 6)
    settle(ledger, 6)
    ledger.close()

    clock.reboot()
    ledger = join(PACED)

    # A linger of the bucket's time, and then what was in it runs out
    clock.pass_ns(10 * S)
    assert free(ledger) <= 4
    clock.pass_ns(6 * S + S // 100)
    assert free(ledger) == 10


def test_what_may_have_been_spent_elsewhere_fills_the_bucket(join: Open, clock: FakeClock) -> None:
    ledger = join(PACED)
    clock.pass_ns(30 * S)
    assert ledger.count_as_spent("a volume was lost")

    assert free(ledger) <= 0
    clock.pass_ns(100 * S)
    # The bucket is empty again, the window is not
    assert [it.used(ledger.clock.now_ns()) for it in ledger.readings()["api"].limits] == [0, 100]


def test_a_dead_process_keeps_its_units_in_the_bucket(join: Open, clock: FakeClock) -> None:
    dying, other = join(PACED), join(PACED)
    assert lease(dying, 4)
    dying.close()
    clock.pass_ns(30 * S)

    assert other.bury_dead() == 1

    assert free(other) <= 6
    clock.pass_ns(15 * S)
    assert free(other) == 10


# -- spending of others


def test_what_others_have_spent_is_kept_off(join: Open, clock: FakeClock) -> None:
    ledger = join(FIXED)
    assert lease(ledger, 10)
    settle(ledger, 10)
    clock.pass_ns(S)

    # Given an answer by which 60 are left of 100, to a call that is out, like three more
    assert lease(ledger, 4)
    hear(ledger, told(ledger, 60, ends_s=(50, 50), took_s=0.5), held=4, running=4)

    # Then 26 to 29 are of others: those that are out were counted, or not; the call itself was
    found = part(ledger).foreign
    assert found is not None
    assert (found.lo_units, found.hi_units) == (26, 29)
    assert free(ledger) == 100 - 14 - 29
    # And what is left is told anew, when nothing is out, by the call that is sent then
    settle(ledger, 4)
    clock.pass_ns(S)
    hear(ledger, told(ledger, 59, ends_s=(49, 49), took_s=0.5), held=1, running=1)
    assert free(ledger) == 100 - 15 - 26
    # Until the window ends
    ledger.exchange(Exchange())
    clock.pass_ns(50 * S)
    assert free(ledger) == 100


@pytest.mark.parametrize("policy", [FIXED, SLIDING], ids=["fixed", "sliding"])
def test_what_others_had_leased_and_gave_back_was_not_called_for(join: Open, clock: FakeClock, policy: Policy) -> None:
    # Given a process that has units in its memory while another hears that nothing is left
    ledger, other = join(policy), join(policy)
    assert lease(other, 8)
    assert lease(ledger, 2)
    hear(ledger, told(ledger, 0, ends_s=(50, 50), took_s=0.5), held=2, running=2)
    settle(ledger, 2)

    # When those come back unspent, and nothing is out any more
    other.exchange(Exchange())

    # Then it is known for certain that others have all the rest, and no call is sent to find out
    clock.pass_ns(S // 2)
    assert not lease(ledger, 1)
    found = part(ledger).foreign
    assert found is not None
    assert found.lo_units == 98


def test_a_larger_limit_upstream_is_no_spending_of_others(join: Open) -> None:
    ledger = join(SLIDING)
    assert lease(ledger, 5)

    hear(ledger, Told(995, 1000, None, None, sent_ns=0, received_ns=ledger.clock.now_ns()), held=5, running=5)

    found = part(ledger).foreign
    assert found is None or found.hi_units == 0
    assert free(ledger) == 95


def test_what_expires_while_a_call_is_out_is_not_taken_for_spending_of_others(join: Open, clock: FakeClock) -> None:
    ledger = join(SLIDING)
    assert lease(ledger, 50)
    settle(ledger, 50)
    clock.pass_ns(100 * S - S // 10)
    assert lease(ledger, 1)
    sent_ns = ledger.clock.now_ns()

    # Given a call that was counted at once, and answered when the fifty of before had expired
    clock.pass_ns(S)
    ledger.exchange(Exchange(held={"api": 1}, settled={"api": {ledger.clock.now_ns() - 1: 1}}))
    answer = Told(49, 100, None, None, sent_ns=sent_ns, received_ns=ledger.clock.now_ns())
    hear(ledger, answer, held=1, running=1)

    found = part(ledger).foreign
    assert found is not None
    assert (found.lo_units, found.hi_units) == (0, 0)


def test_what_others_have_in_a_bucket_runs_out_of_it(join: Open, clock: FakeClock) -> None:
    ledger = join(PACED)
    assert lease(ledger, 1)
    now_ns = ledger.clock.now_ns()
    answer = Told(3, 10, None, None, sent_ns=now_ns, received_ns=now_ns, exact=True)

    hear(ledger, answer, held=1, running=1)

    # Seven are in it, of which one is ours, and out
    assert [it.foreign and it.foreign.lo_units for it in ledger.readings()["api"].limits] == [6, None]
    settle(ledger, 1)
    assert free(ledger) == 3
    clock.pass_ns(2 * S + S // 100)
    assert free(ledger) == 5


def test_when_our_own_limit_changes_others_have_spent_what_leaves_as_much(join: Open) -> None:
    ledger = join(FIXED)
    assert lease(ledger, 1)
    hear(ledger, told(ledger, 50, ends_s=(50, 50)), held=1, running=1)
    assert free(ledger) == 50

    # Ours was raised, not that of the upstream; then lowered
    ledger.configure([Policy("api", (Limit(300, 100 * S),), Window.FIXED)])
    assert free(ledger) == 50
    ledger.configure([Policy("api", (Limit(40, 100 * S),), Window.FIXED)])
    assert free(ledger) == 39


@pytest.mark.parametrize("in_flight", [False, True])
def test_after_a_limit_was_raised_the_next_answer_decides_and_none_of_before(
    join: Open, clock: FakeClock, in_flight: bool
) -> None:
    # Given a plan that was used up, was upgraded, and an answer of before that comes late
    ledger = join(FIXED)
    assert lease(ledger, 100)
    old = told(ledger, 0, ends_s=(50, 50))
    hear(ledger, old, held=1, running=1)
    settle(ledger, 100)
    clock.pass_ns(S)
    assert not lease(ledger, 1)
    ledger.configure([Policy("api", (Limit(200, 100 * S),), Window.FIXED)])
    if in_flight:
        hear(ledger, old)

    # Then one task goes alone, and nobody is accused
    found = part(ledger).foreign
    assert found is not None
    assert found.lo_units == 0
    assert lease(ledger, 1)
    assert not lease(ledger, 1, held=1)
    # And by what it is told all the rest is ours
    clock.pass_ns(S)
    answer = Told(99, 200, None, told(ledger, ends_s=(48, 48)).reset, ledger.clock.now_ns() - 1, ledger.clock.now_ns())
    hear(ledger, answer, held=1, running=1)
    settle(ledger, 1)
    assert free(ledger) == 99


def test_one_low_answer_is_not_believed_any_more_when_the_next_call_says_otherwise(
    join: Open, clock: FakeClock
) -> None:
    # Given an hour's limit, and one answer of a server that knows better than all others
    ledger = join(FIXED)
    for remaining in (99, 98, 3, 96):
        assert lease(ledger, 1)
        clock.pass_ns(S)
        hear(ledger, told(ledger, remaining, ends_s=(50, 60), took_s=0.5), held=1, running=1)
        settle(ledger, 1)
        clock.pass_ns(S)

    found = part(ledger).foreign
    assert found is not None
    assert (found.lo_units, found.hi_units) == (0, 0)
    assert free(ledger) == 96


@pytest.mark.parametrize("policy", [FIXED, SLIDING, PACED], ids=["fixed", "sliding", "paced"])
def test_what_others_have_in_memory_is_void_when_one_is_told_that_less_is_left(
    join: Open, clock: FakeClock, policy: Policy
) -> None:
    ledger, other = join(policy), join(policy)
    assert lease(other, 5)
    assert lease(ledger, 1)
    slot, before = ledger.slots()["api"], ledger.words.view[ledger.slots()["api"]]
    clock.pass_ns(S)
    ends_s = None if policy is PACED else (50, 50)

    # When more is left than is out, then nothing is void
    hear(ledger, told(ledger, 8 if policy is PACED else 50, ends_s=ends_s, took_s=0.5), held=1, running=1)
    assert other.words.view[slot] == before

    # When less is, then all that is leased and with no call, once
    clock.pass_ns(S // 10)
    now_ns = ledger.clock.now_ns()
    limits = [it.limit.units for it in ledger.readings()["api"].limits if policy is PACED]
    nothing = Told(
        0, min(limits, default=100), None, told(ledger, ends_s=ends_s).reset if ends_s else None, now_ns, now_ns
    )
    response = ledger.exchange(Exchange(held={"api": 1}, running={"api": 1}, told={"api": [nothing]}))
    assert other.words.view[slot] == response.epochs["api"] == before + 1
    hear(ledger, nothing, held=1, running=1)
    assert other.words.view[slot] == before + 1


# -- refusals


def test_after_a_refusal_one_task_goes_at_a_time_until_one_is_served(join: Open, clock: FakeClock) -> None:
    ledger, other = join(SLIDING), join(SLIDING)
    ledger.block("api", ledger.clock.now_ns() + 5 * S)
    clock.pass_ns(6 * S)

    # Then one is let go on the whole host, and nothing is leased ahead of need
    response = ledger.exchange(Exchange(wants=(Want("a", {"api": 1}), Want("a", {"api": 1})), top_up={"api": 0}))
    assert (response.granted, response.leased) == ((True, False), {"api": 0})
    assert not lease(other, 1)
    # And when it comes back without a call, another
    ledger.exchange(Exchange(unclaim=("a",)))
    assert lease(other, 1)
    # And when it is served, as many as are wanted
    sent_ns = other.clock.now_ns()
    clock.pass_ns(S)
    settle(other, 1, sent_ns=sent_ns)
    assert lease(ledger, 40)
    assert lease(other, 40)


def test_whoever_is_stopped_with_the_one_task_after_a_refusal_does_not_keep_the_others_from_theirs(
    join: Open, clock: FakeClock
) -> None:
    stopped, other = join(SLIDING), join(SLIDING)
    stopped.block("api", stopped.clock.now_ns() + 5 * S)
    clock.pass_ns(6 * S)
    assert lease(stopped, 1)

    clock.pass_ns(58 * S)
    assert not lease(other, 1)
    clock.pass_ns(2 * S)
    assert lease(other, 40)


def test_a_refusal_that_says_nothing_lasts_twice_as_long_each_time(join: Open, clock: FakeClock) -> None:
    ledger = join(SLIDING)
    pauses = []
    for _ in range(6):
        ledger.block("api", None)
        # Of the calls that were out together the others say nothing new.
        ledger.block("api", None)
        pauses.append((ledger.readings()["api"].blocked_until_ns - ledger.clock.now_ns()) / S)
        clock.pass_ns(int(pauses[-1] * S) + 1)
    # Up to the period, and a little later than said
    for pause_s, said_s in zip(pauses, [5, 10, 20, 40, 80, 100], strict=True):
        assert said_s <= pause_s <= said_s + 0.5

    # And when one was served it begins anew
    clock.pass_ns(SLIDING.limits[0].bucket_ns)
    assert lease(ledger, 1)
    settle(ledger, 1, sent_ns=ledger.clock.now_ns())
    ledger.block("api", None)
    assert ledger.readings()["api"].blocked_until_ns - ledger.clock.now_ns() < 6 * S


@pytest.mark.parametrize("said_s", [1, None])
def test_a_refusal_goes_on_until_a_call_was_served_and_the_refused_one_is_none(
    join: Open, clock: FakeClock, said_s: int | None
) -> None:
    # Given a limit whose history has so coarse a grain that the refused call counts to later than its refusal lasts
    limit = Limit(100, 86_400 * S)
    ledger = join(Policy("api", (limit,)))
    pauses = []
    for _ in range(4):
        now_ns = ledger.clock.now_ns()
        assert lease(ledger, 1)
        # When two are refused that were out together, one of which says a little more
        ledger.block("api", said_s and now_ns + said_s * S)
        ledger.block("api", said_s and now_ns + said_s * S + 2 * S)
        pauses.append((ledger.readings()["api"].blocked_until_ns - now_ns) / S)
        ledger.exchange(Exchange(settled={"api": {-(-now_ns // limit.bucket_ns) * limit.bucket_ns: 1}}))
        clock.pass_ns(int(pauses[-1] * S) + 1)

    # Then each pause is longer than the one before, though it says the same
    for pause_s, least_s in zip(pauses, [5, 10, 20, 40] if said_s is None else [3, 5, 10, 20], strict=True):
        assert least_s <= pause_s <= least_s + 1.1

    # And when a call was served for certain, it begins anew
    assert lease(ledger, 1)
    settle(ledger, 1, sent_ns=ledger.clock.now_ns())
    ledger.block("api", said_s and ledger.clock.now_ns() + said_s * S)
    assert ledger.readings()["api"].blocked_until_ns - ledger.clock.now_ns() <= 6.1 * S


def test_a_word_that_was_over_when_it_came_is_a_refusal_and_no_pause(join: Open, clock: FakeClock) -> None:
    ledger = join(SLIDING)
    for pause_s in (0, 5):
        ledger.block("api", ledger.clock.now_ns() - 2 * S)
        assert pause_s - 1 <= (ledger.readings()["api"].blocked_until_ns - ledger.clock.now_ns()) / S <= pause_s + 1
        clock.pass_ns(S)


@pytest.mark.parametrize("period_s", [3600, 86_400], ids=["hour", "day"])
def test_a_task_that_settles_after_a_refusal_shows_nothing_unless_its_call_was_sent_after_it(
    join: Open, clock: FakeClock, period_s: int
) -> None:
    # Given a limit whose history is kept in grains that are longer than the block
    ledger = join(Policy("api", (Limit(1000, period_s * S),)))
    grain_ns = Limit(1000, period_s * S).bucket_ns
    sent_ns = ledger.clock.now_ns()
    ledger.block("api", sent_ns + S)
    until_ns = ledger.readings()["api"].blocked_until_ns

    # When units are settled in a grain that ends after it, of calls of before and of none
    ledger.exchange(Exchange(settled={"api": {sent_ns + grain_ns: 1}}, served={"api": sent_ns}))
    clock.pass_ns(3 * S)
    settle(ledger, 1)
    assert ledger.readings()["api"].probing(ledger.clock.now_ns())

    # Then only one that was sent since ends the probing
    settle(ledger, 1, sent_ns=until_ns - 1)
    assert ledger.readings()["api"].probing(ledger.clock.now_ns())
    settle(ledger, 1, sent_ns=until_ns)
    assert not ledger.readings()["api"].probing(ledger.clock.now_ns())


def test_another_limit_lets_one_task_find_out_whether_a_block_still_stands(join: Open, clock: FakeClock) -> None:
    ledger = join(SLIDING)
    ledger.block("api", ledger.clock.now_ns() + 3600 * S)
    assert not lease(ledger, 1)

    ledger.configure([Policy("api", (Limit(90, 100 * S),))])

    assert not lease(ledger, 1, held=1)
    assert lease(ledger, 1)
    assert not lease(ledger, 1, held=1)


# -- many calls, others, and an upstream that refuses


@dataclass(eq=False)
class Call:
    """A call of ours. counted: whether the upstream served it; None: it has not come to it yet."""

    ledger: Ledger
    sent_ns: int
    counted: bool | None = None
    counted_ns: int = 0
    remaining: int = 0
    settled_ns: int | None = None


@dataclass
class Shared:
    """An upstream with one fixed window at a time, that others spend of as well."""

    chance: random.Random
    clock: FakeClock
    units: int = 30
    period_ns: int = 20 * S
    begun_ns: int = 10**12
    used: int = 0
    calls: list[Call] = field(default_factory=list)
    #: What has been told: which call said it, and how much was left. Of the present window.
    said: list[tuple[Call, int]] = field(default_factory=list)

    def tick(self) -> None:
        """Time passes; windows end."""
        self.clock.pass_ns(self.chance.choice([self.chance.randrange(S // 2), self.chance.randrange(3 * S)]))
        if self.clock.true_ns >= self.begun_ns + self.period_ns:
            self.begun_ns += (self.clock.true_ns - self.begun_ns) // self.period_ns * self.period_ns
            self.used = 0
            self.said = []

    def count(self, call: Call) -> None:
        """The call comes to it."""
        call.counted, call.counted_ns = self.used < self.units, self.clock.true_ns
        self.used += call.counted
        call.remaining = self.units - self.used

    def end_ns(self) -> int:
        return self.begun_ns + self.period_ns - self.clock.booted_ns


def test_never_more_calls_than_were_left_by_what_was_told(join: Open, clock: FakeClock) -> None:
    policy = Policy("api", (Limit(30, 20 * S),), Window.FIXED)
    ledgers = [join(policy), join(policy)]
    chance = random.Random(5)
    api = Shared(chance, clock)
    admitted = 0
    for _ in range(500):
        api.tick()
        # Given others, who take some of it, at times all
        if chance.random() < 0.05:
            api.used = min(api.units, api.used + chance.choice([1, 3, 40]))
        # When calls are counted at any moment, and answered at any later one, in any order
        running = [call for call in api.calls if call.settled_ns is None]
        for call in running:
            if call.counted is None and chance.random() < 0.5:
                api.count(call)
        ledger = chance.choice(ledgers)
        mine = [call for call in running if call.ledger is ledger]
        done = [call for call in mine if call.counted is not None and chance.random() < 0.5]
        now_ns = ledger.clock.now_ns()
        answers = [
            Told(call.remaining, 30, None, Span(api.end_ns(), api.end_ns()), call.sent_ns, now_ns)
            for call in done
            if call.sent_ns >= api.begun_ns
        ]
        for call in done:
            call.settled_ns = now_ns
        if any(not call.counted for call in done):
            ledger.block("api", api.end_ns())
        held = len(mine) - len(done)
        alone = not [call for call in running if call not in done]
        response = ledger.exchange(
            Exchange(
                held={"api": held},
                running={"api": held},
                settled={"api": {now_ns: len(done)}} if done else {},
                told={"api": answers},
                wants=(Want("timeline", {"api": 1}, claim=False),),
            )
        )
        api.said += [(call, call.remaining) for call in done if call.sent_ns >= api.begun_ns]
        if response.granted == (True,):
            admitted += 1
            api.calls.append(Call(ledger, now_ns))
            # Then no more than were left by the call sent last have been out since, or this one goes alone
            of_window = [it for it in api.calls if it.counted is None or (it.counted and it.counted_ns >= api.begun_ns)]
            for said, left in sorted(api.said, key=lambda pair: pair[0].sent_ns)[-1:]:
                since = [it for it in of_window if it is not said and (it.settled_ns or now_ns) >= said.sent_ns]
                assert len(since) <= left or alone, f"{len(since)} calls, and {left} were left"
        api.calls = [it for it in api.calls if it.settled_ns is None or it.settled_ns > now_ns - 40 * S]
    assert admitted > 200
