"""The retry ladder: as often as it may, when it should, with everything the producer said, and never lost."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pika
import pytest

from tests.brokers import Broker, Vhost, fresh_vhost
from tests.faults.proxy import Proxy, Way
from tests.fleet import Fleet, Worker, wait_until
from tests.integration.worker_harness import Wire, await_consuming, records, wire

HANDLERS = """
    import json, pathlib
    from qctl import Retry, RateLimited

    def ran(task):
        note("runs", json.dumps({"id": task.id, "attempt": task.attempt, "at_s": time.time()}))

    def flaky(task):
        ran(task)
        if task.attempt < 5:
            raise ValueError(f"not yet, {task.attempt}")

    def hopeless(task):
        ran(task)
        raise LookupError("no such user")

    def asks(task):
        ran(task)
        if task.attempt == 1:
            raise Retry(task.payload["delay"], "asked for it")

    def waits(task):
        ran(task)
        while not pathlib.Path(GATE).exists():
            time.sleep(0.01)
        if task.attempt == 1:
            raise ValueError("once")
        note("done", task.id)
"""
#: A retry may come this much later than its rung.
LATE_S = 2.0


@dataclass(frozen=True, slots=True)
class Site:
    fleet: Fleet
    worker: Worker
    wire: Wire

    def runs(self, identity: str) -> list[dict[str, Any]]:
        return [run for run in records(self.fleet, "runs") if run["id"] == identity]


def inventory(*names: str, **retry: Any) -> dict[str, Any]:
    return {name: {"handler": {"python": f"handlers:{name}"}, "quota": {}, "retry": retry} for name in names}


def write_handlers(directory: Path) -> str:
    return f"    GATE = {str(directory / 'gate')!r}\n" + HANDLERS


@pytest.fixture(scope="module")
def site(local_broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One worker."""
    with building(local_broker, tmp_path_factory.mktemp("retry")) as found:
        yield found


@pytest.fixture(scope="module")
def each_site(broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One worker on each broker, for what a broker has a part in."""
    with building(broker, tmp_path_factory.mktemp("retry")) as found:
        yield found


@contextmanager
def building(broker: Broker, directory: Path) -> Iterator[Site]:
    """A worker on a broker."""
    consumers = {
        **inventory("flaky", attempts=5, delays=["1s", "2s"]),
        **inventory("hopeless", attempts=3, delays=["1s"]),
        **inventory("asks", attempts=2, delays=["1500ms"]),
    }
    with (
        fresh_vhost(broker) as vhost,
        Fleet(vhost, directory, write_handlers(directory), consumers=consumers, hosts={"web-1": None}) as fleet,
        wire(vhost) as connected,
    ):
        worker = fleet.start("web-1")
        await_consuming(worker, *consumers)
        yield Site(fleet, worker, connected)


def gaps_s(runs: list[dict[str, Any]]) -> list[float]:
    return [after["at_s"] - before["at_s"] for before, after in pairwise(runs)]


def test_given_a_handler_that_fails_four_times_then_each_task_runs_five_times_with_its_delays(site: Site) -> None:
    names = [f"flaky-{number}" for number in range(10)]
    for name in names:
        site.wire.task("flaky", {}, message_id=name)

    wait_until("every fifth run", lambda: all(len(site.runs(name)) == 5 for name in names))

    for name in names:
        runs = site.runs(name)
        assert [run["attempt"] for run in runs] == [1, 2, 3, 4, 5]
        for gap_s, delay_s in zip(gaps_s(runs), (1, 2, 2, 2), strict=True):
            assert delay_s <= gap_s <= delay_s + LATE_S
    assert site.wire.look("flaky") is None
    assert site.wire.look("flaky.dead") is None


def test_given_a_handler_that_always_fails_then_the_dead_letter_tells_the_whole_story(each_site: Site) -> None:
    sent_s = time.time()
    each_site.wire.task("hopeless", {"user": 17}, message_id="hopeless-1")

    dead = each_site.wire.take("hopeless.dead")

    assert [run["attempt"] for run in each_site.runs("hopeless-1")] == [1, 2, 3]
    assert dead.headers["qctl-attempt"] == 3
    assert dead.headers["qctl-error"] == "LookupError: no such user"
    assert dead.headers["qctl-reason"] == "attempts"
    assert dead.headers["qctl-died-on"] == "web-1"
    assert sent_s - 1 <= instant(dead.headers["qctl-first-seen"]) <= sent_s + 1.5
    assert sent_s + 2 <= instant(dead.headers["qctl-died-at"]) <= time.time() + 1
    assert "qctl-delay" not in dead.headers
    assert (dead.body, dead.properties.message_id) == (b'{"user": 17}', "hopeless-1")
    assert dead.properties.delivery_mode == 2


def instant(text: str) -> float:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(("asked", "rung_s"), [(0, 1.0), ("1s", 1.0), (1.1, 1.5), ("1800ms", 2.0)])
def test_given_a_retry_that_names_its_delay_then_it_is_rounded_up_to_a_rung(
    site: Site, asked: float | str, rung_s: float
) -> None:
    site.wire.task("asks", {"delay": asked}, message_id=f"asks-{asked}")

    runs = wait_until("the second run", lambda: len(found := site.runs(f"asks-{asked}")) == 2 and found)

    assert rung_s <= gaps_s(runs)[0] <= rung_s + LATE_S


def test_given_properties_of_every_kind_then_a_retry_keeps_what_is_the_producers_and_drops_what_would_do_harm(
    each_site: Site,
) -> None:
    # Given a task with everything a producer can say
    each_site.wire.channel.queue_declare("spare")
    headers = {
        "tenant": "acme",
        "qctl-unknown": {"nested": [1, "two", None, True]},
        "qctl-first-seen": "2020-01-01T00:00:00.000Z",
        "qctl-deferrals": 2,
        "qctl-delay": "5s",
        "x-own": 1,
        "CC": ["spare"],
        "BCC": ["spare"],
    }
    said = {
        "content_type": "application/json",
        "content_encoding": "identity",
        "priority": 3,
        "correlation_id": "c-1",
        "reply_to": "answers",
        "message_id": "whole",
        "timestamp": 1_700_000_000,
        "type": "refresh",
        "app_id": "shop",
    }
    each_site.wire.send(
        "asks",
        b'{"delay": "1h"}',
        properties=pika.BasicProperties(
            **said, headers=headers, expiration="600000", user_id=each_site.fleet.vhost.username, delivery_mode=1
        ),
    )
    each_site.wire.take("spare")

    # When it is retried
    waiting = each_site.wire.take("qctl.retry.1h")

    # Then
    kept = {name: getattr(waiting.properties, name) for name in said}
    assert kept == said
    assert waiting.body == b'{"delay": "1h"}'
    assert waiting.properties.delivery_mode == 2
    assert waiting.properties.user_id is None
    assert waiting.properties.expiration is None
    counted_by_the_broker = {"x-delivery-count", "x-acquired-count"}
    assert {name: value for name, value in waiting.headers.items() if name not in counted_by_the_broker} == {
        "tenant": "acme",
        "qctl-unknown": {"nested": [1, "two", None, True]},
        "qctl-first-seen": "2020-01-01T00:00:00.000Z",
        "qctl-deferrals": 2,
        "qctl-attempt": 2,
        "qctl-error": "asked for it",
        "qctl-delay": "1h",
    }
    assert each_site.wire.look("spare") is None


def test_given_a_task_without_an_id_then_it_has_the_same_one_in_every_later_run(site: Site) -> None:
    before = len(records(site.fleet, "runs"))
    site.wire.task("flaky", {}, headers={"qctl-attempt": 3})

    runs = wait_until("three runs", lambda: len(found := records(site.fleet, "runs")[before:]) == 3 and found)

    assert runs[0]["id"] == ""
    assert len({run["id"] for run in runs[1:]} - {""}) == 1


def test_given_a_work_queue_deleted_meanwhile_then_its_retries_are_kept_aside_and_delay_nobody(
    local_vhost: Vhost, tmp_path: Path
) -> None:
    # Given two hosts whose retries share a rung
    consumers = {**inventory("hopeless", attempts=2, delays=["3s"]), **inventory("asks", attempts=2, delays=["3s"])}
    hosts = {"web-1": {"consumers": {"hopeless": None}}, "web-2": {"consumers": {"asks": None}}}
    strays = {f"stray-{number}" for number in range(40)}
    with (
        Fleet(local_vhost, tmp_path, write_handlers(tmp_path), consumers=consumers, hosts=hosts) as fleet,
        wire(local_vhost) as connected,
    ):
        workers = [fleet.start(host, ready=False) for host in hosts]
        await_consuming(workers[0], "hopeless")
        await_consuming(workers[1], "asks")

        # When the queue of forty of them is deleted while they wait
        for name in strays:
            connected.task("hopeless", {}, message_id=name)
        wait_until("their first runs", lambda: len(records(fleet, "runs")) == len(strays))
        assert workers[0].stop() == 0
        connected.channel.queue_delete("hopeless")
        for number in range(5):
            connected.task("asks", {"delay": "3s"}, message_id=f"asks-{number}")

        # Then the others come back in time, and all forty lie where one can find them
        wait_until("the others' second runs", lambda: len(records(fleet, "runs")) == len(strays) + 10)
        for number in range(5):
            runs = [run for run in records(fleet, "runs") if run["id"] == f"asks-{number}"]
            assert 3 <= gaps_s(runs)[0] <= 3 + LATE_S
        kept = [connected.take("qctl.unroutable") for _ in strays]
        assert {letter.properties.message_id for letter in kept} == strays
        assert {letter.headers["qctl-attempt"] for letter in kept} == {2}
        assert connected.look("qctl.unroutable") is None


def test_race_of_a_retry_published_and_a_broker_gone_before_the_ack_loses_nothing(
    local_broker: Broker, local_vhost: Vhost, tmp_path: Path
) -> None:
    # Given a worker whose way to the broker can be made deaf, and tasks that run
    consumers = inventory("waits", attempts=3, delays=["1s"])
    names = {f"task-{number}" for number in range(8)}
    with Proxy(local_broker.amqp_port) as way:
        way.listen()
        with Fleet(
            local_vhost, tmp_path, write_handlers(tmp_path), consumers=consumers, hosts={"web-1": None}
        ) as fleet:
            path = tmp_path / "inventory.yaml"
            document = json.loads(path.read_text())
            document["broker"]["amqp"] = local_vhost.amqp_url.replace(f":{local_broker.amqp_port}/", f":{way.port}/")
            path.write_text(json.dumps(document))
            worker = fleet.start("web-1", ready=False)
            await_consuming(worker, "waits")
            with wire(local_vhost) as connected:
                for name in names:
                    connected.task("waits", {}, message_id=name)
                wait_until("first runs", lambda: len(records(fleet, "runs")) == len(names))

                # When their retries have arrived, no confirm comes back, and so nothing was acknowledged
                way.hold(Way.DOWN)
                (tmp_path / "gate").touch()
                wait_until("their retries", lambda: connected.depth("qctl.retry.1s") == len(names), timeout_s=5)
            # and the broker goes away and comes back
            try:
                local_broker.stop_app()
            finally:
                local_broker.start_app()
            way.release(Way.DOWN)

            # Then each task is done, by its retry or by the original that was delivered again
            wait_until("every task done", lambda: set(fleet.history("done")) == names, timeout_s=60)
            with wire(local_vhost) as connected:
                wait_until("nothing on its way", lambda: connected.depth("qctl.retry.1s") == 0)
                assert connected.depth("waits.dead") == 0
                assert connected.depth("qctl.unroutable") == 0
            runs = Counter((run["id"], run["attempt"]) for run in records(fleet, "runs"))
            assert all(runs[name, 1] == 2 for name in names)
            assert worker.stop() == 0
