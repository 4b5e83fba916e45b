"""What the words of `qctl pause` mean, against an inventory."""

from __future__ import annotations

from pathlib import Path

import pytest

from qctl.control.target import Target
from qctl.errors import QctlError, UnknownName, UsageError
from qctl.inventory.load import load
from qctl.inventory.model import Inventory
from qctl.ops.targets import Words, select

INVENTORY = """\
version: 1
broker: local
quotas: {twitter: 20000/h}
consumers:
  timeline: {handler: {exec: [cat]}, quota: {twitter: 1}, directed: true}
  mails: {queue: outbox, handler: {exec: [cat]}, quota: {}}
groups:
  large: {quotas: {twitter: 100000/h}}
  small: {}
hosts:
  web-1:
  web-2: {group: large, consumers: {timeline: {concurrency: 64}}}
  web-3: {group: large, consumers: {mails: {}}}
"""


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    path = tmp_path / "inventory.yaml"
    path.write_text(INVENTORY)
    return load(path)


def pairs(inventory: Inventory, words: Words) -> list[str]:
    return [f"{host}/{consumer}" for host, consumer in select(inventory, words).pairs]


ALL = ["web-1/timeline", "web-1/mails", "web-2/timeline", "web-3/mails"]


@pytest.mark.parametrize(
    ("words", "targets", "hit"),
    [
        (Words(("web-1/timeline",)), [Target("web-1", "timeline")], ["web-1/timeline"]),
        (Words(("web-1",)), [Target("web-1")], ["web-1/timeline", "web-1/mails"]),
        (Words(("web-1/*",)), [Target("web-1")], ["web-1/timeline", "web-1/mails"]),
        (Words(("*/timeline",)), [Target("*", "timeline")], ["web-1/timeline", "web-2/timeline"]),
        (Words(consumer="timeline"), [Target(consumer="timeline")], ["web-1/timeline", "web-2/timeline"]),
        (Words(("*",)), [Target("*")], ALL),
        (Words(("web-*/m*",)), [Target("web-*", "m*")], ["web-1/mails", "web-3/mails"]),
        (Words(queue="outbox"), [Target(queue="outbox")], ["web-1/mails", "web-3/mails"]),
        (Words(queue="timeline@web-2"), [Target(queue="timeline@web-2")], ["web-2/timeline"]),
        (Words(group="large"), [Target("web-2"), Target("web-3")], ["web-2/timeline", "web-3/mails"]),
        (Words(group="large", consumer="mails"), [Target("web-3", "mails")], ["web-3/mails"]),
        (Words(("web-3",), group="large"), [Target("web-3")], ["web-3/mails"]),
        (Words(("web-1",), consumer="mails"), [Target("web-1", "mails")], ["web-1/mails"]),
        (Words(("web-1/*",), queue="outbox"), [Target("web-1", queue="outbox")], ["web-1/mails"]),
        (Words(("web-1/time*",), consumer="timeline"), [Target("web-1", "timeline")], ["web-1/timeline"]),
        (Words(("web-1", "web-3/mails")), [Target("web-1"), Target("web-3", "mails")], [*ALL[:2], "web-3/mails"]),
        (Words(("web-1", "web-1")), [Target("web-1")], ["web-1/timeline", "web-1/mails"]),
        (Words(tag="qctl/web-1/timeline/0"), [Target(tag="qctl/web-1/timeline/0")], ["web-1/timeline"]),
        (Words(tag="qctl/web-1/timeline/417"), [Target(tag="qctl/web-1/timeline/417")], ["web-1/timeline"]),
        (Words(tag="qctl/*/mails/*"), [Target(tag="qctl/*/mails/*")], ["web-1/mails", "web-3/mails"]),
    ],
    ids=str,
)
def test_words_are_events_and_what_they_hit(
    inventory: Inventory, words: Words, targets: list[Target], hit: list[str]
) -> None:
    selection = select(inventory, words)
    assert list(selection.targets) == targets
    assert [f"{host}/{consumer}" for host, consumer in selection.pairs] == hit


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (Words(("wbe-2/timeline",)), "Did you mean web-2?"),
        (Words(("wbe-2",)), "Did you mean web-2?"),
        (Words(("web-1/timelines",)), "Did you mean timeline?"),
        (Words(("web-2/mails",)), "It runs: timeline."),
        (Words(("timeline",)), "It is a consumer: on all hosts it is */timeline."),
        (Words(consumer="mail"), "Did you mean mails?"),
        (Words(queue="outbix"), "Did you mean outbox?"),
        (Words(group="larg"), "Did you mean large?"),
        (Words(tag="qctl/wbe-2/timeline/0"), "Did you mean web-2?"),
        (Words(tag="qctl/web-1/timelime/0"), "Did you mean timeline?"),
    ],
    ids=str,
)
def test_an_unknown_name_gets_the_nearest(inventory: Inventory, words: Words, hint: str) -> None:
    with pytest.raises(UnknownName) as caught:
        select(inventory, words)
    assert caught.value.hint == hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "words",
    [
        Words(),
        Words(("",)),
        Words(("/timeline",)),
        Words(("web-1/",)),
        Words(("web-1/a/b",)),
        Words(("qctl/web-1/timeline/0",)),
        Words(("web 1",)),
        Words(("web-1/\x1b[31m",)),
        Words(("x" * 300,)),
        Words(("db-*",)),
        Words(("web-1/z*",)),
        Words(("web-1/timeline",), queue="outbox"),
        Words(("web-1/timeline",), consumer="mails"),
        Words(("web-1/time*",), consumer="*line"),
        Words(("web-1",), group="large"),
        Words(("web-1", "web-2"), queue="outbox"),
        Words(group="small"),
        Words(group="large", queue="timeline@web-1"),
        Words(tag="timeline"),
        Words(tag="qctl/web-1/timeline"),
        Words(tag="qctl/web-1/timeline/x"),
        Words(tag="qctl/web-1/timeline/1*"),
        Words(tag="qctl/web-1/timeline/0/other"),
        Words(tag="qctl/web-1/timeline/0/directed/more"),
        Words(tag="qctl/web-2/mails/0"),
        Words(("web-2",), tag="qctl/web-1/timeline/0"),
        Words(("web-1",) * 1_001),
    ],
    ids=lambda words: str(words)[:80],
)
def test_what_means_nothing_is_refused(inventory: Inventory, words: Words) -> None:
    with pytest.raises(UsageError) as caught:
        select(inventory, words)
    assert caught.value.exit_code == 2


def test_a_directed_consumer_has_two_subscriptions(inventory: Inventory) -> None:
    found = select(inventory, Words(("web-1/timeline",))).expected
    assert [(one.queue, one.tag(0)) for one in found] == [
        ("timeline", "qctl/web-1/timeline/0"),
        ("timeline@web-1", "qctl/web-1/timeline/0/directed"),
    ]


def test_a_tag_is_one_subscription(inventory: Inventory) -> None:
    found = select(inventory, Words(tag="qctl/web-1/timeline/3/directed")).expected
    assert [one.tag(one.index or 0) for one in found] == ["qctl/web-1/timeline/3/directed"]


@pytest.mark.parametrize(
    ("words", "anywhere"),
    [
        (Words(("*/timeline",)), True),
        (Words(consumer="timeline"), True),
        (Words(queue="outbox"), True),
        (Words(("web-1",)), False),
        (Words(group="large"), False),
        (Words(tag="qctl/web-1/timeline/0"), False),
        (Words(tag="qctl/*/timeline/0"), True),
    ],
    ids=str,
)
def test_patterns_reach_beyond_the_inventory(inventory: Inventory, words: Words, anywhere: bool) -> None:
    assert select(inventory, words).anywhere is anywhere


def test_it_is_shown_as_it_was_written(inventory: Inventory) -> None:
    assert select(inventory, Words(("web-3",), group="large")).shown == "web-3 --group large"


def test_many_hosts_are_selected_and_too_many_refused(tmp_path: Path) -> None:
    # given a group of 1,000 hosts
    path = tmp_path / "inventory.yaml"
    path.write_text(INVENTORY + '  "db-[0001-1000]": {group: small}\n')
    fleet = load(path)

    # then the events and what they hit are found without looking at every host for every event
    found = select(fleet, Words(group="small", consumer="mails"))
    assert len(found.targets) == len(found.pairs) == 1_000

    # and with one host more there are too many events
    path.write_text(INVENTORY + '  "db-[0001-1001]": {group: small}\n')
    with pytest.raises(UsageError, match=r"^--group small is more than 1000 hosts to name$"):
        select(load(path), Words(group="small"))
    assert len(select(load(path), Words(("db-*",))).targets) == 1


def test_errors_are_for_the_user(inventory: Inventory) -> None:
    with pytest.raises(QctlError, match=r"nothing matches web-2 --queue outbox$"):
        select(inventory, Words(("web-2",), queue="outbox"))


@pytest.mark.parametrize(
    ("tag", "anywhere"),
    [("qctl/web-1/timeline/0", False), ("qctl/web-1/timeline/*", False), ("qctl/web-*/timeline/0", True)],
)
def test_a_tag_reaches_no_further_than_its_host(inventory: Inventory, tag: str, anywhere: bool) -> None:
    assert select(inventory, Words(tag=tag)).anywhere is anywhere
