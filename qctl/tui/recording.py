"""A session of the console in a file: what was shown, as it was shown, to be seen again elsewhere.

JSON lines. The first says what the file is. A line `{"is": ROWS, "key": KEY, "row": {...}}` holds the fields of a row
that changed (all but the defaults, of a row that is new), `{"is": ROWS, "keys": [...]}` the rows that there are now, in
order, and `{"is": "shown", ...}` completes one snapshot: a file that ends anywhere plays up to its last whole one.
There are no secrets in it: a snapshot has none, and neither the inventory nor a message's body is written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

from pydantic import TypeAdapter

from qctl.errors import QctlError, UsageError
from qctl.ops.events import Happened
from qctl.ops.status import ConsumerRow, HostRow, QueueRow, QuotaRow
from qctl.tui.snapshot import Focus, Health, Page, Snapshot, Source, SourceState, TagRow

#: More than a week of a small fleet, half a shift of the largest; then recording ends and says so.
MAX_RECORDING_BYTES = 1 << 30
#: What a large fleet changes in a second is more than that; it is written less often then, and at least so often.
MAX_BYTES_PER_S = 64 << 10
LONGEST_GAP_S = 30.0
VERSION = 1
HEAD = "qctl recording"
NAME = "recording"
#: ASCII alone: half a surrogate in a name is written like any other character.
_encode = json.JSONEncoder(separators=(",", ":")).encode

RowT = TypeVar("RowT")


@dataclass(frozen=True, slots=True)
class Kind(Generic[RowT]):
    """A kind of rows: where a snapshot has them, and what tells one from another."""

    name: str
    rows: Callable[[Snapshot], tuple[RowT, ...]]
    key: Callable[[RowT], str]
    adapter: TypeAdapter[RowT]
    fields: tuple[str, ...]


def _kind(row: type[RowT], name: str, rows: Callable[[Snapshot], Any], key: Callable[[Any], str]) -> Kind[RowT]:
    names = tuple(field.name for field in fields(row))  # type: ignore[arg-type]
    return Kind(name, rows, key, TypeAdapter(row), names)


#: All rows of a snapshot.
KINDS: tuple[Kind[Any], ...] = (
    _kind(HostRow, "hosts", lambda shown: shown.status.hosts, lambda row: row.host),
    _kind(ConsumerRow, "consumers", lambda shown: shown.status.consumers, lambda row: row.address),
    _kind(QuotaRow, "quotas", lambda shown: shown.status.quotas, lambda row: row.address),
    _kind(QueueRow, "queues", lambda shown: shown.status.queues, lambda row: row.queue),
    _kind(TagRow, "tags", lambda shown: shown.tags, lambda row: row.tag),
    _kind(QueueRow, "dead", lambda shown: shown.dead, lambda row: row.queue),
    _kind(Happened, "events", lambda shown: shown.events, lambda row: str(row.offset)),
    _kind(SourceState, "sources", lambda shown: shown.sources, lambda row: row.name),
)
PAGE = TypeAdapter(Page)
NOTES = TypeAdapter(tuple[str, ...])


def new_file(path: Path) -> BinaryIO:
    """A file to record into. Raises UsageError when it cannot be made, or is there already."""
    try:
        # Names of hosts and of people are nobody else's business.
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise UsageError(f"{path} is there already", hint="Name another file, or remove it first.") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be written: {in_words(error)}", hint="Name another file.") from None
    return os.fdopen(number, "wb")


class Recorder:
    """Writes what changes from snapshot to snapshot. A write that fails ends the recording alone: `state` says so."""

    def __init__(self, file: BinaryIO, *, environment: str, broker: str, at_s: float) -> None:
        self._file: BinaryIO | None = file
        self._before: dict[str, dict[str, Any]] = {kind.name: {} for kind in KINDS}
        self._keys: dict[str, list[str]] = {kind.name: [] for kind in KINDS}
        self._bytes = 0
        self._at_s = at_s
        self._next_s = at_s
        self._words = ""
        head = {"is": HEAD, "v": VERSION, "began_s": at_s, "environment": environment, "broker": broker}
        self._guarded(lambda: self._line(head))

    @property
    def state(self) -> SourceState:
        """How the recording is."""
        return SourceState(NAME, Health.FAILED if self._words else Health.OK, self._at_s, self._words)

    def write(self, shown: Snapshot) -> None:
        """Add what is different from what was written before, unless that was much and is not long ago."""
        if self._file is None or self._at_s < shown.at_s < self._next_s:
            return
        if self._bytes >= MAX_RECORDING_BYTES:
            self._end(f"it has reached {MAX_RECORDING_BYTES >> 20} MiB and ended; record on into another file")
            return
        self._guarded(lambda: self._write(shown))

    def close(self) -> None:
        """The file is whole on the disk, or `state` says why not."""
        self._guarded(lambda: None)
        self._end("")

    def _write(self, shown: Snapshot) -> None:
        before = self._bytes
        for kind in KINDS:
            self._rows(kind, kind.rows(shown))
        status = shown.status
        self._line(
            {
                "is": "shown",
                "at_s": shown.at_s,
                "status_at_s": status.at_s,
                "blocked": status.blocked,
                "notes": list(status.notes),
                "page": PAGE.dump_python(shown.page),
            }
        )
        self._at_s = shown.at_s
        self._next_s = shown.at_s + min((self._bytes - before) / MAX_BYTES_PER_S, LONGEST_GAP_S)

    def _rows(self, kind: Kind[RowT], rows: tuple[RowT, ...]) -> None:
        before: dict[str, RowT] = self._before[kind.name]
        now: dict[str, RowT] = {}
        for row in rows:
            key = kind.key(row)
            now[key] = row
            old = before.get(key)
            if old is row:
                continue
            if old is None:
                changed = kind.adapter.dump_python(row, mode="json", exclude_defaults=True)
            else:
                names = {name for name in kind.fields if getattr(old, name) != getattr(row, name)}
                if not names:
                    continue
                changed = kind.adapter.dump_python(row, mode="json", include=names)
            self._line({"is": kind.name, "key": key, "row": changed})
        keys = list(now)
        if keys != self._keys[kind.name]:
            self._line({"is": kind.name, "keys": keys})
            self._keys[kind.name] = keys
        self._before[kind.name] = now

    def _line(self, what: Mapping[str, object]) -> None:
        assert self._file is not None
        # Line by line: what encodes it lets no other thread run meanwhile, and the screen is drawn by one.
        self._bytes += self._file.write(_encode(what).encode() + b"\n")

    def _guarded(self, write: Callable[[], None]) -> None:
        """Write, and leave nothing behind in memory: what was shown is on disk if this process is killed now."""
        if self._file is None:
            return
        try:
            write()
            self._file.flush()
        except (OSError, ValueError) as error:
            self._end(f"it ended, since its file cannot be written: {in_words(error)}")

    def _end(self, words: str) -> None:
        self._words = self._words or words
        self._before = {kind.name: {} for kind in KINDS}
        if self._file is not None:
            ours, self._file = self._file, None
            try:
                ours.close()
            except OSError as error:
                self._words = self._words or f"it ended, since its file cannot be written: {in_words(error)}"


class Recording(Source):
    """A source whose snapshots are recorded on their way to the screen."""

    def __init__(self, source: Source, recorder: Recorder) -> None:
        self._source = source
        self._recorder = recorder
        self.error: QctlError | None = None

    def start(self, show: Callable[[Snapshot], None]) -> None:
        def record(shown: Snapshot) -> None:
            self._recorder.write(shown)
            self.error = self._source.error
            show(replace(shown, sources=(*shown.sources, self._recorder.state)))

        self._source.start(record)

    def look_at(self, focus: Focus) -> None:
        self._source.look_at(focus)

    def refresh(self) -> None:
        self._source.refresh()

    def stop(self) -> None:
        self._source.stop()
        self._recorder.close()


def in_words(error: Exception) -> str:
    """What the system says of a file."""
    return (getattr(error, "strerror", None) or str(error)).lower()
