"""A real terminal: a shell in a tmux of its own, whose keys are pressed here and whose screen is read here."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import pytest

from tests.fleet import wait_until

WIDE, SMALL = (120, 36), (80, 24)
#: Long enough for a machine that runs other tests beside this one.
PATIENCE_S = 30.0
#: What a program may leave behind in a terminal: the other screen, no cursor, reports of the mouse, other keys.
FLAGS = (
    "alternate_on", "cursor_flag", "mouse_any_flag", "mouse_sgr_flag", "keypad_flag", "keypad_cursor_flag",
    "insert_flag", "origin_flag", "wrap_flag",
)  # fmt: skip
PROMPT = "ready$ "


class Terminal:
    """A terminal with a shell in it. A context manager: all that ran in it has ended after it.

    `directory` is where the shell starts and what tells its processes from others'; `environment` what it has beside
    the least that is needed.
    """

    def __init__(self, directory: Path, *, environment: Mapping[str, str] | None = None) -> None:
        if shutil.which("tmux") is None:
            pytest.fail("tmux is missing; `make tmux` installs it", pytrace=False)
        self.directory = directory
        # Not in `directory`: the name of a socket has room for about a hundred characters.
        self._sockets = tempfile.mkdtemp(prefix="qctl-tmux-")
        (directory / "profile").write_text(f"PS1='{PROMPT}'\n")
        # An empty environment but for this: nothing of whoever runs the tests decides what is seen.
        self._environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
            "HOME": str(directory),
            "LANG": "C.UTF-8",
            "TMUX_TMPDIR": self._sockets,
            "XDG_STATE_HOME": str(directory / "xdg-state"),
            "XDG_CACHE_HOME": str(directory / "xdg-cache"),
            "ENV": str(directory / "profile"),
            "PYTHONPATH": str(Path(__file__).parents[2]),
            **(environment or {}),
        }
        width, height = WIDE
        self._tmux("new-session", "-d", "-x", str(width), "-y", str(height), "-c", str(directory), "sh -i")
        self.server = int(self._show("pid"))
        self.shell = int(self._show("pane_pid"))
        self._tty = self._show("pane_tty")

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in [*self.children(), self.server]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until("the terminal is gone", lambda: not alive(self.server))
        shutil.rmtree(self._sockets)

    def type(self, line: str) -> None:
        """Type a command line and Enter."""
        self._tmux("send-keys", "-l", "--", line)
        self._tmux("send-keys", "Enter")

    def press(self, *keys: str) -> None:
        """Press keys, as tmux names them: `q`, `Enter`, `Escape`, `C-z`."""
        for key in keys:
            self._tmux("send-keys", "--", key)

    def text(self, text: str) -> None:
        """Type text without Enter."""
        self._tmux("send-keys", "-l", "--", text)

    def qctl(self, *arguments: str, before: str = "") -> None:
        """Type a call of qctl, run by this interpreter. before: settings of its environment."""
        self.type(f"{before} {shlex.join([sys.executable, '-m', 'qctl', *arguments])}".strip())

    def screen(self) -> str:
        """What can be read at this moment."""
        return subprocess.run(
            self._argv("capture-pane", "-p"), env=self._environment, capture_output=True, text=True, check=False
        ).stdout

    def coloured(self) -> str:
        """The screen with its colours, as escape sequences."""
        return self._ask("capture-pane", "-p", "-e")

    def until(self, *words: str, without: str = "", timeout_s: float = PATIENCE_S) -> str:
        """Wait until all words can be read at once, and `without` cannot; the screen then."""

        def seen() -> str:
            screen = self.screen()
            good = all(word in screen for word in words) and not (without and without in screen)
            return screen if good else ""

        try:
            found: str = wait_until(f"{words} without {without!r}" if without else f"{words}", seen, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; but this:\n{self.screen()}") from None
        return found

    def resize(self, size: tuple[int, int]) -> None:
        """Make the window another size."""
        self._tmux("resize-window", "-x", str(size[0]), "-y", str(size[1]))

    def modes(self) -> tuple[str, ...]:
        """Everything about the terminal that a program can change and should not leave changed."""
        stty = subprocess.run(["stty", "-a", "-F", self._tty], capture_output=True, text=True, check=True).stdout
        return (stty, *(f"{flag}={self._show(flag)}" for flag in FLAGS))

    def title(self) -> str:
        """The terminal's title."""
        return self._show("pane_title")

    def children(self) -> list[int]:
        """The processes that run in it, beside its shell."""
        return [pid for pid in descendants(self.shell) if pid != self.shell]

    def gone(self, timeout_s: float = PATIENCE_S) -> None:
        """Wait until what ran in it has ended and the shell asks for the next command."""
        wait_until("the program is gone", lambda: not self.children(), timeout_s)
        wait_until("the prompt", lambda: self.screen().rstrip().endswith(PROMPT.strip()), timeout_s)

    def close(self) -> None:
        """The terminal goes away under whatever runs in it, as when its window is closed."""
        os.kill(self.server, signal.SIGKILL)
        wait_until("the terminal is gone", lambda: not alive(self.server))

    def _show(self, what: str) -> str:
        return self._ask("display-message", "-p", f"#{{{what}}}").strip()

    def _ask(self, *arguments: str) -> str:
        done = subprocess.run(self._argv(*arguments), env=self._environment, capture_output=True, text=True, check=True)
        return done.stdout

    def _tmux(self, *arguments: str) -> None:
        subprocess.run(self._argv(*arguments), env=self._environment, capture_output=True, check=True)

    def _argv(self, *arguments: str) -> list[str]:
        # A server of its own, by its socket, and nobody's configuration.
        return ["tmux", "-L", "qctl", "-f", os.devnull, "-u", *arguments]


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def descendants(pid: int) -> list[int]:
    """A process and all that come from it."""
    found = [pid]
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except (FileNotFoundError, ProcessLookupError):
        return found
    for child in children:
        found += descendants(int(child))
    return found
