"""Ten thousand random histories of the ledger in simulated time: `python -m tests.faults.ledger_model [HISTORIES]`.

Each is a seed of `tests.unit.quota.history`, which says what happens in them and how they are judged. They are spread
over the processors. The first that fails ends it, and is named with its seed.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

from tests.unit.quota.history import play, simulation

HISTORIES = 10_000
#: Seeds that one process plays between two reports.
BATCH = 50
#: Histories between two lines of progress.
REPORTED = 1_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of it: histories played, how often the ledger was compared with the model, in words what failed, how
    long it took, and how long the processors were busy with it."""

    histories: int
    audits: int
    failures: tuple[str, ...]
    seconds: float
    processor_seconds: float


def model(histories: int = HISTORIES, *, tell: Callable[[str], None] = lambda _: None) -> Verdict:
    """Play so many histories, on all processors, or fewer if one fails. `tell` is given a line of progress at times."""
    since_s = time.monotonic()
    played = audits = 0
    busy_s = 0.0
    failures: list[str] = []
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        batches = [
            pool.submit(_play_all, range(first, min(first + BATCH, histories))) for first in range(0, histories, BATCH)
        ]
        for batch in as_completed(batches):
            found = batch.result()
            before, played = played, played + found.histories
            audits += found.audits
            busy_s += found.processor_seconds
            failures += found.failures
            if failures:
                pool.shutdown(cancel_futures=True)
                break
            if before // REPORTED != played // REPORTED:
                tell(f"{played} histories in {time.monotonic() - since_s:.0f} s, {busy_s:.0f} s of processor")
    return Verdict(played, audits, tuple(failures), time.monotonic() - since_s, busy_s)


def _play_all(seeds: Sequence[int]) -> Verdict:
    logging.disable(logging.CRITICAL)
    since_s, since_busy_s = time.monotonic(), time.process_time()
    played = audits = 0
    failures: list[str] = []
    with simulation():
        for seed in seeds:
            played += 1
            try:
                audits += play(seed).audits
            except AssertionError as error:
                failures.append(str(error))
                break
    return Verdict(played, audits, tuple(failures), time.monotonic() - since_s, time.process_time() - since_busy_s)


def main() -> int:
    """Play, and say what failed; 0 when nothing did."""
    verdict = model(int(sys.argv[1]) if len(sys.argv) > 1 else HISTORIES, tell=lambda line: print(line, flush=True))
    for failure in verdict.failures:
        print(failure)
    print(
        f"{verdict.histories} histories, {verdict.audits} audits, {len(verdict.failures)} failures"
        f" in {verdict.seconds:.0f} s, {verdict.processor_seconds:.0f} s of processor"
    )
    return 1 if verdict.failures else 0


if __name__ == "__main__":
    sys.exit(main())
