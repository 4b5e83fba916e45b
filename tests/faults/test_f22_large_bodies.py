"""F22: bodies far beyond the cap, and large ones below it."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

from tests.faults.rows import row
from tests.faults.scene import Scene
from tests.fleet import wait_until
from tests.integration.worker_harness import wire

MIB = 1 << 20
MAX_BODY_MIB = 16
CONCURRENCY = 2
#: Bodies over the cap, in MiB, and how many of each.
OVER = {MAX_BODY_MIB + 1: 4, 100: 3}
#: Bodies up to the cap.
UNDER = {1: 12, MAX_BODY_MIB - 1: 6}

HANDLERS = """
    def keeps(task: Task) -> None:
        name = task.payload["task"]
        mark("started", name)
        mark("done", name)
"""


@row("F22", "bodies of 1, 16 and 100 MiB, max_body 16 MiB", timeout_s=240)
def test_bodies_beyond_the_cap_are_dead_unparsed_and_memory_is_bounded(scene: Scene) -> None:
    # Given a worker that has done something small
    large = {"handler": {"python": "handlers:keeps"}, "quota": {"api": 0}, "concurrency": CONCURRENCY}
    scene.stage(consumers={"large": large}, handlers=HANDLERS, worker={"max_body": f"{MAX_BODY_MIB}MiB"})
    worker = scene.start(consumers=("large",))
    (pid,) = worker.pids()
    with wire(scene.vhost) as own:
        for number in range(20):
            _send(scene, own, f"small-{number}", 0)
        scene.await_count("done", 20)
        base = _resident_bytes(pid)
        peak = _Peak(pid)

        # When large ones come, those beyond the cap among them
        dead = [_send(scene, own, f"over-{size}-{n}", size) for size, count in OVER.items() for n in range(count)]
        done = [_send(scene, own, f"under-{size}-{n}", size) for size, count in UNDER.items() for n in range(count)]
        wait_until("all of them", lambda: scene.count("done") == 20 + len(done), 120)
        wait_until("the dead ones", lambda: own.depth("large.dead") == len(dead), 120)
        most = peak.stop()

        # Then those are dead unparsed, and the others done
        for _ in dead:
            letter = own.take("large.dead")
            assert letter.headers["qctl-reason"] == "too large"
            scene.history.note("dead", [json.loads(letter.body[:100].split(b"}")[0] + b"}")["task"]])
        scene.record.figure("too large, dead", len(dead))
        scene.record.figure("large, done", len(done))
    # and memory was bounded by what may be in hand of the largest, and the connection never went
    grown = (most - base) / MIB
    scene.record.figure("memory beyond the base, MiB", grown, at_most=4 * CONCURRENCY * max(OVER))
    lost = worker.log().count("connection lost") + worker.log().count("missed heartbeats")
    scene.record.figure("connections lost", lost, equals=0)
    assert worker.pids() == [pid]


def _send(scene: Scene, own: object, name: str, size_mib: int) -> str:
    """A task whose body has this size: its name, and blanks."""
    scene.history.note("attempted", [name])
    if not name.startswith("over"):  # those are taken out of the dead letters, and noted there
        scene.history.note("confirmed", [name])
    body = json.dumps({"task": name}).encode()
    own.send("large", body.ljust(size_mib * MIB), content_type="application/json")  # type: ignore[attr-defined]
    return name


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


class _Peak:
    """The most memory that a process has, watched until told to stop."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._most = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self._most = max(self._most, _resident_bytes(self._pid))

    def stop(self) -> int:
        """The most there was, in bytes."""
        self._over.set()
        self._thread.join()
        return self._most
