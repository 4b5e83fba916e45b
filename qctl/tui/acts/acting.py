"""From a key to an act: the draft of it, the question, and what runs from then on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from textual.app import App

from qctl.control.event import Verb
from qctl.errors import QctlError
from qctl.inventory.model import Inventory
from qctl.tui.actions import ACTIONS, Kind
from qctl.tui.acts import enqueueing, limits, pausing, triage
from qctl.tui.acts.plan import Draft, Plan, Selection, Where
from qctl.tui.acts.running import Acts, Running
from qctl.tui.screens.ask import Ask
from qctl.tui.screens.letters import Letters
from qctl.tui.screens.outcome import Outcome
from qctl.tui.screens.outcomes import Outcomes
from qctl.tui.screens.said import MAX_SENTENCE, in_words
from qctl.tui.text import safe

__all__ = ["Acting", "Selection"]

_BY_ID = {action.id: action for action in ACTIONS}


class Acting:
    """Carries out what is asked for in a console, and keeps what it has begun. The console's thread alone."""

    def __init__(
        self,
        app: App[Any],
        inventory: Inventory,
        *,
        read_only: bool,
        connect_timeout_s: float = 10.0,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """changed: called when an act is over, since what is shown may be otherwise now."""
        self._app = app
        self._changed = changed
        self._where = Where(inventory, connect_timeout_s)
        self._read_only = read_only
        self._acts = Acts()

    @property
    def busy(self) -> int:
        """Acts that still run."""
        return len(self._acts.running)

    async def leave(self) -> tuple[str, ...]:
        """End the acts that still run, and say what is true of them, for whoever ends the console."""
        return await self._acts.leave()

    def perform(self, action_id: str, selection: Selection) -> None:
        """Do what an action of the table says, or ask first; what cannot be done is told. Returns at once."""
        try:
            self._perform(action_id, selection)
        except QctlError as error:
            self._tell(in_words(error), severity="error")

    def _perform(self, action_id: str, selection: Selection) -> None:
        action = _BY_ID[action_id]
        if action.kind is Kind.WRITE and self._read_only:
            raise QctlError("this console was started with --read-only")
        if action_id == "outcomes":
            self._show_all()
            return
        if not selection.keys:
            raise QctlError("there is no row to do this with")
        if action_id == "peek":
            self._app.push_screen(Letters(self._where, selection, read_only=self._read_only), self._ask)
        else:
            self._ask(DRAFTS[action_id](self._where, selection))

    def _ask(self, draft: Draft | None) -> None:
        if draft is not None:
            self._app.push_screen(Ask(draft, production=self._where.is_production), self._begin)

    def _begin(self, plan: Plan | None) -> None:
        if plan is None:
            return
        try:
            running = self._acts.begin(plan.what, plan.start(), self._ended)
        except QctlError as error:
            self._tell(in_words(error), severity="error")
            return
        self._app.push_screen(Outcome(running))

    def _ended(self, running: Running) -> None:
        """Tell what became of it, unless it can be seen."""
        self._changed()
        if any(isinstance(screen, Outcome) and screen.running is running for screen in self._app.screen_stack):
            return
        shown = running.shown()
        if running.failure is not None:
            self._tell(f"{running.what}: {in_words(running.failure)}", severity="error")
        else:
            self._tell(shown.summary or running.what, severity="information" if shown.is_good else "warning")

    def _show_all(self) -> None:
        acts = self._acts.all
        if not acts:
            raise QctlError("nothing was commanded here yet")
        self._app.push_screen(Outcomes(acts), self._show)

    def _show(self, running: Running | None) -> None:
        if running is not None:
            self._app.push_screen(Outcome(running))

    def _tell(self, text: str, *, severity: Any) -> None:
        self._app.notify(safe(text, width=MAX_SENTENCE), severity=severity, markup=False)


DRAFTS: dict[str, Callable[[Where, Selection], Draft]] = {
    "pause": lambda where, selection: pausing.draft(where, Verb.PAUSE, selection),
    "resume": lambda where, selection: pausing.draft(where, Verb.RESUME, selection),
    "quota_set": lambda where, selection: limits.draft(where, Verb.QUOTA_SET, selection),
    "quota_clear": lambda where, selection: limits.draft(where, Verb.QUOTA_CLEAR, selection),
    "enqueue": enqueueing.draft,
    "replay": lambda where, selection: triage.draft(where, triage.Act.REPLAY, selection),
    "drop": lambda where, selection: triage.draft(where, triage.Act.DROP, selection),
    "purge": triage.purge,
}
