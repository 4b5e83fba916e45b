"""SIGHUP: a good inventory replaces the processes one by one, a bad one changes nothing."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import Vhost
from tests.fleet import Fleet, Worker, wait_until
from tests.integration.test_topology import user

HANDLERS = """
    def old(task):
        time.sleep(0.02)
        note("old", task.payload)
    def new(task):
        time.sleep(0.02)
        note("new", task.payload)
    def slow(task):
        note("started", task.payload)
        time.sleep(1.0)
        note("done", task.payload)
    def newest(task):
        note("newest", task.payload)
"""


def _inventory(handler: str) -> dict[str, Any]:
    return {
        "consumers": {"work": {"handler": {"python": f"handlers:{handler}"}, "quota": {}}},
        "hosts": {"web-1": None},
    }


def _rewrite(fleet: Fleet, **sections: Any) -> None:
    path = fleet.directory / "inventory.yaml"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **sections}), encoding="utf-8")


def _hang_up(worker: Worker) -> None:
    worker.process.send_signal(signal.SIGHUP)


def test_a_good_inventory_replaces_every_process_and_runs_each_task_once(local_vhost: Vhost, tmp_path: Path) -> None:
    # Given two processes at work
    with Fleet(local_vhost, tmp_path, HANDLERS, **_inventory("old")) as fleet:
        worker = fleet.start("web-1", "--processes", "2")
        before = set(worker.pids())
        fleet.enqueue("work", range(600))
        wait_until("tasks run", lambda: len(fleet.history("old")) > 20)

        # When the inventory names another handler and SIGHUP comes
        _rewrite(fleet, **_inventory("new"))
        _hang_up(worker)
        worker.await_log("all processes run with the new inventory")

        # Then both processes are others, the new handler does what comes, and nothing is lost or done twice
        assert not before & set(worker.pids())
        fleet.enqueue("work", range(600, 650))
        wait_until("all done", lambda: len(fleet.history("old")) + len(fleet.history("new")) >= 650)
        assert worker.stop() == 0
        assert sorted(map(int, fleet.history("old") + fleet.history("new"))) == list(range(650))
        assert set(map(int, fleet.history("new"))) >= set(range(600, 650))


def test_with_another_user_the_supervisor_logs_in_as_its_processes_do(local_vhost: Vhost, tmp_path: Path) -> None:
    # Given a worker, and an inventory that names another broker user by now
    with (
        Fleet(local_vhost, tmp_path, HANDLERS, **_inventory("old")) as fleet,
        user(local_vhost, configure=".*") as other,
    ):
        worker = fleet.start("web-1")
        secret = {"username": other["username"], "password": {"value": other["password"]}}
        _rewrite(fleet, broker={**local_vhost.inventory_broker(), **secret})

        # When SIGHUP comes
        _hang_up(worker)
        worker.await_log("all processes run with the new inventory")

        # Then the supervisor is the new user too, and a pause is proven
        worker.await_log(f"logging in as {other['username']}")
        wait_until("a proof", lambda: fleet.qctl("pause", "web-1/work").returncode == 0)
        assert worker.stop() == 0


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"hosts": {}}, "SIGHUP: nothing changes: "),
        ({"surprise": 1}, "unknown key"),
        ({"hosts": {"web-9": None}}, "has no host 'web-1'"),
        (_inventory("missing"), "the old one goes on"),
    ],
)
def test_a_bad_inventory_changes_nothing(
    local_vhost: Vhost, tmp_path: Path, sections: dict[str, Any], words: str
) -> None:
    # Given a worker
    with Fleet(local_vhost, tmp_path, HANDLERS, **_inventory("old")) as fleet:
        worker = fleet.start("web-1")
        good = (tmp_path / "inventory.yaml").read_text(encoding="utf-8")

        # When SIGHUP comes upon an inventory with a mistake
        _rewrite(fleet, **sections)
        _hang_up(worker)
        worker.await_log(words)

        # Then the worker runs its tasks as before
        (tmp_path / "inventory.yaml").write_text(good, encoding="utf-8")
        fleet.enqueue("work", range(5))
        wait_until("tasks run as before", lambda: len(fleet.history("old")) == 5)
        assert worker.stop() == 0
        assert "Traceback" not in worker.log()


def test_another_hangup_while_processes_are_replaced_is_not_forgotten(local_vhost: Vhost, tmp_path: Path) -> None:
    with Fleet(local_vhost, tmp_path, HANDLERS, **_inventory("old")) as fleet:
        worker = fleet.start("web-1", "--processes", "2")
        _rewrite(fleet, **_inventory("new"))
        _hang_up(worker)
        worker.await_log("the inventory is good")

        # When the inventory changes again and SIGHUP comes before all have been replaced
        _rewrite(fleet, **_inventory("newest"))
        _hang_up(worker)

        # Then the last one holds
        wait_until("replaced twice", lambda: worker.log().count("all processes run with the new inventory") == 2)
        fleet.enqueue("work", range(5))
        wait_until("tasks run", lambda: len(fleet.history("newest")) == 5)
        assert worker.stop() == 0


def test_a_process_that_does_not_drain_is_killed_and_replaced_all_the_same(local_vhost: Vhost, tmp_path: Path) -> None:
    # Given a process that is stopped
    with Fleet(local_vhost, tmp_path, HANDLERS, **_inventory("old")) as fleet:
        impatient = "import sys, qctl.worker.supervisor as one; one.KILL_MARGIN_S = 0.5; "
        fleet.command[1:3] = ["-c", impatient + "from qctl.cli.main import main; sys.exit(main())"]
        worker = fleet.start("web-1", "--drain-timeout", "1s")
        (stopped,) = worker.pids()
        os.kill(stopped, signal.SIGSTOP)

        # When SIGHUP comes
        _rewrite(fleet, **_inventory("new"))
        _hang_up(worker)

        # Then it is not waited for longer than its drain may take
        worker.await_log(f"pid={stopped} did not end in time; killing it")
        worker.await_log("all processes run with the new inventory")
        fleet.enqueue("work", range(5))
        wait_until("tasks run", lambda: len(fleet.history("new")) == 5)
        assert worker.stop() == 0


def test_a_hangup_of_the_whole_group_ends_no_process(local_vhost: Vhost, tmp_path: Path) -> None:
    # Given a task that runs
    with Fleet(local_vhost, tmp_path, HANDLERS, **_inventory("slow")) as fleet:
        worker = fleet.start("web-1")
        fleet.enqueue("work", [1])
        wait_until("it runs", lambda: fleet.history("started"))

        # When a terminal that closes tells all of them
        os.killpg(worker.process.pid, signal.SIGHUP)

        # Then it is done, once
        worker.await_log("all processes run with the new inventory")
        wait_until("done", lambda: fleet.history("done"))
        assert worker.stop() == 0
        assert fleet.history("started") == ["1"]
