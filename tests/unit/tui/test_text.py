"""Whatever a broker holds: on the screen every character of it is seen, takes its cells, and does nothing."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from qctl.tui.cells import Cell
from qctl.tui.text import MAX_CELL, MAX_MARKS, cut, fit, safe, width_of

#: Characters that control, turn, join, hide, or take no room, beside all sorts of others.
NASTY = st.one_of(
    st.characters(),
    st.characters(categories=["Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs", "Mn", "Me"]),
    st.sampled_from("\x1b\x9b\u202e\u2066\u200d\ufeff\u3164\u2800\ufe0f\U000e0041\ud800[]\\漢🏽🇩👩e\u0301"),
)


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("web\x1b[2Jx", r"web\x1b[2Jx"),
        ("a\x9b31mb", r"a\x9b31mb"),
        ("a\x07\x08\r\n\tb", r"a\x07\x08\x0d\x0a\x09b"),
        ("\x1b]8;;http://evil\x1b\\click", r"\x1b]8;;http://evil\x1b\click"),
        ("a\u202ecba\u202c", r"a\u202ecba\u202c"),
        ("a\u2066b\u2069", r"a\u2066b\u2069"),
        ("pay\u200bload\ufeff", r"pay\u200bload\ufeff"),
        ("lone \ud83d half", r"lone \ud83d half"),
        ("two\u2028lines", r"two\u2028lines"),
        ("not\u00a0a\u3000blank", r"not\xa0a\u3000blank"),
        ("filled\u3164\u2800", r"filled\u3164\u2800"),
        ("tag\U000e0041", r"tag\U000e0041"),
        ("☁\ufe0f", r"☁\ufe0f"),
        ("👩\u200d💻", r"👩\u200d💻"),
        ("\u0301accent without a letter", r"\u0301accent without a letter"),
        ("[@click=app.quit]x[/]", "[@click=app.quit]x[/]"),
        ("漢字 ключ é e\u0301", "漢字 ключ é e\u0301"),
    ],
)
def test_what_is_hostile_is_shown_and_what_is_not_stays(hostile: str, shown: str) -> None:
    assert safe(hostile) == shown


def test_accents_that_pile_up_do_not_reach_the_lines_around() -> None:
    shown = safe("a" + "\u0301" * 5_000)

    assert shown.startswith("a" + "\u0301" * MAX_MARKS + r"\u0301\u0301")
    assert width_of(shown) <= MAX_CELL


def test_a_name_of_ten_kilobytes_is_cut_and_says_so() -> None:
    assert safe("n" * 10_000) == "n" * (MAX_CELL - 1) + "…"
    assert safe("漢" * 10_000, width=10) == "漢漢漢漢…"


def test_a_text_of_megabytes_costs_no_more_than_what_is_seen_of_it() -> None:
    begin = time.perf_counter()
    assert width_of(safe("\x1b" * 5_000_000)) == MAX_CELL
    assert time.perf_counter() - begin < 0.5


@given(st.text(NASTY, max_size=400), st.integers(0, 60))
def test_any_text_is_harmless_and_as_wide_as_it_is_said_to_be(text: str, width: int) -> None:
    shown = safe(text, width=width)

    assert width_of(shown) == cell_len(shown) <= width
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Me"}
    assert safe(shown, width=width) == shown


@given(st.lists(st.tuples(st.text(NASTY, max_size=30), st.just("ok")), max_size=4), st.integers(1, 40), st.booleans())
def test_parts_fit_a_column_exactly_or_end_with_a_sign_that_they_were_cut(
    parts: list[tuple[str, str]], width: int, right: bool
) -> None:
    fitted = fit(tuple(parts), width, right=right)
    whole = "".join(safe(text) for text, _ in parts)
    shown = "".join(text for text, _ in fitted)

    assert width_of(shown) == width
    assert shown.strip(" ") == whole.strip(" ") or "…" in shown


def test_numbers_stand_to_the_right_and_words_to_the_left() -> None:
    assert fit((("417", ""),), 6, right=True) == (("   ", ""), ("417", ""))
    assert fit((("held", "held"),), 6) == (("held", "held"), ("  ", ""))


def test_a_part_that_ends_at_the_edge_says_that_another_one_follows() -> None:
    cell: Cell = (("● ", "ok"), ("abc", ""), ("def", "dim"))

    assert fit(cell, 5) == (("● ", "ok"), ("ab…", ""))
    assert cut("漢字", 3) == "漢…"
