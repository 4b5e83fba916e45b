"""What may be enqueued: names and values are checked against the inventory before anything is contacted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qctl.broker.request import Request, request
from qctl.broker.topology import Binding, Queue
from qctl.errors import UnknownName, UsageError
from qctl.inventory.load import load
from qctl.inventory.model import Inventory

INVENTORY = """
version: 1
broker: {amqp: "amqp://nowhere.invalid/", username: u, password: {env: NOT_SET}}
quotas: {api: 1000/h, mail: 10/h}
consumers:
  timeline: {queue: lines, handler: {exec: [cat]}, quota: {api: 1}, directed: true, retry: {delays: [7s]}}
  mails: {handler: {exec: [cat]}, quota: {mail: 1}}
  free: {handler: {exec: [cat]}, quota: {}}
hosts:
  web-1:
  web-2: {consumers: {mails: {}}}
  web-3: {consumers: {timeline: {directed: false}}}
  web-4: {consumers: {timeline: {quota: {mail: 1}}}}
"""


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    path = tmp_path / "inventory.yaml"
    path.write_text(INVENTORY, encoding="utf-8")
    return load(path)


def names(wanted: Request) -> set[str]:
    return {one.name for one in wanted.declarations if isinstance(one, Queue)}


def test_a_plain_task_goes_to_its_consumers_queue(inventory: Inventory) -> None:
    wanted = request(inventory, "timeline")
    assert wanted.queue == "lines"
    assert {"lines", "lines.dead", "qctl.unroutable"} == names(wanted)


def test_a_task_for_one_host_goes_to_that_hosts_queue(inventory: Inventory) -> None:
    # when a task is meant for web-1 alone
    wanted = request(inventory, "timeline", host="web-1")

    # then it goes to web-1's own queue, which is declared, and which shares the dead letters
    assert wanted.queue == "lines@web-1"
    assert names(wanted) == {"lines", "lines.dead", "lines@web-1", "qctl.unroutable"}


def test_a_cost_that_no_host_can_ever_pay_is_refused(inventory: Inventory) -> None:
    # given 1000 of api on each host that spends it, and of a task for web-1 alone the same
    assert request(inventory, "timeline", cost={"api": 1000}).cost == {"api": 1000}
    for host in (None, "web-1"):
        with pytest.raises(UsageError, match="more than any host that runs timeline can ever pay: 1000 at most"):
            request(inventory, "timeline", host=host, cost={"api": 1001})


def test_a_task_for_one_host_costs_what_its_consumer_there_may_spend(inventory: Inventory) -> None:
    assert request(inventory, "timeline", host="web-4", cost={"mail": 2}).cost == {"mail": 2}
    with pytest.raises(UsageError, match="has no quota 'api'"):
        request(inventory, "timeline", host="web-4", cost={"api": 2})


@pytest.mark.parametrize(
    ("consumer", "host", "why"),
    [
        ("timeline", "web-2", "does not run it"),
        ("timeline", "web-3", "has no queue of its own"),
        ("mails", "web-1", "has no queue of its own"),
    ],
)
def test_a_host_that_cannot_run_it_alone_is_refused(inventory: Inventory, consumer: str, host: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as refused:
        request(inventory, consumer, host=host)
    assert "directed" in refused.value.hint


@pytest.mark.parametrize(
    ("arguments", "nearest"),
    [
        ({"consumer_name": "timelin"}, "timeline"),
        ({"consumer_name": "timeline", "host": "web1"}, "web-1"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(
    inventory: Inventory, arguments: dict[str, Any], nearest: str
) -> None:
    with pytest.raises(UnknownName) as refused:
        request(inventory, **arguments)
    assert nearest in refused.value.hint


@pytest.mark.parametrize(
    ("consumer", "quota", "hint"),
    [
        ("timeline", "apo", "api"),
        ("timeline", "mail", "Its quotas are: api."),
        ("free", "api", "Its quotas are: none."),
    ],
)
def test_a_cost_in_a_quota_that_the_consumer_does_not_have_is_refused(
    inventory: Inventory, consumer: str, quota: str, hint: str
) -> None:
    with pytest.raises(UsageError, match=quota) as refused:
        request(inventory, consumer, cost={quota: 1})
    assert hint in refused.value.hint


@pytest.mark.parametrize(
    ("asked_s", "rung_s"), [(0.001, 1.0), (1.0, 1.0), (1.001, 2.0), (6.0, 7.0), (3601.0, 21600.0), (86400.0, 86400.0)]
)
def test_a_delay_is_rounded_up_to_the_ladder_with_the_inventorys_own_rungs(
    inventory: Inventory, asked_s: float, rung_s: float
) -> None:
    # when a task is to wait
    wanted = request(inventory, "free", delay=asked_s)

    # then it waits at least that long, and the one waiting room it needs is declared
    assert wanted.delay_s == rung_s
    rooms = [one for one in wanted.declarations if isinstance(one, Binding) and one.exchange == "qctl.retry"]
    assert len(rooms) == 1


def test_no_delay_is_no_delay(inventory: Inventory) -> None:
    assert request(inventory, "free", delay=0.0).delay_s is None
    assert request(inventory, "free").delay_s is None


def test_a_delay_beyond_the_ladder_is_refused(inventory: Inventory) -> None:
    with pytest.raises(UsageError, match="2d is longer than the longest, 1d"):
        request(inventory, "free", delay=2 * 86_400.0)


@pytest.mark.parametrize("value", ["x", "ü" * 127, "x" * 255])
def test_an_id_and_a_type_may_be_as_long_as_amqp_carries(inventory: Inventory, value: str) -> None:
    wanted = request(inventory, "free", id=value, type=value)
    assert (wanted.id, wanted.type) == (value, value)


@pytest.mark.parametrize(
    "value", ["", "x" * 256, "ü" * 128, "\udcff"], ids=["empty", "long", "long in UTF-8", "no UTF-8"]
)
@pytest.mark.parametrize("what", ["id", "type"])
def test_an_id_and_a_type_that_amqp_cannot_carry_are_refused(inventory: Inventory, what: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"the {what} must be UTF-8 text of 1 to 255 bytes"):
        request(inventory, "free", **{what: value})
