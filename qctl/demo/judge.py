"""The judge: what the API's own log says about each host and each task. Pure.

A window is half-open: calls exactly one window apart share none. Every call counts towards the most in any window,
refused ones too: an API that refuses what is over its limit would otherwise acquit everyone by its own refusals.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

GRANTED = 200
REFUSED = 429
#: The share of its limit that a host must use in its first window.
MIN_FIRST_USE = 0.99


@dataclass(frozen=True, slots=True)
class Upstream:
    """What the API lets one host do: at most `limit_units` calls in any window of `window_s`."""

    host: str
    limit_units: int
    window_s: float

    @property
    def window_ns(self) -> int:
        """The window in whole nanoseconds, the unit of the log."""
        return round(self.window_s * 1_000_000_000)


@dataclass(frozen=True, slots=True)
class Call:
    """One line of the log: `at_ns` is the API's monotonic clock at arrival, `task` the id the call was made for."""

    at_ns: int
    host: str
    method: str
    path: str
    task: str | None
    status: int


@dataclass(frozen=True, slots=True)
class HostJudgement:
    """One host: `windows_units` are the granted calls in each window, from its first granted one on."""

    host: str
    limit_units: int
    windows_units: tuple[int, ...]
    most_in_any_window: int
    refused: int
    tasks_done: int

    @property
    def first_window_units(self) -> int:
        """Granted calls in the window that its first one opened; 0 when there was none."""
        return self.windows_units[0] if self.windows_units else 0

    @property
    def first_window_use(self) -> float:
        """The share of its limit that it used in its first window, 0.0 to 1.0."""
        return self.first_window_units / self.limit_units


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise and whether it was kept, as a sentence with its numbers."""

    kept: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """All hosts, and the tasks: `lost` were enqueued and never answered 200, `twice` were answered 200 more than once.

    `unexpected` were answered 200 and never enqueued.
    """

    hosts: tuple[HostJudgement, ...]
    enqueued: int
    tasks_done: int
    lost: int
    twice: int
    unexpected: int

    @property
    def promises(self) -> tuple[Promise, ...]:
        """Every promise with its verdict."""
        least = min(self.hosts, key=lambda host: host.first_window_use)
        over = [host for host in self.hosts if host.most_in_any_window > host.limit_units]
        refused = sum(host.refused for host in self.hosts)
        over_limit = ", ".join(f"{host.host} {host.most_in_any_window} of {host.limit_units}" for host in over)
        return (
            Promise(
                least.first_window_use >= MIN_FIRST_USE,
                f"Every server used at least {least.first_window_use:.1%} of its limit in its first window.",
            ),
            Promise(
                not over,
                f"Most calls in any window were over the limit: {over_limit}."
                if over
                else "No server made more calls in any window than its limit.",
            ),
            Promise(refused == 0, f"Calls that the API refused with 429: {refused}."),
            Promise(self.lost == 0, f"Tasks lost, of {self.enqueued:,} enqueued: {self.lost}."),
            Promise(
                self.twice == 0 and self.unexpected == 0,
                f"Tasks done more than once: {self.twice}"
                + (f"; done, though nobody enqueued them: {self.unexpected}." if self.unexpected else "."),
            ),
        )

    @property
    def kept(self) -> bool:
        """Whether every promise was kept."""
        return all(promise.kept for promise in self.promises)


def read_calls(lines: Iterable[str]) -> Iterator[Call]:
    """The calls in lines of the log, in their order, without a last line still being written. Raises ValueError."""
    for line in lines:
        if not line.endswith("\n"):
            return
        raw = json.loads(line)
        yield Call(raw["at_ns"], raw["host"], raw["method"], raw["path"], raw["task"], raw["status"])


def most_in_any_window(instants_ns: Sequence[int], window_ns: int) -> int:
    """The largest number of instants in any half-open window of `window_ns`; the instants are in order."""
    most = oldest = 0
    for newest, instant_ns in enumerate(instants_ns):
        while instants_ns[oldest] <= instant_ns - window_ns:
            oldest += 1
        most = max(most, newest - oldest + 1)
    return most


def windows(instants_ns: Sequence[int], window_ns: int) -> tuple[int, ...]:
    """How many instants fall into each window since the first, up to the last with any; the instants are in order."""
    if not instants_ns:
        return ()
    counts = Counter((instant_ns - instants_ns[0]) // window_ns for instant_ns in instants_ns)
    return tuple(counts[number] for number in range(max(counts) + 1))


def judge_host(calls: Iterable[Call], upstream: Upstream) -> HostJudgement:
    """Judge one host by its own calls in `calls`; those of other hosts are passed over."""
    own = sorted((call for call in calls if call.host == upstream.host), key=lambda call: call.at_ns)
    granted = [call for call in own if call.status == GRANTED]
    return HostJudgement(
        host=upstream.host,
        limit_units=upstream.limit_units,
        windows_units=windows([call.at_ns for call in granted], upstream.window_ns),
        most_in_any_window=most_in_any_window([call.at_ns for call in own], upstream.window_ns),
        refused=sum(call.status == REFUSED for call in own),
        tasks_done=len({call.task for call in granted if call.task is not None}),
    )


def judge(calls: Collection[Call], upstreams: Sequence[Upstream], *, enqueued: Collection[str]) -> Judgement:
    """Judge all hosts, and the tasks by their ids: `enqueued` are the ids whose enqueue was confirmed."""
    done = Counter(call.task for call in calls if call.status == GRANTED and call.task is not None)
    expected = set(enqueued)
    return Judgement(
        hosts=tuple(judge_host(calls, upstream) for upstream in upstreams),
        enqueued=len(expected),
        tasks_done=len(done),
        lost=len(expected - done.keys()),
        twice=sum(times > 1 for times in done.values()),
        unexpected=len(done.keys() - expected),
    )
