"""F16: the ledger's file is damaged under running workers, or its lock is held by a stopped process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qctl.quota import lock_holders
from tests.faults.rows import row
from tests.faults.scene import Scene
from tests.fleet import wait_until

LIMIT, WINDOW_S = 60, 3.0
HELD_S = 6.0


def _cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _random_bytes(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(os.urandom(path.stat().st_size))


def _empty(path: Path) -> None:
    os.truncate(path, 0)


DAMAGES: tuple[Callable[[Path], None], ...] = (_random_bytes, _cut_off, _empty)


@row(
    "F16", "the ledger overwritten, cut in half, emptied, while 16 processes spend (4 in the short run)", selected=True
)
def test_a_damaged_ledger_is_set_aside_once_and_heals(scene: Scene) -> None:
    # Given processes that spend all there is
    damages = DAMAGES if scene.thorough else DAMAGES[:1]
    fleet = scene.stage(limit=LIMIT, window_s=WINDOW_S, concurrency=2)
    worker = scene.start(processes=16 if scene.thorough else 4)
    scene.enqueue("calls", 250 * len(damages) if scene.thorough else 120, s=0.02)
    scene.await_count("called", 30)
    path = fleet.state / "web-1" / "ledger.sqlite"
    heals_s = []
    for index, damage in enumerate(damages, 1):
        # When the file is damaged
        damage(path)
        at_ns = time.monotonic_ns()
        wait_until("the ledger set aside", lambda index=index: worker.log().count("set aside as") >= index, 20)
        # Then one is set aside, and after the window that counts as spent calls are made again
        aside_ns = time.monotonic_ns()
        quiet_ns = aside_ns + int(0.5e9)
        wait_until(
            "calls again", lambda quiet_ns=quiet_ns: any(call.at_ns > quiet_ns for call in scene.api.calls()), 30
        )
        first_ns = min(call.at_ns for call in scene.api.calls() if call.at_ns > quiet_ns)
        heals_s.append((first_ns - at_ns) / 1e9)
        scene.await_count("called", scene.count("called") + 20)
    scene.steady()

    aside = list(path.parent.glob("ledger.sqlite.corrupt-*"))
    scene.record.figure("damaged", len(damages))
    scene.record.figure("files set aside", len(aside), equals=len(damages))
    # A window, and a linger, for what was under way when the ledger was lost: for so short a window, as long as it.
    scene.record.figure("slowest to heal, windows", max(heals_s) / WINDOW_S, at_most=2 + 4 / WINDOW_S)


@contextmanager
def stopped_with_the_lock(path: Path) -> Iterator[int]:
    """A process that was stopped in the middle of a transaction."""
    program = (
        "import os, signal, sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=20);"
        "c.execute('BEGIN IMMEDIATE'); os.kill(os.getpid(), signal.SIGSTOP)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, path])
    try:
        os.waitid(os.P_PID, holder.pid, os.WSTOPPED | os.WNOWAIT)
        yield holder.pid
    finally:
        holder.kill()
        holder.wait()


@row("F16", f"a foreign process is stopped for {HELD_S:g} s in the middle of a transaction")
def test_a_ledger_locked_by_a_stopped_process_is_left_alone_and_nothing_is_called(scene: Scene) -> None:
    fleet = scene.stage()
    worker = scene.start()
    scene.enqueue("calls", 400, s=0.05)
    scene.await_count("called", 20)
    scene.steady()
    path = fleet.state / "web-1" / "ledger.sqlite"
    inode = path.stat().st_ino

    with stopped_with_the_lock(path) as pid:
        worker.await_log("ledger unusable")
        scene.record.figure("the holder is known", lock_holders(path.parent).count(pid), equals=1)
        wait_until("the lease to be spent", lambda: _quiet(scene, 1.5), 10)
        before = len(scene.api.calls())
        time.sleep(HELD_S)
        scene.record.figure("calls meanwhile", len(scene.api.calls()) - before, equals=0)
    since_s = time.monotonic()
    wait_until("calls", lambda: len(scene.api.calls()) > before, 20)

    scene.record.figure("back after the lock was free, s", time.monotonic() - since_s, at_most=10)
    scene.record.figure("set aside", len(list(path.parent.glob("*.corrupt-*"))), equals=0)
    scene.record.figure("the same file", int(path.stat().st_ino == inode), equals=1)
    scene.record.figure("said who holds it", worker.log().count(f"locked by process {pid}"), at_least=1)


def _quiet(scene: Scene, seconds: float) -> bool:
    calls = scene.api.calls()
    return not calls or time.monotonic_ns() - calls[-1].at_ns > seconds * 1e9
