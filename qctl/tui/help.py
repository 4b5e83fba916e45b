"""What every key does, from the one table of actions."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen

from qctl.ops.status import State
from qctl.tui.actions import Action, Kind, key_text
from qctl.tui.bars import state_mark
from qctl.tui.cells import EMPTY, Cell, one
from qctl.tui.pane import Lines
from qctl.tui.snapshot import View

_HEADS = {Kind.MOVE: "MOVE", Kind.SHOW: "SHOW", Kind.WRITE: "CHANGE, for everybody; each asks first"}
_STATES = {
    State.CONSUMING: "takes tasks",
    State.HELD: "waits for quota, or for its upstream; goes on by itself",
    State.PAUSED: "turned off by an operator, until resumed or its time is up",
    State.DRAINING: "finishes what runs, then ends",
    State.DOWN: "does not run",
    State.UNKNOWN: "nothing is heard of it",
}


#: The cells of an action's words.
LABEL_WIDTH = 15
#: A help that is wider is not read.
MAX_WIDTH = 100


class Help(ModalScreen[None]):
    """The keys, those of the present view first."""

    DEFAULT_CSS = """
    Help { align: center middle; }
    Help > VerticalScroll {
        width: 90%; max-width: 100; height: auto; max-height: 92%;
        background: $surface; padding: 1 2; border-left: thick $q-accent; scrollbar-size-vertical: 1;
    }
    Help Lines { text-wrap: wrap; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,f1,enter", "dismiss", show=False),
        Binding("j", "scroll(1)", show=False),
        Binding("k", "scroll(-1)", show=False),
    ]

    def __init__(self, actions: Sequence[Action], view: View) -> None:
        super().__init__()
        self._actions, self._view = actions, view

    def compose(self) -> ComposeResult:
        """One text, scrolled."""
        with VerticalScroll():
            yield Lines(id="help")

    def on_mount(self) -> None:
        """Fill it."""
        room = min(self.app.size.width * 9 // 10, MAX_WIDTH) - 6
        self.query_one(Lines).show(lines(self._actions, self._view, width=room))
        self.query_one(VerticalScroll).focus()

    def action_scroll(self, lines_down: int) -> None:
        """A line down or up."""
        self.query_one(VerticalScroll).scroll_relative(y=lines_down, animate=False)


def lines(actions: Sequence[Action], view: View, *, width: int) -> Iterable[Cell]:
    """The help as lines of `width` cells."""
    keys = max((len(_keys(action)) for action in actions), default=0)
    for kind in (Kind.WRITE, Kind.SHOW, Kind.MOVE):
        those = [action for action in actions if action.kind is kind]
        if those:
            yield one(_HEADS[kind], "head")
            for action in sorted(those, key=lambda action: not action.works_in(view)):
                yield from _lines(action, view, keys=keys, width=width)
            yield EMPTY
    yield one("STATES", "head")
    for state, meaning in _STATES.items():
        mark, style = state_mark(state)
        yield ((f"{mark} {state:<{keys}} ", style), (meaning, "dim"))
    yield EMPTY
    yield one("~ is an estimate, - is not known; what is not of this second says how old it is.", "dim")


def _lines(action: Action, view: View, *, keys: int, width: int) -> Iterable[Cell]:
    """An action with its keys; what does not fit stands below its words."""
    here = action.works_in(view)
    where = "" if here else f" ({', '.join(action.views)})"
    indent = keys + 3 + LABEL_WIDTH
    first, *rest = textwrap.wrap(action.help + where, max(20, width - indent)) or [""]
    yield (
        (f"{_keys(action):<{keys}}   ", "accent" if here else "dim"),
        (f"{action.label:<{LABEL_WIDTH}}", "" if here else "dim"),
        (first, "dim"),
    )
    for line in rest:
        yield one(" " * indent + line, "dim")


def _keys(action: Action) -> str:
    return " ".join(key_text(key) for key in action.keys)
