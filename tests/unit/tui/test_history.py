"""What was: the points of sparklines, in bounded memory."""

from __future__ import annotations

from qctl.ops.status import QueueRow, QuotaRow, Seen, Source, Status
from qctl.tui.history import MAX_KEYS, MAX_POINTS, STEP_S, History, Kind
from qctl.tui.snapshot import Snapshot

T0_S = 1_000_000 * STEP_S


def shown(at_s: float, *, seen_s: float | None = None, **ready: int | None) -> Snapshot:
    """Queues with that many tasks; seen_s: when that was true."""
    seen = Seen(Source.BROKER, at_s if seen_s is None else seen_s)
    return Snapshot(at_s, Status(at_s, False, queues=tuple(QueueRow(n, ready=r, seen=seen) for n, r in ready.items())))


def test_a_point_each_step_the_newest_value_of_a_step_counts() -> None:
    history = History()
    for second, ready in enumerate([1, 2, 3, 4, 5, 6, 7]):
        history.add(shown(T0_S + second, mail=ready))

    assert history.of(Kind.DEPTH, "mail") == (5, 7)
    assert history.of(Kind.DEPTH, "nobody") == ()
    assert history.of(Kind.BURN, "mail") == ()


def test_what_was_not_known_is_a_gap_and_never_nought() -> None:
    history = History()
    history.add(shown(T0_S, mail=4))
    history.add(shown(T0_S + STEP_S, mail=None))
    history.add(shown(T0_S + 4 * STEP_S, mail=6))

    assert history.of(Kind.DEPTH, "mail") == (4, None, None, None, 6)


def test_an_old_number_that_is_shown_on_is_no_new_point() -> None:
    history = History()
    history.add(shown(T0_S, mail=4))
    history.add(shown(T0_S + 2 * STEP_S, seen_s=T0_S, mail=4))

    assert history.of(Kind.DEPTH, "mail") == (4, None, None)


def test_a_number_from_before_the_first_one_finds_its_place() -> None:
    history = History()
    history.add(shown(T0_S + 2 * STEP_S, mail=4))
    history.add(shown(T0_S + 2 * STEP_S, seen_s=T0_S, mail=1))

    assert history.of(Kind.DEPTH, "mail") == (1, None, 4)


def test_ten_minutes_are_kept_and_a_long_silence_leaves_nothing() -> None:
    history = History()
    for step in range(MAX_POINTS + 30):
        history.add(shown(T0_S + step * STEP_S, mail=step))
    assert history.of(Kind.DEPTH, "mail") == tuple(range(30, MAX_POINTS + 30))

    history.add(shown(T0_S + 500 * STEP_S, mail=7, other=1))
    assert history.of(Kind.DEPTH, "mail") == (None,) * (MAX_POINTS - 1) + (7,)

    history.add(shown(T0_S + 700 * STEP_S, other=1))
    assert history.of(Kind.DEPTH, "mail") == (None,) * MAX_POINTS


def test_who_was_seen_least_recently_is_forgotten_first() -> None:
    history = History()
    history.add(shown(T0_S, first=1, second=1))
    history.add(shown(T0_S, first=2))
    history.add(shown(T0_S, **{f"q{n}": n for n in range(MAX_KEYS - 1)}))

    assert len(history) == MAX_KEYS
    assert history.of(Kind.DEPTH, "first") == (2,)
    assert history.of(Kind.DEPTH, "second") == ()


def test_more_than_can_be_kept_leave_those_that_are_kept_their_points() -> None:
    # given more queues in each snapshot than are kept, soon with a new one before all others
    history = History()
    queues = {f"q{n}": n for n in range(MAX_KEYS + 1)}
    for step in range(3):
        history.add(shown(T0_S + step * STEP_S, **{f"a{step}": 1 for _ in range(step)}, **queues))
    kept = history.of(Kind.DEPTH, "q7")
    assert (len(history), kept) == (MAX_KEYS, (7, 7, 7))

    # when they are gone, then there is room for others
    history.add(shown(T0_S + 3 * STEP_S, new=1))
    history.add(shown(T0_S + 4 * STEP_S, newer=2))
    assert history.of(Kind.DEPTH, "newer") == (2,)


def test_growth_is_by_the_first_and_the_last_that_is_known_of_a_minute() -> None:
    history = History()
    for step in range(30):
        history.add(shown(T0_S + step * STEP_S, mail=10 * step, still=3))
    history.add(shown(T0_S + 30 * STEP_S, new=3))

    assert history.growth("mail") == 10 / STEP_S
    assert history.growth("still") == 0
    assert history.growth("new") is None
    assert history.growth("nobody") is None


def test_the_burn_of_quotas_is_remembered_by_its_address() -> None:
    history = History()
    quota = QuotaRow("web-1", "twitter", ("9/s",), spend_per_s=3.5, seen=Seen(Source.LIVE, T0_S))
    history.add(Snapshot(T0_S, Status(T0_S, False, quotas=(quota,))))

    assert history.of(Kind.BURN, "web-1/twitter") == (3.5,)
