"""What is learned of an upstream's windows: judged by upstreams with windows of their own, and by others."""

from __future__ import annotations

import random
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qctl.quota.listener import Listener
from qctl.quota.policy import Limit, Window
from qctl.quota.reset import NEVER_NS, Reset, learned
from qctl.quota.upstream import Answer, Span, Style, Told

S, MS = 10**9, 10**6
HOUR = Limit(100, 3600 * S, Window.FIXED)


def told(lo_s: float, hi_s: float, at_s: float, *, from_clock: bool = False) -> Told:
    """The window ends between `lo_s` and `hi_s`; heard at `at_s`."""
    at_ns = int(at_s * S)
    reset = Span(int(lo_s * S), int(hi_s * S))
    return Told(None, None, None, reset, sent_ns=at_ns - S // 10, received_ns=at_ns, from_clock=from_clock)


def hear(before: Reset, *answers: Told) -> Reset:
    for answer in answers:
        before = learned(before, answer, HOUR, chance=0.0)
    return before


def test_a_reset_that_is_announced_is_forgotten_at_and_not_before() -> None:
    known = hear(Reset(), told(1000, 1002, 500), told(1001, 1003, 501))

    # Of all that was said of one window's end, what is in common
    assert known.next == Span(1001 * S, 1002 * S)
    assert known.start_ns(1002 * S - 1) == NEVER_NS
    assert known.start_ns(1002 * S) == 1001 * S


def test_an_answer_from_the_next_window_forgets_at_once() -> None:
    known = hear(Reset(), told(1000, 1002, 500), told(4600, 4602, 1001))

    assert (known.since_ns, known.next) == (1000 * S, Span(4600 * S, 4602 * S))


def test_a_first_reset_forgets_nothing() -> None:
    # It may be true that the window began just now; but nobody has announced it.
    assert hear(Reset(), told(4090, 4100, 500)).start_ns(600 * S) == NEVER_NS


def test_a_reset_that_is_put_off_again_and_again_forgets_nothing() -> None:
    # Given an upstream that slides, and says with each answer that all is free again a period later
    known = Reset()
    for at_s in range(500, 12_000, 100):
        known = hear(known, told(at_s + 3599, at_s + 3600, at_s))

        assert known.start_ns(at_s * S) == NEVER_NS


def test_an_upstream_that_slides_and_names_the_next_unit_to_return_makes_nothing_forgotten() -> None:
    # Given calls every 36 s, of which the oldest is free again an hour later, and is named as the reset
    known = hear(Reset(), told(4964 + 50, 4964 + 52, 4964))
    for at_s in range(5000, 15_000, 36):
        known = hear(known, told(at_s + 50, at_s + 52, at_s))
        # Then, once it was put off, nothing is forgotten, also in a pause of some minutes
        assert known.start_ns((at_s + 300) * S) == NEVER_NS


def test_a_reset_that_was_put_off_is_trusted_again_a_window_later() -> None:
    known = hear(Reset(), told(1000, 1000, 500), told(1010, 1010, 501))
    assert known.opens_ns is None
    assert known.start_ns(1011 * S) == NEVER_NS

    # Neither is it at the first answer of the next window, and the next reset is
    known = hear(known, told(4610, 4610, 1020))
    assert known.start_ns(1020 * S) == NEVER_NS
    assert known.start_ns(4611 * S) == 4610 * S


def test_a_clock_set_back_just_after_a_reset_takes_the_reset_back() -> None:
    known = hear(Reset(), told(1000, 1000, 500))
    assert known.start_ns(1001 * S) == 1000 * S

    assert hear(known, told(1010, 1010, 1001)).start_ns(1001 * S) == NEVER_NS


@pytest.mark.parametrize(
    ("lo_s", "hi_s", "at_s"),
    [(400, 499, 500), (4200, 4300, 500), (1000 - 3600, 1002 - 3600, 500)],
    ids=["past", "too far", "of the window before"],
)
def test_what_cannot_be_the_end_of_the_present_window_is_ignored(lo_s: int, hi_s: int, at_s: int) -> None:
    known = hear(Reset(), told(1000, 1002, 499))

    assert hear(known, told(lo_s, hi_s, at_s)) == known
    assert hear(Reset(), told(lo_s, hi_s, at_s)) == Reset()


def test_an_answer_that_was_overtaken_by_the_next_window_changes_nothing() -> None:
    known = hear(Reset(), told(1000, 1002, 500), told(4600, 4602, 1001))

    assert hear(known, told(1000, 1010, 1002)) == known


def test_an_earlier_reset_than_was_known_makes_none_known() -> None:
    known = hear(Reset(), told(1000, 1002, 500), told(4600, 4602, 1001), told(2000, 2001, 1100))

    assert (known.since_ns, known.next) == (1000 * S, None)


def test_what_the_upstream_reports_goes_before_its_clock() -> None:
    known = hear(Reset(), told(900, 900, 500, from_clock=True))
    assert known.next == Span(900 * S, 900 * S)

    known = hear(known, told(1000, 1002, 501), told(900, 900, 502, from_clock=True))

    assert (known.next, known.reported) == (Span(1000 * S, 1002 * S), True)
    # Until it has said nothing for a window.
    assert hear(known, told(7200, 7200, 5000, from_clock=True)).next == Span(7200 * S, 7200 * S)


def test_hosts_that_wait_for_one_reset_do_not_resume_at_one_instant() -> None:
    opens = [learned(Reset(), told(1000, 1000, 500), HOUR, chance=n / 10).opens_ns for n in range(10)]

    assert opens == [1000 * S + n * S // 10 for n in range(10)]


def test_a_reset_that_may_as_well_be_the_next_one_is_not_taken_for_the_known_one() -> None:
    # Given windows of 2 s that end at 4 and at 6, by answers that are as coarse as that
    limit = Limit(100, 2 * S, Window.FIXED)
    known = Reset()
    for lo_s, hi_s, at_s in ((2, 5, 3.9), (4.5, 7.5, 4.1)):
        known = learned(known, told(lo_s, hi_s, at_s), limit, chance=0.0)

    # Then what came after 4 still counts
    assert known.start_ns(6 * S - 1) <= 4 * S


@pytest.mark.parametrize("phase_ms", [0, 100, 500, 600, 900, 999])
@pytest.mark.parametrize("every_ms", [1000, 1001, 1090])
def test_a_date_that_a_server_keeps_for_a_second_makes_nothing_of_the_present_window_forgotten(
    phase_ms: int, every_ms: int
) -> None:
    # Given an API that says nothing but its date, which it makes anew every second, at any moment of the second
    limit = Limit(100, 20 * S, Window.FIXED)
    listener = Listener(Style.AUTO, (20 * S,), by_clock=True)
    epoch_ns = 1_764_000_000 * S  # by its clock, as ours began
    known = Reset()
    for step in range(600):
        at_ns = step * 137 * MS + S
        dated_ns = epoch_ns + at_ns - (at_ns - phase_ms * MS) % (every_ms * MS)
        date = {"date": formatdate(dated_ns // S, usegmt=True)}
        for told in listener.hear(Answer(200, date, at_ns - 20 * MS, at_ns, 0)).told:
            known = learned(known, told, limit, chance=0.0)
        # Then what was counted from the beginning of its window on counts, and all but 2 s before that does not
        begin_ns = at_ns // (20 * S) * 20 * S
        assert known.start_ns(at_ns) <= begin_ns
        if begin_ns >= 40 * S and at_ns >= begin_ns + 1100 * MS:
            assert known.start_ns(at_ns) >= begin_ns - 2 * S


@given(st.integers(0, 2**32), st.booleans())
def test_nothing_of_the_present_window_is_ever_forgotten(seed: int, from_first_call: bool) -> None:
    # Given an upstream whose windows begin at multiples of its clock, or at the first call after the last has ended
    chance = random.Random(seed)
    limit = Limit(100, 20 * S, Window.FIXED)
    begin_ns = chance.randrange(-20 * S, 0)
    known, now_ns, pending = Reset(), 0, []
    for _ in range(80):
        now_ns += chance.choice([chance.randrange(2 * S), chance.randrange(8 * S), 30 * S])
        if now_ns >= begin_ns + 20 * S:
            begin_ns = now_ns if from_first_call else begin_ns + (now_ns - begin_ns) // (20 * S) * 20 * S
        # When its answers are heard late and in any order, with a span for the reset
        reset = Span(begin_ns + 20 * S - chance.randrange(S), begin_ns + 20 * S + chance.randrange(S))
        pending.append(Told(None, None, None, reset, sent_ns=now_ns, received_ns=now_ns + chance.randrange(S)))
        for answer in [it for it in pending if it.received_ns <= now_ns]:
            pending.remove(answer)
            known = learned(known, answer, limit, chance=chance.random())
        # Then what counted from the window's beginning on counts, and what is forgotten was before it
        assert known.start_ns(now_ns) <= begin_ns
