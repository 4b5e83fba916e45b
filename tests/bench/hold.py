"""Do holds slow anybody down? `python -m tests.bench.hold`.

Two hosts share one queue; web-1 runs out of quota at once. Rates are of 50 ms tasks, so that two cores are not the
limit: web-2's rate beside the held web-1 against its rate alone; and on web-1 the rate of a consumer without that
quota, through the hold, against its rate without one.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

from tests import brokers
from tests.fleet import Fleet, wait_until

SECONDS = 6.0
ROUNDS = 3
HANDLERS = """
    def paid(task):
        time.sleep(0.05)
        note("paid-" + task.host, time.time())
    def free(task):
        time.sleep(0.05)
        note("free-" + task.host, time.time())
"""
INVENTORY = {
    "quotas": {"api": "1000000/h"},
    "consumers": {
        "paid": {"handler": {"python": "handlers:paid"}, "quota": {"api": 1}, "concurrency": 8},
        "free": {"handler": {"python": "handlers:free"}, "quota": {}, "concurrency": 8},
    },
    "hosts": {"web-1": {"quotas": {"api": "40/h"}}, "web-2": {"consumers": {"paid": {}}}},
}


def rate(fleet: Fleet, history: str) -> float:
    """Tasks a second, over SECONDS from now."""
    start = time.time()
    time.sleep(SECONDS)
    done = [float(line) for line in fleet.history(history)]
    return sum(start <= at < start + SECONDS for at in done) / SECONDS


def one_round(broker: brokers.Broker) -> tuple[float, float, float, float]:
    """(web-2 alone, web-2 beside held web-1, free on web-1 before, free on web-1 through the hold)."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        brokers.fresh_vhost(broker) as vhost,
        Fleet(vhost, Path(scratch), HANDLERS, **INVENTORY) as fleet,
    ):
        fleet.enqueue("free", range(8000))
        fleet.enqueue("paid", range(8000))
        second = fleet.start("web-2")
        time.sleep(1.5)
        alone = rate(fleet, "paid-web-2")
        second.stop()
        first = fleet.start("web-1", "--only", "free")
        time.sleep(1.5)
        before = rate(fleet, "free-web-1")
        first.stop()
        first, second = fleet.start("web-1"), fleet.start("web-2")
        first.await_log("web-1/paid held")
        wait_until("no consumer of web-1 for paid", lambda: "qctl/web-1/paid/0" not in fleet.consumer_tags())
        time.sleep(1.5)
        start = time.time()
        time.sleep(SECONDS)
        beside, through = (
            sum(start <= float(line) < start + SECONDS for line in fleet.history(name)) / SECONDS
            for name in ("paid-web-2", "free-web-1")
        )
        spent = len(fleet.history("paid-web-1"))
        assert spent == 40, spent
        assert "qctl/web-1/paid/0" not in fleet.consumer_tags()
        return alone, beside, before, through


def main() -> None:
    """Print each round and the medians of the ratios."""
    with tempfile.TemporaryDirectory() as scratch, brokers.throwaway_node(Path(scratch)) as node:
        rounds = []
        for _ in range(ROUNDS):
            alone, beside, before, through = one_round(brokers.local_broker(node))
            rounds.append((beside / alone, through / before))
            print(f"web-2 alone {alone:.1f}/s, beside a held web-1 {beside:.1f}/s: {beside / alone:.3f}")
            print(f"web-1, no quota: before {before:.1f}/s, through the hold {through:.1f}/s: {through / before:.3f}")
        print(f"median: other host {median(r[0] for r in rounds):.3f}, same host {median(r[1] for r in rounds):.3f}")


if __name__ == "__main__":
    main()
