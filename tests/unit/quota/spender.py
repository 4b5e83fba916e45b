"""A process that spends: `python spender.py DIRECTORY LOG UNITS PERIOD_NS THREADS FOR_S`.

For each unit it appends a line to LOG, with the boot-time instant, after it reserved and before it settles it: as an
upstream would count the call. Without a LOG ("-") it says "ready", waits for a line, spends until it is held, in tasks
of 1 to 3 units and then of 1, and prints how many units that were. With "whale" for LOG it says "ready", waits for a
line, and does THREADS tasks, one after the other, that cost four fifths of the limit; it prints how long each had to
wait, in s.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from pathlib import Path

from qctl.quota import Cause, Hold, Leases, Limit, Policy, Priced


def spend_until_held(leases: Leases) -> int:
    total = 0
    for costs in ((1, 2, 3), (1,)):
        priced = [leases.register(f"costs-{cost}", {"api": cost}) for cost in costs]
        while True:
            choice = random.choice(priced)
            grant = leases.take(choice) or leases.acquire(choice)
            if isinstance(grant, Hold) and grant.cause is Cause.LEDGER:
                # The disk takes its time; the quota is not gone.
                time.sleep(0.05)
                continue
            if isinstance(grant, Hold):
                break
            # A task that leaves the interpreter to other threads for a moment, as a call does.
            time.sleep(0)
            units = sum(choice.cost.values())
            # Every third task needs less than it reserved.
            used = units - 1 if units == 3 else units
            leases.settle(grant, {"api": used})
            total += used
        for it in priced:
            leases.withdraw(it.consumer)
    return total


def spend_and_log(leases: Leases, log: int, end_s: float) -> None:
    priced = leases.register("timeline", {"api": 1})
    while time.monotonic() < end_s:
        grant = leases.take(priced) or leases.acquire(priced)
        if isinstance(grant, Hold):
            time.sleep(0.02)
            continue
        now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        os.write(log, f"{now_ns}\n".encode())
        time.sleep(random.uniform(0, 0.02))
        leases.settle(grant)


def wait_for_all(leases: Leases, priced: Priced) -> float:
    since_s = time.monotonic()
    while isinstance(grant := leases.acquire(priced), Hold):
        time.sleep(0.002)
    waited_s = time.monotonic() - since_s
    leases.settle(grant)
    return waited_s


def main() -> None:
    directory, log, units, period_ns, threads, for_s = sys.argv[1:]
    limit = Limit(int(units), int(period_ns))
    end_s = time.monotonic() + float(for_s)
    with Leases.open(Path(directory), [Policy("api", (limit,))]) as leases:
        if log == "whale":
            print("ready", flush=True)
            sys.stdin.readline()
            whale = leases.register("whale", {"api": limit.units * 4 // 5})
            print(*(wait_for_all(leases, whale) for _ in range(int(threads))))
            return
        if log == "-":
            print("ready", flush=True)
            sys.stdin.readline()
            print(spend_until_held(leases))
            return
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        workers = [
            threading.Thread(target=spend_and_log, args=(leases, descriptor, end_s)) for _ in range(int(threads))
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()


if __name__ == "__main__":
    main()
