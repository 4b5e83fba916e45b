"""Append-only histories and the checker that counts them. Nothing in here knows qctl.

A history is a file of JSON lines, `{"at_ns", "event", "task", "pid", "host"}`, written by handlers, by whoever enqueues
and by the test, a whole line a write, so that any number of processes may write one file. `at_ns` is the machine's
monotonic clock: instants of different processes, and of the API's log, compare. `host` may be left out.

The events: `attempted` (about to be enqueued), `confirmed` (the broker, or the command, said so), `started` (the
handler runs), `called` (the API answered), `failed` (the handler is about to raise), `done` (it is about to return),
`dead` (found in a dead-letter queue), `left` (found in another queue at the end). `paused` (that a pause holds has just
been said) and `lifting` (it is about to be lifted, or ends by itself) have the consumer's name as their task; `pid` is
the only process that it was said of, or 0 for all of the host. Others mean something to the row that writes them.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

#: Instead of a process's id: each that the host has, now and later.
ALL_PROCESSES = 0


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a history."""

    at_ns: int
    event: str
    task: str
    pid: int
    host: str = ""


@dataclass(frozen=True, slots=True)
class Counts:
    """The seven counts, of tasks; as Jepsen's set and queue checkers define them, where reading is being executed.

    attempted     tasks somebody tried to enqueue
    acknowledged  of those, the ones whose enqueue was confirmed
    ok            attempted, and executed to the end or found in a dead-letter queue
    lost          acknowledged, and neither executed to the end, nor in a dead-letter queue, nor still in any queue
    duplicated    starts beyond the runs each task should have had, summed up
    unexpected    tasks started, dead or left over that nobody attempted to enqueue
    recovered     ok, though their enqueue was never confirmed
    """

    attempted: int
    acknowledged: int
    ok: int
    lost: int
    duplicated: int
    unexpected: int
    recovered: int


class History:
    """One file; `events` reads what has come since the last look."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._events: list[Event] = []
        self._read_bytes = 0

    def note(self, event: str, tasks: Iterable[str]) -> None:
        """Append an event for each task."""
        now_ns, pid = time.monotonic_ns(), os.getpid()
        self.write(Event(now_ns, event, task, pid) for task in tasks)

    def write(self, events: Iterable[Event]) -> None:
        """Append events that happened at instants, or in processes, of their own."""
        lines = "".join(json.dumps(asdict(one)) + "\n" for one in events)
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            written = os.write(fd, lines.encode())
        finally:
            os.close(fd)
        assert written == len(lines), "a history that misses a line acquits whoever broke the promise"

    def events(self) -> Sequence[Event]:
        """Every event so far, in the order of the file."""
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._read_bytes)
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._read_bytes += len(whole)
            for line in whole.splitlines():
                raw: dict[str, Any] = json.loads(line)
                self._events.append(Event(**raw))
        return self._events

    def tasks(self, event: str) -> set[str]:
        """The tasks that have had this event."""
        return {one.task for one in self.events() if one.event == event}


def check(events: Iterable[Event], *, runs: Mapping[str, int] | None = None) -> Counts:
    """Count a history. runs: how often a task should have been started, by how its name begins; else once."""
    seen: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for one in events:
        seen[one.event][one.task] += 1
    attempted, acknowledged = set(seen["attempted"]), set(seen["confirmed"])
    ended = set(seen["done"]) | set(seen["dead"])
    known = set(seen["started"]) | ended | set(seen["left"])
    return Counts(
        attempted=len(attempted),
        acknowledged=len(acknowledged),
        ok=len(ended & attempted),
        lost=len(acknowledged - ended - set(seen["left"])),
        duplicated=sum(max(0, count - _runs(task, runs or {})) for task, count in seen["started"].items()),
        unexpected=len(known - attempted),
        recovered=len((ended & attempted) - acknowledged),
    )


def _runs(task: str, runs: Mapping[str, int]) -> int:
    return next((count for prefix, count in runs.items() if task.startswith(prefix)), 1)


def starts_while_paused(events: Iterable[Event]) -> list[Event]:
    """Starts of a consumer's tasks where a pause of it had been acknowledged and nobody had begun to lift it.

    A task's name begins with its consumer's, `timeline-12`. A process that was not there yet when all of its host were
    said to be paused is meant too. What is lifted is what was written before, also of later instants.
    """
    paused: list[_Paused] = []
    starts = []
    for one in events:
        if one.event == "paused":
            paused.append(_Paused(one.host, one.task, one.pid, one.at_ns))
        elif one.event == "lifting":
            for each in paused:
                if (each.host, each.consumer) == (one.host, one.task) and each.to_ns is None:
                    each.to_ns = one.at_ns
        elif one.event == "started":
            starts.append(one)
    return [one for one in starts if any(each.forbids(one) for each in paused)]


@dataclass(slots=True)
class _Paused:
    """What was said of one process of a host, or of all, from one instant to another."""

    host: str
    consumer: str
    pid: int
    from_ns: int
    to_ns: int | None = None

    def forbids(self, start: Event) -> bool:
        """Whether a start breaks it."""
        return (
            (start.host, start.task.rpartition("-")[0]) == (self.host, self.consumer)
            and self.pid in (ALL_PROCESSES, start.pid)
            and self.from_ns < start.at_ns
            and (self.to_ns is None or start.at_ns < self.to_ns)
        )


def longest_out_s(events: Iterable[Event], now_ns: int) -> float:
    """Seconds from a start to its end, or to the next start of the same task, or till now: the longest there was.

    A delivery whose worker died is out until the broker gives it to somebody else.
    """
    since: dict[str, int] = {}
    longest_ns = 0
    for one in events:
        if one.event in ("started", "failed", "done", "dead", "left") and one.task in since:
            longest_ns = max(longest_ns, one.at_ns - since.pop(one.task))
        if one.event == "started":
            since[one.task] = one.at_ns
    return max([longest_ns, *(now_ns - at_ns for at_ns in since.values())]) / 1e9


def rate(stamps_ns: Sequence[int], from_ns: int, to_ns: int) -> float:
    """Events a second in a stretch of time."""
    return sum(from_ns <= at_ns < to_ns for at_ns in stamps_ns) / ((to_ns - from_ns) / 1e9)


def recovered_ns(stamps_ns: Sequence[int], *, after_ns: int, rate_before: float, over_s: float) -> int | None:
    """The first instant after `after_ns` from which `over_s` seconds have 95 % of the former rate; None: not yet."""
    needed = max(1, round(0.95 * rate_before * over_s))
    later = sorted(at_ns for at_ns in stamps_ns if at_ns >= after_ns)
    for first, last in zip(later, later[needed - 1 :], strict=False):
        if last - first <= over_s * 1e9:
            return first
    return None
