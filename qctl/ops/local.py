"""Giving a control event to the supervisor of this machine's host, without the broker."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from qctl.control import socket as wire
from qctl.control.host_answer import ProcessLook
from qctl.errors import Interrupted, QctlError, UsageError

#: A supervisor that lives takes a connection at once and a command within the time of a write to its disk.
GIVEN_WITHIN_S = 10.0
CHUNK_BYTES = 64 << 10


class NoSupervisor(QctlError):
    """Nobody takes local commands for the host: it is not run on this machine, or by another user."""


@dataclass(frozen=True, slots=True)
class Given:
    """The event is kept on the host, and goes into the control log when the broker takes it.

    before: the processes when it was given. answers: of those that answered in time, as they would come from the
    broker. after: the processes when all had answered or ended; None when some had not in time. is_interrupted:
    SIGINT came before that.
    """

    before: tuple[ProcessLook, ...]
    answers: tuple[bytes, ...] = ()
    after: tuple[ProcessLook, ...] | None = None
    is_interrupted: bool = False


def give(directory: Path, body: bytes, *, timeout_s: float) -> Given:
    """Hand a control event to the supervisor that has its state in `directory` (STATE/HOST) and gather the answers.

    body: of one line. timeout_s: for the answers of the processes. Raises NoSupervisor; UsageError for a body too
    large; QctlError when the supervisor refuses the event, or when it is not known whether it was given; Interrupted,
    which says what is true, on SIGINT before the supervisor has taken it.
    """
    if len(body) >= wire.MAX_EVENT_LINE_BYTES:
        raise UsageError(f"the command is larger than {wire.MAX_EVENT_LINE_BYTES >> 10} KiB")
    truth = "not given"
    with socket.socket(socket.AF_UNIX) as connected:
        connected.settimeout(GIVEN_WITHIN_S)
        try:
            _connect(connected, directory)
            truth = "it is not known whether it was given; twice does no harm"
            with suppress(OSError):  # who hung up may have said why before
                connected.sendall(body.rstrip(b"\n") + b"\n")
            lines = _Lines(connected)
            first = lines.next(GIVEN_WITHIN_S)
        except KeyboardInterrupt:
            raise Interrupted(f"interrupted; {truth}") from None
        if isinstance(first, wire.Refused):
            refused = QctlError(first.message, hint=first.hint)
            refused.exit_code = first.exit_code
            raise refused
        if not isinstance(first, wire.Given):
            raise QctlError(
                "the supervisor did not say that it has taken the command; it is not known whether it was given",
                hint="Give it once more: twice does no harm.",
            )
        return _gather(lines, Given(first.processes), timeout_s)


def _connect(connected: socket.socket, directory: Path) -> None:
    path = directory / wire.FILE
    try:
        with wire.address(directory) as address:
            connected.connect(address)
    except PermissionError:
        raise NoSupervisor(
            f"{path} may not be used by this user", hint="Give the command as the worker's user, or as root."
        ) from None
    except OSError as error:
        raise NoSupervisor(
            f"no worker takes commands at {path}: {error.strerror or 'it does not answer'}",
            hint="Is the worker of this host running here, with this state directory (--state-dir)?",
        ) from None


def _gather(lines: _Lines, given: Given, timeout_s: float) -> Given:
    deadline, answers = time.monotonic() + timeout_s, []
    try:
        while (line := lines.next(deadline - time.monotonic())) is not None:
            if isinstance(line, wire.Answered):
                answers.append(line.body)
            elif isinstance(line, wire.Ended):
                return replace(given, answers=tuple(answers), after=line.processes)
    except KeyboardInterrupt:
        return replace(given, answers=tuple(answers), is_interrupted=True)
    return replace(given, answers=tuple(answers))


class _Lines:
    """What the supervisor says."""

    def __init__(self, connected: socket.socket) -> None:
        self._connected = connected
        self._begun = b""

    def next(self, timeout_s: float) -> wire.Line | None:
        """The next line; None when none comes in time, or what comes is none."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._begun:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or len(self._begun) > wire.MAX_LINE_BYTES:
                return None
            self._connected.settimeout(left_s)
            try:
                received = self._connected.recv(CHUNK_BYTES)
            except OSError:
                return None
            if not received:
                return None
            self._begun += received
        line, _, self._begun = self._begun.partition(b"\n")
        try:
            return wire.read(line)
        except ValueError:
            return None
