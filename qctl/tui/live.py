"""The live source: what comes over AMQP, with the management API beside it or in its place, as snapshots.

It runs in a thread and a loop of its own; `show` is called there.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from qctl.broker import core, topology
from qctl.errors import BrokerRefused, BrokerUnreachable, QctlError, SecretError
from qctl.inventory.model import Inventory
from qctl.ops.backlog import corrected, work_queues
from qctl.ops.depths import MAX_QUEUES, queues_to_look_at
from qctl.ops.picture import picture_of
from qctl.ops.status import Status
from qctl.tui import merge
from qctl.tui.gather import NOT_YET, fallen_silent, found_of, sources_of
from qctl.tui.poller import Poller, QueuePage
from qctl.tui.snapshot import Focus, Health, Page, Snapshot, SourceState, View
from qctl.tui.tags import tag_rows
from qctl.tui.wire import Wire

log = logging.getLogger(__name__)

#: A snapshot is made so often, sooner when there is news, and so seldom that making them takes an eighth of the time.
PERIOD_S = 1.0
SOONEST_S = 0.25
SHARE = 8.0
#: What is asked of ends within this when the source stops.
STOP_S = 1.5
JOIN_S = 2.0


class LiveSource:
    """Everything that can be known of a running fleet, about once a second.

    connect_timeout_s: for so long it is tried before anything was shown that lives; then `error` says why there is
    nothing. poller: asks the management API; None where there is none.
    """

    def __init__(self, inventory: Inventory, *, connect_timeout_s: float, poller: Poller | None = None) -> None:
        self.error: QctlError | None = None
        self._inventory = inventory
        self._connect_timeout_s = connect_timeout_s
        self._poller = poller
        self._focus = Focus()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._work: _Work | None = None
        self._stopped = False

    # From the console's thread

    def start(self, show: Callable[[Snapshot], None]) -> None:
        """As in Source."""
        self._thread = threading.Thread(target=self._run, args=(show,), name="live", daemon=True)
        self._thread.start()

    def look_at(self, focus: Focus) -> None:
        """As in Source."""
        self._focus = focus
        self._tell(lambda work: work.look_at(focus))

    def refresh(self) -> None:
        """As in Source."""
        self._tell(lambda work: work.refresh())

    def stop(self) -> None:
        """As in Source. What does not end in time is left to a thread that ends with the process."""
        with self._lock:
            self._stopped = True
        self._tell(lambda work: work.stop())
        if self._thread is not None:
            self._thread.join(JOIN_S)

    def _tell(self, what: Callable[[_Work], None]) -> None:
        with self._lock:
            work = self._work
            if self._loop is not None and work is not None:
                self._loop.call_soon_threadsafe(what, work)

    # In its own thread

    def _run(self, show: Callable[[Snapshot], None]) -> None:
        asyncio.run(self._main(show))

    async def _main(self, show: Callable[[Snapshot], None]) -> None:
        work = _Work(self._inventory, self._poller, self._connect_timeout_s, self._focus)
        with self._lock:
            if self._stopped:
                return
            self._work, self._loop = work, asyncio.get_running_loop()
        work.look_at(self._focus)
        try:
            self.error = await work.run(show)
        except Exception as error:  # whatever it is, the console must not stand still as if all were well
            log.exception("the live source has failed")
            self.error = QctlError(
                f"what runs cannot be shown any more: {type(error).__name__}: {error}", hint="Report it, with -vv."
            )
        finally:
            with self._lock:
                self._loop = None
        if self.error is not None:
            show(work.shown or Snapshot(time.time(), Status(time.time(), False)))


class _Work:
    """What the source does in its loop."""

    def __init__(self, inventory: Inventory, poller: Poller | None, connect_timeout_s: float, focus: Focus) -> None:
        self.inventory, self.poller, self.focus = inventory, poller, focus
        self.wire = Wire(inventory, self._on_news)
        self.patience_s = connect_timeout_s
        self.queue_names = queues_to_look_at(inventory)
        self.work_names = work_queues(inventory)
        self.dead_names = tuple(name for name in self.queue_names if name.endswith(topology.dead_queue("")))
        self._news, self._ending = asyncio.Event(), asyncio.Event()
        self.shown: Snapshot | None = None
        self._has_lived = False
        self._looked_s = core.now_s()

    def _on_news(self) -> None:
        self._news.set()

    def look_at(self, focus: Focus) -> None:
        self.focus = focus
        if self.poller is not None:
            self.poller.look_at(focus)
        self.wire.look_at(self._wanted())
        self._news.set()

    def refresh(self) -> None:
        self.wire.refresh()
        if self.poller is not None:
            self.poller.refresh()

    def stop(self) -> None:
        self._ending.set()
        self._news.set()

    async def run(self, show: Callable[[Snapshot], None]) -> QctlError | None:
        """Show until `stop`; why it gave up, None when it did not."""
        started_s = time.monotonic()
        self._show(show)
        tasks: list[asyncio.Future[None]] = [asyncio.ensure_future(self.wire.run())]
        if self.poller is not None:
            tasks.append(asyncio.ensure_future(self.poller.run(self._on_news)))
        try:
            cost_s = 0.0
            while not await self._pause(cost_s):
                for task in tasks:
                    if task.done():
                        task.result()
                if (error := self._given_up(time.monotonic() - started_s)) is not None:
                    self.shown = self.snapshot()
                    return error
                begun_s = time.thread_time()
                self._show(show)
                cost_s = time.thread_time() - begun_s
            return None
        finally:
            await self._end(tasks)

    def _show(self, show: Callable[[Snapshot], None]) -> None:
        self.shown = self.snapshot()
        show(self.shown)

    async def _pause(self, cost_s: float) -> bool:
        """Until it is time for another snapshot; whether it is time to end instead."""
        soonest_s = max(SOONEST_S, SHARE * cost_s)
        with suppress(TimeoutError):
            return await asyncio.wait_for(self._ending.wait(), soonest_s)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), max(0.0, PERIOD_S - soonest_s))
        self._news.clear()
        return self._ending.is_set()

    async def _end(self, tasks: list[asyncio.Future[None]]) -> None:
        self.wire.keep()
        for task in tasks:
            task.cancel()
        done, pending = await asyncio.wait(tasks, timeout=STOP_S)
        if pending:
            self.wire.abort()
        for task in done:
            if not task.cancelled():
                task.exception()

    def _given_up(self, waited_s: float) -> QctlError | None:
        """Why nothing can be shown, once it was tried for long enough; what has lived once is waited for for ever."""
        managed = self.poller.state.health if self.poller is not None else Health.OFF
        is_late = self.poller is not None and self.poller.is_late
        self._has_lived = self._has_lived or self.wire.connected_once or managed is Health.OK
        if self._has_lived:
            return None
        error = self.wire.last_error
        hopeless = (
            isinstance(error, BrokerRefused | SecretError) and managed in (Health.OFF, Health.FAILED) and not is_late
        )
        if not hopeless and waited_s < self.patience_s:
            return None
        return error or BrokerUnreachable(
            f"the broker did not answer within {self.patience_s:g} s",
            hint="Check `broker.amqp` in the inventory; --connect-timeout waits longer.",
        )

    # What is shown

    def snapshot(self) -> Snapshot:
        """All that is known now."""
        at_s, now_s = time.time(), core.now_s()
        if fallen_silent(self.wire, now_s, self._looked_s):
            self.wire.ask_soon()
        self._looked_s = now_s
        found = found_of(self.wire, at_s=at_s, now_s=now_s)
        picture = picture_of(found, self.inventory)
        status, tags = picture.status, tag_rows(picture.hosts)
        poller = self.poller
        if poller is not None:
            is_lost = found.deaf not in ("", NOT_YET)
            poller.needs_estimates(is_lost)
            if is_lost:
                status = merge.estimated(status, poller.estimates)
                tags = merge.listed(tags, poller.consumers)
        self.wire.look_at(self._wanted())
        status, page = self._queues(status)
        letters = poller.dead_queues if poller is not None else None
        return Snapshot(
            at_s=at_s,
            status=status,
            tags=tags,
            page=page,
            dead=merge.dead_queues(
                letters.rows if letters is not None else (),
                letters.at_s if letters is not None else None,
                names=self.dead_names,
                depths=self.wire.depths,
                depths_at_s=self.wire.depths_at_s,
            ),
            events=tuple(self.wire.events),
            sources=self._sources(at_s, now_s),
        )

    def _queues(self, status: Status) -> tuple[Status, Page]:
        """With the page of queues that is on screen, elsewhere with those of the fleet; which page it is."""
        listed = self.poller.queues if self.poller is not None else None
        counted = listed.rows if listed is not None else ()
        rows = merge.queues(
            corrected(counted, status.consumers, status.at_s, inventory=self.inventory),
            status.queues,
            only_listed=listed is not None and self.focus.view is View.QUEUES,
            depths=self.wire.depths,
            depths_at_s=self.wire.depths_at_s,
        )
        page = self.poller.page if self.poller is not None and self._on_screen() is not None else Page(1, 1, len(rows))
        return replace(status, queues=rows), page

    def _on_screen(self) -> QueuePage | None:
        """What the management API lists of the view on screen."""
        if self.poller is None:
            return None
        return {View.QUEUES: self.poller.queues, View.DEAD: self.poller.dead_queues}.get(self.focus.view)

    def _sources(self, at_s: float, now_s: float) -> tuple[SourceState, ...]:
        mine = tuple(sources_of(self.wire, at_s=at_s, now_s=now_s))
        return (*mine, self.poller.state) if self.poller is not None else mine

    def _wanted(self) -> tuple[str, ...]:
        """The queues whose depth AMQP has to say: the fleet's, and those on screen, unless the management API does."""
        poller, view = self.poller, self.focus.view
        if poller is not None and poller.state.health is Health.OK and view in (View.QUEUES, View.DEAD):
            wanted = self.dead_names if view is View.QUEUES else self.work_names
            return wanted[:MAX_QUEUES]
        listed = self._on_screen()
        first = [row.queue for row in listed.rows] if listed is not None else self._explaining()
        if view is View.QUEUES:
            rest = self.dead_names if first else self.queue_names
        else:
            rest = (*self.dead_names, *self.work_names) if view is View.DEAD else (*self.work_names, *self.dead_names)
        return tuple(dict.fromkeys((*first, *rest)))[:MAX_QUEUES]

    def _explaining(self) -> tuple[str, ...]:
        """The queues of the host whose detail is open, or of its consumer's."""
        focus = self.focus
        if not focus.opened or focus.view not in (View.HOSTS, View.CONSUMERS):
            return ()
        _, _, rest = focus.opened.partition("qctl/")
        host = (rest or focus.opened).partition("/")[0]
        return work_queues(self.inventory, hosts=[host]) if host in self.inventory.hosts else ()
