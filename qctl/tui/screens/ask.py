"""The question before an act: what it concerns is shown, it rests on Cancel, and Enter alone never confirms."""

from __future__ import annotations

from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Label

from qctl.errors import QctlError
from qctl.tui.acts.plan import MAX_FIELD_CHARS, Draft, Field, Plan
from qctl.tui.screens.said import Said, in_words, sentence, sentences

#: Targets that are listed; the others are counted.
MAX_LISTED = 20
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
        Binding("escape", "cancel", "Cancel", show=False),
        Binding("n", "cancel", "Cancel", show=False),
        Binding("y", "yes", "Confirm", show=False),
        Binding("left,up", "app.focus_previous", "Before", show=False),
        Binding("right,down", "app.focus_next", "Next", show=False),
    ]

    def __init__(self, draft: Draft, *, production: bool) -> None:
        """production: what is concerned has to be typed before it can be confirmed."""
        super().__init__()
        self._draft = draft
        self._production = production
        self._plan: Plan | None = None
        self._problem = ""
        # The first that is wanted has the cursor, where something is; else it rests on Cancel.
        wanted = next((field for field in draft.fields if field.required and not field.value), None)
        self._first = f"#{wanted.id}" if wanted else "#cancel"

    def compose(self) -> ComposeResult:
        """From top to bottom: what, what it concerns, what may be filled in, what is wrong, the buttons."""
        with Vertical():
            yield Said(id="what")
            with VerticalScroll(id="scroll", can_focus=False):
                yield Said(id="targets")
                yield Said(id="warnings")
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
                yield Said(self._keys, id="keys")

    @property
    def _keys(self) -> str:
        return "Esc cancels" if self._production else "y confirms, Esc cancels"

    def on_mount(self) -> None:
        """What follows from the form as it is."""
        self._replan()
        self.set_focus(self.query_one(self._first))  # at once: what is typed ahead is for the form

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
        if self._may_confirm:
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

    def _show_confirm(self) -> None:
        self.query_one("#confirm", Button).disabled = not self._may_confirm


def _line(field: Field) -> Any:
    with Horizontal():
        yield Label(Content(field.label))
        yield Input(field.value, field.placeholder, id=field.id, max_length=MAX_FIELD_CHARS)
