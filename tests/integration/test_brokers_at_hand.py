"""The brokers that everything else is tested on are what they say they are."""

from __future__ import annotations

import pytest

from tests.brokers import Broker, Vhost


def test_a_vhost_is_empty_and_ours_alone(vhost: Vhost) -> None:
    # when its queues are listed
    queues = vhost.broker.api("GET", f"/queues/{vhost.name}")

    # then there are none
    assert queues == []


def test_the_broker_goes_away_and_comes_back_with_its_data(broker: Broker, vhost: Vhost) -> None:
    # given a durable queue
    broker.api("PUT", f"/queues/{vhost.name}/kept", {"durable": True, "arguments": {"x-queue-type": "quorum"}})

    # when the application is stopped and started
    broker.stop_app()
    with pytest.raises(OSError, match=r".*"):
        broker.api("GET", "/overview")
    broker.start_app()

    # then the queue is still there
    assert vhost.queue("kept") is not None


def test_rabbitmqctl_speaks_to_the_same_broker(vhost: Vhost) -> None:
    assert vhost.name in vhost.broker.ctl("list_vhosts")
    assert vhost.broker.eval("1 + 1.") == "2"
