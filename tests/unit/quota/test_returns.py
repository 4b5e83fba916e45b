"""When what counts is free again, in a few numbers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qctl.quota.policy import NS_PER_S, Limit
from qctl.quota.returns import returns
from qctl.quota.window import LimitReading, Spent

S = NS_PER_S
LIMIT = Limit(10**6, 3_600 * S)


def reading(*rows: tuple[int, int]) -> LimitReading:
    """Of rows (instant, units)."""
    return LimitReading(LIMIT, Spent.of(rows))


def test_a_few_bursts_are_told_to_the_unit_and_the_instant() -> None:
    bursts = ((5 * S, 640), (9 * S, 320), (11 * S, 320))

    assert returns(reading(*bursts), now_ns=0) == bursts


def test_what_is_free_already_is_not_told_of() -> None:
    assert returns(reading((5 * S, 640), (9 * S, 320)), now_ns=5 * S) == ((9 * S, 320),)
    assert returns(reading((5 * S, 640)), now_ns=5 * S) == ()


@given(st.lists(st.tuples(st.integers(1, 10**12), st.integers(1, 1_000)), min_size=1, max_size=200))
def test_all_units_are_told_of_and_never_more_than_half_a_part_is_early_or_late(rows: list[tuple[int, int]]) -> None:
    # given any history
    rows = sorted(dict(rows).items())
    part, total = reading(*rows), sum(units for _, units in rows)

    # when it is told in few parts
    told = returns(part, now_ns=0)

    # then nothing is missing, in order, and at every instant it is right but for half a part
    assert sum(units for _, units in told) == total
    assert len(told) <= 32
    assert [at_ns for at_ns, _ in told] == sorted(at_ns for at_ns, _ in told)
    for at_ns, _ in (*rows, *told):
        said = sum(units for when_ns, units in told if when_ns > at_ns)
        assert abs(said - part.used(at_ns)) <= total / 64 + 1
