"""The one table of actions: what its keys promise, and what `--read-only` leaves of it."""

from __future__ import annotations

import pytest
from textual.keys import Keys, _character_to_key

from qctl.tui.actions import ACTIONS, FORBIDDEN_KEYS, Action, Kind, allowed, key_text
from qctl.tui.acts.acting import DRAFTS
from qctl.tui.snapshot import View

WRITES = [action for action in ACTIONS if action.kind is Kind.WRITE]


def named(action: Action) -> str:
    return action.id


@pytest.mark.parametrize("action", WRITES, ids=named)
def test_no_write_is_on_a_key_that_is_typed_by_accident(action: Action) -> None:
    for key in action.keys:
        assert len(key) == 1
        assert key.isupper()


def test_no_action_has_a_key_that_terminals_keep_or_confuse() -> None:
    assert {"ctrl+s", "ctrl+j", "ctrl+m", "ctrl+i", "ctrl+h"} <= FORBIDDEN_KEYS
    assert not FORBIDDEN_KEYS & {key for action in ACTIONS for key in action.keys}


@pytest.mark.parametrize("view", View)
def test_in_each_view_a_key_means_one_thing(view: View) -> None:
    keys = [key for action in ACTIONS if action.works_in(view) for key in action.keys]
    assert sorted(set(keys)) == sorted(keys)


def test_every_id_is_one_action_and_every_action_is_explained() -> None:
    assert len({action.id for action in ACTIONS}) == len(ACTIONS)
    for action in ACTIONS:
        assert action.keys
        assert action.label
        assert action.help
        assert not action.help.endswith(".")


def test_read_only_takes_away_every_write_and_nothing_else() -> None:
    assert allowed(read_only=False) == ACTIONS
    assert set(ACTIONS) - set(allowed(read_only=True)) == set(WRITES)


def test_every_write_has_a_draft_and_nothing_else_has() -> None:
    assert set(DRAFTS) == {action.id for action in WRITES}


def test_every_key_is_one_that_the_console_can_receive() -> None:
    received = {key.value for key in Keys} | {_character_to_key(chr(code)) for code in range(0x21, 0x7F)}
    assert {key for action in ACTIONS for key in action.keys} - received == set()


@pytest.mark.parametrize(
    ("key", "text"),
    [("slash", "/"), ("P", "P"), ("p", "p"), ("ctrl+p", "Ctrl-P"), ("f5", "F5"), ("shift+tab", "Shift-Tab")],
)
def test_a_key_is_written_as_it_stands_on_the_keyboard(key: str, text: str) -> None:
    assert key_text(key) == text
