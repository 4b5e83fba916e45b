"""The checker of the fault matrix: who judges the workers is itself judged here."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.faults.history import (
    ALL_PROCESSES,
    Counts,
    Event,
    History,
    check,
    longest_out_s,
    rate,
    recovered_ns,
    starts_while_paused,
)


def events(*lines: str) -> list[Event]:
    """`EVENT TASK` a line, a second apart."""
    return [Event((index + 1) * 10**9, *line.split(), 1) for index, line in enumerate(lines)]


def test_given_every_kind_of_task_then_each_is_counted_where_it_belongs() -> None:
    # Given a task that went well, one that died, one still in a queue, one that is nowhere, one that nobody confirmed
    # but that was done, one that nobody confirmed and that is nowhere, one that was done twice, one that nobody sent
    found = check(
        events(
            *(f"attempted {name}" for name in ("well", "died", "waits", "nowhere", "unsaid", "gone", "twice")),
            *(f"confirmed {name}" for name in ("well", "died", "waits", "nowhere", "twice")),
            *(f"started {name}" for name in ("well", "died", "unsaid", "twice", "twice", "stray")),
            *(f"done {name}" for name in ("well", "unsaid", "twice", "stray")),
            "dead died",
            "left waits",
        )
    )

    # Then
    assert found == Counts(attempted=7, acknowledged=5, ok=4, lost=1, duplicated=1, unexpected=1, recovered=1)


def test_given_a_task_that_started_and_never_ended_then_it_is_lost() -> None:
    assert check(events("attempted a", "confirmed a", "started a")).lost == 1


def test_given_tasks_that_should_run_often_then_only_what_goes_beyond_is_duplicated() -> None:
    starts = ["started again-1"] * 3 + ["started again-2"] * 2
    assert check(events(*starts), runs={"again": 2}).duplicated == 1


def test_given_starts_without_ends_then_the_longest_time_out_goes_on_till_now() -> None:
    found = events("started a", "done a", "started b", "started b")
    assert longest_out_s(found, now_ns=4 * 10**9) == 1.0
    assert longest_out_s(found, now_ns=10 * 10**9) == 6.0


@pytest.mark.parametrize(
    ("pid", "host", "task", "at_ns", "guilty"),
    [
        (7, "web-1", "plain-1", 9, False),  # before it was acknowledged
        (7, "web-1", "plain-1", 11, True),
        (8, "web-1", "plain-1", 11, True),  # a process that came later
        (7, "web-2", "plain-1", 11, False),
        (7, "web-1", "plainer-1", 11, False),
        (7, "web-1", "plain-1", 21, False),  # being lifted
        (7, "web-1", "calls-1", 11, True),  # said of this process
        (8, "web-1", "calls-1", 11, False),
    ],
)
def test_given_a_pause_that_was_acknowledged_then_a_start_before_its_lifting_is_found(
    pid: int, host: str, task: str, at_ns: int, guilty: bool
) -> None:
    # Given a pause of web-1/plain, lifted later, one that only process 7 acknowledged, and one that was lifted before
    # the instant that it was said of
    start = Event(at_ns, "started", task, pid, host)
    history = [
        start,
        Event(10, "paused", "plain", ALL_PROCESSES, "web-1"),
        Event(20, "lifting", "plain", 99, "web-1"),
        Event(10, "paused", "calls", 7, "web-1"),
        Event(10, "paused", "plain", ALL_PROCESSES, "web-2"),
        Event(5, "lifting", "plain", 99, "web-2"),
    ]

    # When and then
    assert starts_while_paused(history) == [start] * guilty


def test_given_a_pause_in_the_work_then_recovery_is_dated_to_the_first_second_with_the_former_rate() -> None:
    # Given ten a second, three seconds of nothing but one, and ten a second again
    stamps = [*range(0, 1000, 100), 2000, *range(4000, 6000, 100)]
    stamps_ns = [ms * 10**6 for ms in stamps]

    # When and then
    assert rate(stamps_ns, 0, 10**9) == 10
    assert recovered_ns(stamps_ns, after_ns=10**9, rate_before=10, over_s=1.0) == 4 * 10**9
    assert recovered_ns(stamps_ns[:12], after_ns=10**9, rate_before=10, over_s=1.0) is None


def test_given_a_line_that_is_being_written_then_it_is_read_once_it_is_whole(tmp_path: Path) -> None:
    # Given
    history = History(tmp_path / "history")
    history.note("attempted", ["a", "b"])
    with history.path.open("ab") as file:
        file.write(b'{"at_ns": 1, "event": "started", ')
        file.flush()

        # When and then
        assert [one.task for one in history.events()] == ["a", "b"]
        file.write(b'"task": "a", "pid": 2}\n')
    assert history.events()[-1] == Event(1, "started", "a", 2)
    assert history.tasks("attempted") == {"a", "b"}
    assert history.events()[0].at_ns <= time.monotonic_ns()
