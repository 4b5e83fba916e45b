"""A process's units in memory: nothing is lost, nothing appears, and whoever waits is served in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qctl.quota.admission import Hold
from qctl.quota.pool import Grant, Priced, Tally, Waiter
from qctl.quota.till import Till
from tests.unit.quota.model import S, thorough

GRAIN_NS = 10**6
_ACTS = ("take", "settle", "book", "more", "exchange", "fail", "limit", "mark", "unmark")


class Scene:
    """A till with pools `api` and `mail`, as after an exchange that leased these units."""

    def __init__(self, **left: int) -> None:
        self.now_ns = 100 * S
        self.woken = 0
        self.words = memoryview(bytearray(64)).cast("Q")
        self.words[1] = self.words[2] = 1
        self.till = Till(lambda: self.now_ns, self._wake)
        self.till.bind({"api": 1, "mail": 2}, {"api": GRAIN_NS, "mail": GRAIN_NS}, self.words)
        self.till.confirm(left, {"api": 1, "mail": 1})

    def _wake(self) -> None:
        self.woken += 1

    def price(self, consumer: str = "timeline", **cost: int) -> Priced:
        return Priced(consumer, tuple((self.till.pools[q], n) for q, n in sorted(cost.items())), Tally())

    def take(self, consumer: str = "timeline", **cost: int) -> Grant:
        grant = self.till.take(self.price(consumer, **cost))
        assert grant is not None
        return grant

    def wait(self, consumer: str, **cost: int) -> Waiter:
        waiter = Waiter(self.price(consumer, **cost), lambda answer: None, self.now_ns)
        self.till.enqueue(waiter)
        return waiter

    def served(self) -> list[Waiter]:
        return [waiter for waiter, _ in self.till.serve()]

    def left(self, quota: str = "api") -> int:
        return self.till.pools[quota].left

    def spent(self, quota: str = "api") -> int:
        return sum(self.till.pools[quota].pending.values())

    def exchange(self, *, epoch: int = 1, leased: Mapping[str, int] | None = None) -> Mapping[str, int]:
        """An exchange under this epoch of `api`; what the process said that it holds."""
        self.till.listen()
        statement = self.till.state({})
        self.till.confirm(leased or {}, {"api": epoch, "mail": 1})
        return statement.held


def test_a_task_takes_all_it_costs_or_nothing() -> None:
    scene = Scene(api=5, mail=1)

    assert scene.till.take(scene.price(api=2, mail=2)) is None
    assert (scene.left("api"), scene.left("mail")) == (5, 1)
    scene.take(api=2, mail=1)
    assert (scene.left("api"), scene.left("mail")) == (3, 0)


def test_what_a_task_did_not_use_comes_back_and_what_it_did_is_written_at_its_instant() -> None:
    scene = Scene(api=5)
    grant = scene.take(api=3)
    scene.now_ns += 7 * S + 1

    scene.till.settle(grant, {"api": 1})

    assert scene.left() == 4
    # The instant is rounded up to the grain, never down.
    assert scene.till.pools["api"].pending == {107 * S + GRAIN_NS: 1}


def test_a_task_that_says_nothing_is_settled_at_its_cost() -> None:
    scene = Scene(api=5)

    scene.till.settle(scene.take(api=3))

    assert (scene.left(), scene.spent()) == (2, 3)


def test_what_may_have_been_counted_later_is_kept_apart() -> None:
    scene = Scene(api=5)

    scene.till.settle(scene.take(api=3), {"api": 2}, ambiguous=True)

    assert scene.spent() == 0
    assert sum(scene.till.pools["api"].doubtful.values()) == 2


def test_calls_booked_one_by_one_are_not_settled_again() -> None:
    scene = Scene(api=5)
    grant = scene.take(api=3)

    scene.till.book(grant, "api", 1)
    scene.till.book(grant, "api", 1, ambiguous=True)
    assert grant.reserved("api") == 1
    scene.till.settle(grant, {})

    assert (scene.left(), scene.spent()) == (3, 1)
    assert sum(scene.till.pools["api"].doubtful.values()) == 1


def test_what_was_spent_beyond_the_reservation_is_told_to_the_ledger() -> None:
    scene = Scene(api=5, mail=5)
    grant = scene.take(api=3)

    scene.till.book(grant, "api", 4)
    scene.till.settle(grant, {"mail": 7})

    # Five were leased and four are spent; of mail two were spent that nobody had leased: they are settled, not owed.
    assert scene.exchange() == {"api": 1}
    assert scene.left("mail") == 0


def test_no_settlement_twice_and_none_below_zero() -> None:
    scene = Scene(api=5)
    grant = scene.take(api=1)

    with pytest.raises(ValueError, match="negative"):
        scene.till.settle(grant, {"api": -1})
    scene.till.settle(grant)
    with pytest.raises(ValueError, match="before"):
        scene.till.settle(grant)
    with pytest.raises(ValueError, match="before"):
        scene.till.book(grant, "api", 1)
    assert (scene.left(), scene.spent()) == (4, 1)


def test_a_changed_limit_voids_what_is_left_on_the_very_next_take() -> None:
    scene = Scene(api=5)

    scene.words[1] = 2

    assert scene.till.take(scene.price(api=1)) is None
    # What is left goes back with the next exchange, and what that leases may be spent.
    assert scene.exchange(epoch=2, leased={"api": 1}) == {}
    assert scene.left() == 1
    scene.take(api=1)


def test_a_limit_changed_in_the_middle_of_an_exchange_voids_what_was_left_too() -> None:
    scene = Scene(api=5)

    # Given a statement made under the old limit, answered under the new one
    scene.till.state({})
    scene.words[1] = 2
    scene.till.confirm({"api": 1}, {"api": 2})

    # Then only what was leased under the new one is there, and the ledger is to hear so
    assert scene.left() == 1
    assert scene.till.pools["api"].restate


def test_units_reserved_under_an_old_limit_do_not_come_back_to_be_spent_under_the_new() -> None:
    scene = Scene(api=5)
    grant = scene.take(api=4)
    scene.words[1] = 2
    assert scene.exchange(epoch=2) == {"api": 4}

    scene.till.settle(grant, {"api": 1})

    assert scene.left() == 0
    assert scene.exchange(epoch=2) == {}


def test_after_a_failed_exchange_only_what_was_not_to_be_given_back_may_be_spent() -> None:
    # It may have happened, and somebody else have what was given back.
    scene = Scene(api=9)
    scene.till.settle(scene.take(api=2))
    running = scene.take(api=1)

    statement = scene.till.state({"api": 3})
    assert (statement.held, scene.left()) == ({"api": 4}, 3)
    # Meanwhile something else is settled at the same instant.
    scene.till.settle(running)
    scene.till.restore(statement)

    assert (scene.left(), scene.spent()) == (3, 3)
    assert scene.till.pools["api"].restate


def test_after_a_failed_exchange_what_was_doubtful_is_doubtful_still() -> None:
    scene = Scene(api=5)
    scene.till.settle(scene.take(api=2), {"api": 2}, ambiguous=True)
    scene.till.settle(scene.take(api=1))
    statement = scene.till.state({})

    # When more is settled while the exchange fails
    scene.till.settle(scene.take(api=1), {"api": 1}, ambiguous=True)
    scene.till.restore(statement)

    again = scene.till.state({})
    assert (sum(again.settled["api"].values()), sum(again.doubtful["api"].values())) == (1, 3)


def test_who_waits_is_served_in_order_and_nobody_passes() -> None:
    scene = Scene(api=2)
    costly = scene.wait("costly", api=5)
    cheap = scene.wait("cheap", api=1)

    assert scene.served() == []
    assert scene.till.take(scene.price("cheap", api=1)) is None
    scene.exchange(leased={"api": 3})
    assert scene.served() == [costly]
    scene.exchange(leased={"api": 1})
    assert scene.served() == [cheap]


def test_who_waits_for_one_quota_does_not_keep_others_from_another() -> None:
    scene = Scene(api=0, mail=3)
    scene.wait("timeline", api=1)
    mail = scene.wait("newsletter", mail=1)

    assert scene.served() == [mail]
    scene.take("newsletter", mail=1)


def test_what_comes_back_wakes_who_waits() -> None:
    scene = Scene(api=1)
    grant = scene.take(api=1)
    waiter = scene.wait("timeline", api=1)
    before = scene.woken

    scene.till.settle(grant, {})

    assert scene.woken > before
    assert scene.served() == [waiter]


def test_what_lies_here_beyond_what_the_api_says_remains_goes_back_with_the_next_exchange() -> None:
    # Given ten units, two of them with a task whose calls the API may not have counted yet
    scene = Scene(api=10)
    scene.take(api=2)

    scene.till.bound("api", 5, lasts=False)

    assert scene.left() == 3
    assert scene.woken
    assert scene.till.pools["api"].restate
    assert scene.exchange() == {"api": 5}
    # What remains for everybody is no less than what is here: nothing to give back
    woken = scene.woken
    scene.till.bound("api", 5, lasts=False)
    assert (scene.left(), scene.woken) == (3, woken)


def test_what_was_kept_for_a_consumer_goes_back_too_when_less_than_that_remains() -> None:
    scene = Scene()
    scene.till.earmark("costly", {"api": 5})

    scene.till.bound("api", 2, lasts=False)

    assert (scene.left(), scene.till.pools["api"].earmarks, scene.till.pools["api"].set_aside) == (2, {}, 0)
    scene.take("cheap", api=2)


def test_after_a_refusal_nothing_that_lies_here_is_spent_before_the_ledger_was_asked() -> None:
    scene = Scene(api=5, mail=5)

    scene.till.refuse("api")

    assert scene.till.take(scene.price(api=1)) is None
    scene.take(mail=1)
    assert scene.exchange(leased={"api": 1}) == {"mail": 5}
    scene.take(api=1)


@pytest.mark.parametrize("urgent", [False, True])
def test_a_settlement_wakes_the_ledgers_thread_only_where_somebody_may_wait_for_it(urgent: bool) -> None:
    scene = Scene(api=5)
    settled, booked = scene.take(api=1), scene.take(api=1)
    scene.till.pools["api"].urgent = urgent
    woken = scene.woken

    scene.till.settle(settled)
    scene.till.book(booked, "api", 1)

    assert scene.woken - woken == (2 if urgent else 0)


def test_units_kept_for_a_consumer_are_taken_by_nobody_else() -> None:
    scene = Scene()
    scene.till.earmark("costly", {"api": 5})

    assert scene.till.take(scene.price("cheap", api=1)) is None
    assert scene.till.left_for("api", "cheap") == 0
    assert scene.till.left_for("api", "costly") == 5
    scene.take("costly", api=3)
    assert scene.till.take(scene.price("cheap", api=1)) is None
    scene.till.unmark("costly")
    scene.take("cheap", api=2)


def test_units_leased_for_someone_who_has_gone_are_anyones() -> None:
    scene = Scene()
    waiter = scene.wait("timeline", api=2)
    assert scene.till.dequeue(waiter)
    assert not scene.till.dequeue(waiter)

    assert scene.till.serve_leased([waiter]) == []

    scene.take("other", api=2)


def test_a_running_task_gets_more_on_its_own_grant_unless_it_has_ended() -> None:
    scene = Scene(api=2)
    running, ended = scene.take(api=1), scene.take(api=1)
    for grant in (running, ended):
        scene.till.enqueue(Waiter(scene.price(api=2), lambda answer: None, scene.now_ns, grant=grant))
    scene.till.settle(ended, {})

    scene.exchange(leased={"api": 4})
    scene.till.serve()

    assert running.reserved("api") == 3
    # One that came back from the task that ended, and two that were meant for it.
    assert scene.left() == 3


def test_low_water_asks_once() -> None:
    scene = Scene(api=10)
    before = scene.woken

    for _ in range(9):
        scene.take(api=1)

    assert scene.woken == before + 1


@thorough(300)
@given(st.data())
def test_in_any_order_of_events_what_is_held_and_settled_is_what_was_leased(data: st.DataObject) -> None:
    scene = Scene(api=20)
    ledger = 20  # units that the ledger has as leased to this process
    grants: list[Grant] = []
    epoch = 1
    for _ in range(data.draw(st.integers(1, 40))):
        act = data.draw(
            st.sampled_from(["take", "settle", "book", "more", "exchange", "fail", "limit", "mark", "unmark"])
        )
        if act == "take":
            grant = scene.till.take(
                scene.price(data.draw(st.sampled_from(["a", "b"])), api=data.draw(st.integers(1, 4)))
            )
            grants += [grant] if grant else []
        elif act == "settle" and grants:
            grant = grants.pop(data.draw(st.integers(0, len(grants) - 1)))
            scene.till.settle(grant, {"api": data.draw(st.integers(0, grant.reserved("api")))})
        elif act == "book" and grants:
            grant = data.draw(st.sampled_from(grants))
            scene.till.book(grant, "api", data.draw(st.integers(0, grant.reserved("api"))))
        elif act == "more" and grants:
            grant = data.draw(st.sampled_from(grants))
            scene.till.enqueue(Waiter(scene.price(api=1), _ignore, scene.now_ns, grant=grant))
            scene.till.serve()
        elif act in ("exchange", "fail"):
            statement = scene.till.state({"api": data.draw(st.integers(0, 5))})
            settled = sum(statement.settled.get("api", {}).values())
            if act == "fail":
                scene.till.restore(statement)
            else:
                # Then never more is held and settled than was leased
                assert statement.held.get("api", 0) + settled <= ledger
                leased = data.draw(st.integers(0, 6))
                ledger = statement.held.get("api", 0) + leased
                scene.till.confirm({"api": leased}, {"api": epoch, "mail": 1})
        elif act == "limit":
            epoch += 1
            scene.words[1] = epoch
        elif act == "mark":
            # As in an exchange that leases for a consumer
            units = data.draw(st.integers(1, 3))
            ledger += units
            scene.till.earmark("a", {"api": units})
        elif act == "unmark":
            scene.till.unmark("a")
        pool = scene.till.pools["api"]
        in_hand = pool.left + pool.running + sum(pool.pending.values())
        assert in_hand <= ledger
        assert in_hand == ledger or pool.restate
        assert pool.left >= 0
        assert pool.running == sum(grant.reserved("api") for grant in grants)
        waiting = sum(units for waiter in scene.till.waiters for _, units in waiter.priced.lines)
        assert pool.set_aside == waiting + sum(pool.earmarks.values())


def _ignore(answer: Grant | Hold) -> None:
    del answer


# -- what the API says while an exchange is under way


def overtaken(scene: Scene, say: Callable[[], None], *, leased: int, granted: int = 0) -> None:
    """An exchange, while which the API says this."""
    scene.till.listen()
    scene.till.state({})
    say()
    scene.till.confirm({"api": leased}, {"api": 1, "mail": 1}, {"api": granted})


def test_a_refusal_undoes_what_an_exchange_leases_meanwhile() -> None:
    # Given one who waits, for whom the ledger grants four units, and twenty to have ahead
    scene = Scene()
    waiter = scene.wait("timeline", api=4)

    # When the API refuses a call before the answer of the ledger is here
    overtaken(scene, lambda: scene.till.refuse("api"), leased=20, granted=4)
    served = scene.till.serve_leased([waiter])

    # Then nothing of it is spent, and the ledger hears that it is not held
    assert (served, scene.served(), scene.left(), scene.till.pools["api"].restate) == ([], [], 0, True)
    assert scene.till.take(scene.price("other", api=1)) is None
    assert scene.exchange() == {}
    # and what the next exchange grants is paid
    scene.exchange(leased={"api": 4})
    assert scene.served() == [waiter]


def test_what_waits_for_a_consumer_that_comes_back_is_undone_by_a_refusal_too() -> None:
    scene = Scene()

    overtaken(scene, lambda: scene.till.refuse("api"), leased=0, granted=5)
    scene.till.earmark("costly", {"api": 5})

    pool = scene.till.pools["api"]
    assert (pool.left, pool.earmarks, pool.set_aside, pool.restate) == (0, {}, 0, True)


@pytest.mark.parametrize(("lasts", "paid"), [(True, False), (False, True)])
def test_an_answer_binds_what_an_exchange_leases_meanwhile(lasts: bool, paid: bool) -> None:
    scene = Scene(mail=5)
    waiter = scene.wait("timeline", api=1, mail=1)

    overtaken(scene, lambda: scene.till.bound("api", 0, lasts=lasts), leased=20, granted=1)

    # Of a limit of which units return as time goes by, the one that the ledger has found is still good
    assert bool(scene.till.serve_leased([waiter])) is paid
    assert scene.left() == 0
    # What was leased of another quota is there for it
    assert scene.left("mail") == 5 + (not paid)


def test_what_was_said_before_an_exchange_does_not_bind_it() -> None:
    scene = Scene()
    scene.till.bound("api", 0, lasts=True)

    scene.exchange(leased={"api": 20})

    assert scene.left() == 20


# -- whether the API serves again


def test_a_task_that_the_ledger_paid_says_from_its_beginning_on_that_calls_are_served() -> None:
    # Given one task that was paid from memory and one that was paid by the ledger
    scene = Scene(api=5)
    waiter = scene.wait("timeline", api=1)
    ((_, asked),) = scene.till.serve()
    begun_ns = scene.now_ns
    from_memory = scene.take(api=1)
    scene.now_ns += S

    scene.till.settle(from_memory)
    assert scene.till.pools["api"].served_ns == 0
    scene.till.book(asked, "api", 1)
    assert scene.till.pools["api"].served_ns == 0  # whether it was refused is not known yet
    scene.till.settle(asked, {})
    assert scene.till.pools["api"].served_ns == begun_ns
    assert waiter.grant is None


@pytest.mark.parametrize(("used", "ambiguous"), [({"api": 0}, False), (None, True)])
def test_a_task_without_an_answered_call_says_nothing(used: Mapping[str, int] | None, ambiguous: bool) -> None:
    scene = Scene(api=5)
    scene.wait("timeline", api=1)
    ((_, asked),) = scene.till.serve()

    scene.till.settle(asked, used, ambiguous=ambiguous)

    assert scene.till.pools["api"].served_ns == 0
