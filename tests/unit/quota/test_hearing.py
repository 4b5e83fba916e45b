"""What is kept of the API's answers until the ledger is asked."""

from __future__ import annotations

from itertools import permutations

import pytest

from qctl.quota import Limit
from qctl.quota.hearing import Hearing, better, by_quota
from qctl.quota.upstream import Span, Told
from tests.unit.quota.model import S

LIMIT, OTHER = Limit(1000, 60 * S), Limit(10, S)
T0 = 1000 * S


def told(remaining: int | None, *, sent_s: float = 0.0, reset_s: tuple[float, float] | None = None) -> Told:
    """An answer to a call sent so much after T0, and the end of its window in seconds after T0."""
    sent_ns = T0 + round(sent_s * S)
    reset = None if reset_s is None else Span(T0 + round(reset_s[0] * S), T0 + round(reset_s[1] * S))
    return Told(remaining, None, None, reset, sent_ns, sent_ns + S // 10)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_within_a_window_the_least_that_remains_is_kept_whatever_came_first(order: tuple[int, ...]) -> None:
    answers = [told(12, sent_s=1, reset_s=(9, 12)), told(10, sent_s=2, reset_s=(10, 11)), told(11, reset_s=(10, 13))]

    first, second, third = (answers[index] for index in order)

    kept = better(better(first, second), third)
    assert (kept.remaining_units, kept.sent_ns) == (10, T0 + 2 * S)
    # and of the window's end what all of them say
    assert kept.reset == Span(T0 + 10 * S, T0 + 11 * S)


def test_of_two_that_say_the_same_the_later_is_kept() -> None:
    one, other = told(5, sent_s=1, reset_s=(9, 10)), told(5, sent_s=2, reset_s=(9, 10))

    assert better(one, other) == better(other, one) == other


def test_an_answer_of_a_newer_window_is_kept_though_more_remains() -> None:
    old, new = told(0, sent_s=1, reset_s=(1, 2)), told(1000, reset_s=(61, 62))

    assert better(old, new) == better(new, old) == new


def test_where_no_window_is_said_the_later_is_kept_unless_it_says_nothing_of_what_remains() -> None:
    one, other = told(5, sent_s=1), told(9, sent_s=2)

    assert better(one, other) == better(other, one) == other
    assert better(one, told(None, sent_s=3, reset_s=(9, 10))) == one


def test_what_is_taken_is_told_once_and_again_when_the_ledger_did_not_hear_it() -> None:
    hearing = Hearing()
    hearing.note("api", LIMIT, told(5, sent_s=1))
    hearing.note("api", OTHER, told(1))
    hearing.note("mail", LIMIT, told(2))

    taken = hearing.take()
    assert {quota: len(found) for quota, found in by_quota(taken).items()} == {"api": 2, "mail": 1}
    assert hearing.take() == {}

    # What came meanwhile and is later stays
    hearing.note("mail", LIMIT, told(1, sent_s=2))
    hearing.restore(taken)
    again = hearing.take()
    assert again["api", LIMIT] == taken["api", LIMIT]
    assert again["mail", LIMIT].remaining_units == 1


def test_of_several_refusals_the_latest_word_counts_and_a_word_more_than_none() -> None:
    hearing = Hearing()
    for until_ns in (None, T0 + 2 * S, T0 + S, None):
        hearing.refused("api", until_ns)
    hearing.refused("mail", None)

    blocks = hearing.blocks()
    assert blocks == {"api": T0 + 2 * S, "mail": None}
    assert hearing.blocks() == {}

    # and what could not be written is written the next time
    hearing.refused("mail", T0)
    hearing.keep(blocks)
    assert hearing.blocks() == {"api": T0 + 2 * S, "mail": T0}
