"""The report of the fault matrix says what failed, what was cut off and what was never run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.catalogue import FAULTS
from tests.faults.report import NOT_RUN, verdict, write_report
from tests.faults.rows import Record, read_records


def record(row: str = "F06", broker: str = "local", state: str = "passed", test: str = "test_a") -> Record:
    return Record(row, test, "something", broker, version="3.10.8", state=state, at="2026-11-22 18:00")


@pytest.mark.parametrize(
    ("states", "said"),
    [
        (["passed", "passed"], "pass"),
        (["passed", "failed"], "**FAIL**"),
        (["failed", "running"], "**CRASHED**"),
        ([], NOT_RUN),
    ],
)
def test_a_row_passes_only_when_all_of_its_tests_did(states: list[str], said: str) -> None:
    assert verdict(FAULTS["F06"], [record(state=state) for state in states], "local") == said


def test_a_broker_that_a_row_is_not_for_is_no_gap() -> None:
    assert verdict(FAULTS["F01"], [], "container") == ""


def test_a_broken_bound_fails_the_row_at_its_end_and_the_figures_stay(tmp_path: Path) -> None:
    # Given
    found = record()
    found.figure("back, s", 12.3456, at_most=10)
    found.figure("rounds", 3, at_least=3)
    found.figure("looks", 7)

    # When
    with pytest.raises(AssertionError, match=r"back, s 12\.346, must be <= 10"):
        found.verdict()

    # Then
    found.state = "failed"
    found.write(tmp_path)
    assert list(read_records(tmp_path)) == [found]


def test_the_report_names_every_row_and_shows_what_was_broken(tmp_path: Path) -> None:
    # Given a row that failed, and another that was cut off
    failed = record(state="failed")
    failed.figure("back, s", 12.3456, at_most=10)
    failed.error = "AssertionError: back"

    # When
    write_report([failed, record("F01", state="running")], tmp_path / "faults.md", crashes=["pytest ended with 3."])

    # Then
    text = (tmp_path / "faults.md").read_text(encoding="utf-8")
    assert all(f"| {row} |" in text for row in FAULTS)
    assert "**back, s 12.346 (<= 10)**" in text
    assert "pytest ended with 3." in text
    assert "the run ended in the middle of it" in text
    assert "something\n" in text
    assert text.count("| **FAIL** |") == 1
    assert text.count("| **CRASHED** |") == 1
    assert text.count(NOT_RUN) >= len(FAULTS) - 2
