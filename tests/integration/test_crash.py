"""kill -9 at the edge of the quota: the ledger remembers what the dead had out. Judged by the API's own log."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from qctl.demo.api_process import ApiServer
from qctl.demo.judge import GRANTED, REFUSED, Upstream, most_in_any_window
from tests.brokers import Vhost
from tests.fleet import Fleet, wait_until

LIMIT, WINDOW_S = 80, 4.0
PROCESSES, CONCURRENCY = 2, 4
KILLS = 3
TASKS = 280
#: What the dead had leased is gone for a while, so the last tenth may not be reached before the next kill.
EDGE = 0.8


def test_killing_every_process_at_the_edge_of_the_quota_overspends_nothing_and_loses_nothing(
    local_vhost: Vhost, tmp_path: Path
) -> None:
    # Given a host with two processes and an API that judges
    upstream = Upstream("web-1", LIMIT, WINDOW_S)
    with ApiServer((upstream,), directory=tmp_path, latency_ms=10) as api:
        inventory = {
            "quotas": {"api": f"{LIMIT}/{WINDOW_S:g}s"},
            "consumers": {
                "calls": {
                    "handler": {"http": {"base_url": api.url("web-1")}},
                    "quota": {"api": 1},
                    "concurrency": CONCURRENCY,
                }
            },
            "hosts": {"web-1": None},
        }
        with Fleet(local_vhost, tmp_path, **inventory) as fleet:
            fleet.enqueue("calls", ({"path": f"task/{n}"} for n in range(TASKS)))

            # When its whole process group is killed just before the quota is gone, again and again, and started at once
            for _ in range(KILLS):
                worker = fleet.start("web-1", "--processes", str(PROCESSES), ready=False)
                wait_until("calls near the limit", lambda: _near_edge(api))
                worker.kill()
            last = fleet.start("web-1", "--processes", str(PROCESSES), ready=False)
            wait_until("every task answered", lambda: len(_answered(api)) == TASKS, timeout_s=80)
            assert last.stop() == 0

        # Then no window has a call too many, no task is lost, and a kill repeats at most what was in flight
        calls = api.calls()
        most = most_in_any_window([call.at_ns for call in calls], upstream.window_ns)
        twice = sum(_answered(api).values()) - TASKS
        lost = TASKS - len(_answered(api))
        print(f"most in any window {most} of {LIMIT}, lost {lost}, done twice {twice}, kills {KILLS}")
        assert most <= LIMIT
        assert not [call for call in calls if call.status == REFUSED]
        assert twice <= KILLS * PROCESSES * CONCURRENCY


def _near_edge(api: ApiServer) -> bool:
    calls = api.calls()
    now_ns = time.monotonic_ns()  # the API's clock: one machine
    return sum(call.at_ns > now_ns - WINDOW_S * 1e9 for call in calls[-LIMIT:]) >= EDGE * LIMIT


def _answered(api: ApiServer) -> Counter[str]:
    return Counter(call.path for call in api.calls() if call.status == GRANTED)
