"""Tasks that end the process they run in: isolated after a few processes, dead after a few more, innocents unharmed."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.brokers import Vhost
from tests.fleet import Fleet, wait_until
from tests.integration.worker_harness import alive, await_history, children, spent, start_consuming, wire

HANDLERS = """
    import signal

    def work(task):
        note("work", task.payload, os.getpid(), os.getppid())
        match task.payload:
            case "exits":
                os._exit(3)
            case "hangs":
                time.sleep(600)
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "pays":
                task.spend(2)
            case "waits":
                while not os.path.exists(GATE):
                    time.sleep(0.02)
        note("done", task.payload, os.getpid())

    async def coroutine(task):
        note("done", task.payload, os.getpid())
"""
RETRY = {"attempts": 2, "delays": ["1s"]}
WORK = {"handler": {"python": "handlers:work"}, "quota": {"api": 1}, "timeout": "1s", "concurrency": 4, "retry": RETRY}
#: What makes a task a suspect at once, to be run alone.
SUSPECT = {"qctl-crashes": 1}


def fleet_on(vhost: Vhost, directory: Path, **changes: object) -> Fleet:
    handlers = f"    GATE = {str(directory / 'gate')!r}\n" + HANDLERS
    consumers = {"work": {**WORK, **changes}, "coroutine": {**WORK, "handler": {"python": "handlers:coroutine"}}}
    return Fleet(vhost, directory, handlers, quotas={"api": "1000/h"}, consumers=consumers, hosts={"web-1": None})


def test_given_a_task_that_ends_its_process_then_three_processes_later_it_is_isolated_and_then_dead(
    local_vhost: Vhost, tmp_path: Path
) -> None:
    # Given innocents beside a task that kills whatever runs it
    innocents = [f"innocent-{number}" for number in range(15)]
    with fleet_on(local_vhost, tmp_path, concurrency=16) as fleet, wire(local_vhost) as connected:
        worker = start_consuming(fleet, "web-1", "work")

        # When they run together
        for payload in ["killed", *innocents]:
            connected.task("work", payload)

        # Then the poison is dead, with the count and the way it ended
        dead = connected.take("work.dead", 90)
        assert dead.body == b'"killed"'
        assert dead.headers["qctl-reason"] == "poison"
        assert dead.headers["qctl-crashes"] == 3
        assert dead.headers["qctl-error"] == "the process that ran it alone was killed by SIGKILL, 3 of 3 times"
        assert dead.headers.get("qctl-attempt", 1) == 1
        # and the innocents are done, none of them dead
        wait_until("all are done", lambda: {row.split()[1] for row in _rows(fleet, "done")} == set(innocents))
        assert connected.depth("work.dead") == 0
        # and it cost three worker processes, whose parent is the supervisor, which lives
        lost = [row for row in _rows(fleet, "work") if row.split()[1] == "killed"]
        assert sum(row.split()[3] == str(worker.process.pid) for row in lost) == 3
        assert worker.stop() == 0


def _rows(fleet: Fleet, name: str) -> list[str]:
    return [f"- {line}" for line in fleet.history(name)]


@pytest.mark.parametrize(
    ("payload", "how"),
    [("exits", "ended with 3"), ("hangs", "did not end in time")],
)
def test_given_a_suspect_then_it_ends_a_process_of_its_own_and_its_neighbours_never_notice(
    local_vhost: Vhost, tmp_path: Path, payload: str, how: str
) -> None:
    with fleet_on(local_vhost, tmp_path) as fleet, wire(local_vhost) as connected:
        worker = start_consuming(fleet, "web-1", "work")
        (pid,) = worker.pids()

        # When it runs for the last time
        connected.task("work", payload, headers={"qctl-crashes": 2, "qctl-attempt": 2})
        await_history(fleet, "work", 1)
        connected.task("work", "neighbour")

        # Then the neighbour is done meanwhile, in the process that was there before
        wait_until("the neighbour is done", lambda: f"neighbour {pid}" in fleet.history("done"))
        # and the suspect is dead, its attempts untouched
        dead = connected.take("work.dead")
        assert (dead.headers["qctl-reason"], dead.headers["qctl-attempt"]) == ("poison", 2)
        assert how in dead.headers["qctl-error"]
        assert worker.pids() == [pid]
        assert worker.stop() == 0
        # and the unit that it may have spent counts, with what its process had leased: 2 % of the limit
        assert 2 <= spent(fleet, "web-1")["api"] <= 2 + 20


def test_given_innocent_suspects_then_they_share_one_process_pay_from_the_ledger_and_end_as_anywhere_else(
    local_vhost: Vhost, tmp_path: Path
) -> None:
    with fleet_on(local_vhost, tmp_path) as fleet, wire(local_vhost) as connected:
        worker = start_consuming(fleet, "web-1", "work", "coroutine")
        (pid,) = worker.pids()

        # When tasks come that were there when a process died
        for payload in ("pays", "plain"):
            connected.task("work", payload, headers=SUSPECT)
        connected.task("coroutine", "async", headers=SUSPECT)
        connected.send("work", b"{", content_type="application/json", headers=SUSPECT)
        connected.task("work", "x", headers={"qctl-crashes": "many"})
        rows = await_history(fleet, "done", 3)

        # Then all ran in one process, which is no worker process
        ran_in = {row.split()[1] for row in rows}
        assert len(ran_in) == 1
        assert str(pid) not in ran_in
        # and what is malformed is dead, as anywhere else
        reasons = Counter(connected.take("work.dead").headers["qctl-reason"] for _ in range(2))
        assert reasons == {"malformed": 2}
        # and when there are no more suspects, that process ends by itself
        wait_until("it has ended", lambda: not children(pid))
        assert worker.stop() == 0
        # and all is paid: 2 spent, and the declared unit of the three others that were admitted
        assert spent(fleet, "web-1")["api"] == 2 + 3


def test_given_a_suspect_under_way_then_a_drain_waits_for_it_and_gives_back_who_waits(
    local_vhost: Vhost, tmp_path: Path
) -> None:
    with fleet_on(local_vhost, tmp_path, timeout="30s") as fleet, wire(local_vhost) as connected:
        worker = start_consuming(fleet, "web-1", "work")
        for payload in ("waits", "next"):
            connected.task("work", payload, headers=SUSPECT)
        await_history(fleet, "work", 1)

        # When the worker is told to end
        worker.process.send_signal(signal.SIGTERM)
        worker.await_log("draining")
        (tmp_path / "gate").touch()

        # Then the one that ran is done and the other one is back, unharmed
        assert worker.process.wait(20) == 0
        assert [row.split()[0] for row in fleet.history("done")] == ["waits"]
        assert connected.take("work").headers["qctl-crashes"] == 1


def test_given_a_worker_process_that_is_killed_then_the_suspect_in_its_child_dies_with_it(
    local_vhost: Vhost, tmp_path: Path
) -> None:
    with fleet_on(local_vhost, tmp_path, timeout="30s") as fleet, wire(local_vhost) as connected:
        worker = start_consuming(fleet, "web-1", "work")
        connected.task("work", "waits", headers=SUSPECT)
        row = await_history(fleet, "work", 1)[0]
        (pid,) = worker.pids()

        os.kill(pid, signal.SIGKILL)

        wait_until("its child is gone too", lambda: not alive(int(row.split()[1])))
        worker.kill()
