"""Processes that outlive their command: never the wrong one is signalled, and none stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qctl.broker.detached import Process, await_end, end, is_alive, signals_held, spawn

STUBBORN = (
    "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
)


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Process]:
    """A detached process that would run for an hour."""
    process = spawn(["sleep", "3600"], directory=tmp_path, environment=dict(os.environ), output=tmp_path / "out")
    yield process
    end(process, timeout_s=0.0)


def test_it_runs_in_a_session_of_its_own_and_ends_when_told(sleeper: Process) -> None:
    # given a detached process, out of the reach of the terminal's Ctrl-C
    assert is_alive(sleeper)
    assert os.getsid(sleeper.pid) == sleeper.pid

    # when it is ended
    ended = end(sleeper, timeout_s=5.0)

    # then it is gone, and ending it again is no news
    assert ended
    assert not is_alive(sleeper)
    assert not end(sleeper, timeout_s=5.0)


def test_a_pid_that_belongs_to_somebody_else_now_is_left_alone(sleeper: Process) -> None:
    # given a record of a process of another time with the same pid
    another = replace(sleeper, mark="another boot/1")

    # when it is ended
    ended = end(another, timeout_s=5.0)

    # then whoever has the pid now goes on
    assert not ended
    assert is_alive(sleeper)


def test_one_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    # given a process that will not listen
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    output = tmp_path / "out"
    os.mkfifo(output)
    reader = os.open(output, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    process = spawn([sys.executable, "-c", STUBBORN], directory=tmp_path, environment={}, output=output)
    assert os.read(reader, 16) == b"ready\n"

    # then it holds nothing open that was ours
    os.close(writing)
    assert os.read(reading, 1) == b""
    os.close(reading)

    # when it is ended
    ended = end(process, timeout_s=0.1)

    # then it is gone all the same
    assert ended
    assert not is_alive(process)
    os.close(reader)


def test_a_program_that_cannot_start_is_gone_at_once_and_says_why(tmp_path: Path) -> None:
    # when a program is started that does not exist
    process = spawn(["/no/such/program"], directory=tmp_path, environment={}, output=tmp_path / "out")

    # then it is gone, and the reason is in its output
    assert await_end(process, timeout_s=5.0)
    assert "/no/such/program" in (tmp_path / "out").read_text(encoding="utf-8")


def test_it_outlives_the_command_that_started_it(tmp_path: Path) -> None:
    # given a command that starts a process and ends
    code = (
        "import os, pathlib, sys\n"
        "from qctl.broker.detached import spawn\n"
        "here = pathlib.Path(sys.argv[1])\n"
        "process = spawn(['sleep', '3600'], directory=here, environment=dict(os.environ), output=here / 'out')\n"
        "print(process.pid, process.mark)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    pid, _, mark = done.stdout.strip().partition(" ")
    process = Process(int(pid), mark)

    # then the process is still there, and another command can end it
    assert is_alive(process)
    assert end(process, timeout_s=5.0)


def test_an_interrupt_waits_until_the_process_is_written_down() -> None:
    written_down = []

    def start_and_write_down() -> None:
        with signals_held():
            signal.raise_signal(signal.SIGINT)
            written_down.append("process")

    # when Ctrl-C comes between a start and its record
    with pytest.raises(KeyboardInterrupt):
        start_and_write_down()

    # then what was begun is finished first
    assert written_down == ["process"]
