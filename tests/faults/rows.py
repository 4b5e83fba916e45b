"""What a test of the matrix declares, and what it leaves behind: a record of its figures, each with its bound.

    @row("F06", "stop_app, 5 s away, start_app", selected=True)
    def test_...(scene: Scene) -> None: ...

A record is a JSON file a test and broker. It exists from the moment the test begins, so that a run that dies in the
middle shows as crashed and not as something that was never tried.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.faults.catalogue import FAULTS

RECORDS = Path("build/faults")
#: Characters of a failure that a record keeps.
MAX_ERROR_CHARS = 2000
Test = TypeVar("Test", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Row:
    """A test's place in the matrix. `selected`: part of the plain `make test` too."""

    id: str
    injected: str
    selected: bool


def row(id: str, injected: str, *, selected: bool = False, timeout_s: float = 300.0) -> Callable[[Test], Test]:  # noqa: A002
    """Declare which row a test proves a part of, and what it injects. A row may have several tests."""
    assert id in FAULTS, f"there is no row {id}"

    def mark(test: Test) -> Test:
        return pytest.mark.timeout(timeout_s)(pytest.mark.fault_row(Row(id, injected, selected))(test))  # type: ignore[no-any-return]

    return mark


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number with its bound, as it stands in the report; `kept` is None where there is no bound."""

    name: str
    value: float
    bound: str
    kept: bool | None


@dataclass(slots=True)
class Record:
    """What one test found on one broker."""

    row: str
    test: str
    injected: str
    broker: str
    version: str = ""
    state: str = "running"
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    error: str = ""
    commit: str = ""
    at: str = ""

    def figure(
        self,
        name: str,
        value: float,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        equals: float | None = None,
    ) -> None:
        """Note a number. A broken bound fails the test at its end, so that the other figures are measured too."""
        broken = (
            (at_most is not None and not value <= at_most)
            or (at_least is not None and not value >= at_least)
            or (equals is not None and value != equals)
        )
        bounds = [
            f"{sign} {bound:g}"
            for sign, bound in (("<=", at_most), (">=", at_least), ("=", equals))
            if bound is not None
        ]
        shown = round(value, 3) if isinstance(value, float) else value
        self.figures.append(Figure(name, shown, " and ".join(bounds), None if not bounds else not broken))

    def note(self, words: str) -> None:
        """Something that whoever reads the report should know: what stood in for what, for example."""
        self.notes.append(words)

    @property
    def broken(self) -> list[str]:
        """The figures that are outside their bounds, in words."""
        return [f"{one.name} {one.value:g}, must be {one.bound}" for one in self.figures if one.kept is False]

    def verdict(self) -> None:
        """Raises AssertionError naming every bound that was broken."""
        assert not self.broken, "; ".join(self.broken)

    def path(self, directory: Path = RECORDS) -> Path:
        """The file that this record is."""
        return directory / f"{self.row}.{self.broker}.{self.test}.json"

    def write(self, directory: Path = RECORDS) -> None:
        """Put the record into its file, whole or not at all."""
        directory.mkdir(parents=True, exist_ok=True)
        path = self.path(directory)
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        beside.replace(path)


def read_records(directory: Path = RECORDS) -> Iterator[Record]:
    """Every record there is."""
    for path in sorted(directory.glob("F*.json")):
        raw = json.loads(path.read_text(encoding="utf-8"))
        yield Record(**{**raw, "figures": [Figure(**one) for one in raw["figures"]]})


def commit() -> str:
    """The commit that is being tested, with a `+` when the tree has changes; "" without git."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=7", "--dirty=+"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip()


def now() -> str:
    """The date and time of day, UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M")


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._since_s = time.monotonic()

    def read_s(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self._since_s
