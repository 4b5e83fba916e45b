"""Ten thousand random histories of the ledger in simulated time: `python -m tests.faults.ledger_model [HISTORIES]`.

Each is a seed of `tests.unit.quota.history`, which says what happens in them and how they are judged. They are spread
over the processors; every failure is printed with its seed.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from tests.unit.quota.history import play, simulation

HISTORIES = 10_000
#: Seeds that one process plays between two reports.
BATCH = 100


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of it: how often the ledger was compared with the model, and in words what failed."""

    histories: int
    audits: int
    failures: tuple[str, ...]
    seconds: float


def model(histories: int = HISTORIES) -> Verdict:
    """Play so many histories, on all processors."""
    since_s = time.monotonic()
    batches = [range(first, min(first + BATCH, histories)) for first in range(0, histories, BATCH)]
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        found = list(pool.map(_play_all, batches))
    audits = sum(audits for audits, _ in found)
    return Verdict(
        histories, audits, tuple(failure for _, several in found for failure in several), time.monotonic() - since_s
    )


def _play_all(seeds: Sequence[int]) -> tuple[int, list[str]]:
    logging.disable(logging.CRITICAL)
    audits, failures = 0, []
    with simulation():
        for seed in seeds:
            try:
                audits += play(seed).audits
            except AssertionError as error:
                failures.append(str(error))
    return audits, failures


def main() -> int:
    """Play, and say what failed; 0 when nothing did."""
    verdict = model(int(sys.argv[1]) if len(sys.argv) > 1 else HISTORIES)
    for failure in verdict.failures:
        print(failure)
    print(
        f"{verdict.histories} histories, {verdict.audits} audits, {len(verdict.failures)} failures"
        f" in {verdict.seconds:.0f} s"
    )
    return 1 if verdict.failures else 0


if __name__ == "__main__":
    sys.exit(main())
