"""Which columns are on screen: a narrow terminal keeps what matters, a wall gets what there is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qctl.tui.bars import Bar
from qctl.tui.cells import Column
from qctl.tui.layout import DRAWING_GROWS, GAP, MAX_WISH, Contents, Layout, arrange

COLUMNS = (
    Column("host", "HOST", 8, flex=1),
    Column("state", "STATE", 10),
    Column("burn", "BURN", 10, flex=1),
    Column("rate", "RATE", 6, right=True, rank=1),
    Column("since", "SINCE", 6, right=True, rank=2),
    Column("machine", "MACHINE", 12, wide=True),
    Column("reason", "REASON", 5, flex=1, wide=True),
)
#: host, ..., reason: what is in them is as wide as that; the burn is drawn.
SEEN = (20, 0, 30, 0, 0, 0, 30)
DRAWN = {2}


def placed(room: int, *, wide: bool = False, shift: int = 0) -> tuple[dict[str, int], Layout]:
    """The widths of the columns on screen by their ids, and the layout."""
    layout = arrange(COLUMNS, SEEN, room, drawn=DRAWN, wide=wide, shift=shift)
    return {COLUMNS[one.number].id: one.width for one in layout.placed}, layout


def test_where_all_fit_text_grows_to_its_contents_before_drawings_do() -> None:
    assert placed(8 + 10 + 10 + 6 + 6 + 4 * GAP)[0] == {"host": 8, "state": 10, "burn": 10, "rate": 6, "since": 6}
    assert placed(60)[0] == {"host": 20, "state": 10, "burn": 10, "rate": 6, "since": 6}
    assert placed(61)[0]["burn"] == 11


def test_where_not_all_fit_the_highest_rank_goes_first_and_it_is_said_that_there_is_more() -> None:
    widths, layout = placed(45)

    assert widths == {"host": 13, "state": 10, "burn": 10, "rate": 6}
    assert layout.more
    assert placed(35)[0] == {"host": 11, "state": 10, "burn": 10}


def test_columns_of_no_rank_are_never_dropped_but_cut_at_the_edge() -> None:
    assert placed(26)[0] == {"host": 8, "state": 10, "burn": 4}
    assert placed(23)[0] == {"host": 8, "state": 10}
    assert placed(3)[0] == {"host": 3}


def test_a_wide_column_comes_when_all_of_it_fits_or_when_it_is_wanted() -> None:
    assert "machine" not in placed(73)[0]
    assert placed(74)[0]["machine"] == 12
    assert placed(200)[0]["reason"] == 30
    wanted, layout = placed(64, wide=True)
    assert list(wanted) == ["host", "state", "burn", "rate", "since", "machine"]
    assert layout.more


def test_shifting_brings_what_lies_to_the_right_into_view_beside_the_first_column() -> None:
    assert list(placed(35, shift=1)[0]) == ["host", "burn", "rate", "since"]
    assert list(placed(35, shift=99)[0]) == ["host", "since"]


def test_a_click_finds_its_column() -> None:
    layout = arrange(COLUMNS, SEEN, 60, drawn=DRAWN)

    assert [layout.at(x) for x in (0, 19, 21, 22, 59, 70, -1)] == [0, 0, 0, 1, 4, 4, None]


def test_contents_only_grow_up_to_a_bound_and_drawings_are_told_from_text() -> None:
    contents = Contents(COLUMNS)
    contents.learn(((("web-1", ""),), (("held", "held"),), Bar(1, 2)))
    contents.learn(((("\x1b[31m", ""),), (("held" * 9, "held"),), Bar(1, 2)))
    contents.learn(((("w", ""),), (), Bar(1, 2)))
    assert (contents.seen[:3], contents.drawn) == ([8, 0, DRAWING_GROWS * 10], {2})

    contents.learn(((("n" * 10_000, ""),),))
    assert contents.seen[0] == MAX_WISH


@given(
    st.lists(
        st.builds(
            Column,
            id=st.text("abc", max_size=3),
            title=st.just("T"),
            width=st.integers(1, 30),
            flex=st.integers(0, 3),
            wide=st.booleans(),
            rank=st.integers(0, 3),
        ),
        max_size=8,
    ),
    st.integers(1, 200),
    st.booleans(),
    st.integers(0, 9),
)
def test_columns_never_overlap_nor_leave_the_room(columns: list[Column], room: int, wide: bool, shift: int) -> None:
    layout = arrange(columns, [25] * len(columns), room, drawn={0}, wide=wide, shift=shift)

    end = -GAP
    for one in layout.placed:
        assert one.width >= 1
        assert one.x == end + GAP
        end = one.x + one.width
    assert end <= room
    assert len({one.number for one in layout.placed}) == len(layout.placed)
