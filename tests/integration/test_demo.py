"""`qctl demo` as a newcomer runs it: every promise kept, and nothing left running however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def demo(directory: Path, *arguments: str, stderr: int = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    """The command with `directory` as its place for temporary files, so that whatever it starts can be told by it."""
    with subprocess.Popen(
        [sys.executable, "-m", "qctl", "demo", *arguments],
        env={
            **os.environ,
            "TERM": "xterm",
            "TMPDIR": str(directory),
            "QCTL_USERNAME": "nobody",
            "QCTL_PASSWORD": "wrong",
        },
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)


def processes_of(directory: Path) -> dict[int, str]:
    """The command lines, by process id, of all processes that were started with something in `directory`."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            line, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            continue  # gone meanwhile
        if os.fsencode(directory) in line + environment:
            found[int(entry.name)] = line.replace(b"\0", b" ").decode(errors="replace")
    return found


def wait_for(process: subprocess.Popen[str], words: str) -> None:
    """Read what the command says until `words` come."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if words in line:
            return
    pytest.fail(f"it never said {words!r}: {''.join(said)}")


class Terminal:
    """A terminal of 100 columns; `shown` is all that was written to it, once it is closed."""

    def __init__(self) -> None:
        self._master, self.end = pty.openpty()
        fcntl.ioctl(self.end, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self._chunks: list[bytes] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # EIO: nobody has the terminal open any more
            while chunk := os.read(self._master, 65_536):
                self._chunks.append(chunk)

    def close(self) -> None:
        os.close(self.end)
        self._reader.join()
        os.close(self._master)

    @property
    def shown(self) -> str:
        return b"".join(self._chunks).decode()


@pytest.mark.timeout(110)
def test_given_two_servers_and_one_queue_when_the_demo_has_run_then_every_promise_was_kept_and_nothing_is_left(
    tmp_path: Path,
) -> None:
    with (
        contextlib.closing(Terminal()) as terminal,
        demo(tmp_path, "--window", "20s", "-o", "json", stderr=terminal.end) as process,
    ):
        out, _ = process.communicate()

    judged = json.loads(out)
    assert process.returncode == 0, judged
    assert judged["kept"] is True
    assert [promise["kept"] for promise in judged["promises"]] == [True] * 5
    hosts = {item["host"]: item for item in judged["items"]}
    assert hosts["web-1"]["first_window_units"] >= 198
    assert hosts["web-2"]["first_window_units"] >= 990
    assert hosts["web-1"]["most_in_any_window"] <= 200
    assert hosts["web-2"]["most_in_any_window"] <= 1000
    assert hosts["all"] | {"refused": 0, "done": 1800, "lost": 0, "twice": 0} == hosts["all"]
    assert "200/200" in terminal.shown
    assert "600 waiting, 0 subscribed" in terminal.shown
    assert "kept    No server made more calls in any window than its limit." in terminal.shown
    assert list(tmp_path.iterdir()) == []
    assert processes_of(tmp_path) == {}


def test_given_a_demo_amid_its_first_window_when_it_is_told_to_end_twice_then_it_exits_130_and_nothing_is_left(
    tmp_path: Path,
) -> None:
    with demo(tmp_path) as process:
        wait_for(process, "subscribed")
        assert processes_of(tmp_path)

        assert_ended_by(signal.SIGTERM, process, tmp_path)


def assert_ended_by(number: signal.Signals, process: subprocess.Popen[str], directory: Path) -> None:
    """Send a signal twice: the demo ends with 130, says why, and leaves nothing."""
    process.send_signal(number)
    process.send_signal(number)
    _, err = process.communicate()

    assert process.returncode == 130
    assert number.name in err
    assert "Traceback" not in err
    assert list(directory.iterdir()) == []
    assert processes_of(directory) == {}


def test_given_a_worker_that_is_killed_when_the_demo_notices_then_it_exits_1_names_the_log_and_ends_the_rest(
    tmp_path: Path,
) -> None:
    with demo(tmp_path) as process:
        wait_for(process, "subscribed")
        supervisor = min(pid for pid, line in processes_of(tmp_path).items() if "worker start --host web-2" in line)
        os.kill(supervisor, signal.SIGKILL)
        _, err = process.communicate()

    [kept] = tmp_path.iterdir()
    assert process.returncode == 1
    assert "the worker of web-2 ended by itself" in err
    assert f"The logs are in {kept}." in err
    assert (kept / "web-2.log").is_file()
    assert processes_of(tmp_path) == {}


@pytest.mark.parametrize("window", ["5s", "2d", "soon"])
def test_given_a_window_that_cannot_be_when_called_then_it_exits_2_and_starts_nothing(
    tmp_path: Path, window: str
) -> None:
    with demo(tmp_path, "--window", window) as process:
        _, err = process.communicate()

    assert process.returncode == 2
    assert "window" in err
    assert list(tmp_path.iterdir()) == []
