"""The ledger, one promise at a time, with a clock that the test moves."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qctl.errors import LedgerError, StateError, UnknownName
from qctl.quota import Ledger, Limit, Policy, Window
from qctl.quota.books import kept_back_ns
from qctl.quota.desk import claim_life_ns
from qctl.quota.exchange import Exchange, Want
from qctl.quota.policy import enforced
from qctl.quota.upstream import Told
from tests.unit.quota.model import FakeClock, S, no_writes

API = Policy("api", (Limit(100, 10 * S),))
Open = Callable[..., Ledger]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state" / "web-1"


@pytest.fixture
def join(directory: Path, clock: FakeClock) -> Iterator[Open]:
    """Processes of one ledger; closed at the end without leaving, which is to die."""
    opened: list[Ledger] = []

    def open_one(*policies: Policy) -> Ledger:
        ledger = Ledger.open(directory, clock=clock.clock())
        opened.append(ledger)
        ledger.configure(policies or [API])
        ledger.join()
        return ledger

    yield open_one
    for ledger in opened:
        ledger.close()


def lease(ledger: Ledger, units: int, *, quota: str = "api", held: int = 0, consumer: str = "timeline") -> bool:
    response = ledger.exchange(Exchange(held={quota: held}, wants=(Want(consumer, {quota: units}),)))
    return response.granted == (True,)


def used(ledger: Ledger, quota: str = "api") -> tuple[int, ...]:
    return ledger.readings()[quota].used(ledger.clock.now_ns())


# -- leases and settlements


def test_a_unit_counts_from_its_lease_until_a_window_after_its_settlement(join: Open, clock: FakeClock) -> None:
    ledger = join()
    assert lease(ledger, 100)
    clock.pass_ns(60 * S)
    assert not lease(ledger, 1, held=100)

    # When it is settled at an instant that is past already
    settled_ns = ledger.clock.now_ns() - 3 * S
    ledger.exchange(Exchange(settled={"api": {settled_ns: 100}}))

    # Then it counts for a window from that instant on, a little longer for drift and rounding
    clock.pass_ns(7 * S)
    assert used(ledger) == (100,)
    clock.pass_ns(20 * 10**6)
    assert used(ledger) == (0,)
    assert lease(ledger, 100)


def test_what_may_have_been_counted_later_counts_a_linger_longer(join: Open, clock: FakeClock) -> None:
    ledger = join()
    assert lease(ledger, 100)
    ledger.exchange(Exchange(doubtful={"api": {ledger.clock.now_ns(): 100}}))

    clock.pass_ns(20 * S)
    assert used(ledger) == (100,)
    clock.pass_ns(20 * 10**6)
    assert used(ledger) == (0,)


def test_what_is_neither_held_nor_settled_has_come_back(join: Open) -> None:
    ledger = join()
    assert lease(ledger, 100)

    ledger.exchange(Exchange(held={"api": 30}, settled={"api": {ledger.clock.now_ns(): 20}}))

    assert used(ledger) == (50,)


def test_a_statement_repeated_does_not_free_what_is_held(join: Open) -> None:
    # Given an exchange whose answer was not learned, and which is therefore made again
    ledger = join()
    assert lease(ledger, 60)
    request = Exchange(held={"api": 50}, settled={"api": {ledger.clock.now_ns(): 10}})

    ledger.exchange(request)
    ledger.exchange(request)

    # Then what is held is what was said, and what was settled is counted twice rather than not at all
    assert used(ledger) == (70,)


def test_what_was_spent_without_a_lease_is_counted_all_the_same(join: Open) -> None:
    ledger = join()

    ledger.exchange(Exchange(held={"api": 90}, settled={"api": {ledger.clock.now_ns(): 30}}))

    assert used(ledger) == (120,)
    assert not lease(ledger, 1, held=90)


def test_a_want_is_granted_in_all_quotas_and_limits_or_in_none(join: Open) -> None:
    ledger = join(Policy("api", (Limit(100, 10 * S), Limit(5, S))), Policy("mail", (Limit(1, 10 * S),)))

    first, too_much, too_many, rest = ledger.exchange(
        Exchange(
            wants=(
                Want("a", {"api": 2, "mail": 1}, claim=False),
                Want("a", {"api": 1, "mail": 1}, claim=False),
                Want("a", {"api": 4}, claim=False),
                Want("a", {"api": 3}, claim=False),
            )
        )
    ).granted

    assert (first, too_much, too_many, rest) == (True, False, False, True)
    assert (used(ledger, "api"), used(ledger, "mail")) == ((5, 5), (1,))


def test_leases_ahead_of_need_shrink_near_the_limit(join: Open) -> None:
    one, _other = join(Policy("api", (Limit(1000, 10 * S),))), join(Policy("api", (Limit(1000, 10 * S),)))

    def ahead(left: int, *, held: int) -> int:
        return one.exchange(Exchange(held={"api": held}, top_up={"api": left})).leased["api"]

    # Two percent, what is left included; near the end half of an even share of the rest.
    assert ahead(0, held=0) == 20
    assert ahead(15, held=15) == 5
    assert ahead(0, held=960) == 10
    assert ahead(0, held=997) == 0
    assert ahead(0, held=1000) == 0


def test_of_a_quota_that_nobody_has_configured_nothing_can_be_had(join: Open) -> None:
    ledger = join()

    with pytest.raises(UnknownName, match="nothing-of-the-kind"):
        lease(ledger, 1, quota="nothing-of-the-kind")
    assert lease(ledger, 1)


def test_nothing_is_written_when_nothing_changes(join: Open, directory: Path, clock: FakeClock) -> None:
    ledger = join()
    assert lease(ledger, 5)
    before = (directory / "ledger.sqlite").stat().st_mtime_ns, ledger.words.mark

    clock.pass_ns(S)
    ledger.exchange(Exchange(held={"api": 5}))
    ledger.configure([API])
    ledger.bury_dead()
    ledger.readings()

    assert ((directory / "ledger.sqlite").stat().st_mtime_ns, ledger.words.mark) == before


def test_a_history_stays_short(join: Open, clock: FakeClock) -> None:
    limits = (Limit(10**6, 10 * S), Limit(10**6, 60 * S))
    ledger = join(Policy("api", limits))

    with sqlite3.connect(ledger._path) as raw:
        for _ in range(3):
            now_ns = ledger.clock.now_ns()
            ledger.exchange(Exchange(settled={"api": {now_ns - i * 10**6: 1 for i in range(20_000)}}))
            clock.pass_ns(20 * S)
        (rows,) = raw.execute("SELECT count(*) FROM spent").fetchone()
    raw.close()
    # A thousand rows each, and those that have expired just now
    assert rows <= sum(1100 + kept_back_ns(limit) // limit.bucket_ns for limit in limits)


# -- claims


def test_a_costly_task_is_not_starved_by_cheap_ones(join: Open, clock: FakeClock) -> None:
    # Given a window that is used up
    costly, cheap = join(), join()
    assert lease(cheap, 95)
    assert not lease(costly, 40, consumer="costly")

    # When it comes back bit by bit, and others ask first each time
    held = 95
    cheap_got = 0
    for _ in range(8):
        held -= 5
        cheap_got += lease(cheap, 1, held=held)
        if lease(costly, 40, consumer="costly"):
            break

    # Then the costly one has its units as soon as there are enough, and the cheap ones had none of them
    assert cheap_got == 0
    assert used(costly) == (held + 40,)
    assert [claim.consumer for claim in costly.readings()["api"].claims] == ["timeline"]
    assert lease(cheap, 1, held=held - 1)


def test_claims_are_served_in_the_order_they_were_made(join: Open) -> None:
    holder, first, second = join(), join(), join()
    assert lease(holder, 100)
    assert not lease(first, 3)
    assert not lease(second, 3)

    holder.exchange(Exchange(held={"api": 96}))

    assert not lease(second, 3)
    assert lease(first, 3)
    assert not lease(second, 3)
    holder.exchange(Exchange(held={"api": 94}))
    assert lease(second, 3)


def test_two_consumers_of_one_process_stand_in_line_apart(join: Open) -> None:
    ledger = join()
    assert lease(ledger, 98)

    refused = ledger.exchange(Exchange(held={"api": 98}, wants=(Want("costly", {"api": 5}), Want("cheap", {"api": 1}))))

    assert refused.granted == (False, False)
    assert [(claim.consumer, claim.units) for claim in refused.readings["api"].claims] == [("costly", 5), ("cheap", 1)]


def test_no_lease_ahead_of_need_out_of_what_is_claimed(join: Open) -> None:
    costly, other = join(), join()
    assert lease(other, 90)
    assert not lease(costly, 10 + 1)

    assert other.exchange(Exchange(held={"api": 90}, top_up={"api": 0})).leased == {"api": 0}


def test_who_is_stopped_in_line_holds_nobody_up_and_finds_its_place_again(join: Open, clock: FakeClock) -> None:
    # Given a limit of a day, of which a half is free, and one that waits for more and is stopped
    day = Policy("api", (Limit(100, 86_400 * S),))
    stopped, other, later = join(day), join(day), join(day)
    assert lease(other, 50)
    assert not lease(stopped, 60)
    assert not lease(other, 1, held=50)

    # When it has not asked for some seconds, the others have what there is
    clock.pass_ns(10 * S)
    assert lease(other, 1, held=50)
    assert not lease(later, 60)
    # And when it asks again, it stands where it stood
    assert not lease(stopped, 60)
    other.exchange(Exchange(held={"api": 30}))
    assert not lease(later, 60)
    assert lease(stopped, 60)


def test_a_claim_ends_after_a_window_with_its_process_and_when_it_is_withdrawn(join: Open, clock: FakeClock) -> None:
    waiting, dying, withdrawing, other = join(), join(), join(), join()
    assert lease(other, 99)
    assert not lease(dying, 2)
    assert not lease(withdrawing, 2)

    dying.close()
    other.bury_dead()
    withdrawing.exchange(Exchange(unclaim=("timeline",)))
    assert lease(other, 1, held=99)
    assert not lease(waiting, 2)
    other.exchange(Exchange(held={"api": 99}))
    assert not lease(other, 1, held=99)
    clock.pass_ns(11 * S + 20 * 10**6)
    assert lease(other, 1, held=99)


def test_who_asks_again_in_the_second_half_of_its_claim_keeps_its_place(join: Open, clock: FakeClock) -> None:
    holder, first, second = join(), join(), join()
    life_ns = claim_life_ns(API.limits)
    assert lease(holder, 100)
    assert not lease(first, 3)
    clock.pass_ns(life_ns // 2 + 10**6)
    assert not lease(second, 3)

    # When it asks again, and its claim would have ended since
    assert not lease(first, 3)
    clock.pass_ns(life_ns // 2 + 10**6)
    holder.exchange(Exchange(held={"api": 97}))

    assert not lease(second, 3)
    assert lease(first, 3)


def test_what_can_never_be_paid_keeps_nobody_waiting(join: Open) -> None:
    never, other = join(), join()

    assert not lease(never, 101)
    assert lease(other, 100)


def test_only_what_is_short_is_claimed(join: Open) -> None:
    ledger, other = (join(API, Policy("mail", (Limit(1, 10 * S),))) for _ in range(2))
    assert lease(other, 1, quota="mail")

    ledger.exchange(Exchange(wants=(Want("both", {"api": 60, "mail": 1}),)))

    assert other.exchange(Exchange(held={"mail": 1}, wants=(Want("api", {"api": 100}),))).granted == (True,)


# -- limits


def test_after_any_change_the_file_has_the_limits_that_are_enforced_and_no_other(join: Open, clock: FakeClock) -> None:
    # Given policies of every kind, of which buckets have the periods of limits: 10 of 60 a minute, 20 of 10 in 5 s
    def policy(window: Window, burst: int, *rates: tuple[int, int]) -> Policy:
        return Policy("api", tuple(Limit(units, period_s * S) for units, period_s in rates), window, burst)

    policies = [
        policy(Window.PACED, 10, (60, 60), (20, 10)),
        policy(Window.PACED, 10, (60, 60)),
        policy(Window.PACED, 5, (30, 60), (5, 5)),
        policy(Window.PACED, 5, (60, 60), (20, 5)),
        policy(Window.SLIDING, 1, (20, 10)),
        policy(Window.FIXED, 1, (20, 10), (60, 60)),
    ]
    chance = random.Random(11)
    ledger, before = join(policies[0]), policies[0]
    for _ in range(150):
        clock.pass_ns(chance.randrange(20 * S))
        now_ns = ledger.clock.now_ns()
        ledger.exchange(
            Exchange(settled={"api": {now_ns: 1}}, told={"api": [Told(3, None, None, None, now_ns - 1, now_ns)]})
        )
        after = chance.choice(policies)

        ledger.configure([after])

        reading = ledger.readings()["api"]
        assert {part.limit for part in reading.limits} == set(enforced(after)), f"{before} to {after}"
        before = after


def test_a_lowered_limit_voids_leases_at_once(join: Open) -> None:
    ledger, other = join(), join()
    assert lease(ledger, 20)
    slot = ledger.slots()["api"]
    before = ledger.words.view[slot]

    other.configure([Policy("api", (Limit(10, 10 * S),))])

    assert ledger.words.view[slot] != before
    assert ledger.exchange(Exchange(held={"api": 20})).epochs["api"] == ledger.words.view[slot]
    assert not lease(ledger, 1, held=20)
    assert not lease(ledger, 1, held=10)
    assert lease(ledger, 1, held=9)


def test_a_word_that_a_crash_left_wrong_is_set_right(join: Open) -> None:
    ledger = join()
    slot = ledger.slots()["api"]
    ledger.words.view[slot] = 77

    response = ledger.exchange(Exchange())

    assert ledger.words.view[slot] == response.epochs["api"] != 77


@pytest.mark.parametrize("longer", [False, True])
def test_a_changed_period_inherits_what_was_spent(join: Open, clock: FakeClock, longer: bool) -> None:
    ledger = join(Policy("api", (Limit(100, 10 * S),)))
    now_ns = ledger.clock.now_ns()
    clock.pass_ns(8 * S)
    ledger.exchange(Exchange(settled={"api": {now_ns: 30, now_ns + 7 * S: 40}}))

    ledger.configure([Policy("api", (Limit(100, (20 if longer else 5) * S),))])

    # Of the last five seconds only the later part is left; of the last twenty, all.
    assert used(ledger) == ((70,) if longer else (40,))
    clock.pass_ns(4 * S + 50 * 10**6)
    assert used(ledger) == ((70,) if longer else (0,))


def test_what_lingers_under_a_short_window_lingers_longer_under_a_long_one(join: Open, clock: FakeClock) -> None:
    # Given a call of unknown fate, which the upstream may count for two seconds more, a window
    ledger = join(Policy("api", (Limit(100, 2 * S),)))
    ledger.exchange(Exchange(doubtful={"api": {ledger.clock.now_ns(): 5}}))

    # When the window is ten seconds, it may be counted for ten
    ledger.configure([Policy("api", (Limit(100, 10 * S),))])

    clock.pass_ns(20 * S)
    assert used(ledger) == (5,)
    clock.pass_ns(20 * 10**6)
    assert used(ledger) == (0,)


def test_a_longer_period_counts_what_nobody_remembers_as_what_was_possible(join: Open, clock: FakeClock) -> None:
    # Given a quota that has been kept for a minute with ten a second, of which none was used
    ledger = join(Policy("api", (Limit(10, S),)))
    clock.pass_ns(60 * S)

    # When the hour matters, only the last second of that minute is known
    ledger.configure([Policy("api", (Limit(10, S), Limit(1000, 3600 * S)))])

    # Then no more is assumed for the rest than ten in each second
    assert used(ledger)[1] in (590, 600)


def test_what_was_forgotten_this_very_moment_is_not_known(join: Open, clock: FakeClock) -> None:
    # Given units spent at the instant at which the quota was made, on the edge of a bucket
    limit = Limit(9, 10 * S)
    clock.true_ns = limit.bucket_ns * 10**6
    ledger = join(Policy("api", (limit,)))
    ledger.exchange(Exchange(settled={"api": {ledger.clock.now_ns(): 9}}))
    clock.pass_ns(limit.kept_ns)
    ledger.exchange(Exchange(settled={"api": {ledger.clock.now_ns(): 1}}))

    ledger.configure([Policy("api", (Limit(30, 25 * S),))])

    assert used(ledger) >= (10,)


def test_a_longer_period_counts_as_spent_when_the_limits_were_others_before(join: Open, clock: FakeClock) -> None:
    ledger = join(Policy("api", (Limit(1000, 20 * S),)))
    clock.pass_ns(30 * S)
    ledger.configure([Policy("api", (Limit(1, 10 * S),))])
    clock.pass_ns(S)

    ledger.configure([Policy("api", (Limit(10**12, 3600 * S),))])

    assert not lease(ledger, 1)


def test_the_most_that_was_ever_allowed_bounds_what_nobody_remembers(join: Open, clock: FakeClock) -> None:
    ledger = join(Policy("api", (Limit(500, S),)))
    ledger.configure([Policy("api", (Limit(1, S),))])
    clock.pass_ns(2 * S)

    ledger.configure([Policy("api", (Limit(10**6, 60 * S),))])

    assert used(ledger)[0] >= 500


def test_a_block_binds_all_and_is_never_shortened(join: Open, clock: FakeClock) -> None:
    ledger, other = join(), join()
    until_ns = ledger.clock.now_ns() + 5 * S

    other.block("api", until_ns)
    other.block("api", until_ns - 4 * S)

    # Then nothing is granted until then, nor for up to a two-hundredth of the period, so that not all come at once
    blocked_until_ns = ledger.readings()["api"].blocked_until_ns
    assert until_ns <= blocked_until_ns <= until_ns + API.limits[0].period_ns // 200
    clock.pass_ns(blocked_until_ns - ledger.clock.now_ns() - 1)
    assert not lease(ledger, 1)
    clock.pass_ns(1)
    assert lease(ledger, 1)


# -- death


def test_what_a_dead_process_had_counts_from_when_it_was_noticed(join: Open, clock: FakeClock) -> None:
    dying, other = join(), join()
    assert lease(dying, 30)
    dying.close()
    clock.pass_ns(3600 * S)
    assert used(other) == (30,)

    assert other.bury_dead() == 1

    # A window and a linger, which is a window here, from the moment it was noticed.
    assert other.bury_dead() == 0
    clock.pass_ns(20 * S)
    assert used(other) == (30,)
    clock.pass_ns(20 * 10**6)
    assert used(other) == (0,)


def test_a_silent_process_is_not_dead(join: Open, clock: FakeClock) -> None:
    silent, other = join(), join()
    assert lease(silent, 30)

    clock.pass_ns(10**6 * S)

    assert other.bury_dead() == 0
    assert used(other) == (30,)


def test_a_process_without_its_lock_file_is_not_known_to_be_dead(join: Open, directory: Path) -> None:
    silent, other = join(), join()
    assert lease(silent, 30)

    (directory / "processes" / f"{silent.process}.lock").unlink()

    assert other.bury_dead() == 0
    assert used(other) == (30,)


def test_lock_files_that_nobody_holds_are_swept_up(join: Open, directory: Path, clock: FakeClock) -> None:
    # Given a process that was alive when the machine stopped, without its lock file, and a file of nobody's
    silent = join()
    assert lease(silent, 30)
    (directory / "processes" / f"{silent.process}.lock").unlink()
    (directory / "processes" / "0123456789abcdef.lock").touch()
    silent.close()

    clock.reboot()
    after = join()

    assert [path.stem for path in (directory / "processes").iterdir()] == [after.process]
    assert after.readings()["api"].leased == {}
    assert used(after) == (30,)


def test_who_leaves_is_forgotten_and_takes_its_file_along(join: Open, directory: Path) -> None:
    leaving, other = join(), join()
    assert lease(leaving, 30)
    leaving.exchange(Exchange(held={"api": 10}))

    leaving.leave()

    # What it did not give back counts as spent.
    assert used(other) == (10,)
    assert other.readings()["api"].leased == {}
    assert [path.stem for path in (directory / "processes").iterdir()] == [other.process]


def test_a_process_that_was_taken_for_dead_starts_over(join: Open) -> None:
    ledger, other = join(), join()
    assert lease(ledger, 30)
    with sqlite3.connect(other._path) as raw:
        raw.execute("PRAGMA foreign_keys = OFF")
        raw.execute("DELETE FROM processes WHERE id = ?", (ledger.process,))
    raw.close()
    before = ledger.process

    assert ledger.exchange(Exchange(held={"api": 30}, wants=(Want("timeline", {"api": 1}),))).void

    # Under a new name, with a lock of its own: what it states now is counted again.
    assert ledger.process != before
    assert lease(ledger, 1, held=30)
    assert used(ledger) == (61,)


# -- clocks


@pytest.mark.parametrize("same_boot", [False, True], ids=["reboot", "clock restarts"])
def test_after_a_reboot_all_was_spent_just_now_and_nothing_freezes(
    join: Open, clock: FakeClock, same_boot: bool
) -> None:
    dying = join()
    assert lease(dying, 30)
    dying.exchange(Exchange(held={"api": 10}, settled={"api": {dying.clock.now_ns(): 20}}))
    dying.block("api", dying.clock.now_ns() + 4 * S)
    dying.close()

    clock.reboot()
    clock.boots -= same_boot
    after = join()

    assert used(after) == (30,)
    clock.pass_ns(4 * S - 1)
    assert not lease(after, 1)
    clock.pass_ns(S // 20 + 1)
    assert lease(after, 70)
    after.exchange(Exchange())
    # A window and a linger later all is free again.
    clock.pass_ns(16 * S - S // 20)
    assert used(after) == (30,)
    clock.pass_ns(20 * 10**6)
    assert used(after) == (0,)


@pytest.mark.parametrize("up_s", [5, 5000], ids=["behind", "ahead"])
def test_what_a_limit_allowed_before_a_reboot_bounds_nothing_after_it(join: Open, clock: FakeClock, up_s: int) -> None:
    # Given units that a short period has forgotten already
    ledger = join(Policy("api", (Limit(500, 20 * S),)))
    assert lease(ledger, 500)
    ledger.exchange(Exchange(settled={"api": {ledger.clock.now_ns(): 500}}))
    clock.pass_ns(12 * S)
    ledger.configure([Policy("api", (Limit(1, 10 * S),))])
    assert used(ledger) == (0,)

    # When the ledger finds itself under another boot clock, and a longer period is asked for
    clock.boots += 1
    clock.booted_ns = clock.true_ns - up_s * S
    ledger.configure([Policy("api", (Limit(1000, 60 * S),))])

    # Then they may have been spent within it
    assert used(ledger) >= (500,)


def test_what_was_rolled_back_is_not_remembered(join: Open, directory: Path, clock: FakeClock) -> None:
    # Given a change that fails: the clock is behind the file's, and a reader keeps the commit waiting
    ledger, other = join(), join()
    clock.booted_ns += S
    reader = sqlite3.connect(directory / "ledger.sqlite", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM meta").fetchall()
    with pytest.raises(LedgerError, match="locked"):
        ledger.exchange(Exchange(), patience_s=0.0)
    reader.execute("ROLLBACK")
    reader.close()

    # When another change takes its place, the clock having caught up
    clock.pass_ns(2 * S)
    other.configure([Policy("api", (Limit(10, 10 * S),))])

    assert not lease(ledger, 50)
    assert lease(ledger, 10)


def test_instants_of_a_clock_that_restarted_do_not_count_for_ever(join: Open, clock: FakeClock) -> None:
    ledger = join()
    ahead_ns = ledger.clock.now_ns() + 10**6 * S

    ledger.exchange(Exchange(settled={"api": {ahead_ns: 3, ahead_ns + 1: 2}}))

    assert used(ledger) == (5,)
    clock.pass_ns(10 * S + 20 * 10**6)
    assert used(ledger) == (0,)


# -- evidence of spending that is not in the ledger


def test_evidence_counts_the_window_as_spent_once(join: Open, clock: FakeClock) -> None:
    one, other = join(), join()
    assert lease(one, 5)
    epoch = one.readings()["api"].epoch

    # The first time all leases are void, and all counts as used up
    assert one.count_as_spent("a lost volume")
    assert other.words.view[other.slots()["api"]] == one.readings()["api"].epoch != epoch
    assert used(other) == (105,)

    # Not again for the same evidence, by whomever, until there is another
    clock.pass_ns(20 * S + 40 * 10**6)
    one.exchange(Exchange())
    assert not one.count_as_spent("a lost volume")
    assert not other.count_as_spent("a lost volume")
    assert used(other) == (0,)
    assert other.count_as_spent("a renamed host")
    assert used(one) == (100,)


_EVIDENT = """
import sys
from pathlib import Path
from qctl.quota import Ledger

ledger = Ledger.open(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
print(*(ledger.count_as_spent(f"evidence {n}") for n in range(20)))
"""


def test_of_processes_that_have_the_same_evidence_at_once_one_counts_the_window(directory: Path) -> None:
    # Given processes with the ledger open
    ledger = Ledger.open(directory)
    ledger.configure([API])
    arguments = [sys.executable, "-c", _EVIDENT, str(directory)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    processes = [
        subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(3)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"

        # When each finds the same twenty times
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        did = [process.communicate(timeout=60)[0].split() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
        ledger.close()

    # Then of each exactly one of them counted
    assert [sorted(each) for each in zip(*did, strict=True)] == 20 * [["False", "False", "True"]]


# -- the file


def test_the_state_directory_is_its_owners_alone(join: Open, directory: Path) -> None:
    directory.mkdir(parents=True, mode=0o755)
    join()

    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "processes").stat().st_mode) == 0o700


def test_a_state_directory_that_cannot_be_made_is_named(tmp_path: Path, clock: FakeClock) -> None:
    (tmp_path / "state").write_text("a file")

    with pytest.raises(StateError, match="state/web-1") as caught:
        Ledger.open(tmp_path / "state" / "web-1", clock=clock.clock())
    assert "--state-dir" in caught.value.hint


def test_the_first_open_is_fresh_and_the_id_stays(directory: Path, clock: FakeClock) -> None:
    first = Ledger.open(directory, clock=clock.clock())
    second = Ledger.open(directory, clock=clock.clock())

    assert (first.fresh, second.fresh) == (True, False)
    assert first.ledger_id == second.ledger_id
    first.close()
    second.close()


def test_a_new_ledger_in_place_of_a_known_one_counts_the_window_as_spent(directory: Path, clock: FakeClock) -> None:
    ledger = Ledger.open(directory, clock=clock.clock(), assume_spent=True)
    ledger.configure([API, Policy("slow", (Limit(5, 300 * S),))])
    ledger.join()

    assert (used(ledger, "api"), used(ledger, "slow")) == ((100,), (5,))
    clock.pass_ns(21 * S)
    assert used(ledger, "api") == (0,)
    # What was spent before is not known for a longer period either.
    ledger.configure([Policy("api", (Limit(100, 40 * S),))])
    assert not lease(ledger, 1)
    ledger.close()


def test_a_ledger_that_is_lost_while_in_use_is_begun_anew_with_the_window_spent(join: Open, directory: Path) -> None:
    ledger, other = join(), join()
    assert lease(ledger, 10)
    before = ledger.ledger_id
    (directory / "ledger.sqlite").unlink()

    # Nothing is granted by a file that others cannot see; both meet in one new file, in which the window is used up
    assert ledger.exchange(Exchange(held={"api": 10})).void
    assert other.exchange(Exchange()).void
    assert ledger.ledger_id == other.ledger_id != before
    assert not lease(other, 1)
    assert not lease(ledger, 1, held=10)
    assert used(other) == (110,)


def test_a_ledger_locked_by_another_grants_nothing_and_is_left_alone(join: Open, directory: Path) -> None:
    ledger = join()
    holder = sqlite3.connect(directory / "ledger.sqlite", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")

    with pytest.raises(LedgerError, match="locked"):
        ledger.exchange(Exchange(wants=(Want("timeline", {"api": 1}),)), patience_s=0.05)

    holder.execute("ROLLBACK")
    holder.close()
    assert lease(ledger, 1)


def test_a_disk_that_takes_no_write_grants_nothing_until_it_does(join: Open, clock: FakeClock) -> None:
    ledger = join()
    clock.pass_ns(1)

    with no_writes():
        with pytest.raises(LedgerError, match="cannot be used"):
            lease(ledger, 1)
        with pytest.raises(LedgerError, match="cannot be used"):
            ledger.probe()

    ledger.probe()
    assert used(ledger) == (0,)
    assert lease(ledger, 1)


def test_a_ledger_of_another_version_is_not_touched(join: Open, directory: Path, clock: FakeClock) -> None:
    join().close()
    raw = sqlite3.connect(directory / "ledger.sqlite")
    with raw:
        raw.execute("UPDATE meta SET schema_version = 99")
    raw.close()

    with pytest.raises(LedgerError, match="version 99"):
        Ledger.open(directory, clock=clock.clock())


def test_a_closed_ledger_says_so(join: Open, directory: Path) -> None:
    ledger = join()
    ledger.close()
    shutil.rmtree(directory)

    with pytest.raises(LedgerError, match="closed"):
        ledger.readings()
