"""One queue of one consumer: subscribed exactly while it should be, whatever happens to its channel."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from qctl.broker import topology
from qctl.broker.connect import backoff
from qctl.broker.message import Properties
from qctl.broker.session import ChannelLost, Connection
from qctl.broker.subscription import Subscription, in_words
from qctl.errors import QctlError

log = logging.getLogger(__name__)

#: A queue that was followed for this long is tried again at once when it is lost, one that was not after longer pauses.
STEADY_S = 1.0
#: After something was given back by a consumer that is wanted all the same: it must not come straight back.
RETURN_PAUSE_S = 0.25


class Owner(Protocol):
    """What a keeper asks of its consumer, and tells it."""

    address: str

    @property
    def prefetch(self) -> int: ...
    @property
    def declarations(self) -> Sequence[topology.Declaration]: ...
    def wants(self, queue: str) -> bool: ...
    def opened(self, subscription: Subscription) -> None: ...
    def deliver(
        self, subscription: Subscription, tag: int, redelivered: bool, properties: Properties, body: bytes
    ) -> None: ...
    def note_lost(self) -> None: ...
    def changed(self) -> None: ...
    def lost(self, why: str) -> None: ...


class Keeper:
    """Of one consumer tag. Use from the loop's thread.

    served: nothing is wrong with the queue as far as anybody can tell. subscribed: from before the tag is asked for
    until its cancel-ok, or the loss of its channel. cancelled_at_s: the wall clock at the last cancel-ok, None when the
    tag ended without one, or is there. given_back: deliveries of the queue returned since the process started.
    """

    def __init__(self, owner: Owner, queue: str, tag: str) -> None:
        self.queue = queue
        self.tag = tag
        self.served = False
        self.subscribed = False
        self.cancelled_at_s: float | None = None
        self.given_back = 0
        self._owner = owner
        self._changed = asyncio.Event()
        self._consuming: Subscription | None = None

    def look_again(self) -> None:
        """What should be has changed."""
        self._changed.set()
        if self._consuming is not None and self.should_cancel(self._consuming):
            with suppress(ChannelLost):  # whoever follows it is told as well
                self._consuming.ask_cancel()  # at once: behind a flood of deliveries each turn of the loop takes long

    async def keep(self, connection: Connection) -> None:
        """Keep the queue subscribed as wanted, while the connection lasts.

        What is wrong with one queue (deleted, other arguments, no permission) stays with it.
        """
        pauses = backoff()
        while connection.is_open:
            followed_s = math.inf
            try:
                await topology.ensure(connection, self._owner.declarations)
                followed_s = time.monotonic()
                await self._follow(connection)
            except (ChannelLost, QctlError) as error:
                self.served = False
                self._owner.note_lost()
                self._owner.lost(await in_words(connection, self.queue, error))
            if time.monotonic() - followed_s > STEADY_S:
                pauses = backoff()
            if connection.is_open:
                await asyncio.wait({connection.closed}, timeout=next(pauses))

    async def _follow(self, connection: Connection) -> None:
        """Subscribe and cancel as wanted until a channel or the connection is lost, which is raised."""
        owner = self._owner
        while True:
            if not self._is_wanted():
                self.served = True
                owner.changed()
            await _either(self._changed, connection.closed, until=self._is_wanted)
            owner.note_lost()
            self.subscribed, self.cancelled_at_s = True, None
            try:
                subscription = await Subscription.open(connection, self.queue, self.tag, owner.deliver)
                owner.opened(subscription)
                await subscription.consume(owner.prefetch)
                self.served, self._consuming = True, subscription
                owner.changed()
                await _either(self._changed, subscription.lost, until=partial(self._should_end, subscription))
                await subscription.cancel()
                self.cancelled_at_s = time.time()
            finally:
                self.subscribed, self._consuming = False, None
            log.debug("%s cancel-ok tag=%s", owner.address, self.tag)
            if self._is_wanted() and subscription.gave_back:
                await asyncio.sleep(RETURN_PAUSE_S)

    def _is_wanted(self) -> bool:
        return self._owner.wants(self.queue)

    def _should_end(self, subscription: Subscription) -> bool:
        return subscription.cancelling or self.should_cancel(subscription)

    def should_cancel(self, subscription: Subscription) -> bool:
        """Whatever was given back goes out with a cancel, also when the queue is wanted again by now."""
        stays = self._is_wanted() and not subscription.gave_back and not subscription.scattered
        return not stays or subscription.prefetch != self._owner.prefetch


async def _either(changed: asyncio.Event, lost: asyncio.Future[ChannelLost], *, until: Callable[[], bool]) -> None:
    """Wait until `until` is true, looking again whenever `changed` is set. Raises what `lost` holds once it is done."""
    while not lost.done():
        changed.clear()
        if until():
            return
        waiting: asyncio.Future[Any] = asyncio.ensure_future(changed.wait())
        await asyncio.wait([waiting, lost], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
    raise lost.result()
