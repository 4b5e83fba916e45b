"""The console as an application: its source, its theme, its end. What is on screen is `main`'s."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from textual import events
from textual.app import App
from textual.binding import Binding, BindingType
from textual.screen import Screen

from qctl.errors import QctlError
from qctl.inventory.model import Inventory
from qctl.tui import palette, remember, theme
from qctl.tui.actions import Action, allowed
from qctl.tui.acts.acting import Acting, Selection
from qctl.tui.headline import Place
from qctl.tui.help import Help
from qctl.tui.main import Main
from qctl.tui.newest import Newest
from qctl.tui.pace import keys_first
from qctl.tui.snapshot import Snapshot, Source, View

#: A terminal that is gone takes no last words: so long after a signal the process ends all the same.
HARD_END_S = 5.0
#: How often it is looked whether the source has given up, and whether the terminal is still there.
LOOK_S = 1.0


class Console(App[None], inherit_bindings=False):
    """The live console. inventory None: nothing can be commanded (a recording).

    After `run`, `return_code` is 0, or 128 and a signal's number; `failure` is why it ended early, or None.
    """

    TITLE = "qctl"
    ENABLE_COMMAND_PALETTE = True
    COMMANDS: ClassVar[Any] = {palette.Actions}
    ALLOW_SELECT = False
    CSS = """
    Toast { background: $panel; }
    CommandPalette { align-horizontal: center; background: $background 70%; }
    CommandPalette > Vertical { width: 90%; max-width: 76; margin-top: 2; background: $surface; }
    CommandPalette #--input, CommandPalette #--input.--list-visible {
        border: none; padding: 1 1 0 1; background: $surface;
    }
    CommandPalette SearchIcon { display: none; }
    CommandPalette CommandList, CommandPalette CommandList:focus {
        border: none; padding: 0 1 1 1; background: $surface;
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c", "leave", show=False, priority=True),
        Binding("ctrl+z", "suspend_process", show=False, priority=True),
        Binding("q", "leave", show=False),
    ]

    def __init__(
        self,
        source: Source,
        inventory: Inventory | None,
        *,
        environment: str,
        broker: str,
        read_only: bool = False,
        connect_timeout_s: float = 10.0,
        state: Path | None = None,
    ) -> None:
        super().__init__()
        assert inventory is not None or read_only
        self.source = source
        self.inventory = inventory
        self.read_only = read_only
        self.connect_timeout_s = connect_timeout_s
        self.place = Place(environment, broker, read_only)
        self.actions: Sequence[Action] = allowed(read_only=read_only)
        #: The last that came, on screen or not.
        self.newest: Snapshot | None = None
        self.failure: BaseException | None = None
        #: None: nothing can be commanded.
        self.acting = (
            Acting(self, inventory, read_only=read_only, connect_timeout_s=connect_timeout_s, changed=source.refresh)
            if inventory
            else None
        )
        #: What is true of the acts that ran until the console ended.
        self.last_words: tuple[str, ...] = ()
        self._state = state
        self._remembered = remember.load(state) if state else remember.Remembered()
        self.main = Main(self._remembered)
        for each in theme.THEMES:
            self.register_theme(each)
        self._chosen_theme = chosen = self._remembered.theme
        known = {each.name for each in theme.THEMES}
        self.theme = chosen if chosen in known else theme.default_for(self.console.color_system)

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Our own colours are known before any theme is."""
        return theme.VARIABLES

    def get_default_screen(self) -> Screen[Any]:
        """The one screen."""
        return self.main

    @property
    def acting_words(self) -> str:
        """How many acts still run; "" for none."""
        busy = self.acting.busy if self.acting else 0
        return f"{busy} {'acts run' if busy > 1 else 'act runs'}" if busy else ""

    def listen(self) -> None:
        """Begin: there is something now to show snapshots on."""
        loop = asyncio.get_running_loop()
        if not self.is_headless:
            for one in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                loop.add_signal_handler(one, self._end_by, one)
            keys_first()
        self.source.start(Newest(loop, self._come).put)
        self.set_interval(LOOK_S, self._look)

    def _look(self) -> None:
        if self.source.error is not None:
            self.failure = self.source.error
            self.exit(return_code=self.source.error.exit_code)
        elif not self.is_headless and not _terminal_there():
            self._end_by(signal.SIGHUP)

    def _come(self, snapshot: Snapshot) -> None:
        self.call_later(self._arrived, snapshot)

    def _arrived(self, snapshot: Snapshot) -> None:
        self.newest = snapshot
        self.main.take(snapshot)
        self._look()

    async def on_unmount(self) -> None:
        """The terminal is as it was; end what runs and what listens, and remember what was chosen."""
        self.last_words = await self.acting.leave() if self.acting else ()
        self.source.stop()
        if self._state is not None:
            main = self.main
            chosen = remember.Remembered(main.view, main.wide, self._chosen_theme, main.arrangements)
            remember.save(self._state, chosen)

    # What is done

    async def on_event(self, event: events.Event) -> None:
        """Keys of the one screen are done as they come in, and not on their way through its widgets.

        What is typed ahead comes in one piece: after `/` the next key is the filter's, and it is looked at right then.
        """
        if not (isinstance(event, events.Key) and await self._is_done(event)):
            await super().on_event(event)

    async def _is_done(self, key: events.Key) -> bool:
        if key.is_forwarded or self.screen is not self.main:
            return False
        return await self.main.typed(key) or await self._check_bindings(key.key)

    def do(self, action: Action, *, view: View, keys: tuple[str, ...], snapshot: Snapshot | None) -> None:
        """What is no matter of the list: help, palette, theme, and what asks or writes."""
        match action.id:
            case "help":
                self.push_screen(Help(self.actions, view))
            case "palette":
                self.action_command_palette()
            case "theme":
                names = [each.name for each in theme.THEMES]
                self.choose_theme(names[(names.index(self.theme) + 1) % len(names)])
            case _ if self.acting is None:
                self.notify("This is a recording: there is nothing behind it.", severity="warning", markup=False)
            case _ if snapshot is not None:
                # Also where the screen is frozen: a question is about what is known now.
                self.acting.perform(action.id, Selection(view, keys, self.newest or snapshot))

    def choose_theme(self, name: str) -> None:
        """All in other colours."""
        self.theme = self._chosen_theme = name
        self.main.draw()

    def action_leave(self) -> None:
        """End; whatever was commanded holds."""
        self.exit()

    # The end

    def _end_by(self, number: signal.Signals) -> None:
        code = 128 + number
        timer = threading.Timer(HARD_END_S, os._exit, [code])
        timer.daemon = True
        timer.start()
        self.exit(return_code=code)

    def _handle_exception(self, error: Exception) -> None:
        """An error nobody expected ends the console; what it was is told when the terminal is as it was."""
        self.failure = self.failure or error
        super()._handle_exception(error)

    def panic(self, *_: object) -> None:
        """What reads keys has failed: there is no terminal any more."""
        self.failure = self.failure or QctlError("the terminal was lost", hint="What was commanded holds.")
        self._return_code = 1
        self._close_messages_no_wait()

    def _fatal_error(self) -> None:
        self._close_messages_no_wait()


def _terminal_there() -> bool:
    """Whether keys can still come: a terminal that was closed without a signal is none any more."""
    stdin = sys.__stdin__
    try:
        return stdin is not None and os.isatty(stdin.fileno())
    except (OSError, ValueError):
        return False
