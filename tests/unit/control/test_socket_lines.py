"""The lines over a supervisor's socket, and the socket's place."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from qctl.control import socket as wire
from qctl.control.host_answer import ProcessLook, ProcessState
from qctl.errors import Exit

LOOKS = (ProcessLook(0, 17, ProcessState.CONNECTED, "2026"), ProcessLook(1, 18, ProcessState.ENDED, "2026"))


@pytest.mark.parametrize(
    "line",
    [
        wire.Given(LOOKS),
        wire.Ended(()),
        wire.Answered(b'{"v":1,"id":"a","rows":[]}'),
        wire.Refused("it cannot be", "Try again.", Exit.TRY_AGAIN),
    ],
)
def test_a_line_is_read_as_it_was_written(line: wire.Line) -> None:
    written = wire.write(line)

    assert written.endswith(b"\n")
    assert written.count(b"\n") == 1
    assert wire.read(written) == line


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b'{"v":2,"end":true}',
        b'{"v":1,"given":true}',
        b'{"v":1,"end":true,"processes":[{}]}',
        b'{"v":1,"error":"x"}',
        b'{"v":1,"error":"x","hint":"","exit_code":77}',
    ],
)
def test_what_is_no_line_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        wire.read(line)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("name", ["d", "d" * 200])
def test_a_socket_may_be_in_a_directory_of_any_depth(tmp_path: Path, name: str) -> None:
    directory = tmp_path / name
    directory.mkdir()
    before = open_files()

    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as connected:
        with wire.address(directory) as address:
            listening.bind(address)
        listening.listen()
        with wire.address(directory) as address:
            connected.connect(address)

        assert (directory / wire.FILE).is_socket()
    assert open_files() == before
