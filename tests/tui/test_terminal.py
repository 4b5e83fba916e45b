"""The console in a real terminal: what it shows there, and that the terminal is afterwards as it was before."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qctl.tui.recording import Recorder, new_file
from tests.fleet import wait_until
from tests.integration.test_demo import assert_ended_by, demo, processes_of
from tests.tui.terminal import PROMPT, SMALL, WIDE, Terminal, alive
from tests.tui.test_recording import BEGAN_S, HOSTILE, shown

#: A hung-up or closed console ends at once; this is what a loaded machine may need for it.
GONE_S = 15.0


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """A terminal with a shell that waits for a command."""
    with Terminal(tmp_path) as opened:
        opened.until(PROMPT.strip())
        yield opened


@pytest.fixture
def recorded(tmp_path: Path) -> str:
    """A recording that is not over for an hour: a console on it needs no broker."""
    path = tmp_path / "recorded"
    recorder = Recorder(new_file(path), environment="production", broker="amqp://rabbit:5672/", at_s=BEGAN_S)
    for at_s in (BEGAN_S, BEGAN_S + 3600):
        recorder.write(replace(shown(at_s), at_s=at_s))
    recorder.close()
    return str(path)


def test_given_a_console_when_resized_suspended_continued_and_quit_then_the_terminal_is_as_it_was_before(
    terminal: Terminal, recorded: str
) -> None:
    # Given a terminal with something on it, and a console in it
    terminal.type("echo something was here")
    screen, modes = terminal.until("\nsomething was here"), terminal.modes()
    terminal.qctl("tui", "--replay", recorded)
    assert "P pause" not in terminal.until("web-1", "PRODUCTION", "rabbit:5672", "q quit")
    assert terminal.modes() != modes
    assert colours(terminal.coloured())

    # When it is made small, and wide again, then it fits both times and shows the same
    terminal.resize(SMALL)
    small = terminal.until("web-1", "q quit")
    assert max(map(len, small.splitlines())) <= SMALL[0]
    terminal.resize(WIDE)
    terminal.until("web-1", "q quit")

    # When names come that would write to the terminal, then they are seen as they are
    terminal.press("2")
    queues = terminal.until("timeline", "[bold]x[/]")
    assert HOSTILE not in queues

    # When it is stopped, then the shell has the terminal as it was
    terminal.press("C-z")
    terminal.until("Stopped", "something was here", PROMPT.strip())
    assert terminal.modes() == modes

    # When it is continued, then it is there again
    terminal.type("fg")
    terminal.until("timeline", "q quit", without="something was here")

    # When it is quit, then it ends with 0, the terminal is as it was, and what stood there stands there
    terminal.press("q")
    terminal.gone()
    terminal.type("echo ended with $?")
    after = terminal.until("\nended with 0")
    assert terminal.modes() == modes
    assert after.startswith(screen.rstrip())
    assert terminal.children() == []


#: Of a palette's 256 colours those that are none: black, white, and what is between them.
GREYS = {0, 7, 8, 15, 16, 59, 102, 145, 188, 231, *range(232, 256)}


def colours(screen: str) -> set[str]:
    """The colours of a screen that are no shade of grey, as the escape sequences name them."""
    found = set()
    for sequence in re.findall(r"\x1b\[([\d;]+)m", screen):
        for code in re.findall(r"[345]8;2;\d+;\d+;\d+|[345]8;5;\d+|\d+", sequence):
            kind, *value = (int(number) for number in code.split(";"))
            match value:
                case [2, *shade] if len(set(shade)) > 1:
                    found.add(code)
                case [5, number] if number not in GREYS:
                    found.add(code)
                case [] if 30 <= kind % 60 < 50 and kind % 10 in range(1, 7):
                    found.add(code)
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_given_a_console_without_colour_when_it_is_told_to_end_then_the_terminal_is_as_it_was_before(
    terminal: Terminal, recorded: str, number: signal.Signals
) -> None:
    # Given a console that may not use colours
    modes = terminal.modes()
    terminal.qctl("tui", "--replay", recorded, before="NO_COLOR=1")
    terminal.until("web-1", "q quit")
    assert colours(terminal.coloured()) == set()

    # When it gets a signal
    [console] = terminal.children()
    os.kill(console, number)
    terminal.gone(GONE_S)

    # Then it says with which code it ended, and nothing of it is left behind
    terminal.type("echo ended with $?")
    terminal.until(f"\nended with {'130' if number is signal.SIGINT else 128 + number}", without="Traceback")
    assert terminal.modes() == modes


def test_given_a_terminal_that_can_only_write_lines_when_called_then_it_says_what_works_there(
    terminal: Terminal, recorded: str
) -> None:
    terminal.qctl("tui", "--replay", recorded, before="TERM=dumb")
    terminal.until("this one is dumb", "qctl tui --once")


def test_given_a_console_when_its_terminal_is_closed_then_it_ends(terminal: Terminal, recorded: str) -> None:
    # Given a console
    terminal.qctl("tui", "--replay", recorded)
    terminal.until("web-1", "q quit")
    [console] = terminal.children()

    # When its window goes away under it, then it does too, and all that came from it
    terminal.close()
    wait_until("the console is gone", lambda: not alive(console), GONE_S)
    assert [line for pid, line in processes_of(terminal.directory).items() if alive(pid)] == []


@pytest.mark.timeout(110)
def test_given_the_demo_when_a_consumer_is_paused_and_resumed_with_keys_then_the_proof_is_seen(
    tmp_path: Path, terminal: Terminal
) -> None:
    # Given two servers that spend their quotas, and a console that looks on
    (place := tmp_path / "demo").mkdir()
    modes = terminal.modes()
    with demo(place, "--window", "10s") as running:
        inventory = inventory_of(running)
        terminal.qctl("-i", inventory, "tui", "--record", "session")

        # When web-1 has spent its quota, then its bar is full and its consumer is held
        terminal.until("web-1", "200/200", "held", "P pause")

        # When web-2's consumer is paused with keys, then it is asked first, and the worker's proof comes
        terminal.press("3", "/")
        terminal.until("!text")
        terminal.text("web-2")
        terminal.press("Enter")
        terminal.until("web-2/timeline", without="web-1/timeline")
        # and what comes with the key in one go, as of a paste, does not answer the question
        terminal.text("Py")
        terminal.until("pause web-2/timeline", "y confirms")
        terminal.press("y")
        terminal.until("1 proven")
        terminal.press("Escape")
        terminal.until("paused by", without="proven")

        # When it is resumed, then that is proven too
        terminal.press("R")
        terminal.until("resume web-2/timeline", "y confirms")
        terminal.press("y")
        terminal.until("1 proven")
        terminal.press("Escape")
        terminal.until("web-2/timeline", without="proven")
        terminal.until("web-2/timeline", without="paused by")

        # When it is quit, then the terminal is as before
        terminal.press("q")
        terminal.gone()
        terminal.type("echo ended with $?")
        terminal.until("\nended with 0")
        assert terminal.modes() == modes

        # When one screen is asked for instead, then it says the same
        terminal.qctl("-i", inventory, "tui", "--once", "consumers")
        terminal.until("web-1/timeline/0", "web-2/timeline/0")
        terminal.gone()

        # When the recording is looked at, then it has what was commanded
        terminal.type("clear")
        terminal.qctl("tui", "--replay", "session", "--once", "events")
        terminal.until("it is over", "pause", "resume", "web-2/timeline")

        # When the demo is interrupted, then nothing is left of it
        assert_ended_by(signal.SIGINT, running, place)


def inventory_of(running: subprocess.Popen[str]) -> str:
    """Where the demo says that its inventory is."""
    assert running.stderr is not None
    for line in running.stderr:
        if "watch it" in line:
            words = shlex.split(line)
            return words[words.index("-i") + 1]
    pytest.fail("the demo never said how to watch it")
