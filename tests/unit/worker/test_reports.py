"""What processes report over their pipe: cut into lines, bounded, and read whole before anybody is told of it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qctl.control.host_answer import ProcessState
from qctl.worker.child import MAX_BACKLOG_BYTES, Child, Listeners
from qctl.worker.reports import MAX_REPORT_BYTES, Lines

LINE = st.binary(max_size=12).map(lambda line: line.replace(b"\n", b""))


@given(st.lists(LINE, max_size=8), st.lists(st.integers(0, 100), max_size=6))
def test_however_a_stream_is_cut_then_the_lines_are_the_same_without_those_too_long(
    lines: list[bytes], cuts: list[int]
) -> None:
    # Given a stream that arrives in any pieces
    stream = b"".join(line + b"\n" for line in lines)
    ends = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    reader = Lines(8)

    # When it is read
    found = [line for at, end in pairwise(ends) for line in reader.feed(stream[at:end])]

    # Then what fits is there, in order, and what does not is counted
    assert found == [line for line in lines if len(line) <= 8]
    assert reader.left_out == sum(len(line) > 8 for line in lines)


class Pipe:
    """A process as its supervisor has it, and the end of the pipe that it writes to."""

    def __init__(self) -> None:
        read_end, self.write_end = os.pipe()
        self.heard: list[Any] = []
        self.process = SimpleNamespace(pid=17, returncode=None)
        listeners = Listeners(
            lambda: self.heard.append("ready"),
            lambda _child, report: self.heard.append(report["message"]),
            lambda _child, answer: self.heard.append(answer),
        )
        self.child = Child(0, cast("asyncio.subprocess.Process", self.process), listeners, read_end)

    def write(self, *reports: object) -> None:
        for report in reports:
            os.write(self.write_end, json.dumps(report).encode() + b"\n")

    def close(self) -> None:
        self.child._reports.close()
        os.close(self.write_end)


def piped(test: Callable[[Pipe], object]) -> None:
    """Run a test with a pipe inside a loop, without letting the loop turn."""

    async def main() -> None:
        pipe = Pipe()
        try:
            test(pipe)
        finally:
            pipe.close()

    asyncio.run(main())


def test_given_a_report_that_was_just_written_then_who_asks_is_told_of_it(caplog: pytest.LogCaptureFixture) -> None:
    def test(pipe: Pipe) -> None:
        assert pipe.child.look().state is ProcessState.STARTING

        # When a process says that it may consume, in front of a question: the loop had no turn in between
        pipe.write({"event": "ready"}, {"event": "link", "state": "connected"})

        # Then the answer is the new one; and so is the next
        assert pipe.child.look().state is ProcessState.CONNECTED
        assert pipe.heard == ["ready"]
        pipe.write({"event": "link", "user": "w3"})
        assert (pipe.child.look().state, pipe.child.look().user) == (ProcessState.CONNECTED, "w3")
        pipe.write({"event": "link", "state": "disconnected"})
        assert pipe.child.look().state is ProcessState.DISCONNECTED
        # and its end is only told when it was seen
        pipe.process.returncode = -9
        assert pipe.child.look().state is ProcessState.ENDED

    piped(test)
    assert caplog.text == ""


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b'{"event": 1}',
        b'{"event": "link", "state": "asleep"}',
        b'{"event": "link"}',
        b'{"event": "reading", "reading": {"v": 1}}',
        b'{"event": "surprise"}',
        b"\xff",
        b"x" * (MAX_REPORT_BYTES + 1),
    ],
)
def test_given_a_report_that_makes_no_sense_then_the_worst_is_assumed_and_the_next_is_heard(
    line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    def test(pipe: Pipe) -> None:
        # When it comes, and another behind it
        for at in range(0, len(line), 1 << 15):
            os.write(pipe.write_end, line[at : at + (1 << 15)])
            pipe.child._reports.catch_up()
        os.write(pipe.write_end, b"\n")

        # Then the process may consume, for all that is known
        assert pipe.child.look().state is ProcessState.CONNECTED
        os.write(pipe.write_end, b"}\n")  # one more
        pipe.write({"event": "link", "state": "disconnected"}, {"event": "answer", "answer": {"id": "a"}})
        assert pipe.child.look().state is ProcessState.DISCONNECTED
        assert pipe.heard == [{"id": "a"}]

    piped(test)
    assert caplog.text.count("a report of process 0 pid=17 cannot be used") == 1


def test_given_a_process_that_never_stops_writing_then_it_is_read_up_to_the_question_and_no_further() -> None:
    def test(pipe: Pipe) -> None:
        # Given one that writes a report for each that is read
        def write_again(*_: object) -> None:
            pipe.heard.append("again")
            if len(pipe.heard) < 1_000:
                pipe.write({"event": "answer", "answer": {}})

        pipe.child._listeners = Listeners(lambda: None, write_again, write_again)
        pipe.write({"event": "answer", "answer": {}})

        # When it is asked for
        pipe.child.look()

        # Then what it wrote before counts, and not what it writes meanwhile
        assert 1 <= len(pipe.heard) <= 2

    piped(test)


def test_given_a_pipe_that_a_process_closed_then_it_is_asked_without_it() -> None:
    def test(pipe: Pipe) -> None:
        pipe.write({"event": "link", "state": "connected"})
        os.close(pipe.write_end)
        pipe.child._reports.catch_up()
        pipe.child._reports._read()

        assert pipe.child.look().state is ProcessState.CONNECTED
        pipe.write_end = os.open(os.devnull, os.O_WRONLY)

    piped(test)


def test_given_a_process_that_reads_no_orders_then_it_is_deaf_once_many_wait() -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_exec("sleep", "60", stdin=asyncio.subprocess.PIPE)
        read_end, write_end = os.pipe()
        child = Child(0, process, Listeners(lambda: None, lambda *_: None, lambda *_: None), read_end)
        try:
            child.order(b"x" * (1 << 20))
            assert not child.is_deaf
            child.order(b"x" * MAX_BACKLOG_BYTES)
            assert child.is_deaf
        finally:
            os.close(write_end)
            process.kill()
            assert await child.end() == -9
        # and one that has ended is nothing to wait for
        assert not child.is_deaf
        assert child.look().state is ProcessState.ENDED
        assert child.ready.result() is False

    asyncio.run(main())
