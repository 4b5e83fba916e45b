"""Processes that outlive the command that started them: start, recognise, end.

A process is remembered by its pid together with the moment it started, so that a pid which the system has given to
somebody else is never signalled.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

#: How often an awaited process is looked at.
POLL_S = 0.05
#: A killed process is gone as soon as the system gets to it; past this something holds it in the kernel.
_KILL_WAIT_S = 5.0
_PS_TIMEOUT_S = 5.0
_HAS_PROC = Path("/proc/self/stat").exists()


@dataclass(frozen=True, slots=True)
class Process:
    """A process of ours: its pid and a mark of the moment it started, which no later process with that pid shares."""

    pid: int
    mark: str


@contextmanager
def signals_held() -> Iterator[None]:
    """Keep SIGINT and SIGTERM waiting: between starting a process and writing it down nothing may come."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def spawn(argv: Sequence[str], *, directory: Path, environment: Mapping[str, str], output: Path) -> Process:
    """Start `argv` in a session of its own, in `directory`, with its output appended to `output` and no input.

    Raises OSError when /bin/sh cannot be started; a program that cannot shows as a process that is gone at once.
    """
    actions: list[tuple[object, ...]] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(output), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    # A pipe of our caller that stayed open in the node would keep the caller waiting for its end.
    actions += [(os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable_fds()]
    pid = os.posix_spawn(
        "/bin/sh",
        ["sh", "-c", 'cd "$0" && exec "$@"', str(directory), *argv],
        environment,
        file_actions=actions,
        setsid=True,  # the terminal's Ctrl-C is not for the node
        setsigmask=[],
        setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE],
    )
    return Process(pid, _look(pid)[0])


def is_alive(process: Process) -> bool:
    """Whether this very process still runs. One that is dead but not yet buried counts as gone."""
    mark, corpse = _look(process.pid)
    if mark != process.mark:
        return False
    if corpse:
        with suppress(ChildProcessError):  # then it is not our child, and burying it is somebody else's work
            os.waitpid(process.pid, os.WNOHANG)
        return False
    return True


def end(process: Process, *, timeout_s: float) -> bool:
    """SIGTERM, then SIGKILL after `timeout_s`. True if it was running; returns when it is gone."""
    if not _signal(process, signal.SIGTERM):
        return False
    if not await_end(process, timeout_s=timeout_s):
        _signal(process, signal.SIGKILL)
        await_end(process, timeout_s=_KILL_WAIT_S)
    return True


def await_end(process: Process, *, timeout_s: float) -> bool:
    """Wait until the process is gone; False if it is not after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while is_alive(process):
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


def _signal(process: Process, number: signal.Signals) -> bool:
    if not is_alive(process):
        return False
    with suppress(ProcessLookupError):
        os.kill(process.pid, number)
    return True


def _inheritable_fds() -> list[int]:
    inheritable = []
    for fd in [int(entry.name) for entry in Path("/dev/fd").iterdir()]:
        with suppress(OSError):  # the listing's own descriptor is closed by now
            if fd > 2 and os.get_inheritable(fd):
                inheritable.append(fd)
    return inheritable


def _look(pid: int) -> tuple[str, bool]:
    """When the process started, in words that differ between boots, and whether it is dead; "" when there is none."""
    if _HAS_PROC:
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        except (FileNotFoundError, ProcessLookupError):
            return "", True
        # The name may hold spaces and parentheses; behind the last one come the state, the threads and the start.
        fields = stat[stat.rindex(b")") + 2 :].split()
        state, threads, started_ticks = fields[0], int(fields[17]), int(fields[19])
        # A killed process shows as dead while threads of it still hold its sockets: then its ports are not free.
        return f"{boot}/{started_ticks}", state == b"Z" and threads <= 1
    found = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)],
        capture_output=True,
        text=True,
        timeout=_PS_TIMEOUT_S,
        check=False,
    )
    letters, _, started = found.stdout.strip().partition(" ")
    return started.strip(), letters.startswith("Z")
