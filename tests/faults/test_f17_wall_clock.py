"""F17: the wall clock jumps, and is another in each process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from qctl.demo.judge import most_in_any_window
from tests.faults.rows import Record, row
from tests.faults.scene import LIMIT, WINDOW_S, Scene

S = 10**9
SPENDER = Path(__file__).parents[1] / "unit" / "quota" / "spender.py"
ROOT = Path(__file__).parents[2]
#: Loaded before the C library; the shifts of libfaketime break the waiting of threads by the monotonic clock.
SOURCE = Path(__file__).with_name("fake_wall_clock.c")
WINDOWS = 3


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shim, compiled."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.fail("the wall clock cannot be shifted: install a C compiler, gcc for example", pytrace=False)
    found = tmp_path_factory.mktemp("clock") / "fake_wall_clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", found, SOURCE], check=True)
    return found


def faked(library: Path, file: Path) -> Mapping[str, str]:
    """The environment of a process whose wall clock is off by the seconds in `file`, now; its other clocks are true."""
    return {"LD_PRELOAD": str(library), "FAKE_WALL_CLOCK": str(file)}


def set_clock(file: Path, offset: str) -> None:
    """Shift the wall clock of all who look at `file`, whole or not at all."""
    beside = file.with_suffix(".new")
    beside.write_text(offset + "\n")
    beside.replace(file)


@row("F17", "+1 h, -1 h, -1 year in the wall clock of a worker, while it spends all there is")
def test_a_worker_whose_wall_clock_jumps_spends_neither_more_nor_less(
    scene: Scene, tmp_path: Path, library: Path
) -> None:
    clock = tmp_path / "clock"
    set_clock(clock, "+0")
    fleet = scene.stage()
    fleet.environment |= faked(library, clock)
    scene.start(processes=2)
    scene.enqueue("calls", 3 * LIMIT, s=0)
    scene.await_count("called", LIMIT // 4)
    scene.steady()
    for offset in ("+3600", "-3600", "-31536000"):
        time.sleep(WINDOW_S / 4)
        set_clock(clock, offset)
    scene.await_count("called", 2 * LIMIT + 1)

    calls = sorted(call.at_ns for call in scene.api.calls())
    windows = (calls[2 * LIMIT] - calls[0]) / (WINDOW_S * S)
    # The call after two limits may come after two windows.
    scene.record.figure("underspent, of what two windows allow", max(0.0, windows / 2 - 1), at_most=0.02)


@row("F17", "three processes on one ledger, at +1 h, -1 h and -1 year, of which one jumps", selected=False)
def test_processes_whose_wall_clocks_differ_share_a_limit_exactly(
    record: Record, tmp_path: Path, library: Path
) -> None:
    limit, window_s = 200, 5.0
    log = tmp_path / "calls"
    clocks = [tmp_path / f"clock-{index}" for index in range(3)]
    for clock, offset in zip(clocks, ("+3600", "-3600", "-31536000"), strict=True):
        set_clock(clock, offset)
    arguments = [tmp_path / "web-1", log, limit, int(window_s * S), 4, WINDOWS * window_s + 3]
    processes = [
        subprocess.Popen(
            [sys.executable, str(SPENDER), *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(ROOT), **faked(library, clock)},
        )
        for clock in clocks
    ]
    for offset in ("-7200", "+7200"):
        time.sleep(window_s)
        set_clock(clocks[0], offset)
    for process in processes:
        process.wait(60)

    calls = sorted(int(line) for line in log.read_text().splitlines())
    record.figure("over in any window", max(0, most_in_any_window(calls, int(window_s * S)) - limit), equals=0)
    windows = (calls[2 * limit] - calls[0]) / (window_s * S)
    record.figure("underspent, of what two windows allow", max(0.0, windows / 2 - 1), at_most=0.02)
