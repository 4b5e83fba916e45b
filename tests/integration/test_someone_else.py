"""A quota that somebody else spends too: what a worker hears of the API is what operators see, until it is over."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from qctl.control import history
from qctl.control.quota_reading import ForeignReading, LimitReading, QuotaReading
from qctl.control.reading import Reading
from qctl.ops.events import Happened, happened
from qctl.worker import notices
from qctl.worker.notices import Notices
from tests.brokers import Vhost
from tests.fleet import Fleet, wait_until
from tests.integration.test_observing import ask
from tests.wire import connected, scenario, until

LIMIT = 200
#: Calls under way at once.
SLOTS = 8
HANDLER = """
def call(task):
    task.http.get(task.payload)
    note("done", 0)
"""


class SharedApi:
    """Says in each answer what remains of 200 a minute, of which `others` were spent by somebody else."""

    def __init__(self) -> None:
        self.others = 0
        self.calls = 0
        self._lock = threading.Lock()
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with api._lock:
                    api.calls += 1
                    remaining = max(0, LIMIT - api.calls - api.others)
                self.send_response(200)
                self.send_header("x-ratelimit-limit", str(LIMIT))
                self.send_header("x-ratelimit-remaining", str(remaining))
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """The counts are the log."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}/"

    @contextmanager
    def serving(self) -> Iterator[SharedApi]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()


def test_spending_by_someone_else_is_shown_with_numbers_until_an_answer_says_otherwise(
    local_vhost: Vhost, tmp_path: Path
) -> None:
    # Given an API of which somebody else has spent 90 of 200, and a worker whose tasks call it
    with (
        SharedApi().serving() as api,
        Fleet(
            local_vhost,
            tmp_path,
            HANDLER,
            worker={"python_path": ["."]},
            quotas={"api": f"{LIMIT}/m"},
            consumers={"calls": {"handler": {"python": "handlers:call"}, "quota": {"api": 2}, "concurrency": SLOTS}},
            hosts={"web-1": {}},
        ) as fleet,
    ):
        fleet.environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
        api.others = 90
        fleet.start("web-1")
        fleet.enqueue("calls", [api.address] * 25)
        wait_until("all are done", lambda: len(fleet.history("done")) == 25)

        # Then that is seen with its numbers, as long as the last answer says so
        def shown() -> Any:
            return ask(fleet, "quota", "ls")["items"][0]

        def last_heard() -> Any:
            row = shown()
            told = row["foreign"] and row["foreign"]["api_limit_units"] - row["foreign"]["api_remaining_units"]
            return row["used_units"] == 25 and told and told >= 115 - SLOTS and row

        found = wait_until("the last answers are heard", last_heard)
        foreign = found["foreign"]
        counted = foreign["api_limit_units"] - foreign["api_remaining_units"]
        assert counted == pytest.approx(115, abs=SLOTS)  # by an answer to one of the last calls
        assert (
            counted - 90 <= foreign["ours_units"] <= 25 + 2 * SLOTS
        )  # with what had been reserved for those under way
        assert 90 - 2 * SLOTS <= foreign["units"] <= 90 <= foreign["most_units"]
        assert (found["used_units"], found["source"]) == (25, "live")
        sentences = [item["sentence"] for item in ask(fleet, "why", "web-1/calls")["items"]]
        said = r"quota api is spent by someone else too: the API counts 1[01]\d of 200 used; this host spent .* since "
        assert any(re.match(said, one) for one in sentences), sentences
        # and what the tasks cost is known
        assert [(cost["declared_units"], cost["tasks"], cost["verdict"]) for cost in found["costs"]] == [
            (2, 25, "too high")
        ]

        # When they are gone, and a task meets an answer that says so, then nothing of it is shown any more
        api.others = 0
        fleet.enqueue("calls", [api.address])
        wait_until("it is over", lambda: shown()["foreign"] is None)


@scenario
async def test_a_notice_stands_among_the_events_with_whose_word_it_is(
    vhost: Vhost, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a host of which the API says that somebody else spends 212 of 1000
    monkeypatch.setattr(notices, "LOOK_S", 0.05)
    foreign = ForeignReading(212, 212, 600, 3600.0, 1_000, 188, time.time() - 60, time.time() + 60, lasting=True)
    quota = QuotaReading("mail", 600, 1_000, 3600.0, limits=(LimitReading(1_000, 3600.0, 600),), foreign=foreign)

    looks = 0

    def readings() -> list[Reading]:
        nonlocal looks
        looks += 1
        return [Reading(time.time(), "web-1", 0, 17, "box", 0.0, 10.0, quotas=(quota,))]

    found: list[Happened] = []
    async with connected(vhost) as connection:

        async def read() -> None:
            async for entry in history.entries(connection, operators=frozenset({"oncall"}), follow=True):
                found.extend(event for event in [happened(entry)] if event is not None)

        # When it says so, and looks a few times more
        work = [asyncio.ensure_future(each) for each in (Notices("web-1", readings).keep(connection), read())]
        await until("the notice", lambda: bool(found))
        seen = looks
        await until("looks", lambda: looks > seen + 5)
        for each in work:
            each.cancel()
        await asyncio.wait(work)

    # Then it stands among the events once, with its numbers, by the user that the broker has verified
    assert [(event.user, event.target, event.notice, event.ignored) for event in found] == [
        (vhost.username, "web-1/mail", "foreign spending begins", "")
    ]
    assert found[0].reason == "the API counts 812 of 1000 used; this host spent 600; 212 by someone else"
