"""A host keeps to the windows of an API whose clock is wrong and whose limit others spend as well; the API judges."""

from __future__ import annotations

import time
from pathlib import Path

from tests.brokers import Vhost
from tests.fleet import Fleet, wait_until
from tests.integration.worker_harness import start_consuming
from tests.judge.config import Config, Foreign, Spends
from tests.judge.rule import Kind, Rule
from tests.judge.said import Style
from tests.judge.server import Judge
from tests.judge.verdict import NS_PER_S, judge

WINDOW_S = 5
UNITS, OTHERS, WINDOWS = 60, 20, 2


def test_in_fixed_windows_of_a_skewed_clock_what_others_leave_is_used_and_nothing_is_over(
    local_vhost: Vhost, tmp_path: Path
) -> None:
    # Given an API of 60 in windows of 5 s of its own clock, 37 s ahead, whose answers say what remains and until when
    # by that clock; as each window begins somebody else takes 20
    rule = Rule(Kind.FIXED, UNITS, WINDOW_S * NS_PER_S)
    config = Config(rule, latency_ms=(0, 50), skew_s=37.0, style=Style.EPOCH_MS, foreign=Foreign(Spends.BEFORE, OTHERS))
    with Judge(config, tmp_path) as api:
        inventory = {
            "quotas": {"api": {"limit": f"{UNITS}/{WINDOW_S}s", "window": "fixed"}},
            "consumers": {"calls": {"handler": {"http": {"base_url": api.url}}, "quota": {"api": 1}}},
            "hosts": {"web-1": None},
        }
        with Fleet(local_vhost, tmp_path, **inventory) as fleet:
            # When two processes of one host have more to do than that
            fleet.enqueue("calls", [{"path": "x"}] * UNITS * (WINDOWS + 3))
            worker = start_consuming(fleet, "web-1", "calls", processes=2)
            wait_until("a first call", lambda: any(call.own for call in api.log()))
            since_s = time.monotonic()
            wait_until("the windows are over", lambda: time.monotonic() > since_s + (WINDOWS + 1) * WINDOW_S)
            assert worker.stop() == 0
        verdict = judge(api.log(), rule, windows=WINDOWS)

    # Then it went over in none, used most of what was left, and did not run into what others had taken
    assert verdict.over == 0
    assert verdict.foreign == OTHERS * WINDOWS
    assert verdict.used >= 0.9 * (UNITS - OTHERS) * WINDOWS, verdict
    assert max(verdict.refused) <= 1, verdict
