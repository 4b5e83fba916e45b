"""Asking the management API for what is on screen, and for nothing else: one request about every five seconds."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from qctl.broker import management
from qctl.broker.connect import Login
from qctl.broker.listing import ListedConsumer, QueueListing, QueuesAsked, Sort
from qctl.broker.login import login_for
from qctl.broker.management import Api, Management, ManagementError
from qctl.broker.refusals import LOOK_S, Refusal, mark_of, wait_s
from qctl.errors import QctlError
from qctl.inventory.model import Inventory
from qctl.ops.estimate import Counted, Estimates, pair_of
from qctl.ops.listed import queue_row, takers
from qctl.ops.status import QueueRow, Seen, Source, State
from qctl.tui.snapshot import Focus, Health, Page, SourceState, TagRow, View

#: How this source is called where the sources are listed.
NAME = "management API"
#: From the start of a request to that of the next, at least and at most. The broker counts anew each five seconds, and
#: what goes wrong has to be said within six.
POLL_LEAST_S = 4.0
POLL_MOST_S = 4.6
#: What is on screen has to stay so for this long before it is asked for: a filter is typed letter by letter.
DEBOUNCE_S = 0.3
#: A key that is held down asks no more often.
REFRESH_S = 0.5
#: An answer that takes longer, and twice as long as the last one, is said to be late while it is waited for.
LATE_S = 0.8
#: A busy broker with 5,000 queues took up to 2 s for a page; after this the next poll is due.
TIMEOUT_S = 4.0
#: The user's rights may have changed; without the right one, what is listed is only a part.
USER_AGAIN_S = 60.0
#: A request ends by itself within its own limit; this much is added for importing what makes it.
GRACE_S = 0.5
#: A secret's command may take ten seconds to say the password.
FIND_S = 15.0
#: Requests that a server keeps from ending, a byte now and then; with so many, no more are made.
MAX_LEFT_BEHIND = 4
#: By what the broker sorts queues, by the ids of columns.
SORTS = {
    "queue": Sort.NAME,
    "ready": Sort.READY,
    "unacked": Sort.UNACKED,
    "in": Sort.IN,
    "out": Sort.ACKED,
    "consumers": Sort.CONSUMERS,
}
DEAD_ENDING = ".dead"


class _List(Enum):
    """What is asked for in a request, beside queues."""

    USER = "whoami"
    CONNECTIONS = "connections"
    CONSUMERS = "consumers"
    CHANNELS = "channels"


#: Asked in turn for estimates: each counts for what the next one says.
_FLEET = (_List.CONNECTIONS, _List.CONSUMERS, _List.CHANNELS)
_TAGS = (_List.CONNECTIONS, _List.CONSUMERS)
_USER = (_List.USER,)
#: What a view needs: queues, one list, or the lists of the fleet in turn.
_Need = QueuesAsked | tuple[_List, ...]


@dataclass(frozen=True, slots=True)
class QueuePage:
    """Queues as they were listed at `at_s` for a screen like `focus`."""

    rows: tuple[QueueRow, ...]
    page: Page
    at_s: float
    focus: Focus


class Poller:
    """What the management API says of a virtual host; all of it is used in one event loop.

    find: where the API is and who asks it, None where there is none; asked in a thread, and anew after a refusal, since
    a password may have been rotated. It raises QctlError. What was learnt stays where a request fails, with its age.
    """

    def __init__(
        self, find: Callable[[], Api | None], inventory: Inventory, *, now: Callable[[], float] = time.time
    ) -> None:
        self.queues: QueuePage | None = None
        self.dead_queues: QueuePage | None = None
        self.consumers: tuple[TagRow, ...] | None = None
        self.estimates: Estimates | None = None
        #: Whether what is asked takes long at present, and may be answered yet.
        self.is_late = False
        self._find, self._inventory, self._now = find, inventory, now
        #: As found last; None for not yet, or to be found anew.
        self._api: Api | None = None
        self._refusal: Refusal | None = None
        self._taken = takers(inventory)
        self._counted = Counted(inventory)
        named = inventory.broker.local or inventory.broker.management is not None
        self._state = SourceState(NAME, Health.CONNECTING if named else Health.OFF)
        self._focus, self._estimating = Focus(), False
        #: When the user's tags were learnt, None for not yet or not since a refusal; what the lack of one means.
        self._user_s: float | None = None
        self._only_its_own = ""
        #: The page that was wanted last and does not exist: the first is shown instead.
        self._gone: QueuesAsked | None = None
        #: Which list of the fleet is next.
        self._turn = 0
        self._asked: _Need | None = None
        self._due_s = self._started_s = self._took_s = 0.0
        self._moved = asyncio.Event()
        self._left_behind = threading.BoundedSemaphore(MAX_LEFT_BEHIND)

    @property
    def state(self) -> SourceState:
        """How it is. Without an age while nothing on screen needs it, since it is not asked then."""
        return self._state if self._need() or self._state.health is not Health.OK else replace(self._state, at_s=None)

    @property
    def dead(self) -> tuple[QueueRow, ...]:
        """Queues of dead letters, those of the page that is on screen, or was."""
        return self.dead_queues.rows if self.dead_queues else ()

    @property
    def page(self) -> Page:
        """Which page the rows of the view on screen are."""
        shown = self.dead_queues if self._focus.view is View.DEAD else self.queues
        return shown.page if shown else Page()

    def look_at(self, focus: Focus) -> None:
        """What is on screen from now on; what it needs anew is asked for after a moment."""
        self._change(focus, self._estimating)

    def needs_estimates(self, needed: bool) -> None:
        """Whether the workers are not heard, so that what the broker counts has to do."""
        self._change(self._focus, needed)

    def refresh(self) -> None:
        """Ask now for what is on screen."""
        self._due_s = min(self._due_s, max(time.monotonic(), self._started_s + REFRESH_S))
        self._moved.set()

    async def run(self, changed: Callable[[], None]) -> None:
        """Ask until cancelled; `changed` is called when there is something new. Returns where there is no API."""
        while True:
            need = await self._due()
            self._started_s = time.monotonic()
            self._due_s = self._started_s + random.uniform(POLL_LEAST_S, POLL_MOST_S)  # noqa: S311 (jitter is no secret)
            try:
                if self._api is None:
                    self._api = await management.in_thread(self._find, timeout_s=FIND_S)
            except QctlError as error:
                self._fault(_sentence(error))
                changed()
                continue
            if self._api is None:
                self._state = SourceState(NAME, Health.OFF)
                changed()
                return
            left_s = wait_s(self._refusal, _mark(self._api), time.monotonic())
            if left_s > 0:
                self._api, self._due_s = None, time.monotonic() + min(left_s, LOOK_S)
                continue
            await self._poll(self._api, need, changed)

    # When, and for what

    def _change(self, focus: Focus, estimating: bool) -> None:
        before = self._need()
        self._focus, self._estimating = focus, estimating
        need = self._need()
        if need == before:
            return
        self._gone = None
        if need and need != self._asked:
            self._due_s = time.monotonic() + DEBOUNCE_S
        self._moved.set()

    def _need(self) -> _Need | None:
        """What the view on screen takes from here; None while others serve it."""
        focus = self._focus
        match focus.view:
            case View.QUEUES | View.DEAD:
                dead = focus.view is View.DEAD
                return QueuesAsked(
                    page=max(1, focus.page),
                    sort=SORTS.get(focus.sort, Sort.NAME),
                    descending=focus.descending,
                    match=focus.match,
                    invert=focus.invert,
                    ending=DEAD_ENDING if dead else "",
                )
            case View.HOSTS | View.QUOTAS if self._estimating:
                return _FLEET
            case View.CONSUMERS if self._estimating:
                return _TAGS
        return None

    async def _due(self) -> _Need:
        """Wait until there is something to ask; what it is."""
        while True:
            self._moved.clear()
            need = self._need()
            if self._user_first(need):
                need = _USER
            wait_s = self._due_s - time.monotonic()
            if need is not None and wait_s <= 0:
                return need
            with suppress(TimeoutError):
                await asyncio.wait_for(self._moved.wait(), wait_s if need is not None else None)

    def _user_first(self, need: _Need | None) -> bool:
        """Whether to ask who we are: at first, after a refusal, now and then; and to see an idle API recover."""
        if need is None:
            return self._user_s is None or self._state.health is not Health.OK
        known = self._user_s is not None and time.monotonic() - self._user_s < USER_AGAIN_S
        return not known and self._asked != _USER

    # Asking

    async def _poll(self, api: Api, need: _Need, changed: Callable[[], None]) -> None:
        self._asked = need
        focus, at_s = self._focus, self._now()
        wanted: QueuesAsked | _List
        if isinstance(need, QueuesAsked):
            wanted = replace(need, page=1) if need == self._gone else need
        else:
            wanted = need[self._turn % len(need)]
        late_s, limit_s = max(LATE_S, 2 * self._took_s), TIMEOUT_S + GRACE_S
        work = asyncio.ensure_future(management.in_thread(lambda: self._ask(api, wanted), timeout_s=limit_s))
        try:
            if not (await asyncio.wait({work}, timeout=late_s))[0]:
                self.is_late = True
                self._fault(f"{api.url} has not answered for {late_s:.1f} s")
                changed()
            self._learn(wanted, await work, focus, at_s)
            self._took_s = time.monotonic() - self._started_s
            self._refusal = None
            if wanted is not _List.USER or self._need() is None:
                self._state = SourceState(NAME, Health.OK, self._now(), self._only_its_own)
        except ManagementError as error:
            if isinstance(error, management.NoSuchPage) and wanted is need:
                self._gone, self._due_s = need, 0.0
                return
            if isinstance(error, management.Refused):
                self._user_s = None
                tries = self._refusal.tries if self._refusal is not None else 0
                self._refusal = Refusal(_mark(api), tries + 1, time.monotonic())
            if isinstance(error, management.Refused) or self._inventory.broker.local:
                self._api = None  # a private node has other ports when it is started anew
            self._fault(_sentence(error))
        finally:
            self.is_late = False
            work.cancel()
        changed()

    def _ask(self, api: Api, wanted: QueuesAsked | _List) -> Any:
        """One request; blocks."""
        if not self._left_behind.acquire(blocking=False):
            raise ManagementError(f"{api.url} has not ended its answers to {MAX_LEFT_BEHIND} requests")
        try:
            asked = Management(api, timeout_s=TIMEOUT_S)
            try:
                if isinstance(wanted, QueuesAsked):
                    return asked.queue_page(wanted)
                return {
                    _List.USER: lambda: _lacking(asked),
                    _List.CONNECTIONS: asked.connections_here,
                    _List.CONSUMERS: asked.consumers,
                    _List.CHANNELS: asked.channels_here,
                }[wanted]()
            finally:
                asked.close()
        finally:
            self._left_behind.release()

    def _learn(self, wanted: QueuesAsked | _List, answer: Any, focus: Focus, at_s: float) -> None:
        """Keep what was answered to what was asked at `at_s`, when `focus` was on screen."""
        if isinstance(wanted, QueuesAsked):
            page = self._page(answer, focus, at_s)
            if wanted.ending:
                self.dead_queues = page
            else:
                self.queues = page
            return
        match wanted:
            case _List.USER:
                self._user_s, self._due_s = time.monotonic(), 0.0
                self._only_its_own, self._counted.sees_all = answer, not answer
            case _List.CONNECTIONS:
                self._counted.connections(answer, at_s)
            case _List.CONSUMERS:
                self._counted.consumers(answer, at_s)
            case _List.CHANNELS:
                self._counted.channels(answer, at_s)
        if wanted is not _List.USER:
            self._next_list(wanted)
            self.estimates = self._counted.estimates(at_s) or self.estimates
        if wanted is _List.CONSUMERS:
            self.consumers = _tags(answer, self.estimates, at_s)

    def _next_list(self, had: _List) -> None:
        """In the first round they follow each other quickly: it takes all of them to say anything."""
        self._turn, need = _FLEET.index(had) + 1, self._need()
        lacking = self.estimates is None or (need == _FLEET and not self._counted.complete)
        if lacking and isinstance(need, tuple) and self._turn < len(need):
            self._due_s = time.monotonic() + DEBOUNCE_S

    def _page(self, answer: QueueListing, focus: Focus, at_s: float) -> QueuePage:
        rows = tuple(queue_row(look, self._taken, at_s) for look in answer.queues)
        return QueuePage(rows, Page(answer.page, answer.pages, answer.total), at_s, focus)

    def _fault(self, words: str) -> None:
        at_s = self._state.at_s
        self._state = SourceState(NAME, Health.FAILED if at_s is None else Health.STALE, at_s, words)


def asked_of(inventory: Inventory) -> Api | None:
    """Where an inventory's management API is at present, and who asks it; None where it names none.

    Blocks where a secret is a command's. Raises SecretError, and BrokerUnreachable when the private node does not run.
    """
    login = login_for(inventory.broker, inventory.path, prefer_environment=True)
    return management.api_of(inventory.broker, inventory.path, login)


def _mark(api: Api) -> str:
    """Tells who asks from another who does."""
    return mark_of(Login((), api.username, api.password))


def _sentence(error: QctlError) -> str:
    return f"{error.message}. {error.hint}" if error.hint else error.message


def _lacking(asked: Management) -> str:
    """Which tag the user lacks, and what that means; "" for one that is shown everything."""
    try:
        asked.check_sees_all()
    except management.SeesOnlyItsOwn as error:
        return f"{error.message}. {error.hint}"
    return ""


def _tags(listed: tuple[ListedConsumer, ...], estimates: Estimates | None, at_s: float) -> tuple[TagRow, ...]:
    """The workers' subscriptions as they are listed, and consumers that have none."""
    seen = Seen(Source.BROKER, at_s)
    found = [
        TagRow(one.tag, *pair, queue=one.queue, state=State.CONSUMING, seen=seen)
        for one in listed
        if (pair := pair_of(one.tag)) is not None
    ]
    there = {(row.host, row.consumer) for row in found}
    silent = [row for row in (estimates.consumers if estimates else ()) if (row.host, row.consumer) not in there]
    found += [
        TagRow(
            f"qctl/{row.host}/{row.consumer}/0", row.host, row.consumer, row.queue, row.state, row.why, seen=row.seen
        )
        for row in silent
    ]
    return tuple(sorted(found, key=lambda row: row.tag))
