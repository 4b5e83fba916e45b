"""Whether the API serves, by what tasks saw: when a consumer is held, when it is probed, and who is spared."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qctl.worker.upstream import (
    FAILURES_IN_A_ROW,
    JITTER,
    PROBE_FIRST_S,
    PROBE_LAST_S,
    SERVED,
    SPARED_TIMES,
    Health,
    Seen,
    Sight,
    Trouble,
)

REFUSED = Seen(Sight.REFUSED, "https://api answers 401")
UNREACHABLE = Seen(Sight.UNREACHABLE, "https://api takes no connection")
FAILING = Seen(Sight.FAILING, "https://api answers 503")
NOW_S = 1000.0


def health(*seen: Seen, chance: float = 0.0) -> Health:
    """One that has seen this, by a task each, at NOW_S."""
    found = Health(lambda: chance)
    for number, one in enumerate(seen):
        found.weigh(one, task=f"t{number}", probe=False, now_s=NOW_S)
    return found


def weigh(found: Health, seen: Seen, *, task: str = "t", probe: bool = False, now_s: float = NOW_S) -> bool:
    return found.weigh(seen, task=task, probe=probe, now_s=now_s)


# Held


@pytest.mark.parametrize(
    ("seen", "trouble"),
    [
        ([REFUSED], Trouble.REFUSES),
        ([UNREACHABLE], Trouble.DOWN),
        ([SERVED, REFUSED], None),  # may be about that task alone
        ([SERVED, REFUSED, REFUSED], Trouble.REFUSES),
        ([SERVED, REFUSED, UNREACHABLE], Trouble.DOWN),
        ([SERVED, REFUSED, SERVED, REFUSED], None),
        ([FAILING] * (FAILURES_IN_A_ROW - 1), None),
        ([FAILING] * FAILURES_IN_A_ROW, Trouble.DOWN),
        ([*[FAILING] * 9, SERVED, *[FAILING] * 9], None),
    ],
)
def test_given_what_tasks_saw_then_the_consumer_is_held_for_its_upstream_or_not(
    seen: Iterable[Seen], trouble: Trouble | None
) -> None:
    assert health(*seen).trouble is trouble


def test_given_a_hold_then_it_says_who_and_what() -> None:
    assert health(UNREACHABLE).words == "https://api takes no connection"
    assert [trouble.value for trouble in Trouble] == ["upstream refuses", "upstream down"]


# Spared


def test_given_a_refusal_then_the_task_is_spared_held_or_not() -> None:
    assert weigh(health(), REFUSED)
    assert weigh(health(SERVED), REFUSED)
    assert weigh(health(REFUSED), UNREACHABLE)


def test_given_failures_of_the_server_then_each_is_the_tasks_own_up_to_the_tenth_in_a_row() -> None:
    found = health()

    spared = [weigh(found, FAILING) for _ in range(FAILURES_IN_A_ROW + 2)]

    assert spared == [False] * (FAILURES_IN_A_ROW - 1) + [True] * 3


def test_given_a_task_that_is_refused_again_and_again_while_others_are_served_then_it_is_at_fault_itself() -> None:
    found = health(SERVED)
    spared = []
    for _ in range(SPARED_TIMES + 2):
        spared.append(weigh(found, REFUSED, task="private"))
        weigh(found, SERVED, task="another")

    assert spared == [True] * SPARED_TIMES + [False] * 2
    assert found.trouble is None
    # and others are spared as before
    assert weigh(found, REFUSED, task="third")


def test_given_a_task_without_an_id_then_nobody_can_say_that_it_was_here_before() -> None:
    found = health(SERVED)
    for _ in range(SPARED_TIMES + 2):
        assert weigh(found, REFUSED, task="")
        weigh(found, SERVED)


def test_given_an_outage_however_long_then_no_task_is_ever_at_fault_for_it() -> None:
    found = health(SERVED, REFUSED, REFUSED)

    assert all(weigh(found, REFUSED, task="same", probe=True, now_s=NOW_S + second) for second in range(10_000))


# Probes


def test_given_a_hold_then_probes_are_due_after_a_pause_that_doubles_up_to_its_bound() -> None:
    found, now_s, pauses = health(UNREACHABLE), NOW_S, []
    for _ in range(9):
        pause_s = next(s for s in range(1, 1000) if found.probe_due(now_s + s))
        assert not found.probe_due(now_s + pause_s - 0.01)
        pauses.append(pause_s)
        now_s += pause_s
        weigh(found, UNREACHABLE, probe=True, now_s=now_s)

    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_given_no_hold_then_no_probe_is_due() -> None:
    assert not health(SERVED, REFUSED).probe_due(NOW_S + 1e6)


def test_given_a_probe_that_saw_nothing_then_the_next_one_comes_after_the_same_pause() -> None:
    found = health(REFUSED)
    weigh(found, REFUSED, probe=True)

    found.missed(NOW_S + 10)

    assert found.pause_s == 2 * PROBE_FIRST_S
    assert not found.probe_due(NOW_S + 11.9)
    assert found.probe_due(NOW_S + 12)


def test_given_tasks_that_were_under_way_when_the_hold_began_then_only_the_probe_counts() -> None:
    found = health(UNREACHABLE)

    assert weigh(found, UNREACHABLE)
    assert not weigh(found, SERVED)

    assert found.trouble is Trouble.DOWN
    assert found.pause_s == PROBE_FIRST_S
    assert not weigh(found, SERVED, probe=True)
    assert found.trouble is None


def test_given_a_release_then_the_next_hold_begins_with_the_first_pause() -> None:
    found = health(UNREACHABLE)
    weigh(found, UNREACHABLE, probe=True)
    weigh(found, SERVED, probe=True)
    weigh(found, REFUSED)

    weigh(found, REFUSED)

    assert (found.trouble, found.pause_s) == (Trouble.REFUSES, PROBE_FIRST_S)


@given(st.lists(st.sampled_from([SERVED, REFUSED, UNREACHABLE, FAILING]), max_size=60), st.floats(0, 1))
def test_a_pause_is_always_between_the_first_and_the_last_and_a_part_of_it_chance(
    seen: list[Seen], chance: float
) -> None:
    found = Health(lambda: chance)
    for one in seen:
        weigh(found, one, probe=True)
        assert PROBE_FIRST_S <= found.pause_s <= PROBE_LAST_S
        if found.trouble is not None:
            assert found.probe_due(NOW_S + PROBE_LAST_S)
            assert not found.probe_due(NOW_S + PROBE_FIRST_S * (1 - JITTER) - 1e-6)
