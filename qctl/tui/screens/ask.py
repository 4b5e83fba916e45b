"""The question before an act: what it concerns is shown, it rests on Cancel, and Enter alone never confirms.

Nor does anything that was typed or pasted before the question could be read.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.timer import Timer
from textual.widgets import Button, Input, Label

from qctl.errors import QctlError
from qctl.tui.acts.plan import MAX_FIELD_CHARS, Draft, Field, Plan
from qctl.tui.screens.said import Said, in_words, sentence, sentences

#: Targets that are listed; the others are counted.
MAX_LISTED = 20
#: On screen for so long it may have been seen; until then nothing confirms, and what comes in one go is one stroke.
SEEN_S = 0.3
#: Keys that cancel, at once.
CANCEL = ("escape", "n")
#: The field for what has to be typed in production.
TYPED = "typed-name"


class Ask(ModalScreen[Plan | None]):
    """Fill in and confirm an act: gives its plan, or None when it was cancelled."""

    DEFAULT_CSS = """
    Ask { align: center middle; }
    Ask > Vertical {
        width: 90%; max-width: 104; height: auto; max-height: 100%;
        background: $surface; padding: 1 2; border-left: thick $q-warn;
    }
    Ask #scroll { height: auto; max-height: 60vh; }
    Ask .fields { height: auto; }
    Ask .fields Horizontal { height: 1; margin-bottom: 1; }
    Ask .fields Label { width: 12; color: $q-dim; }
    Ask Input, Ask Input:focus { border: none; height: 1; padding: 0 1; background: $panel; width: 1fr; }
    Ask Input:focus { background: $q-cursor; }
    Ask #what { text-style: bold; color: $q-strong; margin-bottom: 1; }
    Ask #targets { color: $foreground; margin-bottom: 1; }
    Ask #warnings { color: $q-warn; margin-bottom: 1; }
    Ask #problem { color: $q-bad; margin-bottom: 1; }
    Ask #production { color: $q-bad; text-style: bold; }
    Ask #buttons { height: 1; }
    Ask Button { min-width: 12; height: 1; margin-right: 2; }
    Ask Button:focus { text-style: bold reverse; }
    Ask #keys { color: $q-dim; width: 1fr; }
    """
    AUTO_FOCUS = ""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(",".join(CANCEL), "cancel", "Cancel", show=False),
        Binding("y", "yes", "Confirm", show=False),
        Binding("left,up", "app.focus_previous", "Before", show=False),
        Binding("right,down", "app.focus_next", "Next", show=False),
        Binding("j", "scroll('down')", "Line down", show=False),
        Binding("k", "scroll('up')", "Line up", show=False),
        Binding("pagedown,ctrl+f", "scroll('page_down')", "Page down", show=False),
        Binding("pageup,ctrl+b", "scroll('page_up')", "Page up", show=False),
        Binding("home", "scroll('home')", "Top", show=False),
        Binding("end", "scroll('end')", "Bottom", show=False),
    ]

    def __init__(self, draft: Draft, *, production: bool) -> None:
        """production: what is concerned has to be typed before it can be confirmed."""
        super().__init__()
        self._draft = draft
        self._production = production
        self._plan: Plan | None = None
        self._problem = ""
        self._seen_s: float | None = None
        self._seeing: Timer | None = None
        # The first that is wanted has the cursor, where something is; else it rests on Cancel.
        wanted = next((field for field in draft.fields if field.required and not field.value), None)
        self._first = f"#{wanted.id}" if wanted else "#cancel"

    def compose(self) -> ComposeResult:
        """From top to bottom: what, what it concerns, what may be filled in, what is wrong, the buttons."""
        with Vertical():
            yield Said(id="what")
            with VerticalScroll(id="scroll", can_focus=False):
                yield Said(id="warnings")  # first: it is seen however many targets there are
                yield Said(id="targets")
                with Vertical(classes="fields"):
                    for field in self._draft.fields:
                        yield from _line(field)
                yield Said(id="problem")
                if self._production:
                    yield Said(id="production")
                    with Vertical(classes="fields"):
                        yield from _line(Field(TYPED, "Type it"))
            with Horizontal(id="buttons"):
                yield Button("Cancel", id="cancel", compact=True)
                yield Button(Content(self._draft.title), id="confirm", variant="error", compact=True)
                yield Said(id="keys")

    def _say_keys(self) -> None:
        """What is typed here; scrolling where there is more than is seen."""
        keys = "y confirms, Esc cancels" if self.is_seen and not self._production else "Esc cancels"
        more = ", PgDn: more" if self.query_one("#scroll").max_scroll_y else ""
        self.query_one("#keys", Said).say(keys + more)

    def on_mount(self) -> None:
        """What follows from the form as it is."""
        self._replan()
        self.set_focus(self.query_one(self._first))  # at once: text that is typed ahead is for the form
        self.call_after_refresh(self._painted)

    @property
    def is_seen(self) -> bool:
        """Whether it can have been read."""
        return self._seen_s is not None

    def _painted(self) -> None:
        self._seeing = self.set_timer(SEEN_S, self._seen)

    def _seen(self) -> None:
        self._seen_s = time.monotonic()
        self._say_keys()

    def on_key(self, event: events.Key) -> None:
        """What was pressed before the question could be read is no answer to it, nor is what follows at once."""
        if event.key in CANCEL or (self._seen_s is not None and event.time >= self._seen_s):
            return
        event.stop()
        event.prevent_default()
        self.app.bell()
        if self._seeing is not None:
            self._seeing.reset()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Another value is another plan; the name that is typed is none of it."""
        if event.input.id == TYPED:
            self._show_confirm()
        else:
            self._replan()

    def on_input_submitted(self) -> None:
        """Enter goes on to the next field, and from the last one to Cancel."""
        self.focus_next()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """The buttons."""
        if event.button.id == "confirm":
            self._confirm()
        else:
            self.dismiss(None)

    def action_scroll(self, where: str) -> None:
        """What it concerns may be longer than the screen: by a line, a page, or to an end."""
        getattr(self.query_one("#scroll"), f"scroll_{where}")(animate=False)

    def action_cancel(self) -> None:
        """Nothing is done."""
        self.dismiss(None)

    def action_yes(self) -> None:
        """By one key, but not in production."""
        if self._production:
            self.set_focus(self.query_one(f"#{TYPED}", Input))
        else:
            self._confirm()

    def _confirm(self) -> None:
        if self._may_confirm and self.is_seen:
            self.dismiss(self._plan)
        else:
            self.app.bell()

    @property
    def _may_confirm(self) -> bool:
        """There is a plan, and in production its name is typed."""
        if self._plan is None or not self._production:
            return self._plan is not None
        return self.query_one(f"#{TYPED}", Input).value.strip() == self._plan.typed

    def _replan(self) -> None:
        values = {field.id: self.query_one(f"#{field.id}", Input).value for field in self._draft.fields}
        try:
            self._plan, self._problem = self._draft.plan(values), ""
        except QctlError as error:
            self._plan, self._problem = None, in_words(error)
        plan = self._plan
        self.query_one("#problem", Said).say(self._problem)
        if plan is not None:
            listed = list(plan.targets[:MAX_LISTED])
            if len(plan.targets) > MAX_LISTED:
                listed.append(f"and {len(plan.targets) - MAX_LISTED} more")
            self.query_one("#targets", Said).say(sentences(f"  {line}" for line in (*listed, *plan.more)))
            self.query_one("#confirm", Button).label = Content(plan.verb)
        self.query_one("#warnings", Said).say(sentences(f"! {line}" for line in (plan.warnings if plan else ())))
        self.query_one("#what", Said).say(sentence(f"{plan.what}?" if plan else self._draft.title))
        if self._production:
            asked = f"This is production. Type {plan.typed} to go on" if plan else ""
            self.query_one("#production", Said).say(asked)
        self._show_confirm()
        self.call_after_refresh(self._say_keys)

    def on_resize(self) -> None:
        """Other room, more or less to scroll."""
        self.call_after_refresh(self._say_keys)

    def _show_confirm(self) -> None:
        self.query_one("#confirm", Button).disabled = not self._may_confirm


def _line(field: Field) -> Any:
    with Horizontal():
        yield Label(Content(field.label))
        yield Input(field.value, field.placeholder, id=field.id, max_length=MAX_FIELD_CHARS)
