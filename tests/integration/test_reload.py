"""SIGHUP: a good inventory replaces the processes one by one, a bad one changes nothing."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import Vhost
from tests.fleet import Fleet, Worker, wait_until

HANDLERS = """
    def old(task):
        time.sleep(0.02)
        note("old", task.payload)
    def new(task):
        time.sleep(0.02)
        note("new", task.payload)
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
