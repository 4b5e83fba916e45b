"""How far a command has come: one line on a terminal, rewritten in place; elsewhere only what is being waited for."""

from __future__ import annotations

import sys

from qctl.cli import render
from qctl.cli.options import Settings

#: Back to the line's beginning, and wipe it.
_WIPE = "\r\x1b[2K"


class Progress:
    """Progress of one command, on stderr; nothing with --quiet on a terminal."""

    def __init__(self, settings: Settings) -> None:
        self._live = sys.stderr.isatty() and not settings.quiet
        self._shown = False
        self._state = ""

    def show(self, words: str, state: str = "") -> None:
        """Draw what is true now. state: what is being waited for, "" for nothing."""
        if self._live:
            sys.stderr.write(f"{_WIPE}{render.plain(words)}{', ' + state if state else ''}")
            sys.stderr.flush()
            self._shown = True
        elif state and state != self._state:
            render.note(f"qctl: {state}; {words} so far")
        self._state = state

    def clear(self) -> None:
        """Leave the line to what comes next."""
        if self._shown:
            sys.stderr.write(_WIPE)
            sys.stderr.flush()
            self._shown = False
