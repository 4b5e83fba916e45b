"""How long a costly task waits among a flood of cheap ones: `python -m tests.bench.starvation [--window 20s]`.

One host, two processes, a flood of tasks of one call, and now and then one task of 50 calls from another queue, at a
random moment. Measured is the time from its being in the queue to the start of its handler, by the handler's own
file; it must be within a window. The API that judges says that nobody went over.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from qctl.units import parse_duration
from tests import brokers
from tests.fleet import Fleet, wait_until
from tests.integration.worker_harness import start_consuming, wire
from tests.judge.config import Config
from tests.judge.rule import Kind, Rule
from tests.judge.server import Judge
from tests.judge.verdict import NS_PER_S, over

UNITS_PER_S = 20
COST = 50
TASKS = 5
#: What a start may be later than the window: the grain in which it is kept, the latency, a busy machine.
MARGIN_S = 1.0
HANDLERS = """
    def costly(task):
        note("started", task.payload["task"], time.monotonic_ns())
        for _ in range({cost}):
            task.http.get({url!r}).raise_for_status()
        note("done", task.payload["task"])
"""


def waits_s(broker: brokers.Broker, directory: Path, window_s: float) -> tuple[list[float], int]:
    """How long each costly task waited, and the calls over."""
    rule = Rule(Kind.SLIDING, round(UNITS_PER_S * window_s), round(window_s * NS_PER_S))
    with (
        Judge(Config(rule, latency_ms=(0, 20)), directory) as api,
        brokers.fresh_vhost(broker) as vhost,
        Fleet(
            vhost,
            directory,
            HANDLERS.format(cost=COST, url=api.url),
            quotas={"api": f"{rule.units}/{window_s:g}s"},
            consumers={
                "flood": {"handler": {"http": {"base_url": api.url}}, "quota": {"api": 1}, "concurrency": 8},
                "costly": {"handler": {"python": "handlers:costly"}, "quota": {"api": COST}, "timeout": "60s"},
            },
            hosts={"web-1": None},
        ) as fleet,
        wire(vhost) as out,
    ):
        start_consuming(fleet, "web-1", "flood", "costly", processes=2)
        fleet.enqueue("flood", [{"path": "x"}] * rule.units * (2 * TASKS + 3))
        wait_until("the quota is gone", lambda: len(api.log()) >= rule.units, window_s)
        moments, found = random.Random(3), []
        for number in range(TASKS):
            time.sleep(moments.uniform(0, window_s))
            sent_ns = time.monotonic_ns()
            out.task("costly", {"task": number})
            wait_until("it started", lambda number=number: len(fleet.history("started")) > number, 3 * window_s)
            found.append((int(fleet.history("started")[number].split()[1]) - sent_ns) / NS_PER_S)
            wait_until("it is done", lambda number=number: len(fleet.history("done")) > number, window_s + 60)
        return found, over(api.log(), rule)


def main(arguments: Sequence[str]) -> int:
    """Print each wait; 1 when one was longer than the window."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.starvation")
    parser.add_argument("--window", type=parse_duration, default=20.0, metavar="20s")
    window_s = parser.parse_args(arguments).window
    with tempfile.TemporaryDirectory() as scratch, brokers.throwaway_node(Path(scratch) / "node") as node:
        directory = Path(scratch) / "host"
        directory.mkdir()
        found, beyond = waits_s(brokers.local_broker(node), directory, window_s)
    print(f"cost {COST} among a flood of cost 1, {UNITS_PER_S * window_s:g} units in {window_s:g} s:")
    print("  waited " + ", ".join(f"{one:.1f}" for one in found) + f" s; calls over: {beyond}")
    return int(max(found) > window_s + MARGIN_S or beyond > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
