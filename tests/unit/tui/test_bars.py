"""Small drawings: what a bar, a sparkline and a mark say at a glance."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qctl.ops.status import State
from qctl.tui.bars import Bar, Spark, bar, sparkline, state_mark
from qctl.tui.cells import UNKNOWN, plain
from qctl.tui.text import safe, width_of


@pytest.mark.parametrize(
    ("used", "drawn", "style"),
    [
        (0, "──────────", "bar"),
        (1, "╸─────────", "bar"),
        (450, "━━━━╸─────", "bar"),
        (790, "━━━━━━━━──", "bar"),
        (800, "━━━━━━━━──", "warn"),
        (999, "━━━━━━━━━╸", "warn"),
        (1_000, "━━━━━━━━━━", "held"),
        (9_000, "━━━━━━━━━━", "held"),
    ],
)
def test_a_bar_is_full_only_when_nothing_is_left_and_empty_only_when_nothing_is_used(
    used: int, drawn: str, style: str
) -> None:
    cell = bar(used, 1_000, 10)

    assert plain(cell) == drawn
    assert cell[0][1] == style


def test_a_bar_of_what_is_not_known_is_no_empty_bar() -> None:
    assert bar(None, 1_000, 10) == bar(5, None, 10) == UNKNOWN


def test_a_limit_of_nothing_is_used_up() -> None:
    assert plain(bar(0, 0, 4)) == "━━━━"


def test_a_sparkline_has_gaps_for_what_is_not_known_and_a_line_for_nought() -> None:
    assert plain(sparkline([None, 0, 1, None, 50, 100], 8)) == "   ▁▂ ▅▇"
    assert plain(sparkline([0, 0], 3)) == " ▁▁"
    assert plain(sparkline([], 3)) == "   "


def test_a_sparkline_shows_the_newest_and_scales_to_what_it_shows() -> None:
    assert plain(sparkline([1_000, 1, 2], 2)) == "▅▇"
    assert plain(sparkline([1, 2], 2, top=100)) == "▂▂"
    assert plain(sparkline([1, float("inf"), float("nan")], 3, top=1e-300)) == "▇▇▁"


@given(st.lists(st.none() | st.floats(-1e9, 1e18), max_size=200), st.integers(0, 60), st.none() | st.floats(0, 1e9))
def test_a_drawing_takes_the_room_it_has(values: list[float | None], width: int, top: float | None) -> None:
    drawn = plain(Spark(tuple(values), top).draw(width))

    assert width_of(drawn) == width
    assert safe(drawn) == drawn
    if width:
        assert width_of(plain(Bar(3, 7).draw(width))) == width


def test_every_state_has_a_shape_of_its_own_that_is_one_cell_wide() -> None:
    shapes = [state_mark(state)[0] for state in State]

    assert len(set(shapes)) == len(State)
    assert all(width_of(shape) == 1 and safe(shape) == shape for shape in shapes)
    assert [state_mark(state)[0] for state in (State.CONSUMING, State.HELD, State.PAUSED, State.DOWN)] == list("●◐⏸✗")
