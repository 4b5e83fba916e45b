"""Is the console quick at full size? `python -m tests.bench.console [--minutes 10]`.

A process of its own on a pseudo-terminal of 160x50 shows a made-up fleet of 500 hosts, 5,000 consumers and 10,000
queues whose every number moves each second. Measured from outside: the first rows after the start of Python, the time
from a key to its paint (the cursor on the next row; a view's or a sort's new list), memory at the end. Measured
inside: what the thread of the user interface works for one refresh, and the longest it was away from its keys.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from pathlib import Path
from statistics import median

WIDTH, HEIGHT = 160, 50
#: Keys of each kind.
KEYS = 200
#: A key that shows nothing within this is a fault.
PATIENCE_S = 5.0
#: The title of a column that only this view has, after its key.
VIEWS = {"2": "GROWS/S", "3": "WAITING", "4": "LIMIT", "1": "RUNNING"}
_MOVE = re.compile(rb"\x1b\[(\d+);\d+H|\x1b\[H|\n")


class Terminal:
    """The other end of a pseudo-terminal: keys in, and when what was painted."""

    def __init__(self, command: list[str]) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
        self.started = time.perf_counter()
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment)
        os.close(slave)
        self._painted = bytearray()
        self._changed = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                chunk = os.read(self._master, 1 << 16)
            except OSError:  # the process is gone
                return
            with self._changed:
                self._painted += chunk
                self._changed.notify_all()

    def press(self, keys: bytes) -> None:
        """Type; what was painted before is forgotten."""
        with self._changed:
            self._painted.clear()
        os.write(self._master, keys)

    def painted(self, shown: str, row: int) -> bool:
        """Whether `shown` was painted in that row since the last keys."""
        with self._changed:
            return _there(self._painted, shown.encode(), row)

    def wait(self, shown: str, row: int | None = None) -> float:
        """When `shown` was painted, in that row (from 1) or anywhere; raises TimeoutError with what was there."""
        deadline = time.perf_counter() + PATIENCE_S
        with self._changed:
            while not _there(self._painted, shown.encode(), row):
                if not self._changed.wait(deadline - time.perf_counter()):
                    raise TimeoutError(f"{shown!r} was not painted in row {row}: {bytes(self._painted[-2_000:])!r}")
            return time.perf_counter()

    def took(self, keys: str, shown: str, row: int | None = None) -> float:
        """Milliseconds from keys to their paint."""
        begin = time.perf_counter()
        self.press(keys.encode())
        return (self.wait(shown, row) - begin) * 1_000


def _there(painted: bytearray, shown: bytes, row: int | None) -> bool:
    if row is None or shown not in painted:
        return shown in painted
    at, begin = 1, 0
    for move in _MOVE.finditer(painted):
        if at == row and shown in painted[begin : move.start()]:
            return True
        at = int(move[1]) if move[1] else 1 if move[0] == b"\x1b[H" else at + 1
        begin = move.end()
    return at == row and shown in painted[begin:]


def measure(minutes: float) -> None:
    """Print the figures."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    python_s = time.perf_counter() - begin
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "result.json"
        terminal = Terminal([sys.executable, "-m", "tests.bench.console", "--inside", str(result)])
        try:
            first_s = terminal.wait("web-491") - terminal.started - python_s
            print(f"first paint: {first_s:.2f} s after Python's start-up of {python_s:.2f} s")
            time.sleep(2.0)
            for key, title in (("3", "CONSUMER"), ("2", "QUEUE"), ("1", "HOST")):
                terminal.took(key, title)
                _say(f"key to paint, cursor over {title.lower()}s", _walk(terminal, title))
            _say("key to paint, another view", [_switch(terminal, key) for _ in range(5) for key in VIEWS])
            terminal.press(b"3")
            time.sleep(1.5)
            _say("key to paint, sort of 5,000 rows", [_sort(terminal) for _ in range(12)])
            time.sleep(1.5)
            quiet_since = time.time() + 1.0
            time.sleep(60.0 * minutes)
            quiet_until = time.time()
            status = Path(f"/proc/{terminal.process.pid}/status").read_text(encoding="ascii")
            memory = {name: int(re.search(rf"{name}:\s+(\d+)", status)[1]) / 1_024 for name in ("VmRSS", "VmHWM")}  # type: ignore[index]
            print(f"memory after {minutes:g} min more: {memory['VmRSS']:.0f} MB, most {memory['VmHWM']:.0f} MB")
            terminal.press(b"q")
            terminal.process.wait(10.0)
        finally:
            terminal.process.kill()
        refreshes = [one for one in json.loads(result.read_text()) if quiet_since < one[0] < quiet_until]
    _say("a refresh of 5,000 rows, work of the user interface's thread", [work_ms for _, work_ms, _ in refreshes])
    _say("longest in one piece", [longest_ms for _, _, longest_ms in refreshes])


def _walk(terminal: Terminal, title: str) -> list[float]:
    time.sleep(1.5)
    head = next(row for row in range(2, HEIGHT) if terminal.painted(title, row))
    # A click on the first title sorts by names, so that a row stays where it is.
    terminal.press(f"\x1b[<0;5;{head}M\x1b[<0;5;{head}m".encode())
    time.sleep(1.5)
    terminal.press(b"g")
    time.sleep(1.5)
    taken = []
    for number in range(KEYS):
        down = number // 30 % 2 == 0
        step = number % 30 + 1
        row = head + 1 + (step if down else 30 - step)
        taken.append(terminal.took("j" if down else "k", "▌", row))
        time.sleep(0.033)  # as fast as a key repeats
    return taken


def _switch(terminal: Terminal, key: str) -> float:
    taken = terminal.took(key, VIEWS[key])
    time.sleep(0.4)
    return taken


def _sort(terminal: Terminal) -> float:
    taken = terminal.took("s", "CONSUMER")
    time.sleep(0.4)
    return taken


def _say(what: str, taken: list[float]) -> None:
    ordered = sorted(taken)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    print(f"{what}: p50 {median(ordered):.1f} ms, p99 {p99:.1f} ms, most {ordered[-1]:.1f} ms ({len(ordered)})")


def inside(result: Path) -> None:
    """The console itself; writes what its thread worked for each refresh."""
    from qctl.tui.app import Console
    from tests.tui.synthetic import FULL, MovingSource, inventory

    longest_ms = 0.0
    run = asyncio.events.Handle._run

    def timed(handle: asyncio.events.Handle) -> None:
        nonlocal longest_ms
        begin = time.perf_counter()
        run(handle)
        longest_ms = max(longest_ms, (time.perf_counter() - begin) * 1_000)

    app = Console(MovingSource(FULL), inventory(FULL), environment="development", broker="nowhere")
    #: (instant, milliseconds of work since the snapshot before, the longest of them in one piece)
    refreshes: list[tuple[float, float, float]] = []
    since = time.thread_time()
    arrived = app._arrived

    def each(snapshot: object) -> None:
        nonlocal since, longest_ms
        now = time.thread_time()
        refreshes.append((time.time(), (now - since) * 1_000, longest_ms))
        since, longest_ms = now, 0.0
        arrived(snapshot)  # type: ignore[arg-type]

    app._arrived = each  # type: ignore[method-assign]
    asyncio.events.Handle._run = timed  # type: ignore[method-assign]
    app.run()
    result.write_text(json.dumps(refreshes), encoding="utf-8")


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        inside(options.inside)
    else:
        measure(options.minutes)


if __name__ == "__main__":
    main()
