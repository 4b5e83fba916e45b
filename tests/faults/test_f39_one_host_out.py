"""F39: a host that is out of quota leaves the work to one that is not."""

from __future__ import annotations

import time

from qctl.demo.judge import most_in_any_window
from tests.faults.rows import row
from tests.faults.scene import LIMIT, WINDOW_S, Scene
from tests.fleet import wait_until

POOR = 20


@row("F39", "two hosts share a queue; the quota of one is a tenth of the other's")
def test_a_host_with_quota_uses_it_all_while_another_has_none(scene: Scene) -> None:
    windows = 2 if scene.thorough else 1
    # Given a host with little quota and one with much, and work for neither of them to end
    scene.judge_api("web-1", "web-2", limits={"web-1": POOR})
    scene.stage("web-1", "web-2", hosts={"web-1": {"quotas": {"api": f"{POOR}/{WINDOW_S:g}s"}}, "web-2": None})
    poor = scene.start("web-1", processes=2)
    scene.enqueue("calls", POOR)
    poor.await_log("calls held")

    # When both are at it
    scene.start("web-2")
    scene.enqueue("calls", (LIMIT + POOR) * windows)

    def used() -> list[int]:
        return [call.at_ns for call in scene.api.calls() if call.host == "web-2"]

    first_ns = wait_until("a call of web-2", used)[0]
    wait_until("all of its threads having called", lambda: len(used()) >= LIMIT / 2)
    scene.steady()
    wait_until("all that it may", lambda: len(used()) >= 0.95 * LIMIT * windows, timeout_s=windows * WINDOW_S + 10)
    time.sleep(1.0)  # whatever it uses of the last window's rest

    # Then the one with quota has used all of its own in each window
    for window in range(windows):
        begin_ns = first_ns + window * WINDOW_S * 1e9
        units = sum(begin_ns <= at_ns < begin_ns + WINDOW_S * 1e9 for at_ns in used())
        scene.record.figure(
            f"share of its quota that the other used in window {window + 1}", units / LIMIT, at_least=0.95
        )
    scene.record.figure("most in any window", most_in_any_window(used(), round(WINDOW_S * 1e9)), at_most=LIMIT)
