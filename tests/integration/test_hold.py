"""A host that runs dry cancels just the consumers that need the quota, and takes them up again when it returns."""

from __future__ import annotations

import time
from pathlib import Path

from qctl.demo.judge import most_in_any_window
from tests.brokers import Vhost
from tests.fleet import Fleet, wait_until

HANDLERS = """
    def paid(task):
        note("paid-" + task.host, time.monotonic_ns(), task.payload)
    def free(task):
        note("free-" + task.host, time.monotonic_ns(), task.payload)
"""


def _inventory(limits: dict[str, str]) -> dict[str, object]:
    return {
        "quotas": {"api": "1000000/h"},
        "consumers": {
            "paid": {"handler": {"python": "handlers:paid"}, "quota": {"api": 1}},
            "free": {"handler": {"python": "handlers:free"}, "quota": {}},
        },
        "hosts": {host: {"quotas": {"api": limit}} for host, limit in limits.items()},
    }


def test_a_host_without_quota_is_not_subscribed_holds_no_message_and_leaves_the_rest_to_others(
    vhost: Vhost, tmp_path: Path
) -> None:
    # Given a host that may make 20 calls an hour, with two processes, and 60 tasks
    with Fleet(vhost, tmp_path, HANDLERS, **_inventory({"web-1": "20/h", "web-2": "1000/h"})) as fleet:
        fleet.enqueue("paid", range(60))
        first = fleet.start("web-1", "--processes", "2")

        # When it has spent all of them
        wait_until("web-1 has spent its quota", lambda: len(fleet.history("paid-web-1")) == 20)
        wait_until("no consumer of paid", lambda: not [tag for tag in fleet.consumer_tags() if "/paid/" in tag])

        # Then the broker has the other 40 back, ready for anybody, and the consumer that needs no quota goes on
        wait_until("40 ready, none unacknowledged", lambda: fleet.queues()["paid"] == (40, 0))
        assert sorted(fleet.consumer_tags()) == ["qctl/web-1/free/0", "qctl/web-1/free/1"]
        fleet.enqueue("free", range(5))
        wait_until("free tasks run on web-1", lambda: len(fleet.history("free-web-1")) == 5)

        # And another host takes the rest, each task once
        second = fleet.start("web-2")
        wait_until("web-2 did the rest", lambda: len(fleet.history("paid-web-2")) == 40)
        assert first.stop() == 0
        assert second.stop() == 0
        assert len(fleet.history("paid-web-1")) == 20
        done = [line.split()[1] for host in ("web-1", "web-2") for line in fleet.history(f"paid-{host}")]
        assert sorted(map(int, done)) == list(range(60))


def test_a_held_consumer_with_an_empty_queue_is_not_subscribed_either(local_vhost: Vhost, tmp_path: Path) -> None:
    # Given as many tasks as the quota pays for
    with Fleet(local_vhost, tmp_path, HANDLERS, **_inventory({"web-1": "20/h"})) as fleet:
        fleet.enqueue("paid", range(20))

        # When they are done
        worker = fleet.start("web-1")
        wait_until("all done", lambda: len(fleet.history("paid-web-1")) == 20)

        # Then the consumer is held although no further task asked for it
        worker.await_log("web-1/paid held: quota api")
        wait_until("no consumer of paid", lambda: fleet.consumer_tags() == ["qctl/web-1/free/0"])


def test_a_held_consumer_returns_with_the_quota_and_spends_all_of_it(local_vhost: Vhost, tmp_path: Path) -> None:
    # Given 50 calls in any three seconds, and more tasks than two windows have room for
    with Fleet(local_vhost, tmp_path, HANDLERS, **_inventory({"web-1": "50/3s"})) as fleet:
        fleet.enqueue("paid", range(110))

        # When the host works through them
        start_s = time.monotonic()
        worker = fleet.start("web-1", ready=False)
        wait_until("all done", lambda: len(fleet.history("paid-web-1")) == 110)
        took_s = time.monotonic() - start_s
        assert worker.stop() == 0

        # Then no window has a call too many, and little of any window is wasted
        instants_ns = sorted(int(line.split()[0]) for line in fleet.history("paid-web-1"))
        assert most_in_any_window(instants_ns, 3_000_000_000) == 50
        assert took_s < 15
