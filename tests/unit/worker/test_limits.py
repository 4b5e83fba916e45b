"""Limits that operators set, through real leases on one ledger: they bind at once, and a start keeps them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qctl.control.desired import Desired, Override
from qctl.quota import Grant, Hold, Leases, Limit, Policy, Standing, Window
from qctl.units import NS_PER_S
from qctl.worker.limits import LOOKS, Limits, rates
from tests.fleet import wait_until

HOUR_NS = 3600 * NS_PER_S
POLICY = Policy("api", (Limit(1000, HOUR_NS),))

Join = Callable[..., tuple[Leases, Limits]]


def override(*written: str, until_s: float | None = None, quota: str = "api") -> Override:
    return Override("1", "ops", None, "", None, until_s, "web-*", quota, written)


def desired(*overrides: Override) -> Desired:
    return Desired(overrides=overrides)


@pytest.fixture
def join(tmp_path: Path) -> Iterator[Join]:
    """Start a process of the host, with quotas of its inventory."""
    opened: list[Leases] = []

    def joining(
        *policies: Policy, on_standing: Callable[[str, Standing], None] = lambda *_: None
    ) -> tuple[Leases, Limits]:
        leases = Leases.open(tmp_path / "web-1", (), hold_after_s=0.1, on_standing=on_standing)
        opened.append(leases)
        return leases, Limits(leases, "web-1", policies or (POLICY,))

    yield joining
    for leases in opened:
        leases.close()


def limit_of(leases: Leases) -> int:
    return leases.readings()["api"].limits[0].limit.units


def test_a_lowered_limit_binds_at_once_for_leases_that_are_out_in_every_process(join: Join) -> None:
    # Given two processes with units in their memory, of which three are spent
    (first, limits), (second, _) = join(), join()
    found = [(one, one.register("calls", {"api": 1})) for one in (first, second)]
    spent = [one.acquire(priced) for one, priced in (found[0], found[1], found[0])]
    assert all(isinstance(grant, Grant) for grant in spent)
    assert first.take(found[0][1]) is not None  # from memory: a lease is out

    # When one of them lowers the limit to what is spent
    asyncio.run(limits.apply(desired(override("4/h")), 0.0))

    # Then neither has anything to spend
    for leases, priced in found:
        assert leases.take(priced) is None
        assert isinstance(leases.acquire(priced), Hold)
    assert [rates(one) for one in limits.policies] == [("4/h",)]
    # and when it is cleared, the inventory's holds again
    asyncio.run(limits.apply(desired(), 0.0))
    wait_until("it may spend", lambda: isinstance(first.acquire(found[0][1]), Grant))
    assert [rates(one) for one in limits.policies] == [("1000/h",)]
    assert limits.overrides == {}


def test_a_process_that_starts_does_not_undo_what_was_set(join: Join) -> None:
    first, limits = join()
    asyncio.run(limits.apply(desired(override("4/h")), 0.0))

    # When another one starts, which has not read the log yet, and brings a quota that is new
    second, later = join(POLICY, Policy("mail", (Limit(5, HOUR_NS),)))

    # Then the limit stands, until that one knows better
    assert limit_of(second) == 4
    assert second.readings()["mail"].limits[0].limit.units == 5
    asyncio.run(later.apply(desired(), 0.0))
    assert limit_of(second) == 1000
    wait_until("the first one sees it", lambda: limit_of(first) == 1000)


def test_an_inventory_that_was_edited_counts_from_when_the_log_is_known(join: Join) -> None:
    _, before = join()
    asyncio.run(before.apply(desired(), 0.0))

    leases, limits = join(Policy("api", (Limit(7, HOUR_NS),)))

    assert limit_of(leases) == 1000
    asyncio.run(limits.apply(desired(), 0.0))
    assert limit_of(leases) == 7


def test_only_what_changes_here_is_written(join: Join, monkeypatch: pytest.MonkeyPatch) -> None:
    leases, limits = join(POLICY, Policy("mail", (Limit(5, HOUR_NS),)))
    written: list[list[str]] = []
    configure = leases.configure

    def note(policies: list[Policy]) -> None:
        written.append([one.name for one in policies])
        configure(policies)

    monkeypatch.setattr(leases, "configure", note)
    for wanted in (desired(), desired(override("4/h")), desired(override("4/h")), desired()):
        asyncio.run(limits.apply(wanted, 0.0))

    assert written == [["api", "mail"], ["api"], ["api"]]


def test_the_last_setting_holds_and_one_that_has_ended_does_not(join: Join) -> None:
    _, limits = join()
    both = desired(override("4/h"), override("9/m", "90/h", until_s=100.0))

    asyncio.run(limits.apply(both, 99.0))
    assert [rates(one) for one in limits.policies] == [("9/m", "90/h")]
    assert limits.overrides["api"].rates == ("9/m", "90/h")
    asyncio.run(limits.apply(both, 100.0))
    assert [rates(one) for one in limits.policies] == [("4/h",)]


def test_a_cost_above_a_lowered_limit_holds_its_consumer_until_the_limit_is_raised(join: Join) -> None:
    stands: list[bool] = []
    leases, limits = join(on_standing=lambda _, standing: stands.append(standing.consuming))
    priced = leases.register("calls", {"api": 50})

    asyncio.run(limits.apply(desired(override("10/h")), 0.0))
    assert isinstance(leases.acquire(priced), Hold)
    wait_until("held", lambda: stands[-1:] == [False])
    assert leases.broken is None

    asyncio.run(limits.apply(desired(override("60/h")), 0.0))
    wait_until("consuming again", lambda: leases.standing("calls").consuming)
    assert isinstance(leases.acquire(priced), Grant)


def test_a_process_that_hears_nothing_lowers_a_limit_and_never_raises_it(join: Join) -> None:
    # Given two processes that know of a limit for a while, and one that hears of a lower one then
    (first, limits), (second, deaf) = join(), join()
    while_it_lasts = override("100/h", until_s=100.0)
    for one in (limits, deaf):
        asyncio.run(one.apply(desired(while_it_lasts), 0.0))
    asyncio.run(limits.apply(desired(while_it_lasts, override("50/h")), 0.0))

    # When the first limit ends in the process that does not know of the second
    asyncio.run(deaf.apply(desired(while_it_lasts), 100.0, hears=False))

    # then the lower one holds on, until all is known again
    priced = first.register("calls", {"api": 1})
    granted = [first.take(priced) or first.acquire(priced) for _ in range(51)]
    assert sum(isinstance(one, Grant) for one in granted) == 50
    asyncio.run(deaf.apply(desired(), 100.0))
    assert second.look()["api"].limits[0].limit.units == 1000

    # and what had raised a limit ends there as well
    asyncio.run(deaf.apply(desired(override("2000/h", until_s=200.0)), 100.0))
    asyncio.run(deaf.apply(desired(), 200.0, hears=False))
    assert second.look()["api"].limits[0].limit.units == 1000


def test_a_process_that_hears_nothing_leaves_a_paced_limit_paced(join: Join) -> None:
    paced = Policy("api", (Limit(1000, HOUR_NS),), Window.PACED, burst_units=10)
    leases, limits = join(paced)
    stated = [part.limit for part in leases.look()["api"].limits]

    asyncio.run(limits.apply(desired(), 0.0, hears=False))

    assert [part.limit for part in leases.look()["api"].limits] == stated
    assert [limit.window for limit in stated] == [Window.PACED, Window.SLIDING]


# -- processes of two inventories

PACED = Policy("api", (Limit(60, 60 * NS_PER_S),), Window.PACED, burst_units=2)


def kinds(leases: Leases) -> list[Window]:
    return [part.limit.window for part in leases.look()["api"].limits]


def test_a_process_of_an_older_inventory_writes_no_limit_once_one_of_a_newer_runs(join: Join) -> None:
    # Given a process that knows of no bucket, and one of an inventory that has one
    (_, older), (leases, newer) = join(), join(PACED)
    for one in (older, newer):
        asyncio.run(one.apply(desired(), 0.0))
    older.leave()

    # When an operator sets another limit, and the older one hears of it last
    for one in (newer, older):
        asyncio.run(one.apply(desired(override("30/m")), 0.0))

    # Then it is as the newer inventory has it, and both say so
    assert kinds(leases) == [Window.PACED, Window.SLIDING]
    assert [rates(one.policies[0]) for one in (older, newer)] == [("30/m",), ("30/m",)]
    assert older.overrides.keys() == {"api"}


def test_a_limit_that_one_who_was_stopped_has_undone_is_written_again(join: Join) -> None:
    # Given an older process that writes last, since it was stopped
    (_, older), (leases, newer) = join(), join(PACED)
    for one in (newer, older):
        asyncio.run(one.apply(desired(), 0.0))
    wait_until("it sees that", lambda: len(leases.readings()["api"].limits) == 1)

    # When that lasts, and not before
    assert [newer.has_lost() for _ in range(LOOKS)] == [False] * (LOOKS - 1) + [True]
    asyncio.run(newer.apply(desired(), 0.0))

    # Then it is undone
    assert kinds(leases) == [Window.PACED, Window.SLIDING]
    wait_until("it sees that", lambda: len(leases.readings()["api"].limits) == 2)
    assert not any(newer.has_lost() for _ in range(2 * LOOKS))


def test_two_that_disagree_undo_each_other_more_and_more_seldom(join: Join) -> None:
    (_, other), (leases, limits) = join(), join(PACED)
    asyncio.run(limits.apply(desired(), 0.0))
    asyncio.run(other.apply(desired(), 0.0))
    wait_until("it sees that", lambda: len(leases.readings()["api"].limits) == 1)

    looks = [limits.has_lost() for _ in range(7 * LOOKS)]

    assert [at + 1 for at, lost in enumerate(looks) if lost] == [LOOKS, 3 * LOOKS, 7 * LOOKS]


def test_what_is_written_right_now_is_not_lost(join: Join) -> None:
    leases, limits = join()
    asyncio.run(limits.apply(desired(override("4/h")), 0.0))
    wait_until("it sees that", lambda: limit_of(leases) == 4)

    assert not any(limits.has_lost() for _ in range(2 * LOOKS))
    # one who leaves does not look after it either
    asyncio.run(join(POLICY)[1].apply(desired(), 0.0))
    limits.leave()
    wait_until("it sees that", lambda: limit_of(leases) == 1000)
    assert not any(limits.has_lost() for _ in range(2 * LOOKS))
