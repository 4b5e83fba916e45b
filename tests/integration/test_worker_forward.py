"""Retries and dead letters on a broker that makes it hard: nothing is lost, nothing runs more often than it should."""

from __future__ import annotations

from pathlib import Path

from tests.brokers import Vhost
from tests.fleet import Fleet, wait_until
from tests.integration.worker_harness import start_consuming, wire

HANDLERS = """
    from qctl import Reject

    def dies(task):
        note("ran", task.id)
        raise Reject("never again")
    def fails(task):
        note("ran", task.id)
        if task.attempt == 1:
            raise ValueError("once")
        note("done", task.id)
"""
INVENTORY = {
    "consumers": {
        "dies": {"handler": {"python": "handlers:dies"}, "quota": {}},
        "fails": {"handler": {"python": "handlers:fails"}, "quota": {}, "retry": {"attempts": 3, "delays": ["1s"]}},
    },
    "hosts": {"web-1": None},
}


def test_a_dead_letter_exchange_that_was_deleted_is_made_again_and_the_worker_heals(
    local_vhost: Vhost, tmp_path: Path
) -> None:
    with Fleet(local_vhost, tmp_path, HANDLERS, **INVENTORY) as fleet, wire(local_vhost) as connected:
        # Given a worker whose dead letters have nowhere to go, which costs it the channel it publishes on
        worker = start_consuming(fleet, "web-1", "dies", "fails")
        connected.channel.exchange_delete("qctl.dead")
        connected.channel.queue_delete("dies.dead")

        # When tasks die
        for number in range(3):
            connected.task("dies", number, message_id=f"d-{number}")

        # Then all of them arrive in a dead-letter queue that was declared anew, and retries work as before
        wait_until("dies.dead is there", lambda: local_vhost.queue("dies.dead"))
        found = sorted(connected.take("dies.dead").properties.message_id for _ in range(3))
        assert found == ["d-0", "d-1", "d-2"]
        connected.task("fails", 1, message_id="f-1")
        wait_until("the retry ran", lambda: fleet.history("done") == ["f-1"])
        assert worker.stop() == 0


def test_headers_too_large_to_publish_again_are_left_out_and_said_so(local_vhost: Vhost, tmp_path: Path) -> None:
    with Fleet(local_vhost, tmp_path, HANDLERS, **INVENTORY) as fleet, wire(local_vhost) as connected:
        worker = start_consuming(fleet, "web-1", "dies", "fails")

        # Given a task whose headers fill a frame almost to the last byte
        connected.task("dies", 1, message_id="d-1", headers={f"h{n}": "x" * 10_000 for n in range(13)})

        # Then it dies in order, and the connection with it does not
        dead = connected.take("dies.dead")
        assert dead.properties.message_id == "d-1"
        assert dead.headers["qctl-reason"] == "rejected"
        assert "too large" in dead.headers["qctl-dropped"]
        assert fleet.history("ran") == ["d-1"]
        assert "publishing connection lost" not in worker.log()
        assert worker.stop() == 0


def test_a_broker_that_is_slow_to_confirm_gets_each_retry_once(local_vhost: Vhost, tmp_path: Path) -> None:
    with Fleet(local_vhost, tmp_path, HANDLERS, **INVENTORY) as fleet:
        worker = start_consuming(fleet, "web-1", "dies", "fails")
        broker = local_vhost.broker
        # Given a memory alarm, under which the broker reads nothing that is published
        broker.ctl("set_vm_memory_high_watermark", "absolute", "1")
        try:
            # When tasks that were there before fail; their queue is filled by the broker itself
            broker.eval(
                'lists:foreach(fun(N) -> X = rabbit_misc:r(<<"'
                + local_vhost.name
                + '">>, exchange, <<"qctl.tasks">>), '
                "P = rabbit_basic:properties([{message_id, integer_to_binary(N)}]), "
                'rabbit_basic:publish(X, <<"fails">>, P, <<"1">>) end, [1, 2, 3]).'
            )
            worker.await_log("web-1/fails held: broker takes no retries", timeout_s=40)
        finally:
            broker.ctl("set_vm_memory_high_watermark", "0.4")

        # Then, when it is over, each runs once more and not oftener
        wait_until("each is done", lambda: len(fleet.history("done")) >= 3, timeout_s=40)
        wait_until("it consumes again", lambda: worker.log().count("web-1/fails consuming") == 2)
        assert sorted(fleet.history("done")) == ["1", "2", "3"]
        assert sorted(fleet.history("ran")) == ["1", "1", "2", "2", "3", "3"]
        assert worker.stop() == 0
