"""F34: the management API goes, hangs, refuses, fails, talks nonsense, while a console looks at queues and workers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qctl.inventory.load import load
from qctl.ops.status import State
from qctl.tui import poller
from qctl.tui.live import LiveSource
from qctl.tui.poller import Poller, asked_of
from qctl.tui.snapshot import Focus, Health, Snapshot, View
from tests.brokers import Vhost
from tests.faults.rows import Record, row
from tests.fleet import Fleet, wait_until
from tests.management_api import FAULTS, Misbehaving

WITHIN_S = 6.0
#: Snapshots come each second.
MOST_GAP_S = 3.0
HANDLERS = "def work(task):\n    pass\n"


class Screen:
    """The newest snapshot, and the longest that one let wait for itself."""

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None
        self.worst_gap_s = 0.0
        self._shown_s = time.monotonic()
        self._lock = threading.Lock()

    def show(self, snapshot: Snapshot) -> None:
        with self._lock:
            now_s = time.monotonic()
            self.worst_gap_s, self._shown_s = max(self.worst_gap_s, now_s - self._shown_s), now_s
            self.snapshot = snapshot

    def health(self, name: str) -> Health:
        assert self.snapshot is not None
        return next(source.health for source in self.snapshot.sources if source.name == name)

    def words(self) -> str:
        assert self.snapshot is not None
        return next(source.words for source in self.snapshot.sources if source.name == poller.NAME)


def seconds(what: str, condition: Callable[[], object]) -> float:
    """How long it takes to come about."""
    since_s = time.monotonic()
    wait_until(what, condition, timeout_s=3 * WITHIN_S)
    return time.monotonic() - since_s


@row("F34", "nobody listens, no answer, a drip, 401, 500, garbage, a redirect, one after the other", timeout_s=300)
def test_the_console_lives_says_so_and_recovers(
    record: Record, vhost: Vhost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a worker, and a console that shows the queues
    for name, value in (*vhost.environment().items(), ("XDG_CACHE_HOME", str(tmp_path))):
        monkeypatch.setenv(name, value)
    consumers = {"work": {"handler": {"python": "handlers:work"}, "quota": {}}}
    screen = Screen()
    with (
        Misbehaving(upstream=vhost.management_url) as api,
        Fleet(vhost, tmp_path, HANDLERS, consumers=consumers, hosts={"web-1": {}}) as fleet,
    ):
        fleet.start("web-1")
        path = tmp_path / "console.yaml"
        document = {
            "version": 1,
            "broker": {**vhost.inventory_broker(), "management": api.url},
            "consumers": consumers,
            "hosts": {"web-1": {}},
        }
        path.write_text(json.dumps(document), encoding="utf-8")
        inventory = load(path)
        asks = Poller(lambda: asked_of(inventory), inventory)
        source = LiveSource(inventory, connect_timeout_s=10.0, poller=asks)
        source.look_at(Focus(View.QUEUES))
        source.start(screen.show)
        try:
            wait_until("all is well", lambda: _well(screen), timeout_s=30.0)
            screen.worst_gap_s = 0.0
            noticed_s, recovered_s = [], []
            for fault in FAULTS:
                # When the API misbehaves, then it is said, and what is not its own goes on
                api.fault = fault
                noticed_s.append(seconds(f"{fault} is said", lambda: screen.health(poller.NAME) is Health.STALE))
                snapshot = screen.snapshot
                assert snapshot is not None
                assert snapshot.status.queues
                assert snapshot.status.consumers[0].state is State.CONSUMING
                assert screen.health("workers") is Health.OK
                assert screen.words()
                # When it is well again, then it is seen
                api.fault = ""
                recovered_s.append(seconds(f"no more {fault}", lambda: screen.health(poller.NAME) is Health.OK))
        finally:
            source.stop()

    record.figure("longest until it was said, s", max(noticed_s), at_most=WITHIN_S)
    record.figure("longest until it was well again, s", max(recovered_s), at_most=WITHIN_S)
    record.figure("longest between two pictures, s", screen.worst_gap_s, at_most=MOST_GAP_S)
    asked = len(api.asked)
    over_s = api.times_s[-1] - api.times_s[0]
    record.figure("requests in five seconds", 5 * asked / over_s, at_most=3.0)


def _well(screen: Screen) -> bool:
    shown = screen.snapshot
    if shown is None or not shown.status.queues or screen.health(poller.NAME) is not Health.OK:
        return False
    return bool(shown.status.consumers) and shown.status.consumers[0].state is State.CONSUMING
