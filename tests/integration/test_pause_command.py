"""`qctl pause` and `resume` on a real worker, from outside: the broker's own list, and what handlers have noted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import Vhost
from tests.fleet import Fleet
from tests.integration.worker_harness import await_history, start_consuming

HANDLERS = """
def work(task):
    note("done", task.payload)
"""
CONSUMER = {"handler": {"python": "handlers:work"}, "quota": {}, "concurrency": 2}


@pytest.fixture
def fleet(vhost: Vhost, tmp_path: Path) -> Iterator[Fleet]:
    sections: dict[str, Any] = {
        "quotas": {},
        "consumers": {"timeline": CONSUMER, "mails": CONSUMER},
        "hosts": {"web-1": None},
        "worker": {"python_path": ["."]},
    }
    with Fleet(vhost, tmp_path, HANDLERS, **sections) as found:
        yield found


def qctl(fleet: Fleet, *arguments: str) -> dict[str, Any]:
    """A command with `-o json`; its document."""
    done = fleet.qctl(*arguments, "-o", "json", text=True)
    assert done.stdout, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == document["exit_code"]
    return document


def states(document: dict[str, Any]) -> dict[str, str]:
    return {item["tag"]: item["state"] for item in document["items"]}


def test_given_two_processes_then_exactly_the_consumer_that_is_named_is_off_until_it_is_resumed(fleet: Fleet) -> None:
    # Given a worker of two processes with two consumers
    start_consuming(fleet, "web-1", "timeline", "mails", processes=2)
    both = [f"qctl/web-1/timeline/{index}" for index in (0, 1)]

    # When one consumer is paused
    paused = qctl(fleet, "pause", "web-1/timeline", "--reason", "test")

    # Then each of its tags is proven, the broker has none of them any more, and all of the other
    assert states(paused) == dict.fromkeys(both, "paused")
    assert {item["proof"] for item in paused["items"]} == {"proven"}
    assert all(item["cancelled_at"] for item in paused["items"])
    assert paused["notes"] == []
    assert sorted(fleet.consumer_tags()) == ["qctl/web-1/mails/0", "qctl/web-1/mails/1"]

    # and its tasks stay where they are, while the other's are done
    fleet.enqueue("timeline", ["left"] * 3)
    fleet.enqueue("mails", ["taken"] * 3)
    assert await_history(fleet, "done", 3) == ["taken"] * 3

    # When it is resumed
    resumed = qctl(fleet, "resume", "web-1/timeline")

    # Then both say so, and the tasks are done
    assert states(resumed) == dict.fromkeys(both, "consuming")
    assert await_history(fleet, "done", 6)[3:] == ["left"] * 3

    # When it is paused on the host itself
    local = qctl(fleet, "pause", "web-1/timeline", "--local", "--state-dir", str(fleet.state))

    # Then it is off as well
    assert (local["exit_code"], local["local"], states(local)) == (0, True, dict.fromkeys(both, "paused"))
    assert sorted(fleet.consumer_tags()) == ["qctl/web-1/mails/0", "qctl/web-1/mails/1"]
