"""What the management API of a real broker says: pages, order and filter of its own, and who is shown what."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qctl.broker.listing import QueuesAsked, Sort
from qctl.broker.management import Api, Management, ManagementError, NoSuchPage, Refused, SeesOnlyItsOwn, tags
from qctl.inventory.load import load
from qctl.ops.status import State
from qctl.tui import poller as module
from qctl.tui.poller import Poller
from qctl.tui.snapshot import Focus, Health, View
from tests.brokers import Vhost
from tests.fleet import Fleet
from tests.integration.worker_harness import wire
from tests.wire import scenario

NAMES = ("alpha", "Alpha.2", "a-2", "x.dead", "deadx", "wéb(1)", "nul\x00")
HANDLERS = "def work(task):\n    pass\n"


def api_of(vhost: Vhost, username: str = "", password: str = "") -> Api:
    return Api(vhost.management_url, username or vhost.username, password or vhost.password, vhost=vhost.name)


@contextmanager
def asked(api: Api) -> Iterator[Management]:
    found = Management(api, timeout_s=10.0)
    try:
        yield found
    finally:
        found.close()


def names(management: Management, **wanted: object) -> list[str]:
    return [look.name for look in management.queue_page(QueuesAsked(**wanted)).queues]  # type: ignore[arg-type]


def test_the_broker_sorts_filters_and_pages_its_queues(vhost: Vhost) -> None:
    # given queues with messages, as many as their place in the list
    with wire(vhost) as own, asked(api_of(vhost)) as api:
        for number, name in enumerate(NAMES):
            own.channel.queue_declare(name, durable=True)
            for _ in range(number):
                own.send(name)

        # then a text is found as it is, in either case, and can be what must not be in a name
        assert names(api, match="ALPHA") == ["Alpha.2", "alpha"]
        assert names(api, match=".2") == ["Alpha.2"]
        assert names(api, match="éb(1") == ["wéb(1)"]
        assert names(api, match="\x00") == ["nul\x00"]
        assert names(api, match="a", invert=True) == ["nul\x00", "wéb(1)"]
        assert names(api, ending=".dead") == ["x.dead"]
        assert names(api, ending=".dead", match="x", invert=True) == []

        # and what is known of a queue comes with it, the deepest first where that is asked for
        deadline_s = time.monotonic() + 15
        while names(api, sort=Sort.READY, descending=True) != list(reversed(NAMES)):
            assert time.monotonic() < deadline_s
            time.sleep(0.2)
        page = api.queue_page(QueuesAsked(sort=Sort.READY, descending=True))
        assert [look.ready for look in page.queues] == list(reversed(range(len(NAMES))))
        assert (page.page, page.pages, page.total) == (1, 1, len(NAMES))

        # and a page beyond the last is none
        with pytest.raises(NoSuchPage):
            api.queue_page(QueuesAsked(page=2))


def test_who_lacks_a_tag_is_told_which_and_what_that_means(vhost: Vhost) -> None:
    # given users of the virtual host: without a tag, with one that shows its own alone, and one for all
    broker, rights = vhost.broker, {"configure": ".*", "write": ".*", "read": ".*"}
    users = {kind: f"{kind or 'nobody'}-{vhost.name}" for kind in ("", "management", "monitoring")}
    for tag, user in users.items():
        broker.api("PUT", f"/users/{user}", {"password": "pw", "tags": tag})
        broker.api("PUT", f"/permissions/{vhost.name}/{user}", rights)
    try:
        # then the first is refused, with the tag that it lacks
        with (
            asked(api_of(vhost, users[""], "pw")) as api,
            pytest.raises(Refused, match="lacks the tags `management` and `monitoring`"),
        ):
            api.check_sees_all()
        # the second sees queues, and that nothing follows from what else it is not shown
        with wire(vhost) as own, asked(api_of(vhost, users["management"], "pw")) as api:
            own.channel.queue_declare("q", durable=True)
            assert names(api) == ["q"]
            with pytest.raises(SeesOnlyItsOwn, match="lacks the tag `monitoring`"):
                api.check_sees_all()
        with pytest.raises(ManagementError, match="lacks the tag `monitoring`"):
            tags(api_of(vhost, users["management"], "pw"))
        # the third is told all there is
        assert tags(api_of(vhost, users["monitoring"], "pw")) == frozenset()
        # and a wrong password is nobody's
        with asked(api_of(vhost, users["monitoring"], "wrong")) as api, pytest.raises(Refused) as refused:
            api.check_sees_all()
        assert "lacks" not in refused.value.message
    finally:
        for user in users.values():
            broker.api("DELETE", f"/users/{user}")


@scenario
async def test_a_workers_burn_is_estimated_from_what_the_broker_counts(
    local_vhost: Vhost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a worker that has finished tasks of 3 units each, and a console that does not hear it
    for name, value in (("POLL_LEAST_S", 0.3), ("POLL_MOST_S", 0.4)):
        monkeypatch.setattr(module, name, value)
    consumers = {"work": {"handler": {"python": "handlers:work"}, "quota": {"api": 3}}}
    with Fleet(
        local_vhost, tmp_path, HANDLERS, quotas={"api": "1000/h"}, consumers=consumers, hosts={"web-1": {}, "web-2": {}}
    ) as fleet:
        fleet.start("web-1")
        fleet.enqueue("work", [{}] * 40)
        asks, news = Poller(lambda: api_of(local_vhost), load(tmp_path / "inventory.yaml")), asyncio.Event()
        asks.needs_estimates(True)

        def used() -> int:
            rows = asks.estimates.quotas if asks.estimates else ()
            return sum(row.used_units or 0 for row in rows)

        async def until(what: Callable[[], object]) -> None:
            while not what():
                news.clear()
                await asyncio.wait_for(news.wait(), 20)

        asking = asyncio.ensure_future(asks.run(news.set))
        try:
            # when it asks the broker, and the worker finishes 20 more
            await until(used)
            before = used()
            fleet.enqueue("work", [{}] * 20)
            await until(lambda: used() >= before + 20 * 3)
            asks.look_at(Focus(View.CONSUMERS))
            await until(lambda: asks.consumers)
        finally:
            asking.cancel()

    # then it knows what was spent, by whom, and who is not there
    assert asks.state.health is Health.OK
    assert asks.estimates is not None
    burn = {row.address: (row.used_units, row.limit_units, row.estimated) for row in asks.estimates.quotas}
    assert burn == {"web-1/api": (before + 60, 1_000, True), "web-2/api": (None, None, True)}
    assert 0 < before <= 120
    assert [(row.host, row.state) for row in asks.estimates.hosts] == [
        ("web-1", State.CONSUMING),
        ("web-2", State.DOWN),
    ]
    assert asks.consumers is not None
    assert [(row.tag, row.state) for row in asks.consumers] == [
        ("qctl/web-1/work/0", State.CONSUMING),
        ("qctl/web-2/work/0", State.DOWN),
    ]
