"""Pauses and limits that reach a real worker through the control log: what it proves is so, and it stays so."""

from __future__ import annotations

import json
import secrets
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tests.brokers import Vhost
from tests.fleet import Fleet, Worker, wait_until
from tests.integration.worker_harness import assert_no_traceback, await_consuming, start_consuming, wire
from tests.wire import stranger

HANDLERS = """
    import pathlib

    def calls(task):
        note("calls", time.time())
        time.sleep(task.payload or 0)

    def other(task):
        note("other", time.time())
        time.sleep(0.05)

    def paid(task):
        note("paid", time.time())
        time.sleep(0.005)
"""
ANSWER_S = 15.0


class Operator:
    """Somebody with a channel, who commands and listens."""

    def __init__(self, vhost: Vhost, channel: BlockingChannel) -> None:
        self._vhost = vhost
        self._channel = channel
        self._heard: list[tuple[float, dict[str, Any]]] = []
        channel.confirm_delivery()
        channel.exchange_declare("qctl.replies", "direct", durable=True)
        self._queue = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(self._queue, "qctl.replies", self._queue)
        channel.basic_consume(self._queue, self._on_answer, auto_ack=True)

    def _on_answer(self, _channel: object, _method: object, properties: pika.BasicProperties, body: bytes) -> None:
        assert properties.user_id == self._vhost.username
        self._heard.append((time.time(), json.loads(body)))

    def give(self, verb: str, target: dict[str, str], **fields: Any) -> str:
        """Command; the id of the event, which is confirmed when this returns."""
        identity = secrets.token_hex(16)
        event = {"v": 1, "id": identity, "at": "2026-11-22T21:00:00.000Z", "verb": verb, "target": target, **fields}
        properties = pika.BasicProperties(
            message_id=identity,
            correlation_id=identity,
            type=verb,
            user_id=self._vhost.username,
            reply_to=self._queue,
            delivery_mode=2,
        )
        self._channel.basic_publish("qctl.control", f"command.{verb}", json.dumps(event), properties, mandatory=True)
        return identity

    def ask(self, verb: str, target: dict[str, str], *, answers: int = 1, **fields: Any) -> list[dict[str, Any]]:
        """Command, and wait for the answers; each with the instant `heard` it came."""
        identity = self.give(verb, target, **fields)
        return wait_until(f"answers to {verb}", lambda: self.answers(identity, answers), ANSWER_S)  # type: ignore[no-any-return]

    def answers(self, identity: str, count: int = 1) -> list[dict[str, Any]]:
        """So many answers to an event, [] while there are fewer."""
        self._channel.connection.process_data_events(0)
        found = [{**answer, "heard": at} for at, answer in self._heard if answer["id"] == identity]
        return found if len(found) >= count else []


@contextmanager
def operator(vhost: Vhost) -> Iterator[Operator]:
    with stranger(vhost) as channel:
        yield Operator(vhost, channel)


def site(vhost: Vhost, directory: Path) -> Fleet:
    consumers = {
        "calls": {"handler": {"python": "handlers:calls"}, "quota": {}, "directed": True, "concurrency": 4},
        "other": {"handler": {"python": "handlers:other"}, "quota": {}, "concurrency": 4},
        "paid": {"handler": {"python": "handlers:paid"}, "quota": {"api": 1}, "concurrency": 4},
    }
    return Fleet(
        vhost,
        directory,
        HANDLERS,
        quotas={"api": "100000/2s"},
        consumers=consumers,
        hosts={"web-1": None, "web-2": None},
    )


def started(fleet: Fleet, name: str, since_s: float) -> int:
    """Tasks of a consumer that began after a moment."""
    return sum(float(line) > since_s for line in fleet.history(name))


CALLS = {"host": "web-1", "consumer": "calls"}


def test_given_a_worker_at_full_speed_when_one_consumer_is_paused_then_nothing_of_it_starts_after_the_proof(
    vhost: Vhost, tmp_path: Path
) -> None:
    with site(vhost, tmp_path) as fleet, operator(vhost) as ops:
        fleet.enqueue("calls", [0] * 10_000)
        fleet.enqueue("calls", [0] * 50, "--host", "web-1")
        fleet.enqueue("other", [0] * 2_000)
        worker = start_consuming(
            fleet, "web-1", "calls", "other", processes=2, arguments=["--only", "calls", "--only", "other"]
        )
        wait_until("it works", lambda: len(fleet.history("calls")) > 500)

        for _ in range(3):
            # When it is paused, then each process proves it, for both its queues
            answers = ops.ask("pause", CALLS, answers=2, reason="deploy")
            assert sorted(one["index"] for one in answers) == [0, 1]
            rows = [row for one in answers for row in one["rows"]]
            tags = [f"qctl/web-1/calls/{index}{which}" for index in (0, 1) for which in ("", "/directed")]
            assert sorted(row["tag"] for row in rows) == tags
            assert {row["state"] for row in rows} == {"paused"}
            assert all(datetime.fromisoformat(row["cancelled_at"]).timestamp() <= time.time() for row in rows)
            # and nothing of it starts any more, while the other goes on
            proven_s = max(one["heard"] for one in answers)
            wait_until("others go on", lambda since=proven_s: started(fleet, "other", since) > 10)
            assert started(fleet, "calls", proven_s) == 0

            # When it is resumed, it works again
            (row, *_), *_ = (one["rows"] for one in ops.ask("resume", CALLS, answers=2))
            assert row["remains"] == []
            wait_until("it works", lambda since=proven_s: started(fleet, "calls", since) > 100)

        assert worker.stop() == 0
        assert_no_traceback(worker.log())


def test_given_a_pause_then_what_runs_is_finished_and_a_killed_worker_that_comes_back_obeys_before_it_consumes(
    local_vhost: Vhost, tmp_path: Path
) -> None:
    with site(local_vhost, tmp_path) as fleet, operator(local_vhost) as ops:
        worker = start_consuming(fleet, "web-1", "calls", arguments=["--only", "calls"])
        fleet.enqueue("calls", [1.0] * 6)
        wait_until("four run", lambda: len(fleet.history("calls")) == 4)

        # When it is paused while tasks run
        (answer,) = ops.ask("pause", CALLS)
        row, directed = answer["rows"]
        assert (row["running"], row["state"]) == (4, "paused")
        assert (directed["running"], directed["queue"]) == (0, "calls@web-1")
        # Then those are done, and the rest is where others may take it
        wait_until("all that ran is settled", lambda: fleet.queues()["calls"] == (2, 0), 15)

        # When it is killed and comes back, then it stays paused
        worker.kill()
        before = len(worker.log())
        again = fleet.start("web-1", "--only", "calls", ready=False)
        wait_until("it is paused", lambda: "web-1/calls paused" in again.log()[before:])
        (row, _) = ops.ask("pause", CALLS)[0]["rows"]
        assert (row["cancelled_at"], len(row["remains"])) == (None, 2)
        assert fleet.consumer_tags() == []
        # and a pause that ends by itself leaves the other, until that is lifted
        ops.ask("resume", CALLS)
        await_consuming(again, "calls", after=before)
        assert again.stop() == 0
        assert len(fleet.history("calls")) == 6


def test_given_a_timed_pause_then_it_ends_by_itself(local_vhost: Vhost, tmp_path: Path) -> None:
    with site(local_vhost, tmp_path) as fleet, operator(local_vhost) as ops:
        start_consuming(fleet, "web-1", "calls", arguments=["--only", "calls"])
        ends_s = time.time() + 1.5
        until = datetime.fromtimestamp(ends_s).astimezone().isoformat(timespec="milliseconds")
        utc_until = datetime.fromisoformat(until).astimezone(tz=None).utctimetuple()
        (answer,) = ops.ask("pause", CALLS, until=time.strftime("%Y-%m-%dT%H:%M:%SZ", utc_until))
        assert answer["rows"][0]["state"] == "paused"
        fleet.enqueue("calls", [0])

        wait_until("the task ran", lambda: fleet.history("calls"))

        assert float(fleet.history("calls")[0]) >= int(ends_s)


def test_given_a_control_log_that_is_lost_then_nothing_is_consumed_until_it_is_read_again(
    local_vhost: Vhost, tmp_path: Path
) -> None:
    with site(local_vhost, tmp_path) as fleet, operator(local_vhost) as ops:
        worker = start_consuming(fleet, "web-1", "calls", "other", arguments=["--only", "calls", "--only", "other"])
        ops.ask("pause", CALLS)
        before = len(worker.log())

        # When somebody deletes the log
        with wire(local_vhost) as connected:
            connected.channel.queue_delete("qctl.control.log")

        # Then both are down, and come back when there is one again, with what was known
        wait_until("down", lambda: "web-1/other down" in worker.log()[before:])
        await_consuming(worker, "other", after=before)
        wait_until("paused", lambda: "web-1/calls paused" in worker.log()[before:])
        assert fleet.consumer_tags() == ["qctl/web-1/other/0"]
        assert_no_traceback(worker.log())


def test_given_a_worker_at_full_speed_when_a_limit_is_lowered_then_no_window_after_the_answer_has_more(
    local_vhost: Vhost, tmp_path: Path
) -> None:
    window_s, units = 2.0, 30
    with site(local_vhost, tmp_path) as fleet, operator(local_vhost) as ops:
        worker = start_consuming(fleet, "web-1", "paid", processes=2, arguments=["--only", "paid"])
        fleet.enqueue("paid", [0] * 20_000)
        wait_until("it works", lambda: len(fleet.history("paid")) > 500)

        # When the limit is lowered
        target, args = {"host": "web-1"}, {"quota": "api", "limit": f"{units}/2s"}
        answers = ops.ask("quota.set", target, answers=2, args=args, reason="storm")
        assert [one["quotas"][0]["limits"] for one in answers] == [[f"{units}/2s"]] * 2
        assert answers[0]["quotas"][0]["override"]["reason"] == "storm"
        answered_s = max(one["heard"] for one in answers)
        # Then a whole window of what was spent before goes by, and one more
        wait_until("it works again", lambda: started(fleet, "paid", answered_s) > units, 20)
        # and a process that is started anew does not undo it
        worker.kill()
        killed_s = time.time()
        start_consuming(fleet, "web-1", "paid", arguments=["--only", "paid"])
        wait_until("it works again", lambda: started(fleet, "paid", killed_s) > 3, 20)

        at = sorted(float(line) for line in fleet.history("paid"))
        later = at[bisect_left(at, answered_s) :]
        assert max(bisect_left(later, one + window_s) - index for index, one in enumerate(later)) <= units

        # When it is cleared, the inventory's limit holds
        (answer,) = ops.ask("quota.clear", target, args={"quota": "api"})
        assert (answer["quotas"][0]["limits"], answer["quotas"][0]["override"]) == (["100000/2s"], None)
        cleared_s = time.time()
        wait_until("full speed", lambda: started(fleet, "paid", cleared_s) > 10 * units)


def test_given_suspects_then_a_pause_is_theirs_as_well(local_vhost: Vhost, tmp_path: Path) -> None:
    with site(local_vhost, tmp_path) as fleet, operator(local_vhost) as ops, wire(local_vhost) as connected:
        start_consuming(fleet, "web-1", "calls", arguments=["--only", "calls"])
        # Given two that each ended a process before, so that the second waits until the first is done
        for name in ("a", "b"):
            connected.task("calls", 2.0, message_id=name, headers={"qctl-crashes": 1})
        wait_until("the first runs", lambda: fleet.history("calls"))

        (answer,) = ops.ask("pause", CALLS)

        assert (answer["rows"][0]["running"], answer["rows"][0]["given_back"]) == (1, 1)
        wait_until("the first is done, and the second is back", lambda: fleet.queues()["calls"] == (1, 0), 15)
        assert len(fleet.history("calls")) == 1


@pytest.mark.parametrize("body", [b"", b"[]", b'{"v":1', b'{"v":9}', b'{"v":1,"verb":"stop"}', b"x" * 100_000])
def test_what_is_no_event_is_not_obeyed_and_answered(shared: tuple[Worker, Operator], body: bytes) -> None:
    worker, ops = shared
    identity = secrets.token_hex(16)
    properties = pika.BasicProperties(message_id=identity, user_id=ops._vhost.username, reply_to=ops._queue)
    ops._channel.basic_publish("qctl.control", "command.pause", body, properties)

    (answer,) = wait_until("an answer", lambda: ops.answers(identity))

    assert answer["refused"].startswith("not understood: ")
    assert worker.process.poll() is None
    assert ops.ask("resume", CALLS)[0]["rows"][0]["state"] == "consuming"


@pytest.fixture(scope="module")
def shared(local_broker: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Worker, Operator]]:
    """A worker that nothing is to happen to."""
    from tests.brokers import fresh_vhost

    directory = tmp_path_factory.mktemp("shared")
    with fresh_vhost(local_broker) as vhost, site(vhost, directory) as fleet, operator(vhost) as ops:
        yield start_consuming(fleet, "web-1", "calls", arguments=["--only", "calls"]), ops
