"""What became of an act: each proof as it comes. It stays until it is closed, and the act goes on when it is."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen

from qctl.tui.acts.plan import Shown
from qctl.tui.acts.running import Running
from qctl.tui.screens.said import Said, in_words, sentence, sentences, table

#: How often it is looked what has come.
LOOK_EVERY_S = 0.2


class Outcome(ModalScreen[None]):
    """One act, while it runs and afterwards."""

    DEFAULT_CSS = """
    Outcome { align: center middle; }
    Outcome > Vertical {
        width: 100%; max-width: 130; height: auto; max-height: 100%;
        background: $surface; padding: 1 2; border-left: thick $q-held;
    }
    Outcome #what { text-style: bold; color: $q-strong; margin-bottom: 1; }
    Outcome #doing { color: $q-dim; margin-bottom: 1; }
    Outcome VerticalScroll { height: auto; max-height: 50vh; }
    Outcome #notes { color: $q-warn; margin-top: 1; }
    Outcome #failure { color: $q-bad; margin-top: 1; }
    Outcome #summary { color: $q-strong; margin-top: 1; }
    Outcome #keys { color: $q-dim; margin-top: 1; }
    """
    AUTO_FOCUS = "VerticalScroll"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss", "Close", show=False),
        Binding("q", "dismiss", "Close", show=False),
        Binding("S", "stop", "Stop", show=False),
        Binding("j", "scroll('down')", "Down", show=False),
        Binding("k", "scroll('up')", "Up", show=False),
    ]

    def __init__(self, running: Running) -> None:
        super().__init__()
        self.running = running
        self._shown: Shown | None = None

    def compose(self) -> ComposeResult:
        """What, what is waited for, the proof, what could not be found out, the sum."""
        with Vertical():
            yield Said(self.running.what, id="what")
            yield Said(id="doing")
            with VerticalScroll():
                yield Said(id="proof")
                yield Said(id="notes")
            yield Said(id="failure")
            yield Said(id="summary")
            yield Said(id="keys")

    def on_mount(self) -> None:
        """Look again and again until it is over."""
        self._timer = self.set_interval(LOOK_EVERY_S, self._look)
        self._look()

    def action_stop(self) -> None:
        """Do no more of it."""
        self.running.stop()

    def action_scroll(self, direction: str) -> None:
        """By a line."""
        area = self.query_one(VerticalScroll)
        if direction == "down":
            area.scroll_down(animate=False)
        else:
            area.scroll_up(animate=False)

    def _look(self) -> None:
        running = self.running
        shown = running.shown()
        self.query_one("#doing", Said).say("" if running.is_over else f"… {running.doing}")
        if shown != self._shown:  # of a large fleet it has many rows
            self._shown = shown
            self.query_one("#proof", Said).say(table(shown))
            self.query_one("#notes", Said).say(sentences(shown.notes))
        self.query_one("#failure", Said).say(in_words(running.failure) if running.failure else "")
        # Before the end it would sum up what is not known yet as if it never were.
        self.query_one("#summary", Said).say(sentence(shown.summary if running.is_over else ""))
        closes = "Esc closes" if running.is_over else "Esc closes this; it goes on, and o shows it again. S stops it"
        self.query_one("#keys", Said).say(closes)
        if running.is_over:
            self._timer.stop()
