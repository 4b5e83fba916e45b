"""The management API as the console asks it: how often, for what, and what it says when there is no answer."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qctl.broker import refusals
from qctl.broker.management import Api
from qctl.errors import BrokerUnreachable
from qctl.inventory.load import load
from qctl.inventory.model import Inventory
from qctl.ops.status import QueueRow, Source, State
from qctl.tui import poller as module
from qctl.tui.poller import Poller
from qctl.tui.snapshot import Focus, Health, Page, View
from tests.management_api import Misbehaving
from tests.wire import scenario

POLL_S = 0.2
TIMEOUT_S = 0.3


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """All waits a tenth as long or less."""
    for name, value in (
        ("POLL_LEAST_S", 0.8 * POLL_S),
        ("POLL_MOST_S", POLL_S),
        ("DEBOUNCE_S", 0.05),
        ("REFRESH_S", 0.05),
        ("LATE_S", 0.1),
        ("GRACE_S", 0.2),
        ("TIMEOUT_S", TIMEOUT_S),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(refusals, "LADDER_S", (0.1, 0.2, 0.4))


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    consumer = {"handler": {"exec": ["true"]}, "quota": {"twitter": 2}}
    document = {
        "version": 1,
        "broker": {"amqp": "amqp://127.0.0.1:5672/", "username": "guest"},
        "quotas": {"twitter": "2000/h"},
        "consumers": {"timeline": {**consumer, "queue": "q-3"}},
        "hosts": {"web-1": {}, "web-2": {}},
    }
    path = tmp_path / "inventory.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    return load(path)


class Fleet:
    """What a decent API answers: `total` queues, one host with a subscription. tags: the user's."""

    def __init__(self) -> None:
        self.total = 1_200
        self.tags = ["monitoring"]
        self.acked = 100

    def answer(self, path: str, query: dict[str, str]) -> Any:
        match path:
            case "/whoami":
                return {"name": "me", "tags": self.tags}
            case "/queues/v":
                page, size = int(query["page"]), int(query["page_size"])
                first = (page - 1) * size
                if page > 1 and first >= self.total:
                    return 400, {"error": "page_out_of_range", "reason": f"Page out of range, page: {page}"}
                items = [{"name": f"q-{n}", "messages_ready": n} for n in range(first, min(self.total, first + size))]
                return {"items": items, "page_count": -(-self.total // size), "filtered_count": self.total}
            case "/vhosts/v/connections":
                opened_ms = int(1_000 * (time.time() - 3_600))
                return [{"name": "c", "client_properties": {"qctl_host": "web-1"}, "connected_at": opened_ms}]
            case "/consumers/v":
                item = {"consumer_tag": "qctl/web-1/timeline/0", "queue": {"name": "q-3"}}
                return [{**item, "channel_details": {"name": "c (1)"}}]
            case "/vhosts/v/channels":
                item = {"name": "c (1)", "connection_details": {"name": "c"}}
                return [{**item, "message_stats": {"ack": self.acked}}]
        return 404


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


@pytest.fixture
def server(fleet: Fleet) -> Iterator[Misbehaving]:
    with Misbehaving(answer=fleet.answer) as running:
        yield running


def poller(server: Misbehaving, inventory: Inventory) -> Poller:
    return Poller(lambda: Api(server.url, "me", "geheim", vhost="v"), inventory)


@asynccontextmanager
async def running(asks: Poller, focus: Focus, *, estimating: bool = False) -> AsyncIterator[Callable[[], int]]:
    """It asks, with that on screen; how often it has said that there is something new."""
    said: list[None] = []
    asks.look_at(focus)
    asks.needs_estimates(estimating)
    task = asyncio.ensure_future(asks.run(lambda: said.append(None)))
    try:
        yield lambda: len(said)
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(what: Callable[[], object], within_s: float = 5.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline_s, "it does not come about"
        await asyncio.sleep(0.01)


@scenario
async def test_a_page_of_queues_is_one_request_a_poll(server: Misbehaving, inventory: Inventory) -> None:
    # given the second page of the queues on screen, the deepest first, some filtered out
    focus = Focus(View.QUEUES, page=2, sort="ready", descending=True, match="q.", invert=True)
    asks = poller(server, inventory)
    async with running(asks, focus):
        await until(lambda: asks.queues)

        # then its rows know where they are from, and who takes tasks from them
        assert asks.queues is not None
        assert (asks.page, asks.queues.focus) == (Page(2, 3, 1_200), focus)
        assert len(asks.queues.rows) == 500
        row = asks.queues.rows[0]
        assert (row.queue, row.ready, row.in_per_s, row.work) == ("q-500", 500, None, False)
        assert row.seen is not None
        assert row.seen.source is Source.BROKER
        assert asks.state.health is Health.OK

        # and after who is asking, each poll is one request, of the broker's own order and filter
        server.asked.clear()
        server.times_s.clear()
        await until(lambda: len(server.asked) >= 4)
        path, query = server.asked[0]
        assert set(server.paths) == {"/queues/v"}
        assert (path, query["page"], query["sort"], query["sort_reverse"]) == (
            "/queues/v",
            "2",
            "messages_ready",
            "true",
        )
        assert query["name"].startswith(r"(?s)\A(?!.*q\x2e)")
        gaps_s = [after - before for before, after in zip(server.times_s, server.times_s[1:], strict=False)]
        assert min(gaps_s) > 0.5 * POLL_S

        # and a queue knows who takes from it
        asks.look_at(Focus(View.QUEUES))
        await until(lambda: asks.page.number == 1)
        assert QueueRow("q-3", consumers=("web-1/timeline", "web-2/timeline")) == _shorn(asks.queues.rows[3])


def _shorn(row: QueueRow) -> QueueRow:
    """Only what the inventory says of it."""
    return QueueRow(row.queue, row.work, consumers=row.consumers)


@scenario
async def test_what_comes_on_screen_is_asked_for_at_once_and_only_what_stays_there(
    server: Misbehaving, inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given queues on screen, which are due again in a while
    for name, value in (("POLL_LEAST_S", 60.0), ("POLL_MOST_S", 60.0), ("DEBOUNCE_S", 0.2)):
        monkeypatch.setattr(module, name, value)
    asks = poller(server, inventory)
    async with running(asks, Focus(View.QUEUES)):
        await until(lambda: asks.queues)
        server.asked.clear()

        # when a filter is typed, then it is asked for when it is complete
        for length in range(1, 9):
            asks.look_at(Focus(View.QUEUES, match="timeline"[:length]))
            await asyncio.sleep(0.02)
        await until(lambda: asks.queues and asks.queues.focus.match == "timeline")
        assert [query["name"] for _, query in server.asked] == [r"(?s)\A(?=.*timeline).*\z"]

        # when the view is left and come back to, then what is there is new enough
        for view in (View.EVENTS, View.QUEUES):
            asks.look_at(Focus(view, match="timeline", opened="q-1"))
        await asyncio.sleep(0.4)
        assert len(server.asked) == 1

        # and a key asks at any time
        asks.refresh()
        await until(lambda: len(server.asked) == 2)


@scenario
async def test_what_is_not_on_screen_is_not_asked_for(server: Misbehaving, inventory: Inventory) -> None:
    # given views that the workers' readings serve
    asks = poller(server, inventory)
    async with running(asks, Focus()):
        await until(lambda: asks.state.health is Health.OK)
        for view in (View.QUOTAS, View.CONSUMERS, View.EVENTS, View.HOSTS):
            asks.look_at(Focus(view))
            asks.refresh()
            await asyncio.sleep(0.1)
        # then nothing was asked but who we are, and no age is shown of what nobody asks
        assert server.paths == ["/whoami"]
        assert asks.state.at_s is None

        # when dead letters are on screen, only their queues are asked for
        asks.look_at(Focus(View.DEAD, sort="ready", descending=True))
        await until(lambda: asks.dead)
        assert server.paths == ["/whoami", "/queues/v"]
        assert server.asked[-1][1]["name"] == r"(?s)\A.*\x2edead\z"
        assert asks.queues is None
        assert asks.state.at_s is not None


@scenario
async def test_without_the_workers_the_brokers_counters_are_asked_for_in_turn(
    server: Misbehaving, inventory: Inventory, fleet: Fleet
) -> None:
    # given workers that are not heard
    asks = poller(server, inventory)
    async with running(asks, Focus(), estimating=True):
        await until(lambda: asks.estimates and any(row.used_units is not None for row in asks.estimates.quotas))
        fleet.acked += 50
        await until(lambda: server.paths.count("/vhosts/v/channels") >= 2)
        await until(lambda: asks.estimates and asks.estimates.quotas[0].used_units == 300)

        # then one list follows the other, and hosts, consumers and quotas are estimated from them
        lists = ["/vhosts/v/connections", "/consumers/v", "/vhosts/v/channels"]
        assert server.paths[: 1 + 2 * len(lists)] == ["/whoami", *lists, *lists]
        # quickly at first, since it takes all of them, and then no faster than anything else
        gaps_s = [after - before for before, after in zip(server.times_s, server.times_s[1:], strict=False)]
        assert min(gaps_s[3:6]) > 0.7 * POLL_S
        assert asks.estimates is not None
        assert [(row.host, row.state) for row in asks.estimates.hosts] == [
            ("web-1", State.CONSUMING),
            ("web-2", State.DOWN),
        ]
        assert asks.estimates.quotas[0].estimated
        assert asks.estimates.quotas[0].spend_per_s is not None

        # and their subscriptions are those that are listed
        asks.look_at(Focus(View.CONSUMERS))
        await until(lambda: asks.consumers)
        assert asks.consumers is not None
        assert [(row.tag, row.state) for row in asks.consumers] == [
            ("qctl/web-1/timeline/0", State.CONSUMING),
            ("qctl/web-2/timeline/0", State.DOWN),
        ]
        server.asked.clear()
        await until(lambda: len(server.asked) >= 3)
        assert "/vhosts/v/channels" not in server.paths


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("closed", "cannot be asked"),
        ("hang", "does not answer within"),
        ("drip", "does not answer within"),
        ("401", "refuses user 'me': Login failed"),
        ("500", "HTTP status 500"),
        ("garbage", "cannot be asked"),
        ("redirect", "redirects, which is not followed"),
    ],
)
@scenario
async def test_a_fault_is_said_what_was_seen_stays_and_it_recovers_by_itself(
    server: Misbehaving, inventory: Inventory, fault: str, words: str
) -> None:
    # given queues on screen, when the API begins to misbehave
    asks = poller(server, inventory)
    async with running(asks, Focus(View.QUEUES)) as said:
        await until(lambda: asks.queues)
        before = asks.queues
        assert before is not None
        server.fault = fault
        await until(lambda: words in asks.state.words)

        # then the rows stay, with their age, and the fault is one sentence without secrets
        assert asks.queues is not None
        assert len(asks.queues.rows) == 500
        assert asks.state.health is Health.STALE
        assert asks.state.at_s is not None
        assert asks.state.words.isprintable()
        assert "geheim" not in asks.state.words
        told, asked, seen_s = said(), len(server.asked), asks.queues.at_s
        await asyncio.sleep(2 * POLL_S)
        assert asks.state.health is Health.STALE
        assert len(server.asked) - asked <= 4
        assert asks.queues.at_s == seen_s

        # and when it is well again, so is what is shown
        server.fault = ""
        await until(lambda: asks.state.health is Health.OK)
        assert said() > told
        assert asks.queues.at_s > seen_s
        assert asks.state.words == ""
        # who was refused asks what the user may do by now
        assert server.paths.count("/whoami") >= 1 + (fault == "401")

        # and if nothing needs it any more when it fails, it is tried until it is well
        server.fault = fault
        await until(lambda: asks.state.health is Health.STALE)
        asks.look_at(Focus(View.EVENTS))
        server.fault = ""
        await until(lambda: asks.state.health is Health.OK)
        assert server.paths[-1] == "/whoami"


@scenario
async def test_an_api_that_never_answered_has_failed_and_is_tried_while_nothing_needs_it(
    server: Misbehaving, inventory: Inventory
) -> None:
    server.fault = "500"
    asks = poller(server, inventory)
    async with running(asks, Focus()):
        await until(lambda: asks.state.health is Health.FAILED)
        assert asks.state.at_s is None
        server.fault = ""
        await until(lambda: asks.state.health is Health.OK)
        asked = len(server.asked)
        await asyncio.sleep(2 * POLL_S)
        assert len(server.asked) == asked


@scenario
async def test_who_is_refused_asks_less_and_less_and_a_new_password_at_once(
    server: Misbehaving, inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a password that is refused, and would be for a minute
    monkeypatch.setattr(refusals, "LADDER_S", (0.1, 60.0))
    monkeypatch.setattr(module, "LOOK_S", 0.1)
    server.fault, password = "401", "geheim"
    asks = Poller(lambda: Api(server.url, "me", password, vhost="v"), inventory)
    async with running(asks, Focus(View.QUEUES)):
        await until(lambda: len(server.asked) == 2)
        await asyncio.sleep(3 * POLL_S)
        asks.refresh()
        await asyncio.sleep(POLL_S)
        assert len(server.asked) == 2
        assert "refuses user 'me'" in asks.state.words

        # when there is another, then it is used, and the queues are there
        server.fault, password = "", "neu"
        await until(lambda: asks.queues)
        assert asks.state.health is Health.OK

        # and who is refused after that is at the beginning again
        server.fault, asked = "401", len(server.asked)
        await until(lambda: len(server.asked) == asked + 2)


@scenario
async def test_what_cannot_be_found_is_looked_for_again_and_a_private_node_where_it_is_now(
    server: Misbehaving, inventory: Inventory
) -> None:
    # given a private node that does not run at first, then where nobody listens, then where the server is
    places: list[str] = []

    def find() -> Api:
        if not places:
            raise BrokerUnreachable("the private broker is not running", hint="Start it.")
        return Api(places[-1], "me", "geheim", vhost="v")

    asks = Poller(find, replace(inventory, broker=replace(inventory.broker, local=True)))
    assert asks.state.health is Health.CONNECTING
    async with running(asks, Focus(View.QUEUES)):
        await until(lambda: asks.state.words == "the private broker is not running. Start it.")
        assert asks.state.health is Health.FAILED
        places.append("http://127.0.0.1:1")
        await until(lambda: "cannot be asked" in asks.state.words)
        places.append(server.url)
        await until(lambda: asks.state.health is Health.OK)


@scenario
async def test_an_answer_that_is_late_is_said_to_be_while_it_is_waited_for(
    server: Misbehaving, inventory: Inventory
) -> None:
    asks = poller(server, inventory)
    async with running(asks, Focus(View.QUEUES)):
        await until(lambda: asks.queues)
        assert not asks.is_late
        server.fault = "hang"
        await until(lambda: "has not answered for" in asks.state.words)
        assert asks.is_late


@scenario
async def test_requests_that_never_end_are_not_piled_up(
    server: Misbehaving, inventory: Inventory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a server that keeps every request from ending, with threads that are waited for a short time only
    monkeypatch.setattr(module, "GRACE_S", -0.2)
    server.fault = "drip"
    asks = poller(server, inventory)
    before = threading.active_count()
    async with running(asks, Focus(View.QUEUES)):
        await until(lambda: "has not ended its answers to 4 requests" in asks.state.words)
        assert _asking() <= module.MAX_LEFT_BEHIND
        # when it lets them go
        server.fault = ""
        await until(lambda: asks.state.health is Health.OK, within_s=10.0)
    assert threading.active_count() <= before + 2 * module.MAX_LEFT_BEHIND


def _asking() -> int:
    return sum(1 for thread in threading.enumerate() if thread.name == "qctl-management")


@scenario
async def test_a_user_without_the_tag_is_told_which_and_sees_what_it_may(
    server: Misbehaving, inventory: Inventory, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "USER_AGAIN_S", 0.5)
    fleet.tags = ["management"]
    asks = poller(server, inventory)
    async with running(asks, Focus(View.QUEUES)):
        await until(lambda: asks.queues)
        assert asks.state.health is Health.OK
        assert "lacks the tag `monitoring`" in asks.state.words
        assert "set_user_tags" in asks.state.words
        # and who is given the tag is told no more of it
        fleet.tags = ["monitoring"]
        await until(lambda: asks.state.words == "")


@scenario
async def test_a_page_that_is_gone_becomes_the_first(server: Misbehaving, inventory: Inventory, fleet: Fleet) -> None:
    asks = poller(server, inventory)
    async with running(asks, Focus(View.QUEUES, page=3)):
        await until(lambda: asks.page == Page(3, 3, 1_200))
        fleet.total = 10
        await until(lambda: asks.page == Page(1, 1, 10))
        assert asks.state.health is Health.OK
        # and is not asked for again each time
        asked = len(server.asked)
        await until(lambda: len(server.asked) >= asked + 2)
        assert {query["page"] for _, query in server.asked[asked:]} == {"1"}
        # until it is looked at anew
        fleet.total = 1_200
        asks.look_at(Focus(View.QUEUES, page=2))
        await until(lambda: asks.page.number == 2)
        asks.look_at(Focus(View.QUEUES, page=3))
        await until(lambda: asks.page.number == 3)


@scenario
async def test_who_says_of_every_page_that_it_is_gone_is_not_asked_without_end(
    inventory: Inventory, fleet: Fleet
) -> None:
    def nowhere(path: str, query: dict[str, str]) -> Any:
        return fleet.answer(path, query) if path == "/whoami" else (400, {"reason": "Page out of range"})

    with Misbehaving(answer=nowhere) as server:
        asks = poller(server, inventory)
        async with running(asks, Focus(View.QUEUES, page=2)):
            await until(lambda: asks.state.health is Health.FAILED)
            asked = len(server.asked)
            await asyncio.sleep(2 * POLL_S)
            assert len(server.asked) - asked <= 4


@scenario
async def test_a_key_held_down_does_not_hammer_the_server(server: Misbehaving, inventory: Inventory) -> None:
    asks = poller(server, inventory)
    async with running(asks, Focus(View.QUEUES)):
        await until(lambda: asks.queues)
        asked = len(server.asked)
        for _ in range(100):
            asks.refresh()
            await asyncio.sleep(0.002)
        assert 1 <= len(server.asked) - asked <= 8


@scenario
async def test_without_a_management_api_there_is_none_to_ask(inventory: Inventory) -> None:
    asks = Poller(lambda: None, inventory)
    asks.look_at(Focus(View.QUEUES))
    asks.refresh()
    await asks.run(lambda: None)
    assert (asks.state.health, asks.queues, asks.page) == (Health.OFF, None, Page())
