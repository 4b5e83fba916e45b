"""How a held consumer keeps its place in line, and how one without a place finds out whether it has a task.

The ledger's thread takes its turns when the test says so, by a clock that the test moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

from qctl.errors import LedgerError
from qctl.quota import Cause, Grant, Hold, Leases, Limit, Policy, Standing, Window
from qctl.quota.exchange import Exchange, Response
from qctl.quota.lease import next_window
from qctl.quota.line import in_turn
from qctl.quota.pool import Priced, Waiter
from qctl.quota.renewal import Renewal
from qctl.quota.reset import NEVER_NS, Reset
from qctl.quota.standing import LOOK_NS, RETRY_NS
from qctl.quota.upstream import Heard, Span, Told
from qctl.quota.window import LimitReading, Reading, Spent
from tests.unit.quota.model import FakeClock, S, no_writes

LIMIT = Limit(10, 10 * S)
SLIDING = Policy("api", (LIMIT,))
#: A unit each tenth of a second, of which one may be in the bucket.
PACED = Policy("api", (Limit(1000, 100 * S),), Window.PACED, 1)
INTERVAL_NS = S // 10
#: As `Leases.open` has it.
HOLD_AFTER_NS = S
#: Until the next turn of the ledger's thread.
TURN_NS = S // 4
Open = Callable[..., Leases]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def opened(tmp_path: Path, clock: FakeClock) -> Iterator[Open]:
    """Leases as of one process each, on one ledger, whose threads are not running."""
    found: list[Leases] = []

    def open_one(
        *,
        hold_after_s: float = HOLD_AFTER_NS / S,
        told: Callable[[str, Standing], None] = lambda *_: None,
        policy: Policy = SLIDING,
    ) -> Leases:
        found.append(
            Leases.open(
                tmp_path / "web-1",
                [policy],
                clock=clock.clock(),
                hold_after_s=hold_after_s,
                on_standing=told,
            )
        )
        return found[-1]

    with mock.patch.object(Renewal, "start"), mock.patch.object(Renewal, "stop"):
        yield open_one
        for leases in found:
            leases.close()


def pass_time(clock: FakeClock, leases: Leases, span_ns: int) -> None:
    for _ in range(span_ns // TURN_NS):
        clock.pass_ns(TURN_NS)
        leases._renewal.turn()


def ask(leases: Leases, consumer: str, units: int) -> list[Grant | Hold]:
    """Have a task of it wait; the answer, once there is one."""
    answers: list[Grant | Hold] = []
    leases._request(leases.price(consumer, {"api": units}), answers.append, None)
    leases._renewal.turn()
    return answers


def until_held(clock: FakeClock, leases: Leases) -> int:
    """Until it is clear that what is out does not come back in time."""
    for _ in range(2 * HOLD_AFTER_NS // TURN_NS):
        pass_time(clock, leases, TURN_NS)
        if leases.standing("timeline").held is not None:
            return clock.true_ns
    raise AssertionError("never held")


def spend_all(leases: Leases) -> Grant:
    """A task that runs on and has all there is."""
    leases.register("whale", {"api": LIMIT.units})
    (answer,) = ask(leases, "whale", LIMIT.units)
    assert isinstance(answer, Grant)
    return answer


def test_a_held_consumer_keeps_its_place_in_line_for_as_long_as_it_is_held(opened: Open, clock: FakeClock) -> None:
    # Given a consumer that is held, with a task of it in line
    running, leases = opened(), opened()
    grant = spend_all(running)
    leases.register("timeline", {"api": 5})
    answers = ask(leases, "timeline", 5)
    pass_time(clock, leases, 2 * S)
    assert isinstance(answers[0], Hold)
    (before,) = leases._ledger.readings()["api"].claims

    # When more time passes than a claim lives for, in which it is held throughout
    for _ in range(3 * LIMIT.claim_ns // TURN_NS):
        pass_time(clock, leases, TURN_NS)
        assert leases.standing("timeline").held is not None

    # Then it stands where it stood, and is paid when there is something
    (after,) = leases._ledger.readings()["api"].claims
    assert (after.seq, after.units) == (before.seq, 5)
    running.settle(grant, {"api": 0})
    for _ in range(3 * S // TURN_NS):
        running._renewal.turn()
        pass_time(clock, leases, TURN_NS)
        if leases.take(leases.price("timeline", {"api": 5})) is not None:
            return
    pytest.fail("not paid within three seconds")


def test_a_held_consumer_without_a_place_in_line_looks_for_a_task_once_a_window(opened: Open, clock: FakeClock) -> None:
    # Given a consumer that was held from the start, so that no task of it ever asked
    running, leases = opened(), opened()
    spend_all(running)
    leases.register("timeline", {"api": 1})
    since_ns = until_held(clock, leases)

    # When nothing changes for three windows, and some seconds
    looks_ns: list[int] = []
    while clock.true_ns < since_ns + 3 * LIMIT.claim_ns + 10 * S:
        pass_time(clock, leases, TURN_NS)
        if leases.standing("timeline") == Standing():
            looks_ns.append(clock.true_ns - since_ns)

    # Then it consumed for a while in each
    begins_ns = [at_ns for at_ns in looks_ns if at_ns - TURN_NS not in looks_ns]
    assert len(begins_ns) == 3
    assert LIMIT.claim_ns <= begins_ns[0] < LIMIT.claim_ns + TURN_NS
    assert abs(len(looks_ns) * TURN_NS - 3 * (LOOK_NS + HOLD_AFTER_NS)) <= 3 * TURN_NS


def test_a_task_that_is_met_on_such_a_look_stands_in_line(opened: Open, clock: FakeClock) -> None:
    running, leases = opened(), opened()
    spend_all(running)
    leases.register("timeline", {"api": 1})
    until_held(clock, leases)
    assert isinstance(ask(leases, "timeline", 1)[0], Hold)
    assert leases._ledger.readings()["api"].claims == ()

    pass_time(clock, leases, LIMIT.claim_ns + TURN_NS)
    ask(leases, "timeline", 1)

    assert [claim.consumer for claim in leases._ledger.readings()["api"].claims] == ["timeline"]


def test_the_listener_is_told_before_who_waits(opened: Open, clock: FakeClock) -> None:
    # Who gives a delivery back must find its consumer held
    heard: list[str] = []
    running, leases = opened(), opened(told=lambda consumer, _: heard.append(consumer))
    spend_all(running)
    leases.register("timeline", {"api": 1})
    leases._request(leases.price("timeline", {"api": 1}), lambda _: heard.append("who waits"), None)

    pass_time(clock, leases, 2 * HOLD_AFTER_NS)

    assert heard == ["timeline", "who waits"]


def test_nobody_is_told_of_a_consumer_that_was_withdrawn_while_it_was_judged(opened: Open, clock: FakeClock) -> None:
    told: list[str] = []
    running, leases = opened(), opened(told=lambda consumer, _: told.append(consumer))
    spend_all(running)
    withdrawing = False

    def backlog() -> dict[str, int]:
        # Asked in the middle of judging.
        if withdrawing:
            leases.withdraw("timeline")
        return {}

    leases.register("timeline", {"api": 1}, backlog=backlog)
    pass_time(clock, leases, HOLD_AFTER_NS)
    assert leases.standing("timeline") == Standing()
    withdrawing = True
    pass_time(clock, leases, HOLD_AFTER_NS)

    assert told == []


def test_while_the_ledger_cannot_be_written_who_can_pay_from_memory_consumes(opened: Open, clock: FakeClock) -> None:
    # Given units in memory, and a settlement that cannot be written down
    leases = opened(hold_after_s=TURN_NS / S)
    leases.register("timeline", {"api": 1})
    leases.register("costly", {"api": 5})
    (grant,) = ask(leases, "timeline", 1)
    assert isinstance(grant, Grant)
    leases.settle(grant)
    leases._renewal.turn()
    assert leases._till.pools["api"].left == 1

    # When it is known for as long as a task may wait
    with no_writes():
        pass_time(clock, leases, 3 * TURN_NS)

        # Then only who needs more than that is held
        assert leases.broken is not None
        assert leases.standing("timeline") == Standing()
        held = leases.standing("costly").held
        assert held is not None
        assert held.cause is Cause.LEDGER


def test_tasks_in_line_are_a_backlog_whatever_the_worker_says_of_it(opened: Open, clock: FakeClock) -> None:
    # Given units that come back in time
    running, leases = opened(), opened()
    running.settle(spend_all(running))
    running._renewal.turn()
    pass_time(clock, running, LIMIT.period_ns - HOLD_AFTER_NS // 2)
    leases.register("timeline", {"api": 1})
    assert leases.standing("timeline") == Standing()

    # When more tasks wait for them than there are
    answers: list[Grant | Hold] = []
    for _ in range(LIMIT.units + 1):
        leases._request(leases.price("timeline", {"api": 1}), answers.append, None)
    leases._renewal.turn()

    # Then nobody waits
    assert [type(answer) for answer in answers] == [Hold] * (LIMIT.units + 1)


def test_what_was_spent_under_a_ledger_that_is_lost_is_told_to_the_next(
    opened: Open, clock: FakeClock, tmp_path: Path
) -> None:
    leases = opened()
    leases.register("timeline", {"api": 3})
    (grant,) = ask(leases, "timeline", 3)
    assert isinstance(grant, Grant)
    leases.settle(grant)
    (tmp_path / "web-1" / "ledger.sqlite").unlink()

    pass_time(clock, leases, 2 * S)

    # Beside all there is, which a new one counts as spent
    reading = leases._ledger.readings()["api"]
    assert reading.used(leases.clock.now_ns()) == (LIMIT.units + 3,)


def test_who_waits_for_a_consumer_that_is_withdrawn_is_told_at_once_and_it_may_enter_again_without_the_disk(
    opened: Open,
) -> None:
    # Given a task in line, and a ledger that nobody asks
    running, leases = opened(), opened()
    spend_all(running)
    priced, told = leases.register("timeline", {"api": 1}), list[Grant | Hold]()
    leases._request(priced, told.append, None)
    leases._request(leases.register("mail", {"api": 1}), told.append, None)

    with mock.patch.object(type(leases._ledger), "readings"), mock.patch.object(type(leases._ledger), "exchange"):
        leases.withdraw("timeline")
        assert told == [Hold(None, Cause.WITHDRAWN)]
        assert [waiter.priced.consumer for waiter in leases._till.waiting()] == ["mail"]

        # When it enters again it is judged at once
        leases.enter_again(priced)
        assert leases.standing("timeline") == Standing()

    # and claims like any other, and no more once it is withdrawn for good
    leases._request(priced, told.append, None)
    leases._renewal.turn()
    assert {claim.consumer for claim in leases._ledger.readings()["api"].claims} == {"timeline", "mail"}
    leases.withdraw("timeline")
    leases._renewal.turn()
    assert {claim.consumer for claim in leases._ledger.readings()["api"].claims} == {"mail"}


def test_race_of_a_task_that_gets_in_line_and_a_withdrawal(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    running, leases = opened(), opened()
    spend_all(running)
    priced, told = leases.register("timeline", {"api": 1}), list[Grant | Hold]()
    enqueue = leases._till.enqueue

    def withdrawn_before(waiter: Waiter) -> None:
        leases.withdraw("timeline")
        enqueue(waiter)

    monkeypatch.setattr(leases._till, "enqueue", withdrawn_before)
    assert leases._request(priced, told.append, None) is None
    assert told == [Hold(None, Cause.WITHDRAWN)]
    assert leases._till.waiting() == ()


def test_race_of_units_that_come_for_a_consumer_and_its_withdrawal_keeps_them_from_nobody(
    opened: Open, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a consumer that is held, with a task in line
    running, leases = opened(), opened()
    grant = spend_all(running)
    leases.register("timeline", {"api": 5})
    answers = ask(leases, "timeline", 5)
    pass_time(clock, leases, 2 * S)
    assert isinstance(answers[0], Hold)
    running.settle(grant, {"api": 0})
    running._renewal.turn()

    # When it is withdrawn while the ledger grants what it needs to come back
    exchange = leases._ledger.exchange

    def then_withdrawn(request: Exchange, **options: float) -> Response:
        response = exchange(request, **options)
        if any(response.granted):
            leases.withdraw("timeline")
        return response

    monkeypatch.setattr(leases._ledger, "exchange", then_withdrawn)
    for _ in range(3 * S // TURN_NS):
        running._renewal.turn()
        pass_time(clock, leases, TURN_NS)

    # Then that is kept for nobody
    assert leases.standing("timeline").held == Hold(None, Cause.WITHDRAWN)
    pool = leases._till.pools["api"]
    assert (pool.earmarks, pool.set_aside) == ({}, 0)


def test_the_claim_of_who_was_withdrawn_a_moment_ago_keeps_nobody_of_this_process(opened: Open) -> None:
    # Given a claim for all there is, of a consumer that is withdrawn, before the ledger has heard of it
    running, leases = opened(), opened()
    grant = spend_all(running)
    leases.register("costly", {"api": LIMIT.units})
    ask(leases, "costly", LIMIT.units)
    running.settle(grant, {"api": 0})
    running._renewal.turn()
    leases.withdraw("costly")

    leases.register("timeline", {"api": 1})

    assert leases.standing("timeline") == Standing()


# -- tasks of different costs


def flood(clock: FakeClock, leases: Leases, consumer: str, *, until: Callable[[], bool], units: int = 1) -> int:
    """Let this consumer have as many tasks at once as there are units, again and again; returns how many were paid."""
    price, paid = leases.price(consumer, {"api": units}), 0
    for _ in range(60 * S // TURN_NS):
        while (grant := leases.take(price)) is not None:
            leases.settle(grant)
            paid += 1
        if leases.standing(consumer).consuming:
            answers: list[Grant | Hold] = []
            for _ in range(LIMIT.units):
                leases._request(price, answers.append, None)
            leases._renewal.turn()
            for answer in answers:
                if isinstance(answer, Grant):
                    leases.settle(answer)
                    paid += 1
        pass_time(clock, leases, TURN_NS)
        if until():
            return paid
    raise AssertionError("never came true")


def test_a_costly_task_beside_a_flood_of_cheap_ones_is_paid_within_a_window(opened: Open, clock: FakeClock) -> None:
    # Given a consumer of costly tasks without any, beside a flood that leaves nothing
    leases = opened()
    leases.register("cheap", {"api": 1})
    costly = leases.register("costly", {"api": 5})
    began_ns = clock.true_ns
    flood(clock, leases, "cheap", until=lambda: clock.true_ns > began_ns + 3 * LIMIT.period_ns)

    # When a task of it comes, at a moment when there is nothing, it is met
    assert leases.standing("costly") == Standing()
    came_ns = clock.true_ns
    answers: list[Grant | Hold] = []
    leases._request(costly, answers.append, None)

    def is_paid() -> bool:
        # As the worker does: given back when it is held, and delivered again when it is not
        if isinstance(answers[-1] if answers else None, Hold) and leases.standing("costly").consuming:
            answers.clear()
            leases._request(costly, answers.append, None)
            leases._renewal.turn()
        return any(isinstance(answer, Grant) for answer in answers)

    # Then it is paid when what was spent before it came is free again, whatever the flood does
    flood(clock, leases, "cheap", until=is_paid)
    assert clock.true_ns - came_ns <= LIMIT.kept_ns + LIMIT.bucket_ns + 2 * TURN_NS


def test_a_costly_task_among_cheap_ones_of_its_own_consumer_is_paid_within_a_window(
    opened: Open, clock: FakeClock
) -> None:
    # Given a consumer whose tasks cost 1, and spend all there is, a unit a second
    leases = opened()
    cheap, costly = leases.register("timeline", {"api": 1}), leases.price("timeline", {"api": 5})
    for _ in range(LIMIT.units):
        (answer,) = ask(leases, "timeline", 1)
        assert isinstance(answer, Grant)
        leases.settle(answer)
        pass_time(clock, leases, S)
    came_ns = clock.true_ns

    # When one comes that names a cost of 5, with four cheap ones in the slots beside it, and more behind them
    answers: dict[Priced, list[Grant | Hold]] = {}
    while not isinstance(found := (answers.get(costly) or [None])[0], Grant):
        assert clock.true_ns - came_ns <= LIMIT.kept_ns + 2 * HOLD_AFTER_NS, "starved"
        for price, got in list(answers.items()):
            if got:
                del answers[price]
                if isinstance(got[0], Grant):
                    leases.settle(got[0])
        if leases.standing("timeline").consuming:
            for price in (costly, *(leases.price("timeline", cheap.cost) for _ in range(5 - len(answers)))):
                if price not in answers and len(answers) < 5:
                    leases._request(price, answers.setdefault(price, []).append, None)
        pass_time(clock, leases, TURN_NS)

    # Then it is paid by the time that what was spent before is free again, however the others went on
    leases.settle(found)


def test_a_task_that_names_a_higher_cost_waits_no_longer_than_others_though_a_usual_one_could_be_paid(
    opened: Open, clock: FakeClock
) -> None:
    # Given three units that are free, and a task that needs five
    leases = opened()
    leases.register("timeline", {"api": 1})
    (grant,) = ask(leases, "timeline", LIMIT.units - 3)
    assert isinstance(grant, Grant)
    leases.settle(grant)
    leases._renewal.turn()

    came_ns = clock.true_ns
    answers = ask(leases, "timeline", 5)
    pass_time(clock, leases, HOLD_AFTER_NS)

    # Then its consumer is held for it, until there are five
    assert [type(answer) for answer in answers] == [Hold]
    pass_time(clock, leases, LIMIT.period_ns - 2 * HOLD_AFTER_NS)
    assert leases.standing("timeline").held is not None
    while leases.standing("timeline").held is not None:
        pass_time(clock, leases, TURN_NS)
        assert clock.true_ns < came_ns + LIMIT.kept_ns + 2 * HOLD_AFTER_NS
    assert leases.take(leases.price("timeline", {"api": 5})) is not None


def test_the_claim_of_a_consumer_is_for_the_costliest_task_that_it_has_in_line(opened: Open) -> None:
    running, leases = opened(), opened()
    spend_all(running)
    leases.register("timeline", {"api": 1})

    for units in (1, 5, 2):
        leases._request(leases.price("timeline", {"api": units}), lambda _: None, None)
        leases._renewal.turn()

    (claim,) = leases._ledger.readings()["api"].claims
    assert (claim.consumer, claim.units) == ("timeline", 5)


def test_behind_a_task_that_was_refused_none_of_its_consumer_asks_that_costs_less(opened: Open) -> None:
    leases = opened()
    for consumer in ("timeline", "mail"):
        leases.register(consumer, {"api": 1})

    def waits(consumer: str, units: int, *, refused: bool = True) -> Waiter:
        priced = leases.price(consumer, {"api": units})
        return Waiter(priced, lambda _: None, since_ns=0, refused_ns=0 if refused else None)

    first, costly, cheap, equal = waits("timeline", 1), waits("timeline", 5), waits("timeline", 1), waits("timeline", 5)
    new, other = waits("mail", 5, refused=False), waits("mail", 1)

    assert in_turn([first, costly, cheap, equal], 0) == [first, costly, equal]
    assert in_turn([costly, cheap, equal, new, other], 0) == [costly, equal, new, other]


def test_a_cheap_task_does_not_overtake_the_costly_one_that_waits_before_it(opened: Open, clock: FakeClock) -> None:
    # Given three units that are free, and three that a running task may give back
    leases = opened()
    leases.register("timeline", {"api": 1})
    (settled,), (running,) = ask(leases, "timeline", LIMIT.units - 6), ask(leases, "timeline", 3)
    assert isinstance(settled, Grant)
    assert isinstance(running, Grant)
    leases.settle(settled)
    costly = ask(leases, "timeline", 5)

    cheap = ask(leases, "timeline", 1)
    assert (costly, cheap) == ([], [])
    leases.settle(running, {})
    pass_time(clock, leases, 2 * TURN_NS)

    assert isinstance(costly[0], Grant)


# -- buckets


def test_a_task_that_waits_for_a_bucket_is_paid_an_interval_after_the_one_before_was_settled(
    opened: Open, clock: FakeClock
) -> None:
    leases = opened(policy=PACED)
    leases.register("timeline", {"api": 1})
    (running,) = ask(leases, "timeline", 1)
    assert isinstance(running, Grant)
    answers = ask(leases, "timeline", 1)
    clock.pass_ns(INTERVAL_NS)
    leases._renewal.turn()
    assert answers == []

    # When it is settled, the thread is woken, and says itself when to wake again
    leases._renewal.wake.clear()
    leases.settle(running)
    assert leases._renewal.wake.is_set()
    settled_ns = clock.true_ns
    sleep_ns = leases._renewal.turn()
    while not answers:
        clock.pass_ns(sleep_ns)
        sleep_ns = leases._renewal.turn()
        assert clock.true_ns - settled_ns <= INTERVAL_NS + S // 100, "paid late"

    assert isinstance(answers[0], Grant)


def test_a_bucket_that_others_keep_full_is_no_reason_to_hold_who_has_no_task(opened: Open, clock: FakeClock) -> None:
    leases = opened(policy=PACED)
    busy = leases.register("busy", {"api": 1})
    leases.register("idle", {"api": 1})
    answers: list[Grant | Hold] = []

    for _ in range(30):
        leases._request(busy, answers.append, None)
    for _ in range(300):
        clock.pass_ns(S // 100)
        leases._renewal.turn()
        for answer in answers:
            if isinstance(answer, Grant):
                leases.settle(answer)
                leases._request(busy, answers.append, None)
        answers.clear()
        assert leases.standing("idle") == Standing()


# -- what the API says


def test_what_the_api_said_reaches_the_ledger_when_it_can_be_written_again(opened: Open, clock: FakeClock) -> None:
    leases = opened()
    leases.register("timeline", {"api": 1})
    (running,) = ask(leases, "timeline", 1)
    assert isinstance(running, Grant)
    now_ns = leases.clock.now_ns()

    with no_writes():
        leases.tell("api", Heard(told=(Told(2, None, None, None, now_ns, now_ns),)))
        leases.settle(running)
        pass_time(clock, leases, 4 * TURN_NS)
        assert leases.broken is not None
    pass_time(clock, leases, 2 * TURN_NS)

    assert leases.foreign()["api"].lo_units == 7


@pytest.mark.parametrize("kind", ["refused", "nothing remains"])
def test_an_answer_that_comes_while_the_ledger_is_asked_goes_before_what_it_grants(opened: Open, kind: str) -> None:
    # Given a pool that is dry, and one who waits
    leases = opened(policy=Policy("api", (Limit(1000, 60 * S),), Window.FIXED))
    priced = leases.register("timeline", {"api": 1})
    now_ns = leases.clock.now_ns()
    said = {
        "refused": Heard(refused=True, wait=Span(now_ns + 30 * S, now_ns + 30 * S)),
        "nothing remains": Heard(told=(Told(0, 1000, None, None, now_ns, now_ns),)),
    }
    exchange = leases._ledger.exchange

    def overtaken(request: Exchange, *, patience_s: float) -> Response:
        response = exchange(request, patience_s=patience_s)
        leases.tell("api", said[kind])
        return response

    # When the answer comes between the ledger's commit and its answer
    with mock.patch.object(leases._ledger, "exchange", overtaken):
        answers = ask(leases, "timeline", 1)

    # Then nobody is paid by it
    assert answers == []
    assert leases.take(priced) is None
    leases._renewal.turn()
    leases._renewal.turn()
    assert not any(isinstance(answer, Grant) for answer in answers)
    assert leases._ledger.readings()["api"].leased_units == 0


def test_a_quota_that_nobody_configures_any_more_survives_the_loss_of_the_file(
    opened: Open, clock: FakeClock, tmp_path: Path
) -> None:
    # Given a quota of an older inventory in the ledger
    opened(policy=Policy("old", (LIMIT,))).close()
    leases = opened()
    leases.register("timeline", {"api": 1})
    pass_time(clock, leases, 4 * TURN_NS)

    # When the file is lost
    (tmp_path / "web-1" / "ledger.sqlite").unlink()
    pass_time(clock, leases, LIMIT.kept_ns + LIMIT.linger_ns + 2 * S)

    # Then the new one has it too, and the host works on
    assert leases.broken is None
    assert leases.readings().keys() == {"api", "old"}
    assert isinstance(ask(leases, "timeline", 1)[0], Grant)


def test_a_pool_without_a_quota_in_the_ledger_is_left_alone(opened: Open, clock: FakeClock) -> None:
    leases = opened()
    view = leases._ledger.words.view
    leases._till.bind({"api": 1, "gone": 7}, {"api": S, "gone": S}, view)

    pass_time(clock, leases, 8 * TURN_NS)

    assert leases.broken is None


# -- what a refusal without a word means


@pytest.mark.parametrize(
    ("settled", "said", "waits"),
    [
        (1, 0, True),  # the API says that the window is used up
        (1, None, False),  # it says nothing, and nothing is
        (9, None, True),  # by our own count
        (9, 3, False),  # its word goes before it
    ],
)
def test_a_refusal_without_a_word_waits_for_the_reset_of_a_window_that_is_used_up(
    settled: int, said: int | None, waits: bool
) -> None:
    day, now_ns = Limit(10, 86_400 * S, Window.FIXED), 100 * S
    ends_ns = 80_000 * S
    part = LimitReading(
        day, spent=Spent.of([(90_000 * S, settled)]), reset=Reset(NEVER_NS, Span(ends_ns, ends_ns), spread_ns=0)
    )
    reading = Reading("api", (part,), leased={"me": 1})

    until_ns = next_window(reading, {} if said is None else {day: said}, now_ns)

    assert until_ns == (ends_ns if waits else None)


def test_a_probe_that_was_served_ends_the_probing_and_one_that_was_refused_does_not(
    opened: Open, clock: FakeClock
) -> None:
    leases = opened()
    leases.register("timeline", {"api": 1})
    now_ns = leases.clock.now_ns()
    leases.tell("api", Heard(refused=True, wait=Span(now_ns + S, now_ns + S)))
    pass_time(clock, leases, 3 * S)
    assert leases.readings()["api"].probing_until_ns

    # When the first task after the pause is refused as well: it has booked its call, and then told of it
    (probe,) = ask(leases, "timeline", 1)
    assert isinstance(probe, Grant)
    clock.pass_ns(TURN_NS)
    leases.book(probe, "api", 1)
    now_ns = leases.clock.now_ns()
    leases.tell("api", Heard(refused=True, wait=Span(now_ns + S, now_ns + S)))
    leases.settle(probe, {})
    pass_time(clock, leases, 10 * S)
    assert leases.readings()["api"].probing_until_ns

    # And when the next one is served
    (probe,) = ask(leases, "timeline", 1)
    assert isinstance(probe, Grant)
    leases.settle(probe)
    pass_time(clock, leases, TURN_NS)
    assert not leases.readings()["api"].probing_until_ns


# -- places in line


@pytest.mark.parametrize("ends", ["paid from memory", "gone"])
def test_the_place_of_one_who_waits_no_more_is_struck_out(opened: Open, clock: FakeClock, ends: str) -> None:
    # Given a task that stands in line behind those that run
    leases = opened()
    leases.register("timeline", {"api": 4})
    leases.register("big", {"api": 10})
    (running,) = ask(leases, "big", LIMIT.units)
    assert isinstance(running, Grant)
    answers = ask(leases, "timeline", 4)
    assert [claim.consumer for claim in leases._ledger.readings()["api"].claims] == ["timeline"]

    # When what the other one has not used pays it, or it goes away
    if ends == "gone":
        (waiter,) = leases._till.waiting()
        assert leases._till.dequeue(waiter)
    leases.settle(running, {})
    pass_time(clock, leases, 2 * TURN_NS)

    # Then nothing is kept for it any more
    assert len(answers) == (ends != "gone")
    assert leases._ledger.readings()["api"].claims == ()
    # and that is written once
    written = leases._ledger.mark
    pass_time(clock, leases, TURN_NS)
    assert leases._ledger.mark == written


def test_who_comes_back_while_the_ledger_fails_keeps_its_place(opened: Open) -> None:
    leases = opened()
    priced = leases.register("timeline", {"api": 1})
    leases.withdraw("timeline")

    def fails(request: Exchange, *, patience_s: float) -> Response:
        assert request.unclaim == ("timeline",)
        leases.enter_again(priced)
        raise LedgerError("full")

    with mock.patch.object(leases._ledger, "exchange", fails):
        leases._renewal.turn()

    assert leases._renewal._withdrawn == set()


def test_who_is_behind_a_refused_task_of_its_consumer_does_not_keep_the_thread_awake(opened: Open) -> None:
    # Given a task that was refused just now although it seems payable, and a cheaper one of its consumer behind it
    leases = opened()
    leases.register("timeline", {"api": 1})
    now_ns = leases.clock.now_ns()
    for units, refused_ns, try_ns in ((5, now_ns, now_ns + TURN_NS), (1, None, now_ns - 1)):
        priced = leases.price("timeline", {"api": units})
        leases._till.enqueue(Waiter(priced, lambda _: None, now_ns, try_ns=try_ns, refused_ns=refused_ns))

    # Then it is asked for again in a moment, and for the other one not before
    assert leases._renewal.standings.judge(now_ns) == now_ns + RETRY_NS


def test_who_waits_for_long_asks_for_its_place_in_line_to_count(opened: Open, clock: FakeClock) -> None:
    # Given a task that may wait for a minute, for what somebody else has
    busy, leases = (opened(policy=Policy("api", (Limit(10, 100 * S),)), hold_after_s=60.0) for _ in range(2))
    for one, consumer in ((busy, "busy"), (leases, "timeline")):
        one.register(consumer, {"api": 1})
    (running,) = ask(busy, "busy", 10)
    assert isinstance(running, Grant)
    assert ask(leases, "timeline", 1) == []

    for _ in range(30):
        pass_time(clock, leases, S)
        (claim,) = leases._ledger.readings()["api"].claims
        assert claim.expires_ns > leases.clock.now_ns()


def test_who_waits_for_what_is_spent_by_now_is_held_without_delay(opened: Open, clock: FakeClock) -> None:
    # Given one that waits, since a running task may give back what it does not use
    leases = opened()
    leases.register("timeline", {"api": 1})
    (running,) = ask(leases, "timeline", LIMIT.units)
    assert isinstance(running, Grant)
    answers = ask(leases, "timeline", 1)
    assert answers == []

    # When that has used all
    leases.settle(running)
    since_ns = clock.true_ns
    while not answers:
        clock.pass_ns(leases._renewal.turn())

    # Then the ledger hears so in a moment, and others may take its deliveries
    assert isinstance(answers[0], Hold)
    assert clock.true_ns - since_ns <= S // 10
