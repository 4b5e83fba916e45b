"""F19: the ledger alone: many processes on it, and ten thousand histories against a model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from qctl.demo.judge import most_in_any_window
from tests.faults.ledger_model import HISTORIES, model
from tests.faults.rows import Record, row

PROCESSES = 16
UNITS = 100_000
S = 10**9
SPENDER = Path(__file__).parents[1] / "unit" / "quota" / "spender.py"
ROOT = Path(__file__).parents[2]


def _spender(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SPENDER), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _together(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Let all begin at once when each is ready; what they print."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return [process.communicate(timeout=120)[0] for process in processes]


@row("F19", f"{PROCESSES} processes spend {UNITS} units in tasks of 1 to 3, of which some need less")
def test_sixteen_processes_spend_a_limit_to_the_last_unit(record: Record, tmp_path: Path) -> None:
    arguments = (tmp_path / "web-1", "-", UNITS, 3600 * S, 1, 120)
    spent = sum(map(int, _together([_spender(*arguments) for _ in range(PROCESSES)])))
    # What the last of them gave back when the others had left.
    spent += sum(map(int, _together([_spender(*arguments)])))

    record.figure("units spent", spent, equals=UNITS)


@row("F19", f"{PROCESSES} processes want more than there is, for 4 windows")
def test_sixteen_processes_that_all_want_more_share_within_a_factor_of_two(record: Record, tmp_path: Path) -> None:
    logs = [tmp_path / f"calls-{index}" for index in range(PROCESSES)]
    limit, window_s = 800, 3.0
    processes = [
        _spender(tmp_path / "web-1", log, limit, int(window_s * S), 2, 4 * window_s + PROCESSES * 0.5) for log in logs
    ]
    for process in processes:
        process.communicate(timeout=120)
    calls = [[int(line) for line in log.read_text().splitlines()] for log in logs]

    # While all of them were there
    begin_ns, end_ns = max(one[0] for one in calls), min(one[-1] for one in calls)
    shares = [sum(begin_ns <= at <= end_ns for at in one) for one in calls]
    every = sorted(at for one in calls for at in one)
    most = most_in_any_window(every, int(window_s * S))
    record.figure("windows watched", (end_ns - begin_ns) / (window_s * S), at_least=2)
    record.figure("largest share by smallest", max(shares) / max(1, min(shares)), at_most=2)
    record.figure("over in any window", max(0, most - limit), equals=0)


@row("F19", "tasks that cost four fifths of a limit, among 15 processes that take single units whenever there are any")
def test_a_task_that_costs_most_of_a_limit_is_paid_within_a_window(record: Record, tmp_path: Path) -> None:
    limit, window_s, rounds = 300, 3.0, 3
    flood = [
        _spender(tmp_path / "web-1", tmp_path / f"calls-{index}", limit, int(window_s * S), 2, 60)
        for index in range(PROCESSES - 1)
    ]
    whale = _spender(tmp_path / "web-1", "whale", limit, int(window_s * S), rounds, 60)
    try:
        waits_s = [float(word) for word in _together([whale])[0].split()]
    finally:
        for process in flood:
            process.kill()
            process.communicate()

    record.figure("times paid", len(waits_s), equals=rounds)
    # It starts when all is gone, so it is held, and no task of it can claim; after a window it looks for one.
    record.figure("first wait, windows", waits_s[0] / window_s, at_most=3)
    # Beside the window: settlements of tasks that run, the way back from a hold, sixteen processes on these processors.
    record.figure("longest wait after that, windows", max(waits_s[1:]) / window_s, at_most=1.5)


@row("F19", f"{HISTORIES} random histories against a model, in simulated time", timeout_s=900)
def test_ten_thousand_histories_agree_with_the_model(record: Record) -> None:
    verdict = model()

    record.figure("histories", verdict.histories, equals=HISTORIES)
    record.figure("comparisons of all that is counted", verdict.audits, at_least=HISTORIES)
    record.figure("histories that failed", len(verdict.failures), equals=0)
    record.figure("seconds", verdict.seconds, at_most=120)
    record.figure("seconds of processor", verdict.processor_seconds)
    for failure in verdict.failures[:3]:
        record.note(failure)
