"""`status`, `why`, `quota` and `events` on a real worker: what they say is what is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import Vhost
from tests.fleet import Fleet, wait_until

HANDLER = """
def call(task):
    task.spend(1)
    note("done", task.payload)
"""


@pytest.fixture
def fleet(local_vhost: Vhost, tmp_path: Path) -> Iterator[Fleet]:
    """Two hosts with three calls an hour."""
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    with Fleet(
        local_vhost,
        tmp_path,
        HANDLER,
        worker={"python_path": ["."]},
        quotas={"api": "3/h"},
        consumers={"calls": {"handler": {"python": "handlers:call"}, "quota": {"api": 1}}},
        hosts={"web-1": {}, "web-2": {}},
    ) as made:
        made.environment.update(environment)
        yield made


def ask(fleet: Fleet, *arguments: str, code: int = 0) -> Any:
    """A command's JSON document."""
    done = fleet.qctl(*arguments, "-o", "json", text=True)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def test_a_spent_quota_is_seen_explained_raised_and_remembered(fleet: Fleet) -> None:
    # given a host that has made its three calls and has two tasks left
    worker = fleet.start("web-1")
    fleet.enqueue("calls", range(5))
    worker.await_log("web-1/calls held")

    # then it is seen
    status = ask(fleet, "status")
    [web_1, web_2] = status["hosts"]
    assert (web_1["state"], web_1["source"], web_1["processes_heard"]) == ("held", "live", 1)
    assert web_1["age_s"] < 3
    assert (web_2["state"], web_2["age_s"]) == ("down", None)
    assert (status["quotas"][0]["used_units"], status["quotas"][0]["limit_units"]) == (3, 3)
    [queue] = [item for item in status["queues"] if item["queue"] == "calls"]
    assert queue["ready"] == 2

    # and explained
    sentences = [item["sentence"] for item in ask(fleet, "why", "web-1/calls")["items"]]
    assert "not paused" in sentences
    assert any(one.startswith("quota api: 3/3 used, first units return at ") for one in sentences)
    assert any("web-2 is down" in one for one in sentences)

    # when its limit is raised
    done = ask(fleet, "quota", "set", "web-1/api", "50/h", "--yes", "--reason", "they allow more")

    # then its process has proven it, and what was left is done
    assert [(item["proof"], item["limits"]) for item in done["items"]] == [("proven", ["50/h"])]
    wait_until("all five are done", lambda: len(fleet.history("done")) == 5)

    # and it is known who did it and why
    row = next(item for item in ask(fleet, "quota", "ls", "web-1")["items"] if item["quota"] == "api")
    assert (row["limits"], row["inventory_limits"], row["override"]["by"], row["override"]["reason"]) == (
        ["50/h"],
        ["3/h"],
        fleet.vhost.username,
        "they allow more",
    )
    [event] = ask(fleet, "events")["items"]
    assert (event["verb"], event["target"], event["limits"], event["ignored"]) == (
        "quota.set",
        "web-1/api",
        ["50/h"],
        None,
    )

    # when it ends, then it is down with its cause, and what it had spent is told with its age
    assert worker.stop() == 0
    status = ask(fleet, "status", "web-1")
    assert (status["hosts"][0]["state"], status["hosts"][0]["why"]) == ("down", "its worker has ended")
    assert status["quotas"][0]["limits"] == ["50/h"]


def test_a_follow_survives_the_broker_and_tells_each_event_once(fleet: Fleet) -> None:
    # given one event, and somebody who follows
    set_to = ("quota", "set", "web-1/api", "--yes")
    ask(fleet, *set_to, "4/h")
    out, err = fleet.directory / "out", fleet.directory / "err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        follower = subprocess.Popen(
            [*fleet.command, "events", "--follow", "-o", "jsonl"], env=fleet.environment, stdout=stdout, stderr=stderr
        )
    try:
        wait_until("the first event", lambda: b"4/h" in out.read_bytes())

        # when all connections are closed, and something happens afterwards
        fleet.vhost.ctl("close_all_connections", "closed by a test")
        wait_until("the follower is back", lambda: b"is back" in err.read_bytes())
        ask(fleet, *set_to, "5/h")

        # then it comes, and the first one no second time
        wait_until("the second event", lambda: b"5/h" in out.read_bytes())
        assert [json.loads(line)["limits"] for line in out.read_text().splitlines()] == [["4/h"], ["5/h"]]
        assert "CONNECTION_FORCED" in err.read_text()

        # and Ctrl-C ends it without a word
        os.kill(follower.pid, signal.SIGINT)
        assert follower.wait(20) == 130
        assert "interrupted" not in err.read_text()
    finally:
        follower.kill()
        follower.wait()
