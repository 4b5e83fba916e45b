"""F37: what happens to a terminal happens while a console listens to a broker and a worker."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.brokers import Vhost
from tests.faults.rows import Record, row
from tests.fleet import Fleet, wait_until
from tests.integration.test_demo import processes_of
from tests.tui.terminal import PROMPT, SMALL, WIDE, Terminal, alive

HANDLERS = "def work(task):\n    pass\n"
RESIZES = 20
ENDS_WITHIN_S = 5.0
#: How it is ended, and with what it then ends.
WAYS: dict[str, tuple[Callable[[Terminal, int], None], int]] = {
    "q": (lambda terminal, _: terminal.press("q"), 0),
    "Ctrl-C": (lambda terminal, _: terminal.press("C-c"), 0),
    "SIGINT": (lambda _, pid: os.kill(pid, signal.SIGINT), 130),
    "SIGTERM": (lambda _, pid: os.kill(pid, signal.SIGTERM), 143),
    "SIGHUP": (lambda _, pid: os.kill(pid, signal.SIGHUP), 129),
}


@pytest.fixture
def terminal(vhost: Vhost, tmp_path: Path) -> Terminal:
    """A terminal whose commands may log in."""
    (tmp_path / "terminal").mkdir()
    return Terminal(tmp_path / "terminal", environment=vhost.environment())


@row("F37", "resized 20 times, stopped and continued, without colours, ended in five ways, closed", timeout_s=240)
def test_the_terminal_is_restored_and_nothing_is_left(
    record: Record, vhost: Vhost, tmp_path: Path, terminal: Terminal
) -> None:
    consumers = {"work": {"handler": {"python": "handlers:work"}, "quota": {}}}
    (tmp_path / "fleet").mkdir()
    with Fleet(vhost, tmp_path / "fleet", HANDLERS, consumers=consumers, hosts={"web-1": {}}) as fleet, terminal:
        # Given a worker, and a terminal
        fleet.start("web-1")
        terminal.until(PROMPT.strip())
        modes = terminal.modes()
        changed, wrong_codes, ended_s = 0, 0, []
        for name, (end, code) in WAYS.items():
            # When a console in it is resized again and again, stopped and continued
            terminal.qctl("-i", str(fleet.directory / "inventory.yaml"), "tui", before="NO_COLOR=1")
            terminal.until("web-1", "consuming")
            for _ in range(RESIZES // 2):
                terminal.resize(SMALL)
                terminal.resize(WIDE)
            terminal.until("web-1", "consuming", "q quit")
            terminal.press("C-z")
            terminal.until("Stopped")
            changed += terminal.modes() != modes
            terminal.type("fg")
            terminal.until("web-1", "consuming", "q quit")

            # And is ended, then the terminal is as it was
            [console] = terminal.children()
            since_s = time.monotonic()
            end(terminal, console)
            terminal.gone()
            ended_s.append(time.monotonic() - since_s)
            changed += terminal.modes() != modes
            terminal.type(f"echo after {name}: $?; echo")
            screen = terminal.until(f"\nafter {name}: ")
            wrong_codes += f"\nafter {name}: {code}\n" not in screen
            terminal.type("clear")
            terminal.until("", without=name)

        # When the terminal itself goes away, then the console does too
        terminal.qctl("-i", str(fleet.directory / "inventory.yaml"), "tui")
        terminal.until("web-1", "consuming")
        [console] = terminal.children()
        since_s = time.monotonic()
        terminal.close()
        wait_until("the console is gone", lambda: not alive(console))
        ended_s.append(time.monotonic() - since_s)
        left = [pid for pid in processes_of(terminal.directory) if alive(pid)]

    record.figure("times the terminal was not as before", changed, equals=0)
    record.figure("wrong exit codes", wrong_codes, equals=0)
    record.figure("longest until it had ended, s", max(ended_s), at_most=ENDS_WITHIN_S)
    record.figure("processes left", len(left), equals=0)
