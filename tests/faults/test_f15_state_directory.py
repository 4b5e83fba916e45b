"""F15: a state directory that is full, read-only, or somebody else's."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.rows import row
from tests.faults.scene import WINDOW_S, Scene
from tests.fleet import Worker, wait_until
from tests.integration.worker_harness import spent

FULL_S = 6.0


@contextmanager
def small_disk(directory: Path, options: str = "rw") -> Iterator[Path]:
    """A file system of one megabyte, in memory."""
    directory.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"{options},size=1m,mode=0700", "tmpfs", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def fill(directory: Path) -> Path:
    """Take all the space there is."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return filler
    raise AssertionError("endless disk")


@row("F15", f"the state directory's disk is full for {FULL_S:g} s, under load")
def test_on_a_full_disk_nothing_is_called_that_is_not_paid_for_and_all_goes_on_with_space(scene: Scene) -> None:
    # Given a worker under load, whose state is on a small disk
    fleet = scene.stage()
    disk = scene.keep(small_disk(fleet.state))
    worker = scene.start()
    scene.enqueue("calls", 500, s=0.05)
    scene.await_count("called", 20)
    scene.steady()

    # When the disk is full
    filler = fill(disk)
    worker.await_log("ledger unusable")
    wait_until("the lease to be spent", lambda: _quiet(scene, 1.5), FULL_S + 4)
    during = len(scene.api.calls())
    margin = spent(fleet, "web-1")["api"] - _in_window(scene)
    time.sleep(FULL_S / 2)
    scene.record.figure("calls once the lease was spent", len(scene.api.calls()) - during, equals=0)
    scene.record.figure("ledger minus API meanwhile, units", margin, at_least=0)

    # Then calls are made again soon after there is space
    filler.unlink()
    since_s = time.monotonic()
    wait_until("calls", lambda: len(scene.api.calls()) > during, 20)
    scene.record.figure("back after space, s", time.monotonic() - since_s, at_most=10)


@row("F15", "a state directory that is read-only, or another user's, or open to others, at start")
def test_a_state_directory_that_cannot_be_used_ends_the_start_with_2_and_says_why(scene: Scene) -> None:
    fleet = scene.stage()
    state = fleet.state / "web-1"
    codes = []
    with small_disk(fleet.state, "ro"):
        codes.append(_refused(scene, "cannot be made"))
    state.mkdir(mode=0o700, exist_ok=True)
    os.chown(state, 4711, 4711)
    codes.append(_refused(scene, "belongs to another user (uid 4711)"))
    os.chown(state, os.geteuid(), os.getegid())
    state.chmod(0o777)
    codes.append(_refused(scene, "can be written by others (mode 0777)"))

    scene.record.figure("starts refused", len(codes), equals=3)
    scene.record.figure("exit codes other than 2", sum(code != 2 for code in codes), equals=0)


def _refused(scene: Scene, why: str) -> int:
    worker = Worker(scene.fleet, "web-1", ["--processes", "1"])
    try:
        code = worker.process.wait(30)
    finally:
        if worker.process.poll() is None:
            worker.kill()
    assert why in worker.log(), worker.log()
    return code


def _quiet(scene: Scene, seconds: float) -> bool:
    calls = scene.api.calls()
    return not calls or time.monotonic_ns() - calls[-1].at_ns > seconds * 1e9


def _in_window(scene: Scene) -> int:
    now_ns = time.monotonic_ns()
    return sum(now_ns - call.at_ns < WINDOW_S * 1e9 for call in scene.api.calls())
