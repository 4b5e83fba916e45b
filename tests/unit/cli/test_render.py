"""What reaches stdout: complete, aligned, and with every character visible."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qctl.cli import render
from qctl.cli.options import Output, Settings
from qctl.cli.render import Column

COLUMNS = (
    Column("NAME", lambda item: item["name"]),
    Column("N", lambda item: item["n"], right=True),
    Column("MORE", lambda item: item.get("more"), wide=True),
)
ITEMS: list[dict[str, Any]] = [
    {"name": "a", "n": 1},
    {"name": "b[red]", "n": 20_000, "more": True},
    {"name": "", "n": None},
]

Shown = Callable[[Output], str]


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Shown:
    """ITEMS as `-o` says, without a terminal."""

    def shown(output: Output) -> str:
        render.show(Settings(output=output), items=ITEMS, columns=COLUMNS, name=lambda item: item["name"])
        return capsys.readouterr().out

    return shown


def test_a_table_aligns_numbers_to_the_right_and_shows_the_unknown_as_a_dash(shown: Shown) -> None:
    assert shown(Output.TABLE) == "NAME        N\na           1\nb[red]  20000\n-           -\n"


def test_a_wide_table_has_all_columns(shown: Shown) -> None:
    assert shown(Output.WIDE) == "NAME        N  MORE\na           1  -\nb[red]  20000  yes\n-           -  -\n"


FREE = (
    Column("QUOTA", lambda item: item),
    Column("USED", lambda item: item, right=True),
    Column("LIMIT", lambda item: item),
    Column("WHY", lambda item: item, free=True),
)
CELLS = (
    ["web-1/twitter", "9416/20000", "300/15m, 20000/h", "by oncall: the API asked us to be gentle until noon"],
    ["web-2/twitter", "-", "100000/h", "-"],
)


def test_on_a_terminal_only_free_text_is_wrapped_and_at_its_blanks() -> None:
    lines = render.fitted(FREE, CELLS, width=80)

    assert all(len(line.rstrip("\n")) <= 80 for line in lines)
    assert lines[0] == "QUOTA                USED  LIMIT             WHY\n"
    assert lines[1].startswith("web-1/twitter  9416/20000  300/15m, 20000/h  by oncall: the API asked us")
    assert lines[2].startswith(" " * 45)
    words = " ".join(line[45:].strip() for line in lines[1:3])
    assert words == "by oncall: the API asked us to be gentle until noon"
    assert lines[3].split() == ["web-2/twitter", "-", "100000/h", "-"]


@pytest.mark.parametrize("width", [1, 20, 40, 60])
def test_a_line_runs_over_before_a_number_or_a_word_is_cut(width: int) -> None:
    lines = render.fitted(FREE, CELLS, width=width)
    text = "".join(lines)

    for whole in ("web-1/twitter", "9416/20000", "300/15m, 20000/h", "100000/h", "oncall:", "gentle"):
        assert whole in text


def test_what_has_no_room_stands_below_its_row_behind_its_title() -> None:
    # given a table that is wider than the terminal, whatever is wrapped
    columns = (*FREE[:3], Column("RATE/S", lambda item: item, right=True), FREE[3])
    cells = [[*row[:3], rate, row[3]] for row, rate in zip(CELLS, ("~48.9", "-"), strict=True)]

    lines = render.fitted(columns, cells, width=50)

    # then numbers in one piece, what is not known left out, and no line is too long
    assert lines == [
        "QUOTA                USED  LIMIT\n",
        "web-1/twitter  9416/20000  300/15m, 20000/h\n",
        "    RATE/S ~48.9\n",
        "    WHY by oncall: the API asked us to be gentle\n",
        "    until noon\n",
        "web-2/twitter           -  100000/h\n",
    ]


def test_on_a_wide_terminal_nothing_is_wrapped_and_wide_characters_take_two_cells() -> None:
    lines = render.fitted(FREE, [["東京", "1", "x", "a b"], ["a", "22", "y", "c"]], width=200)

    assert lines[1:] == ["東京   " + "   1  x      a b\n", "a        22  y      c\n"]


def test_a_terminal_gets_a_fitted_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    columns = [
        Column(each.title, lambda item, at=at: item[at], each.right, free=each.free) for at, each in enumerate(FREE)
    ]

    render.table(Settings(), columns, CELLS)

    head, *body = capsys.readouterr().out.splitlines()
    assert head.startswith("\x1b[1mQUOTA ")
    assert head.endswith("LIMIT\x1b[0m")
    assert "9416/20000" in body[0]
    assert body[1] == "    WHY by oncall: the API asked us to be gentle until noon"


def test_json_and_jsonl_and_name(shown: Shown) -> None:
    assert json.loads(shown(Output.JSON)) == {"v": 1, "items": ITEMS}
    assert [json.loads(line) for line in shown(Output.JSONL).splitlines()] == ITEMS
    assert shown(Output.NAME) == "a\nb[red]\n\n"


def test_an_empty_table_has_its_titles(capsys: pytest.CaptureFixture[str]) -> None:
    render.table(Settings(), COLUMNS, [])
    assert capsys.readouterr().out == "NAME  N  MORE\n"


@pytest.mark.parametrize(
    ("text", "visible"),
    [
        ("plain", "plain"),
        ("Grüße 東京 ✓", "Grüße 東京 ✓"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\tc\r", "a\\x0ab\\x09c\\x0d"),
        ("\x9b31m\x7f", "\\x9b31m\\x7f"),
        ("evil\u202egpj.exe\u2066\u200b\ufeff", "evil\\u202egpj.exe\\u2066\\u200b\\ufeff"),
        ("\u2028\u2029", "\\u2028\\u2029"),
        ("not\u00a0a\u3000blank", "not\\xa0a\\u3000blank"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        (17, "17"),
    ],
)
def test_every_character_is_visible(text: object, visible: str) -> None:
    assert render.plain(text) == visible


@given(st.text())
def test_plain_text_is_one_harmless_line(text: str) -> None:
    visible = render.plain(text)
    assert len(visible.splitlines()) <= 1
    assert not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 for c in visible)
    assert render.plain(visible) == visible


@given(st.text())
def test_no_text_reaches_a_terminal_through_json(text: str) -> None:
    written = render._json({"text": text}, indent=None)
    assert written.isascii()
    assert written.isprintable()
    assert json.loads(written) == {"text": text}


def test_notes_go_to_stderr_and_quiet_keeps_them_back(capsys: pytest.CaptureFixture[str]) -> None:
    render.say(Settings(), "one\ntwo\x07")
    render.say(Settings(quiet=True), "three")
    render.note("four")
    assert capsys.readouterr() == ("", "one\ntwo\\x07\nfour\n")
