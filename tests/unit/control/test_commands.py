"""What should be, folded from what was commanded: pauses, limits, who is obeyed, what came twice."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qctl.control import seen
from qctl.control.desired import MAX_PAUSES, Desired, Folding, Own, Pause, fold, judge
from qctl.control.event import Command, Event, Hello, Verb
from qctl.control.target import Scope, Subject, Target

AT = "2026-11-22T21:00:00.000Z"
NOW_S = 1000.0
OPERATORS = frozenset({"oncall"})
numbers = itertools.count()


def subject(host: str = "web-1", consumer: str = "timeline", index: int = 0) -> Subject:
    return Subject(host, consumer, consumer, f"qctl/{host}/{consumer}/{index}")


def pause(host: str | None = None, consumer: str | None = None, *, until_s: float | None = None) -> Command:
    return command(Verb.PAUSE, Target(host=host, consumer=consumer), until_s=until_s)


def resume(host: str | None = None, consumer: str | None = None) -> Command:
    return command(Verb.RESUME, Target(host=host, consumer=consumer))


def quota_set(host: str, quota: str, rate: str, *, until_s: float | None = None) -> Command:
    return replace(command(Verb.QUOTA_SET, Target(host=host), until_s=until_s), quota=quota, rates=(rate,))


def quota_clear(host: str, quota: str) -> Command:
    return replace(command(Verb.QUOTA_CLEAR, Target(host=host)), quota=quota)


def command(verb: Verb, target: Target, *, until_s: float | None = None) -> Command:
    # Ids are random on the wire; the filter of what was seen takes its places from them.
    identity = f"{next(numbers) * 0x9E3779B97F4A7C15F39CC0605CEDC834 % (1 << 128):032x}"
    return Command(identity, AT, verb, target, until_s=until_s, user="oncall")


def ids(pauses: tuple[Pause, ...]) -> list[str]:
    return [each.id for each in pauses]


def hello(host: str, user: str) -> Hello:
    return Hello("n", host, 0, "ledger", "box", 1, user=user)


# Pauses


def test_given_a_pause_then_who_why_and_until_when_is_known_of_what_it_matches() -> None:
    given_ = replace(pause("web-1", "timeline", until_s=NOW_S + 60), reason="sick", claimed_by="ann@desk")

    found = fold(Desired(), [given_])

    assert found.pauses_of(subject(), NOW_S) == (
        Pause(given_.id, "oncall", "ann@desk", AT, "sick", NOW_S + 60, given_.target),
    )
    assert found.pauses_of(subject("web-2"), NOW_S) == ()
    assert found.pauses_of(subject(consumer="mail"), NOW_S) == ()


def test_given_two_pauses_then_each_is_an_entry_of_its_own_and_a_resume_lifts_both() -> None:
    first, second = pause("web-1"), pause(consumer="timeline")
    found = fold(Desired(), [first, second])

    assert ids(found.pauses_of(subject(), NOW_S)) == [first.id, second.id]
    assert fold(found, [resume("web-1", "timeline")]).pauses_of(subject(), NOW_S) == ()


def test_given_a_resume_of_a_part_then_the_rest_stays_paused_also_for_hosts_that_come_later() -> None:
    found = fold(Desired(), [pause("*", "timeline"), resume("web-1")])

    assert found.pauses_of(subject("web-1"), NOW_S) == ()
    assert found.pauses_of(subject("web-2"), NOW_S)
    assert found.pauses_of(subject("a-host-of-next-year"), NOW_S)
    assert found.pauses[0].lifted == (Target(host="web-1"),)


def test_given_a_pause_after_a_resume_then_it_is_paused_again() -> None:
    found = fold(Desired(), [pause("*"), resume("web-1"), again := pause("web-1")])

    assert ids(found.pauses_of(subject(), NOW_S)) == [again.id]


def test_given_a_resume_that_covers_then_nothing_is_left_of_the_pause() -> None:
    assert fold(Desired(), [pause("web-1", "timeline"), resume("web-*")]).pauses == ()


def test_given_the_same_part_resumed_again_and_again_then_it_takes_no_more_room() -> None:
    found = fold(Desired(), [pause("*"), *(resume("web-1") for _ in range(100))])

    assert found.pauses[0].lifted == (Target(host="web-1"),)


def test_given_a_time_then_a_pause_ends_with_it_and_stays_ended() -> None:
    found = fold(Desired(), [pause("web-1", until_s=NOW_S), lasting := pause("web-1", until_s=NOW_S + 60)])

    assert ids(found.pauses_of(subject(), NOW_S)) == [lasting.id]
    assert len(found.pauses_of(subject(), NOW_S - 1)) == 2
    assert ids(found.without_ended(NOW_S).pauses_of(subject(), NOW_S - 1)) == [lasting.id]
    assert (found.ends_after(NOW_S - 1), found.ends_after(NOW_S), found.ends_after(NOW_S + 60)) == (
        NOW_S,
        NOW_S + 60,
        None,
    )


hosts = st.sampled_from(["web-1", "web-2", "db-1", "web-*", "*", None])
consumers = st.sampled_from(["timeline", "mail", "*", None])
tags = st.sampled_from([None, None, "qctl/web-1/timeline/0", "qctl/*/0"])
meant = st.builds(lambda h, c, t: Target(host=h, consumer=c, tag=t), hosts, consumers, tags).filter(
    lambda target: not target.names_nothing
)
untils = st.sampled_from([None, None, NOW_S - 1, NOW_S + 1])
pausing = st.builds(
    lambda verb, target, until_s: command(verb, target, until_s=until_s if verb is Verb.PAUSE else None),
    st.sampled_from([Verb.PAUSE, Verb.RESUME]),
    meant,
    untils,
)
SUBJECTS = [
    subject(host, consumer, index)
    for host in ("web-1", "web-2", "db-1", "other")
    for consumer in ("timeline", "mail")
    for index in (0, 1)
]


def still_paused(commands: list[Command], of: Subject) -> list[str]:
    """What should hold, said naively: every pause that matches, has not ended, and that no later resume matches."""
    return [
        each.id
        for at, each in enumerate(commands)
        if each.verb is Verb.PAUSE
        and each.target.matches(of)
        and (each.until_s is None or each.until_s > NOW_S)
        and not any(later.verb is Verb.RESUME and later.target.matches(of) for later in commands[at:])
    ]


@given(st.lists(pausing, max_size=12), st.data())
def test_a_subscription_is_paused_by_every_pause_that_no_later_resume_lifted_for_it(
    commands: list[Command], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(commands)))

    found = fold(fold(Desired(), commands[:cut]).without_ended(NOW_S), commands[cut:])

    for each in SUBJECTS:
        assert ids(found.pauses_of(each, NOW_S)) == still_paused(commands, each), each


# Limits


def test_given_two_limits_then_the_last_holds_and_when_it_ends_the_one_before() -> None:
    commands = [quota_set("web-1", "api", "10/s"), quota_set("*", "*", "5/s", until_s=NOW_S + 1)]
    found = fold(Desired(), commands)

    during, after = found.override_of("web-1", "api", NOW_S), found.override_of("web-1", "api", NOW_S + 1)

    assert during is not None
    assert after is not None
    assert (during.rates, after.rates) == (("5/s",), ("10/s",))
    assert during.limits == ((5, 10**9),)
    assert found.override_of("web-2", "api", NOW_S + 1) is None


def test_given_a_clear_of_a_part_then_the_rest_stays_set() -> None:
    found = fold(Desired(), [quota_set("*", "api", "10/s"), quota_clear("web-1", "*")])

    assert found.override_of("web-1", "api", NOW_S) is None
    assert found.override_of("web-2", "api", NOW_S)
    assert found.overrides[0].lifted == (Scope("web-1", "*"),)
    assert fold(found, [quota_clear("*", "*")]).overrides == ()


def test_given_a_new_limit_without_end_then_what_it_hides_for_good_is_forgotten() -> None:
    sets = [quota_set("web-1", "api", f"{n}/s") for n in range(1, 50)]

    assert [each.rates for each in fold(Desired(), sets).overrides] == [("49/s",)]
    timed = replace(quota_set("web-1", "api", "1/s"), until_s=NOW_S + 1)
    assert len(fold(Desired(), [*sets, timed]).overrides) == 2


limits = st.builds(
    lambda verb, host, quota, until_s, rate: replace(
        command(verb, Target(host=host), until_s=until_s if verb is Verb.QUOTA_SET else None),
        quota=quota,
        rates=(f"{rate}/s",) if verb is Verb.QUOTA_SET else (),
    ),
    st.sampled_from([Verb.QUOTA_SET, Verb.QUOTA_CLEAR]),
    st.sampled_from(["web-1", "web-2", "web-*", "*"]),
    st.sampled_from(["api", "mail", "*"]),
    untils,
    st.integers(1, 9),
)


def limit_in_force(commands: list[Command], host: str, quota: str) -> str | None:
    """Naively: the last setting that matches, has not ended, and that no later clear matches."""
    for at in reversed(range(len(commands))):
        each = commands[at]
        if (
            each.verb is Verb.QUOTA_SET
            and each.scope.matches(host, quota)
            and (each.until_s is None or each.until_s > NOW_S)
            and not any(later.verb is Verb.QUOTA_CLEAR and later.scope.matches(host, quota) for later in commands[at:])
        ):
            return each.id
    return None


@given(st.lists(limits, max_size=12))
def test_the_limit_in_force_is_the_last_that_was_neither_cleared_nor_has_ended(commands: list[Command]) -> None:
    found = fold(Desired(), commands)

    for host, quota in itertools.product(("web-1", "web-2", "other"), ("api", "mail")):
        override = found.override_of(host, quota, NOW_S)
        assert (override.id if override else None) == limit_in_force(commands, host, quota)


# Who is obeyed


@pytest.mark.parametrize(
    ("operators", "user", "obeyed"),
    [(None, "anybody", True), (OPERATORS, "oncall", True), (OPERATORS, "mallory", False), (frozenset(), "x", False)],
)
def test_given_operators_then_only_they_are_obeyed(operators: frozenset[str] | None, user: str, obeyed: bool) -> None:
    given_ = replace(pause("web-1"), user=user)

    assert bool(fold(Desired(), [given_], operators).pauses) is obeyed
    assert judge(given_, operators, Desired()) == ("" if obeyed else f"user {user} is not an operator")


@pytest.mark.parametrize(
    ("changes", "obeyed"),
    [
        ({}, True),
        ({"local": False}, False),
        ({"user": "mallory"}, False),
        ({"target": Target(host="web-*")}, False),
        ({"target": Target(consumer="timeline")}, False),
        ({"target": Target(host="web-2")}, False),
        ({"target": Target(host="never-said-hello")}, False),
        ({"verb": Verb.RESUME}, True),
        ({"verb": Verb.QUOTA_SET, "quota": "api", "rates": ("9/s",)}, False),
    ],
)
def test_given_a_command_on_the_host_itself_then_it_is_obeyed_of_whom_the_host_logs_in_as(
    changes: dict[str, object], obeyed: bool
) -> None:
    events = [hello("web-1", "before"), hello("web-1", "tasks"), hello("web-2", "others")]
    given_ = replace(pause("web-1"), **{"user": "tasks", "local": True, **changes})  # type: ignore[arg-type]

    assert (judge(given_, OPERATORS, fold(Desired(), events)) == "") is obeyed


@pytest.mark.parametrize(("user", "obeyed"), [("tasks", True), ("mallory", False), ("oncall", True)])
def test_given_who_knows_what_it_logs_in_as_then_no_hello_makes_anybody_else_its_host(user: str, obeyed: bool) -> None:
    # Given somebody else who said hello as this host last
    folding = Folding(
        fold(Desired(), [hello("web-1", "tasks"), hello("web-1", "mallory")]), OPERATORS, Own("web-1", "tasks")
    )
    given_ = replace(pause("web-1"), user=user, local=True)

    assert (folding.judge(given_) == "") is obeyed
    # and of other hosts it knows no more than their hellos say
    assert Folding(fold(Desired(), [hello("web-2", "mallory")]), OPERATORS, Own("web-1", "tasks")).judge(
        replace(given_, target=Target(host="web-2"))
    ) == ("" if user != "tasks" else "user tasks is not an operator")


# What comes twice


def test_given_the_same_resume_twice_then_what_was_paused_between_stays_paused() -> None:
    given_ = resume("web-1")
    found = fold(Desired(), [pause("web-1"), given_, pause("web-1"), given_])

    assert len(found.pauses_of(subject(), NOW_S)) == 1
    assert judge(given_, None, found) == "seen before"


def test_given_the_same_pause_twice_then_it_is_one_entry_and_lifted_once_stays_lifted() -> None:
    given_ = pause("web-1")

    assert len(fold(Desired(), [given_, given_]).pauses) == 1
    assert fold(Desired(), [given_, resume("web-1"), given_]).pauses == ()


def test_given_ever_so_many_commands_between_then_a_resume_that_comes_again_still_lifts_nothing() -> None:
    # Given more commands than ids are remembered one by one
    old = resume("web-1")
    many: list[Event] = [c for _ in range(5 * seen.MAX_PAUSES_SEEN) for c in (pause("web-2"), resume("web-2"))]
    found = fold(Desired(), [old, *many, pause("web-1")])

    # When one of before comes again, then it is known
    assert fold(found, [old]).pauses_of(subject(), NOW_S)
    assert len(found.seen.pauses) == seen.MAX_PAUSES_SEEN
    assert len(found.seen.lifts) == seen.FILTER_BYTES


def test_given_a_full_memory_of_what_was_seen_then_what_lifts_is_refused_and_what_pauses_is_not() -> None:
    found = replace(Desired(), seen=seen.Seen(b"\xff" * seen.FILTER_BYTES))
    paused = fold(found, [pause("web-1")])

    assert paused.pauses_of(subject(), NOW_S)
    assert fold(paused, [resume("web-1")]).pauses_of(subject(), NOW_S)


def test_given_a_command_that_was_refused_then_its_id_is_still_free() -> None:
    given_ = pause("web-1")

    found = fold(Desired(), [replace(given_, user="mallory"), given_], OPERATORS)

    assert found.pauses_of(subject(), NOW_S)


# Another log


@given(st.lists(pausing | limits, max_size=12), st.data())
def test_the_same_log_read_again_over_what_was_carried_over_says_the_same(
    commands: list[Command], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(commands)))
    known = fold(Desired(), commands[:cut])

    again, once = fold(known.carried_over(), commands), fold(Desired(), commands)

    for each in SUBJECTS:
        assert ids(again.pauses_of(each, NOW_S)) == ids(once.pauses_of(each, NOW_S))
        found, expected = (what.override_of(each.host, "api", NOW_S) for what in (again, once))
        assert found == expected


def test_given_another_log_then_what_held_holds_until_it_is_lifted_there() -> None:
    known = fold(Desired(), [hello("web-1", "tasks"), pause("*"), resume("web-2"), quota_set("*", "api", "5/s")])

    found = fold(known.carried_over(), [resume("web-3")])

    assert [bool(found.pauses_of(subject(f"web-{n}"), NOW_S)) for n in (1, 2, 3, 4)] == [True, False, False, True]
    assert found.override_of("web-1", "api", NOW_S)
    assert found.reigns == {}


# Bounds


def test_given_more_in_force_than_can_be_then_that_is_said() -> None:
    within = [pause(f"web-{n}") for n in range(MAX_PAUSES)]
    folding = Folding(Desired(), None)
    for each in within:
        folding.add(each)

    assert folding.desired().excess() == ""
    folding.add(pause("one-more"))
    assert "more than 20000 pauses" in folding.desired().excess()
    folding.add(resume("one-more"))
    assert folding.desired().excess() == ""


def test_given_thousands_of_consumers_paused_and_resumed_one_by_one_then_it_takes_no_longer_each() -> None:
    each = [(f"web-{n % 500}", f"consumer-{n // 500}") for n in range(5_000)]
    commands = [*(pause(*one) for one in each), *(resume(*one) for one in each)]
    started_s = time.perf_counter()

    assert fold(Desired(), commands).pauses == ()
    assert time.perf_counter() - started_s < 5


def test_given_an_entry_then_only_what_it_changes_is_made_anew() -> None:
    folding = Folding(
        fold(Desired(), [hello("web-1", "tasks"), pause("web-1"), quota_set("web-1", "api", "1/s")]), None
    )
    before = folding.desired()
    folding.add(pause("web-2"))
    paused = folding.desired()
    assert (paused.reigns is before.reigns, paused.pauses is before.pauses) == (True, False)
    assert paused.overrides is before.overrides

    folding.add(hello("web-2", "tasks"))
    greeted = folding.desired()
    folding.add(hello("web-2", "tasks"))
    assert folding.desired().reigns is greeted.reigns
    assert greeted.pauses is paused.pauses
    assert (set(paused.reigns), set(greeted.reigns)) == ({"web-1"}, {"web-1", "web-2"})

    folding.add(resume("web-1", "timeline"))
    assert [len(each.lifted) for each in folding.desired().pauses] == [1, 0]
    folding.add(resume("web-1"))
    folding.add(quota_clear("*", "*"))
    assert ([each.target.host for each in folding.desired().pauses], folding.desired().overrides) == (["web-2"], ())
    assert folding.desired().reigns is greeted.reigns


def test_given_what_was_folded_then_folding_on_leaves_it_as_it_is() -> None:
    before = fold(Desired(), [pause("web-1"), hello("web-1", "tasks")])
    fold(before, [resume("*"), hello("web-2", "tasks")])

    assert before.pauses_of(subject(), NOW_S)
    assert set(before.reigns) == {"web-1"}
