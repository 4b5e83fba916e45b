"""Real processes on one ledger: exact together, and never over when they are killed or stopped."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qctl.quota import Ledger, Limit
from tests.unit.quota.model import S

SPENDER = Path(__file__).with_name("spender.py")
ROOT = Path(__file__).parents[3]


class Spenders:
    """Spending processes, all gone at the end."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.running: list[subprocess.Popen[str]] = []

    def start(self, limit: Limit, *, log: str = "-", threads: int = 1, for_s: float = 60.0) -> None:
        arguments = [self.directory, log, limit.units, limit.period_ns, threads, for_s]
        self.running.append(
            subprocess.Popen(
                [sys.executable, str(SPENDER), *map(str, arguments)],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )

    def spend_together(self) -> list[int]:
        """Let all begin at once when each is ready, and end; what each has spent."""
        for process in self.running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in self.running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        spent = []
        while self.running:
            process = self.running.pop(0)
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
            spent.append(int(out))
        return spent

    def kill(self, index: int) -> None:
        process = self.running.pop(index)
        process.kill()
        process.communicate()


@pytest.fixture
def spenders(tmp_path: Path) -> Iterator[Spenders]:
    found = Spenders(tmp_path / "web-1")
    yield found
    while found.running:
        found.kill(0)


def test_sixteen_processes_spend_exactly_the_limit(spenders: Spenders) -> None:
    # Given sixteen processes that spend until they are held, in tasks of 1 to 3 units of which some need less
    limit = Limit(100_000, 3600 * S)
    for _ in range(16):
        spenders.start(limit)
    spent = spenders.spend_together()

    # And more of them for what the last ones gave back when the others had left
    for _ in range(8):
        if sum(spent) < limit.units:
            spenders.start(limit)
            spent += spenders.spend_together()

    # Then together they spent the limit to the last unit, and the ledger knows of each
    ledger = Ledger.open(spenders.directory)
    reading = ledger.readings()["api"]
    assert sum(spent) == limit.units
    assert sum(units > 0 for units in spent[:16]) > 1
    assert reading.used(ledger.clock.now_ns()) == (limit.units,)
    assert (reading.leased, reading.claims) == ({}, ())
    ledger.close()


def test_processes_that_are_killed_or_stopped_never_spend_too_much(spenders: Spenders, tmp_path: Path) -> None:
    # Given three processes at the edge of a quota, each with two threads
    limit = Limit(60, 2 * S)
    log = tmp_path / "calls"
    chance = random.Random(7)
    for _ in range(3):
        spenders.start(limit, log=str(log), threads=2)
    ledger = Ledger.open(spenders.directory)

    def calls() -> list[int]:
        return [int(line) for line in log.read_text().splitlines()] if log.exists() else []

    # When they are killed or stopped at any moment, again and again
    for turn in range(9):
        before = len(calls())
        deadline_s = time.monotonic() + 10
        while len(calls()) == before and time.monotonic() < deadline_s:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        if turn % 3 == 2:
            stopped = chance.choice(spenders.running)
            stopped.send_signal(signal.SIGSTOP)
            time.sleep(0.8)
            stopped.send_signal(signal.SIGCONT)
        else:
            spenders.kill(chance.randrange(3))
            spenders.start(limit, log=str(log), threads=2)
        # Then the ledger never has less than the calls of the window that ends now
        seen = calls()
        reading = ledger.readings()["api"]
        now_ns = ledger.clock.now_ns()
        assert reading.used(now_ns)[0] >= sum(at > now_ns - limit.period_ns for at in seen)

    # And no window, wherever it begins, had more calls than the limit
    def most(all_calls: list[int]) -> int:
        return max(
            sum(begin <= at < begin + limit.period_ns for at in all_calls[index : index + 3 * limit.units])
            for index, begin in enumerate(all_calls)
        )

    # And when the killing ends, a window is used to the full again
    end_s = time.monotonic() + 20
    recovering = calls()
    while len(calls()) - len(recovering) < 3 * limit.units:
        assert time.monotonic() < end_s, "not recovered"
        time.sleep(0.05)
    after = sorted(calls())
    assert most(after) <= limit.units
    assert most(after[-2 * limit.units :]) >= 0.9 * limit.units
    ledger.close()
