"""The worker's log: a line a record, whatever is in it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qctl.worker.logs import MAX_LINE_CHARS, MAX_TASK_LINES_PER_S, JsonFormat, Sparse, TextFormat, current_task

NASTY = st.text(st.characters() | st.sampled_from("\n\r\x1b\x9b\x85\u2028\u202e\ud800\x00"), max_size=50)


def record(message: object, *args: object, at_s: float = 1_795_356_007.12, error: bool = False) -> logging.LogRecord:
    found = logging.LogRecord("shop", logging.WARNING, __file__, 1, message, args, sys.exc_info() if error else None)
    found.created = at_s
    return found


def in_task(formatter: logging.Formatter, task: str, message: str) -> str:
    token = current_task.set(task)
    try:
        return formatter.format(record(message))
    finally:
        current_task.reset(token)


def test_given_a_record_of_a_task_then_the_line_names_time_level_origin_and_task() -> None:
    line = in_task(TextFormat("web-1/0"), "web-1/calls 17", "sold out")

    assert line == "2026-11-22T14:00:07.120Z WARNING web-1/0 [web-1/calls 17] sold out"


def test_given_json_then_the_same_is_one_object() -> None:
    line = in_task(JsonFormat("web-1/0"), "web-1/calls 17", "sold out")

    assert json.loads(line) == {
        "at": "2026-11-22T14:00:07.120Z",
        "level": "warning",
        "origin": "web-1/0",
        "logger": "shop",
        "message": "sold out",
        "task": "web-1/calls 17",
    }


@given(NASTY, NASTY)
def test_no_text_or_task_id_breaks_the_line_or_reaches_the_terminal(task: str, message: str) -> None:
    for formatter in (TextFormat("web-1/0"), JsonFormat("web-1/0")):
        line = in_task(formatter, task, message)

        assert len(line.splitlines()) == 1
        assert line.encode()
        assert not any(ord(c) < 0x20 or 0x7F <= ord(c) <= 0x9F for c in line)


@given(NASTY)
def test_json_says_exactly_what_was_logged(message: str) -> None:
    assert json.loads(in_task(JsonFormat("web-1/0"), "", message))["message"] == message


@pytest.mark.parametrize("formatter", [TextFormat("web-1/0"), JsonFormat("web-1/0")])
def test_given_a_huge_message_then_it_is_cut(formatter: logging.Formatter) -> None:
    assert len(formatter.format(record("x" * 10_000_000))) < 2 * MAX_LINE_CHARS


@pytest.mark.parametrize("formatter", [TextFormat("web-1/0"), JsonFormat("web-1/0")])
def test_given_arguments_that_do_not_fit_then_the_message_is_logged_all_the_same(formatter: logging.Formatter) -> None:
    assert "sold %d of %d" in formatter.format(record("sold %d of %d", "x"))


def test_given_an_error_then_its_traceback_follows_indented_or_inside_the_object() -> None:
    try:
        raise ValueError("sold\nout")
    except ValueError:
        failed = record("it failed", error=True)

    first, *rest = TextFormat("web-1/0").format(failed).splitlines()
    assert first.endswith("it failed")
    assert rest
    assert all(row.startswith("    ") for row in rest)
    assert "sold\nout" in json.loads(JsonFormat("web-1/0").format(failed))["traceback"]


def test_given_too_many_lines_in_a_second_then_the_rest_are_counted_and_told_with_the_next() -> None:
    sparse = Sparse(3)

    kept = [sparse.filter(record("busy", at_s=100.0 + n / 100)) for n in range(10)]
    later = record("busy", at_s=101.0)

    assert kept == [True] * 3 + [False] * 7
    assert sparse.filter(later)
    assert later.getMessage() == "busy (and 7 lines held back)"


def test_given_an_outage_then_lines_about_single_tasks_do_not_fill_the_disk() -> None:
    # given a worker process, when it says a thousand times how a task ended
    program = """
from qctl.worker import execute, judge, logs
logs.configure("web-1/0", log_format="text", verbosity=0)
for _ in range(500):
    execute.log.warning("a task")
    judge.log.warning("a task")
"""
    done = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, check=True)

    # then a second has so many lines at most; the loop may see the turn of one
    assert MAX_TASK_LINES_PER_S <= done.stderr.count(b"a task") <= 2 * MAX_TASK_LINES_PER_S
