"""A recorded session as a source: the same screens, as far apart as they were, up to the first line that is damaged."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from qctl.errors import QctlError, UsageError
from qctl.ops.status import Status
from qctl.tui.recording import HEAD, KINDS, NAME, NOTES, PAGE, VERSION, Kind, in_words
from qctl.tui.snapshot import Focus, Health, Snapshot, Source, SourceState

#: One row, or the keys of all rows: five thousand names of the greatest length.
MAX_LINE_BYTES = 16 << 20
#: Rows of one kind that a file may name.
MAX_ROWS = 50_000
#: Two snapshots further apart than this are shown this far apart.
MAX_PAUSE_S = 3_600.0
STOP_S = 2.0
#: Nothing that is recorded is as much: tasks, units, bytes, seconds.
MAX_NUMBER = 1e18


@dataclass(frozen=True, slots=True)
class Head:
    """What a recording says of itself. began_s: when; broker: its address, without its user."""

    began_s: float
    environment: str
    broker: str


class ReplaySource(Source):
    """A recording as a source: its snapshots, as far apart as they were.

    Raises UsageError when the file is no recording, or has no whole snapshot.
    """

    error: QctlError | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        with _opened(path) as file:
            self.head = _head(path, file)
        if next(snapshots(path), None) is None:
            raise _empty(path)
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, show: Callable[[Snapshot], None]) -> None:
        self._thread = threading.Thread(target=self._play, args=(show,), name="qctl-replay", daemon=True)
        self._thread.start()

    def look_at(self, focus: Focus) -> None:
        """A recording holds what was looked at then."""

    def refresh(self) -> None:
        """There is nobody to ask."""

    def stop(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join(STOP_S)

    def last(self) -> Snapshot:
        """The last whole snapshot, which says what is wrong behind it. Raises UsageError when it is there no more."""
        found = list(deque(self._with_end(), maxlen=1))
        if not found:
            raise _empty(self.path)
        return found[0]

    def _play(self, show: Callable[[Snapshot], None]) -> None:
        before_s: float | None = None
        due_s = time.monotonic()
        for shown in self._with_end():
            if before_s is not None:
                due_s += min(max(0.0, shown.at_s - before_s), MAX_PAUSE_S)
            if self._over.wait(max(0.0, due_s - time.monotonic())):
                return
            before_s = shown.at_s
            show(shown)

    def _with_end(self) -> Iterator[Snapshot]:
        """All snapshots, and the last once more, which says that nothing comes after it, and why."""
        last, words = None, "it is over; this is its end"
        try:
            for last in snapshots(self.path):
                yield _with_state(last, Health.OK, "played, and not live")
        except QctlError as error:
            words = f"{error.message}; what came before was shown"
        if last is not None:
            yield _with_state(last, Health.OFF, words)


def _with_state(shown: Snapshot, health: Health, words: str) -> Snapshot:
    return replace(shown, sources=(*shown.sources, SourceState(NAME, health, shown.at_s, words)))


def snapshots(path: Path) -> Iterator[Snapshot]:
    """The whole snapshots of a recording. Raises UsageError when the file is none, cannot be read, or is damaged.

    An end in the middle of a line is no damage: it was being written.
    """
    with _opened(path) as file:
        _head(path, file)
        rows = {kind.name: _Rows(kind) for kind in KINDS}
        number = 1
        try:
            while (line := file.readline(MAX_LINE_BYTES)).endswith(b"\n"):
                number += 1
                entry = _decode(line)
                if entry["is"] == "shown":
                    yield _snapshot(entry, rows)
                elif entry["is"] in rows:
                    rows[entry["is"]].take(entry)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UsageError(f"{path} is damaged at line {number}", hint="Make it anew.") from None
        except OSError as error:
            raise UsageError(f"{path} cannot be read to its end: {in_words(error)}") from None


class _Rows:
    """The rows of one kind, as the lines so far make them."""

    def __init__(self, kind: Kind[Any]) -> None:
        self._kind = kind
        self._values: dict[str, dict[str, Any]] = {}
        self._made: dict[str, Any] = {}
        self._keys: list[str] = []

    def take(self, entry: Mapping[str, Any]) -> None:
        """One line. Raises ValueError, KeyError, TypeError for one that cannot be."""
        if "keys" in entry:
            keys = [str(key) for key in entry["keys"]]
            self._values = {key: self._values[key] for key in keys}
            self._made = {key: self._made[key] for key in keys}
            self._keys = keys
        else:
            key = str(entry["key"])
            self._values[key] = self._values.get(key, {}) | entry["row"]
            self._made[key] = self._kind.adapter.validate_python(self._values[key], strict=False)
        if len(self._values) > MAX_ROWS:
            raise ValueError("more rows than any console shows")

    def rows(self) -> tuple[Any, ...]:
        return tuple(self._made[key] for key in self._keys)


def _snapshot(entry: Mapping[str, Any], rows: Mapping[str, _Rows]) -> Snapshot:
    made = {name: each.rows() for name, each in rows.items()}
    status = Status(
        at_s=_finite(entry["status_at_s"]),
        blocked=bool(entry["blocked"]),
        hosts=made["hosts"],
        consumers=made["consumers"],
        quotas=made["quotas"],
        queues=made["queues"],
        notes=NOTES.validate_python(entry["notes"]),
    )
    return Snapshot(
        at_s=_finite(entry["at_s"]),
        status=status,
        tags=made["tags"],
        page=PAGE.validate_python(entry["page"]),
        dead=made["dead"],
        events=made["events"],
        sources=made["sources"],
    )


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {in_words(error)}", hint="Name a file of --record.") from None


def _head(path: Path, file: BinaryIO) -> Head:
    """What the file says of itself. Raises UsageError when it is no recording of ours."""
    hint = "A recording is made by: qctl tui --record FILE."
    try:
        entry = _decode(file.readline(MAX_LINE_BYTES))
        if entry["is"] != HEAD:
            raise ValueError("another file")
        version, began_s = entry["v"], _finite(entry["began_s"])
        head = Head(began_s, str(entry.get("environment", "")), str(entry.get("broker", "")))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {in_words(error)}", hint=hint) from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(f"{path} is no recording of the console", hint=hint) from None
    if version != VERSION:
        raise UsageError(
            f"{path} is a recording of another version ({str(version)[:20]}) than this qctl plays ({VERSION})",
            hint="Play it with the qctl that recorded it.",
        )
    return head


def _empty(path: Path) -> QctlError:
    return UsageError(f"{path} has no whole snapshot", hint="A recording needs about a second to have one.")


def _decode(line: bytes) -> Any:
    """What stands in a line, its numbers such as can be reckoned with. Raises ValueError."""
    return json.loads(line, parse_constant=_number, parse_float=_number, parse_int=lambda text: int(_bounded(text)))


def _number(text: str) -> float:
    return float(_bounded(text))


def _bounded(text: str) -> str:
    if not abs(float(text)) <= MAX_NUMBER:
        raise ValueError("a number beyond all bounds")
    return text


def _finite(value: Any) -> float:
    number = float(value)
    if not abs(number) < 1e12:
        raise ValueError("no instant")
    return number
