"""What was commanded from this console, the newest first; Enter shows what is proven of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from qctl.ops.when import precise
from qctl.tui.acts.running import Running
from qctl.tui.screens.said import Said
from qctl.tui.text import safe
from qctl.tui.theme import Tone, content


class Outcomes(ModalScreen[Running | None]):
    """Gives the act that was chosen, or None."""

    DEFAULT_CSS = """
    Outcomes { align: center middle; }
    Outcomes > Vertical {
        width: 90%; max-width: 120; height: auto; max-height: 80%;
        background: $surface; padding: 1 2; border-left: thick $q-held;
    }
    Outcomes OptionList, Outcomes OptionList:focus {
        height: auto; max-height: 50vh; border: none; background: $surface; padding: 0;
    }
    Outcomes #keys { color: $q-dim; margin-top: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "cancel", "Close", show=False),
        Binding("q", "cancel", "Close", show=False),
        Binding("j", "down", "Down", show=False),
        Binding("k", "up", "Up", show=False),
    ]

    def __init__(self, acts: Sequence[Running]) -> None:
        super().__init__()
        self._acts = acts

    def compose(self) -> ComposeResult:
        """A line an act."""
        with Vertical():
            yield OptionList(*(Option(_line(one)) for one in self._acts))
            yield Said("Enter shows it, Esc closes", id="keys")

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """The act of that line."""
        self.dismiss(self._acts[event.option_index])

    def action_cancel(self) -> None:
        """None of them."""
        self.dismiss(None)

    def action_down(self) -> None:
        """The next one."""
        self.query_one(OptionList).action_cursor_down()

    def action_up(self) -> None:
        """The one before."""
        self.query_one(OptionList).action_cursor_up()


def _line(one: Running) -> Content:
    if not one.is_over:
        mark = ("… runs    ", Tone.HELD)
    elif one.failure is not None:
        mark = ("✗ failed  ", Tone.BAD)
    elif one.shown().is_good:
        mark = ("✓ done    ", Tone.OK)
    else:
        mark = ("? in part ", Tone.WARN)
    return content(((f"{precise(one.begun_at_s)[:8]}  ", Tone.DIM), mark, (safe(one.what), Tone.TEXT)))
