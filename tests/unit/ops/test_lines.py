"""Lines of a stream: every one a task, in order, untouched, numbered as an editor numbers them."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qctl.errors import QctlError
from qctl.ops import lines
from qctl.ops.lines import BadLine, Line, read

MAX_BYTES = 1000


async def _collect(stream: BinaryIO, skip: int, max_bytes: int) -> tuple[list[Line], BadLine | None]:
    found: list[Line] = []
    try:
        async for batch in read(stream, skip=skip, max_bytes=max_bytes):
            assert batch
            found += batch
    except BadLine as error:
        return found, error
    return found, None


@contextmanager
def pipe(*pieces: bytes) -> Iterator[BinaryIO]:
    """The reading end of a pipe into which a thread writes the pieces, each by itself."""
    reading, writing = os.pipe()

    def write() -> None:
        with os.fdopen(writing, "wb", buffering=0) as stream:
            for piece in pieces:
                try:
                    stream.write(piece)
                except BrokenPipeError:
                    return

    writer = threading.Thread(target=write)
    writer.start()
    with os.fdopen(reading, "rb", buffering=0) as stream:
        yield stream
    writer.join()


def read_all(*pieces: bytes, skip: int = 0, max_bytes: int = MAX_BYTES) -> tuple[list[Line], BadLine | None]:
    with pipe(*pieces) as stream:
        return asyncio.run(_collect(stream, skip, max_bytes))


def numbered(*pieces: bytes, skip: int = 0) -> list[tuple[int, bytes]]:
    found, error = read_all(*pieces, skip=skip)
    assert error is None
    return [(line.number, line.body) for line in found]


def test_a_line_is_a_task_and_an_empty_one_only_counts() -> None:
    assert numbered(b'{"a": 1}\n\n2\n   \n\t\n"three"\n') == [(1, b'{"a": 1}'), (3, b"2"), (6, b'"three"')]


def test_the_last_line_needs_no_end() -> None:
    assert numbered(b"1\n2") == [(1, b"1"), (2, b"2")]


def test_an_empty_stream_has_no_lines() -> None:
    assert numbered(b"") == []
    assert numbered(b"\n\n") == []


def test_lines_that_end_as_on_windows_are_the_same_tasks() -> None:
    assert numbered(b'{"a": 1}\r\n\r\n2\r\n3\r') == [(1, b'{"a": 1}'), (3, b"2"), (4, b"3")]


def test_nothing_else_of_a_payload_is_touched() -> None:
    # given lines with blanks around and inside, and with escapes
    payloads = [b' {"a" :  1 } ', b'\t"x"', '"ü"'.encode(), b'"\\u00fc\\r\\n"', b"1.50"]

    # then they are read byte for byte
    assert [body for _, body in numbered(b"\n".join(payloads))] == payloads


def test_lines_are_whole_however_the_stream_is_cut() -> None:
    # given a line that comes in pieces, its end of two bytes too
    assert numbered(b'{"a"', b": 1}\r", b"\n", b"2", b"\n") == [(1, b'{"a": 1}'), (2, b"2")]


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.sampled_from([b"1", b'"two"', b'{"three": [3]}', b"", b"  "]), max_size=20),
    st.lists(st.integers(0, 100), max_size=6),
    st.integers(0, 25),
    st.sampled_from([b"\n", b"\r\n"]),
    st.booleans(),
)
def test_reading_agrees_with_splitting(
    payloads: list[bytes], cuts: list[int], skip: int, end: bytes, closed: bool
) -> None:
    # given any lines, cut anywhere
    whole = end.join(payloads) + (end if closed else b"")
    places = sorted({0, len(whole), *(min(cut, len(whole)) for cut in cuts)})
    pieces = [whole[start:stop] for start, stop in pairwise(places)]

    # then each that is not blank comes once, with its number, except those left out
    expected = [(number, body) for number, body in enumerate(payloads, start=1) if body.strip() and number > skip]
    assert numbered(*pieces, skip=skip) == expected


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b"nope", "not JSON: Expecting value at column 1"),
        (b'"\xff"', "not UTF-8 at byte 2"),
        (b"NaN", "not JSON: NaN is not JSON"),
        (b"\x0b1", "not JSON"),
        (b'"' + b"x" * MAX_BYTES + b'"', "longer than 1000B (`worker.max_body`)"),
        (b'"' + b"x" * 1_000_000 + b'"', "longer than 1000B (`worker.max_body`)"),
    ],
    ids=["not JSON", "not UTF-8", "NaN", "control character", "too long", "far too long"],
)
@pytest.mark.parametrize("end", [b"\n3\n", b""], ids=["in the middle", "at the end"])
def test_a_bad_line_ends_the_stream_after_the_good_ones_before_it(bad: bytes, why: str, end: bytes) -> None:
    # when a stream with a bad line is read
    found, error = read_all(b"1\n\n" + bad + end)

    # then what came before it is there, and it is named by number and reason
    assert [line.number for line in found] == [1]
    assert error is not None
    assert error.number == 3
    assert str(error).startswith(why)


def test_a_line_of_exactly_the_longest_size_is_good() -> None:
    body = b'"' + b"x" * (MAX_BYTES - 2) + b'"'
    assert numbered(body + b"\r\n" + body) == [(1, body), (2, body)]


def test_what_is_left_out_may_be_anything() -> None:
    # given bad lines of every kind, and one longer than memory should hold
    bad = [b"nope", b'"\xff"', b"x" * 1_000_000]

    # when they are left out
    found, error = read_all(b"\n".join([*bad, b"4", b"5"]), skip=len(bad))

    # then the lines after them keep their numbers
    assert error is None
    assert [(line.number, line.body) for line in found] == [(4, b"4"), (5, b"5")]


def test_leaving_out_more_than_there_is_leaves_nothing() -> None:
    assert numbered(b"1\n2\n3", skip=100) == []


def test_a_slow_writer_does_not_hold_up_the_loop() -> None:
    # given a stream whose writer waits for us between two lines
    reading, writing = os.pipe()

    async def scenario() -> list[list[bytes]]:
        with os.fdopen(reading, "rb", buffering=0) as stream, os.fdopen(writing, "wb", buffering=0) as writer:
            batches = read(stream, skip=0, max_bytes=MAX_BYTES)
            writer.write(b"1\n2\n")
            first = await anext(batches)
            # when the next line is waited for
            waiting = asyncio.ensure_future(anext(batches))
            # then the loop goes on, and what it does lets the writer write
            await asyncio.sleep(0)
            assert not waiting.done()
            writer.write(b"3\n")
            return [[line.body for line in batch] for batch in (first, await waiting)]

    assert asyncio.run(scenario()) == [[b"1", b"2"], [b"3"]]


def test_a_fast_writer_is_not_read_far_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a long file, and a reader that takes one batch only
    monkeypatch.setattr(lines, "READ_BYTES", 100)
    path = tmp_path / "long.jsonl"
    path.write_bytes(b'"0123456"\n' * 10_000)
    reads: list[int] = []
    ours: set[int] = set()
    enough = threading.Event()
    original = os.read

    def counting(fd: int, size: int) -> bytes:
        if fd in ours:  # other threads read too
            reads.append(fd)
        if len(reads) > lines.MAX_BATCHES:
            enough.set()
        return original(fd, size)

    monkeypatch.setattr(lines.os, "read", counting)

    async def scenario() -> int:
        with path.open("rb", buffering=0) as stream:
            ours.add(stream.fileno())
            batches = read(stream, skip=0, max_bytes=MAX_BYTES)
            await anext(batches)
            thread = next(one for one in threading.enumerate() if one.name == "lines" and one.is_alive())
            # when it has read as far as it will, and has had the time for more
            assert enough.wait(10)
            thread.join(0.2)
            ahead = len(reads)
            async for _ in batches:
                pass
            return ahead

    # then that is a bounded number of batches
    assert asyncio.run(scenario()) == lines.MAX_BATCHES + 1
    assert len(reads) == 1001


def test_a_stream_that_cannot_be_read_is_an_error_of_ours(tmp_path: Path) -> None:
    # given a file that is open for writing only
    with (tmp_path / "out").open("wb") as stream, pytest.raises(QctlError, match="cannot be read: bad file descriptor"):
        # when it is read
        asyncio.run(_collect(stream, 0, MAX_BYTES))


def test_every_line_that_is_handed_out_is_json() -> None:
    assert [json.loads(body) for _, body in numbered(b'{"a": [1, 2]}\n"x"\nnull\n')] == [{"a": [1, 2]}, "x", None]
