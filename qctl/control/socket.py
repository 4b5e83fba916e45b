"""The socket of a host's supervisor, STATE/HOST/control.sock: where it is, and the lines that go over it.

One line in, a control event as it travels on the broker. Then lines out: `given` once the event is kept and every
process has its order, the answer of each process as it comes, `end` when all have answered or ended; or one `error`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qctl.broker.message import decode_json, short, text
from qctl.control.host_answer import VERSION, ProcessLook, parse_looks
from qctl.errors import Exit

#: In STATE/HOST.
FILE = "control.sock"
#: Bytes of the line in, the event; with its end.
MAX_EVENT_LINE_BYTES = 64 << 10
#: Bytes of a line out: the answer of a process with thousands of consumers.
MAX_LINE_BYTES = 1 << 20
#: The system takes a longer path for no socket's.
MAX_PATH_BYTES = 107


@contextmanager
def address(directory: Path) -> Iterator[str]:
    """The socket in `directory`, as bind and connect take it: a path of any length by way of an open directory.

    Raises OSError.
    """
    path = str(directory / FILE)
    if len(os.fsencode(path)) <= MAX_PATH_BYTES:
        yield path
        return
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{opened}/{FILE}"
    finally:
        os.close(opened)


@dataclass(frozen=True, slots=True)
class Given:
    """The event is kept and ordered. processes: as they were then."""

    processes: tuple[ProcessLook, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer of one process. body: the same that would go over the broker."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """All processes that were alive have answered or ended. processes: as they are now."""

    processes: tuple[ProcessLook, ...]


@dataclass(frozen=True, slots=True)
class Refused:
    """The event is not given. exit_code: of the command that asked."""

    message: str
    hint: str
    exit_code: Exit


Line = Given | Answered | Ended | Refused


def write(line: Line) -> bytes:
    """A line as it goes out, with its end."""
    match line:
        case Given(processes):
            return _line(given=True, processes=_looks(processes))
        case Answered(body):
            return body + b"\n"
        case Ended(processes):
            return _line(end=True, processes=_looks(processes))
        case Refused(message, hint, exit_code):
            return _line(error=message, hint=hint, exit_code=int(exit_code))


def read(line: bytes) -> Line:
    """What came in one line. Raises ValueError for what is none."""
    fields = decode_json(line)
    if not isinstance(fields, dict) or fields.get("v") != VERSION:
        raise ValueError(f"not a line of version {VERSION}")
    try:
        if "error" in fields:
            return Refused(short(text(fields["error"])), short(text(fields["hint"])), Exit(fields["exit_code"]))
        if fields.get("given") is True:
            return Given(parse_looks(fields["processes"]))
        if fields.get("end") is True:
            return Ended(parse_looks(fields["processes"]))
    except (KeyError, TypeError) as error:
        raise ValueError("a line without what belongs in it") from error
    return Answered(line.rstrip(b"\n"))


def _looks(processes: Iterable[ProcessLook]) -> list[dict[str, Any]]:
    return [one.to_json() for one in processes]


def _line(**fields: object) -> bytes:
    return json.dumps({"v": VERSION, **fields}).encode() + b"\n"
