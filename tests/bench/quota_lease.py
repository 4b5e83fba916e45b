"""How fast units are taken from memory, and how fast the ledger commits: `python -m tests.bench.quota_lease`."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from qctl.quota import Leases, Ledger, Limit, Policy
from qctl.quota.exchange import Exchange, Want

_HOUR_NS = 3600 * 10**9


def takes_per_second(directory: Path, *, seconds: float = 2.0) -> float:
    """Take and settle one unit, from memory, one thread."""
    with Leases.open(directory, [Policy("api", (Limit(10**9, _HOUR_NS),))]) as leases:
        priced = leases.register("bench", {"api": 1})
        leases.settle(leases.acquire(priced))  # type: ignore[arg-type]
        done, waited, start = 0, 0, time.perf_counter()
        while (passed := time.perf_counter() - start) < seconds:
            for _ in range(1000):
                grant = leases.take(priced)
                if grant is None:
                    waited += 1
                    grant = leases.acquire(priced)  # type: ignore[assignment]
                leases.settle(grant)  # type: ignore[arg-type]
            done += 1000
        print(f"    waited for the ledger {waited} times")
        return done / passed


def exchanges_per_second(directory: Path, *, limits: int = 1, seconds: float = 2.0) -> float:
    """One unit leased and the one before settled, a commit each, with a full history."""
    periods = tuple(Limit(10**9, _HOUR_NS * (i + 1)) for i in range(limits))
    ledger = Ledger.open(directory)
    ledger.configure([Policy("api", periods)])
    ledger.join()
    now_ns = ledger.clock.now_ns()
    history = {now_ns - i * periods[0].bucket_ns: 1 for i in range(1000)}
    ledger.exchange(Exchange(held={}, settled={"api": history}))
    done, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        settled = {"api": {ledger.clock.now_ns(): 1}} if done else {}
        ledger.exchange(Exchange(held={}, settled=settled, wants=(Want("bench", {"api": 1}),)))
        done += 1
    start = time.perf_counter()
    for _ in range(100):
        ledger.readings()
    print(f"    a reading takes {(time.perf_counter() - start) * 10:.2f} ms")
    ledger.leave()
    ledger.close()
    return done / passed


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(f"take+settle a second: {takes_per_second(Path(scratch, 'memory')):,.0f}")
        print(f"exchanges a second, one limit: {exchanges_per_second(Path(scratch, 'one')):,.0f}")
        print(f"exchanges a second, two limits: {exchanges_per_second(Path(scratch, 'two'), limits=2):,.0f}")
