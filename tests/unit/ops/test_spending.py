"""Spending of others, and windows, in words."""

from __future__ import annotations

import pytest

from qctl.control.quota_reading import ForeignReading
from qctl.ops.spending import burst_units, by_somebody_else, in_short, pace_per_s, shown, window_words
from qctl.ops.status import QuotaRow

FOREIGN = ForeignReading(212, 212, 600, 3600.0, 1_000, 188, since_s=50_520.0)


def clock(at_s: float) -> str:
    return f"{int(at_s // 3600):02d}:{int(at_s % 3600 // 60):02d}"


@pytest.mark.parametrize(
    ("foreign", "words"),
    [
        (FOREIGN, "the API counts 812 of 1000 used; this host spent 600; 212 by someone else, since 14:02"),
        (
            ForeignReading(212, 260, 600, 3600.0, None, 140),
            "the API counts 860 of 1000 used; this host spent 600; 212 to 260 by someone else",
        ),
        (ForeignReading(3, 3, 0, 3600.0), "this host spent 0; 3 by someone else"),
        (  # it counts what its answers are for, so its own limit is what binds
            ForeignReading(500, 500, 400, 3600.0, 500, 100),
            "the API counts 400 of 500 used; this host spent 400; its limit is lower than the 1000 of the inventory",
        ),
        (
            ForeignReading(550, 550, 350, 3600.0, 500, 100, since_s=50_520.0),
            (
                "the API counts 400 of 500 used; this host spent 350; its limit is lower than the 1000 of the inventory"
                "; 50 by someone else, since 14:02"
            ),
        ),
        (  # of a larger one others had more
            ForeignReading(212, 212, 600, 3600.0, 5_000, 188),
            "the API counts 4812 of 5000 used; this host spent 600; 4212 by someone else",
        ),
    ],
)
def test_who_spends_what_by_whose_count(foreign: ForeignReading, words: str) -> None:
    assert by_somebody_else(foreign, 1_000, clock) == words


def test_in_a_table_the_amount_stands_first() -> None:
    unsaid = ForeignReading(3, 5, 0, 3600.0)

    assert in_short(FOREIGN, 1_000, clock) == "212 since 14:02; API 812/1000, here 600"
    assert in_short(unsaid, 1_000, clock) == "3 to 5; here 0"


def test_a_trifle_is_nobody_s_business() -> None:
    assert shown(FOREIGN) is FOREIGN
    assert shown(ForeignReading(3, 3, 600, 3600.0)) is None
    assert shown(ForeignReading(0, 40, 600, 3600.0, since_s=1.0)) is None
    assert shown(None) is None


def test_a_window_says_how_it_moves() -> None:
    sliding = QuotaRow("web-1", "mail", ("1000/h",))
    fixed = QuotaRow("web-1", "mail", ("1000/h",), window="fixed", resets_at_s=54_000.0)
    paced = QuotaRow("web-1", "mail", ("20000/h", "10/s"), window="paced", burst_units=4)

    assert [window_words(row, clock) for row in (sliding, fixed, paced)] == [
        "sliding",
        "fixed, resets 15:00",
        "paced, 5.56/s, burst 4",
    ]
    assert [pace_per_s(row) for row in (sliding, fixed)] == [None, None]


def test_no_burst_is_larger_than_the_limit_that_holds() -> None:
    paced = QuotaRow("web-1", "mail", ("3/10s", "20000/h"), window="paced", burst_units=5)

    assert (burst_units(paced), window_words(paced, clock)) == (3, "paced, 0.3/s, burst 3")
    assert burst_units(QuotaRow("web-1", "mail", ("3/10s",), burst_units=5)) is None


def test_a_window_that_is_not_known_here_is_shown_as_it_is_called() -> None:
    assert window_words(QuotaRow("web-1", "mail", ("1000/h",), window="lunar"), clock) == "lunar"
    assert window_words(QuotaRow("web-1", "mail", ("?",), window="paced"), clock) == "paced"
    assert window_words(QuotaRow("web-1", "mail", (), window="fixed"), clock) == "fixed"
