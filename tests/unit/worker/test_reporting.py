"""The pipe to the supervisor: what must arrive waits, what may be dropped is, and lines never mix."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator

import pytest

from qctl.worker.reporting import Reporter


@pytest.fixture
def pipe() -> Iterator[tuple[int, Reporter]]:
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 64 << 10)
    yield read_end, Reporter(write_end)
    for fd in (read_end, write_end):
        os.close(fd)


def test_a_report_is_a_line_of_json(pipe: tuple[int, Reporter]) -> None:
    read_end, report = pipe
    report(event="link", state="connected")
    assert report.offer(event="reading", reading={"v": 1})
    lines = os.read(read_end, 1000).splitlines(keepends=True)
    assert [json.loads(line) for line in lines] == [
        {"event": "link", "state": "connected"},
        {"event": "reading", "reading": {"v": 1}},
    ]
    assert all(line.endswith(b"\n") for line in lines)


def test_while_nobody_reads_what_may_be_dropped_is_and_the_rest_waits_and_arrives_whole(
    pipe: tuple[int, Reporter],
) -> None:
    read_end, report = pipe
    # When the pipe fills up, then nothing that may be dropped waits for its reader, nor for one that writes
    offered = [report.offer(event="reading", pad="x" * 5_000) for _ in range(20)]
    assert offered[0]
    assert not offered[-1]
    writing = threading.Thread(target=lambda: report(event="answer", pad="y" * 200_000), daemon=True)
    writing.start()
    writing.join(0.2)
    assert writing.is_alive()
    assert not report.offer(event="reading")

    # Then what must arrive does when somebody reads
    found = b""
    while found.count(b"\n") < sum(offered) + 1:
        found += os.read(read_end, 1 << 20)
    writing.join(5)
    assert [json.loads(line)["event"] for line in found.splitlines()] == ["reading"] * sum(offered) + ["answer"]


def test_what_is_too_large_to_be_sure_of_is_not_offered(pipe: tuple[int, Reporter]) -> None:
    assert not pipe[1].offer(event="reading", pad="x" * 40_000)
