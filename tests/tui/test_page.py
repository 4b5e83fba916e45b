"""docs/console.md keeps step with the console: its keys, its views, its command line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qctl.cli.main import COMMANDS
from qctl.tui.actions import ACTIONS, Action, Kind, key_text
from qctl.tui.snapshot import View

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "console.md").read_text(encoding="utf-8")
WORDS = {Kind.MOVE: "Moving", Kind.SHOW: "What is shown", Kind.WRITE: "What others see"}


def row(action: Action) -> str:
    """An action as its row of the page."""
    keys = " ".join(f"`{key_text(key)}`" for key in action.keys)
    where = ", ".join(action.views) or "all"
    return f"| {keys} | {action.label} | {action.help} | {where} |"


def tables() -> str:
    """The tables of keys, as the page has them."""
    found = []
    for kind, words in WORDS.items():
        rows = [row(action) for action in ACTIONS if action.kind is kind]
        found += [f"**{words}**", "", "| keys | | | in |", "|---|---|---|---|", *rows, ""]
    return "\n".join(found)


def test_the_page_has_every_key_and_no_other() -> None:
    assert tables() in PAGE, f"the keys of docs/console.md are out of step; they are now:\n\n{tables()}"


def test_the_page_has_every_view_under_its_key() -> None:
    """And with its picture."""
    named = re.findall(r"^\| `(\d)` \| \[([\w ]+)\]\(screenshots/(\w+)\.svg\) \|", PAGE, re.MULTILINE)
    assert named == [(str(number), view.capitalize(), view.name.lower()) for number, view in enumerate(View, 1)]


@pytest.mark.parametrize("picture", sorted(set(re.findall(r"screenshots/\w+\.svg", PAGE))))
def test_every_picture_is_there_and_asks_nothing_of_the_network(picture: str) -> None:
    text = (DOCS / picture).read_text(encoding="utf-8")
    assert text.startswith("<svg")
    assert re.findall(r"https?://(?!www\.w3\.org/)[^\"')\s]+", text) == []


def test_the_command_is_there() -> None:
    assert "tui" in {entry.name for entry in COMMANDS}
