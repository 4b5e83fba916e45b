"""The one table of what can be done in the console: keys, footer, palette, help and `--read-only` derive from it.

A write has no bare lower-case letter, so that nothing is changed by typing on. Keys that terminals cannot tell from
others, or keep for themselves (ctrl+s, ctrl+j, ctrl+m, ctrl+i, ctrl+h), are nobody's.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from qctl.tui.snapshot import View

#: Keys that no action has, and why: flow control, Enter and Tab under other names, Backspace on some terminals.
FORBIDDEN_KEYS = frozenset({"ctrl+s", "ctrl+q", "ctrl+j", "ctrl+m", "ctrl+i", "ctrl+h"})

#: What is printed on a key whose name is not its character.
_SHOWN = {
    "slash": "/",
    "colon": ":",
    "question_mark": "?",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
    "less_than_sign": "<",
    "greater_than_sign": ">",
    "up": "↑",
    "down": "↓",
    "left": "←",
    "right": "→",
    "pageup": "PgUp",
    "pagedown": "PgDn",
    "home": "Home",
    "end": "End",
    "enter": "Enter",
    "escape": "Esc",
    "space": "Space",
    "tab": "Tab",
    "shift+tab": "Shift-Tab",
}


class Kind(StrEnum):
    """What an action does: goes somewhere, changes what is shown, or changes something that others see."""

    MOVE = "move"
    SHOW = "show"
    WRITE = "write"


@dataclass(frozen=True, slots=True)
class Action:
    """Something that a key does. keys: as Textual names them, the first is shown; views: () for all of them.

    label: one or two words, for the footer and the palette; help: a sentence without a final stop. footer: worth a
    place there.
    """

    id: str
    keys: tuple[str, ...]
    label: str
    help: str
    kind: Kind
    views: tuple[View, ...] = ()
    footer: bool = False

    def works_in(self, view: View) -> bool:
        """Whether it can be done in a view."""
        return not self.views or view in self.views


HOSTS, QUEUES, CONSUMERS, QUOTAS, DEAD, EVENTS = View
LISTS_OF_QUEUES = (QUEUES, DEAD)
WITH_CONSUMERS = (HOSTS, CONSUMERS, QUEUES)


def _write(identity: str, key: str, label: str, help_: str, *views: View) -> Action:
    return Action(identity, (key,), label, help_, Kind.WRITE, views, footer=True)


ACTIONS: tuple[Action, ...] = (
    # Moving
    Action("up", ("up", "k"), "Up", "the row above", Kind.MOVE),
    Action("down", ("down", "j"), "Down", "the row below", Kind.MOVE),
    Action("page_up", ("pageup", "ctrl+b"), "Page up", "a screen up", Kind.MOVE),
    Action("page_down", ("pagedown", "ctrl+f"), "Page down", "a screen down", Kind.MOVE),
    Action("top", ("home", "g"), "Top", "the first row", Kind.MOVE),
    Action("bottom", ("end", "G"), "Bottom", "the last row", Kind.MOVE),
    Action("left", ("left", "h"), "Left", "columns further to the left", Kind.MOVE),
    Action("right", ("right", "l"), "Right", "columns further to the right", Kind.MOVE),
    Action("open", ("enter",), "Open", "what there is to know of this row, beside the list", Kind.MOVE, footer=True),
    Action("back", ("escape",), "Back", "close what is open; clear the marks, then the filter", Kind.MOVE),
    Action("view_1", ("1",), "Hosts", "who is about to run out, what is off and why", Kind.MOVE),
    Action("view_2", ("2",), "Queues", "how deep, in and out, and when they are empty", Kind.MOVE),
    Action("view_3", ("3",), "Consumers", "every subscription: its state, why, since when, by whom", Kind.MOVE),
    Action("view_4", ("4",), "Quotas", "every limit: used, spent a second, when it is gone or back", Kind.MOVE),
    Action("view_5", ("5",), "Dead letters", "tasks that were given up on, by queue", Kind.MOVE),
    Action("view_6", ("6",), "Events", "who commanded what, and what was ignored of it", Kind.MOVE),
    Action("next_view", ("tab",), "Next view", "the next view", Kind.MOVE),
    Action("previous_view", ("shift+tab",), "Previous view", "the view before", Kind.MOVE),
    Action("previous_page", ("left_square_bracket",), "Page before", "the page before", Kind.MOVE, LISTS_OF_QUEUES),
    Action("next_page", ("right_square_bracket",), "Next page", "the next page", Kind.MOVE, LISTS_OF_QUEUES),
    # What is shown
    Action("filter", ("slash",), "Filter", "rows with this text; a leading ! turns it round", Kind.SHOW, footer=True),
    Action("sort", ("s",), "Sort", "by the next column", Kind.SHOW, footer=True),
    Action("reverse", ("S",), "Reverse", "the other way round", Kind.SHOW),
    Action("wide", ("w",), "Wide", "all columns, or those that fit", Kind.SHOW),
    Action("mark", ("space",), "Mark", "this row, for what is done to several at once", Kind.SHOW, footer=True),
    Action("mark_all", ("a",), "Mark all", "every row that is listed, or none", Kind.SHOW),
    Action("freeze", ("f",), "Freeze", "keep the screen as it is; again to go on", Kind.SHOW),
    Action("refresh", ("r", "f5"), "Refresh", "ask every source now", Kind.SHOW),
    Action("peek", ("p",), "Peek", "at messages; takes none away", Kind.SHOW, LISTS_OF_QUEUES, footer=True),
    Action("outcomes", ("o",), "Outcomes", "what was commanded here, and what is proven of it", Kind.SHOW),
    Action("theme", ("t",), "Theme", "the next theme", Kind.SHOW),
    Action("palette", ("colon", "ctrl+p"), "Palette", "find an action by its name", Kind.SHOW, footer=True),
    Action("help", ("question_mark", "f1"), "Help", "all keys", Kind.SHOW, footer=True),
    Action("suspend", ("ctrl+z",), "Suspend", "back to the shell; `fg` returns", Kind.SHOW),
    Action("quit", ("q", "ctrl+c"), "Quit", "end the console; what was commanded holds", Kind.SHOW, footer=True),
    # What others see
    _write("pause", "P", "Pause", "the consumers of these rows, with proof", *WITH_CONSUMERS),
    _write("resume", "R", "Resume", "what was paused of these rows", *WITH_CONSUMERS),
    _write("quota_set", "L", "Limit", "set the limits of these quotas, for a while or for good", QUOTAS),
    _write("quota_clear", "C", "Clear", "take back what was set; the inventory's limits hold again", QUOTAS),
    _write("enqueue", "E", "Enqueue", "tasks for this consumer", CONSUMERS, QUEUES),
    _write("replay", "R", "Replay", "dead letters: back to their queue, attempts anew", DEAD),
    _write("drop", "D", "Drop", "dead letters, for good", DEAD),
    _write("purge", "X", "Purge", "take every waiting message out of a queue, for good", QUEUES),
)


def allowed(*, read_only: bool) -> tuple[Action, ...]:
    """What can be done here: with `--read-only` nothing that others would see."""
    return tuple(action for action in ACTIONS if not (read_only and action.kind is Kind.WRITE))


def key_text(key: str) -> str:
    """A key as it is written for people: `/`, `Shift-Tab`, `Ctrl-P`, `F5`, `P`."""
    if key in _SHOWN:
        return _SHOWN[key]
    if key.startswith("ctrl+"):
        return f"Ctrl-{key_text(key.removeprefix('ctrl+')).upper()}"
    return key.upper() if len(key) > 1 else key
