"""What fleets of 2, 10 and 500 hosts do with their tasks, in simulated time: `python -m tests.bench.simulate`.

Every other host may make 20,000 calls an hour, the rest 100,000; a task is one call and takes 50 ms. The same policy
code as in the worker decides who is paid and who is held.
"""

from __future__ import annotations

import time
from collections import Counter

from qctl.ops.when import span
from qctl.quota.forecast import Crew, Forecast, Taker, Waiting
from qctl.quota.page import History, Stock
from qctl.quota.policy import NS_PER_S, Limit, Policy, Window, enforced
from qctl.quota.simulate import simulate

HOUR_NS = 3_600 * NS_PER_S
SMALL, LARGE = 20_000, 100_000
TASKS = 120_000
#: A worker holds about so much of a paced quota as is paid for within this.
PAID_MS = 500
HOUR_MS = 3_600_000
#: At once, of the large hosts, and twice as many as of the small ones. A worker holds no more of a paced quota than is
#: paid for within half a second.
SLOTS = {Window.SLIDING: 16, Window.PACED: 8}
UNTIL_NS = 366 * 24 * HOUR_NS


def crew(name: str, units: int, window: Window) -> Crew:
    """A host."""
    policy = Policy("api", (Limit(units, HOUR_NS),), window, burst_units=4)
    stock = Stock("api", tuple(History(limit) for limit in enforced(policy)))
    slots = 8 if window is Window.SLIDING else max(2, units * PAID_MS // HOUR_MS)
    return Crew(name, (Taker("calls", {"calls": 0}, {"api": 1}, slots, NS_PER_S // 20, prefetch=slots),), (stock,))


def fleet(hosts: int, tasks: int, window: Window) -> tuple[Forecast, float]:
    """What becomes of so many tasks, and how long it took to compute."""
    crews = [crew(f"web-{n}", LARGE if n % 2 else SMALL, window) for n in range(hosts)]
    began_s = time.perf_counter()
    found = simulate(crews, [Waiting("calls", tasks)], until_ns=UNTIL_NS)
    return found, time.perf_counter() - began_s


def show(hosts: int, tasks: int, window: Window) -> None:
    """A row."""
    found, took_s = fleet(hosts, tasks, window)
    calls = Counter(one.hour_units for one in found.quotas)
    shares = ", ".join(f"{number} x {units:,}" for units, number in sorted(calls.items())[:4])
    more = f" and {len(calls) - 4} more" if len(calls) > 4 else ""
    last_s = max(one.last_ns or 0 for one in found.takers) / NS_PER_S
    empty = found.queues[0].empty_ns
    print(
        f"{window:8} {hosts:5} {tasks:12,} {span(empty / NS_PER_S) if empty is not None else 'never':>10}"
        f" {last_s:12,.1f} {took_s:7.2f} {found.events:9,}  {shares}{more}"
    )


def main() -> None:
    """Print the table."""
    print(
        f"{'window':8} {'hosts':>5} {'tasks':>12} {'empty in':>10} {'last call s':>12} {'took s':>7} {'events':>9}"
        "  hosts x calls in the first hour"
    )
    for window in (Window.SLIDING, Window.PACED):
        for hosts in (2, 10, 500):
            show(hosts, TASKS, window)
            show(hosts, TASKS * hosts // 2, window)
            show(hosts, 3 * TASKS * hosts // 2, window)


if __name__ == "__main__":
    main()
