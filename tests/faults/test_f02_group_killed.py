"""F02: kill -9 of everything on a host, and a new start."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from qctl.demo.api_process import ApiServer
from qctl.quota import Ledger
from tests.faults.rows import row
from tests.faults.scene import CONCURRENCY, LIMIT, WINDOW_S, Scene
from tests.fleet import wait_until
from tests.integration.worker_harness import group_members

PROCESSES = 2
LOOK_EVERY_S = 0.05


@row("F02", "kill -9 of the process group in the middle of calls, started again at once")
def test_a_ledger_whose_users_were_all_killed_opens_at_once_and_knows_every_call(scene: Scene) -> None:
    # Given a host that spends its quota, and somebody who compares its ledger with the API's log all the time
    kills = 5 if scene.thorough else 2
    fleet = scene.stage()
    scene.enqueue("calls", 60 * (kills + 1), s=0.05)
    worker = scene.start(processes=PROCESSES)
    opened_s = []
    with _compared(scene) as margin:
        for _ in range(kills):
            # When the whole group is killed in the middle of tasks, and a new one started at once
            calls = len(scene.api.calls())
            wait_until("calls", lambda calls=calls: len(scene.api.calls()) >= calls + 30)
            worker.kill()
            wait_until("nobody left", lambda worker=worker: not group_members(worker.process.pid))
            since_s = time.monotonic()
            Ledger.open(fleet.state / "web-1").close()
            opened_s.append(time.monotonic() - since_s)
            worker = scene.start(processes=PROCESSES, consumers=("plain",))
        scene.hurry()
        scene.await_ended()
    scene.may_duplicate = kills * PROCESSES * CONCURRENCY
    scene.steady()

    # Then the ledger opens at once, and never knew of fewer units than the API
    scene.record.figure("kills", kills)
    scene.record.figure("slowest open of the ledger, s", max(opened_s), at_most=1)
    scene.record.figure("comparisons with the API's log", margin.looks, at_least=20 * kills)
    scene.record.figure("least that the ledger had over the API, units", margin.least_units, at_least=0)


@dataclass(slots=True)
class Margin:
    """By how many units the ledger was ahead of the API's log, at the least."""

    looks: int = 0
    least_units: int = LIMIT


@contextmanager
def _compared(scene: Scene) -> Iterator[Margin]:
    margin, ending = Margin(), threading.Event()
    watching = threading.Thread(target=_compare, args=(scene, margin, ending))
    watching.start()
    try:
        yield margin
    finally:
        ending.set()
        watching.join()


def _compare(scene: Scene, margin: Margin, ending: threading.Event) -> None:
    # A reader of its own, since the scene reads the log in another thread.
    api = ApiServer((), directory=scene.api.log_path.parent)
    ledger = Ledger.open(scene.fleet.state / "web-1")
    try:
        while not ending.wait(LOOK_EVERY_S):
            arrived = [call.at_ns for call in api.calls()[-2 * LIMIT :]]  # before the ledger is read
            used = sum(ledger.readings()["api"].used(ledger.clock.now_ns()))
            oldest_ns = time.monotonic_ns() - WINDOW_S * 1e9  # after it: what has left the window may have left both
            margin.least_units = min(margin.least_units, used - sum(at_ns > oldest_ns for at_ns in arrived))
            margin.looks += 1
    finally:
        ledger.close()
