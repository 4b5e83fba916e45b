"""What takes a delivery's place: its retry, its dead letter, what it enqueued, the answer to its `reply_to`.

Published mandatory and confirmed, and only then is the original acknowledged. While the broker will not take it, the
delivery stays unacknowledged and the consumer is held. The same message is published again only when its first copy
cannot arrive any more: a broker that is slow to confirm would otherwise run one task many times.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qctl.broker import topology
from qctl.broker.connect import backoff
from qctl.broker.message import DELAY, DIED_AT, DIED_ON, PERSISTENT, Outgoing, answer_to, republish, utc
from qctl.broker.publisher import Published, Publisher
from qctl.broker.session import ChannelLost
from qctl.errors import QctlError
from qctl.units import format_duration
from qctl.worker.delivery import Delivery, Settled
from qctl.worker.outcome import Ending

log = logging.getLogger(__name__)

#: A broker that has not confirmed for this long holds the consumer; the confirm is waited for all the same.
SLOW_CONFIRM_S = 15.0

#: A consumer is back within five seconds of an alarm's end: no pause between two tries is longer than this.
AGAIN_WITHIN_S = 4.0

#: What is given back as a new message is given back as it is when the broker has not confirmed within this long.
RENEW_CONFIRM_S = 5.0

#: What one task enqueued is published so many at a time.
MAX_AT_ONCE = 100

#: The broker's count of how often a message came back, on queues that count it.
DELIVERY_COUNT = "x-delivery-count"

#: The causes of the holds.
NO_PUBLISHES = "broker takes no retries"
BROKEN = "tasks cannot be forwarded"

#: A hold of the second kind: the first one, the longest, and after how long without one they begin anew.
REST_FIRST_S = 1.0
REST_LAST_S = 60.0
REST_FORGOTTEN_S = 600.0


class Forwarder:
    """Forwards for one consumer. Use from the loop's thread."""

    def __init__(
        self,
        *,
        host: str,
        work_queue: str,
        persistent: bool,
        declarations: Sequence[topology.Declaration],
        publisher: Callable[[], Publisher | None],
        hold: Callable[[str, str], None],
        release: Callable[[str], None],
    ) -> None:
        """hold(cause, words) and release(cause): of the consumer. declarations: made again when something is gone."""
        self._host = host
        self._work_queue = work_queue
        self._persistent = persistent
        self._declarations = declarations
        self._publisher = publisher
        self._hold = hold
        self._release = release
        self._under_way: set[asyncio.Task[None]] = set()
        self._in_trouble: set[Settled] = set()
        self._said_missing = ""
        self._rest_s = 0.0
        self._rest_until_s = -math.inf
        self._declared: set[str] = set()  # queues of other consumers that were seen to exist

    @property
    def pending(self) -> int:
        """Deliveries whose successor is not confirmed yet."""
        return len(self._under_way)

    def start(self, settled: Settled) -> None:
        """Forward; returns at once. How many are under way is bounded by the prefetch."""
        task = asyncio.get_running_loop().create_task(self._forward(settled))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _forward(self, settled: Settled) -> None:
        subscription, tag = settled.delivery.subscription, settled.delivery.tag
        try:
            waiting, enough = self._outgoing(settled)
            # A delayed task whose queue does not exist would be missed only when its delay is over.
            targets = {one.routing_key for one in settled.outcome.followups.messages}
            missing = await self._declare(settled) if targets - self._declared else ""
            for pause_s in backoff():
                # A publish to what is missing would cost everybody's channel each time.
                fate = Published.LOST if missing else await self._publish_all(settled, waiting, enough)
                if not waiting:
                    subscription.ack([tag])
                if not waiting or not subscription.is_open:
                    return  # a delivery whose channel is gone comes again, with its old headers
                self._trouble(settled, waiting[0], missing or self._why_not() or fate.value)
                await asyncio.sleep(min(pause_s, AGAIN_WITHIN_S))
                missing = await self._declare(settled, waiting[0].exchange)
        # Whatever cannot be forwarded must not be lost in here: it goes back as it came, and the log says so.
        except Exception:
            log.critical("cannot forward a task, giving it back", exc_info=True)
            subscription.give_back([tag])
            self._rest()
        finally:
            self._in_trouble.discard(settled)
            if not self._in_trouble:
                self._release(NO_PUBLISHES)

    def _rest(self) -> None:
        """After an error that nobody foresaw: a pause, longer each time, since what was given back runs again."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._rest_until_s:
            return  # one of those that were under way when it began
        if loop.time() > self._rest_until_s + REST_FORGOTTEN_S:
            self._rest_s = REST_FIRST_S / 2
        self._rest_s = min(2 * self._rest_s, REST_LAST_S)
        self._rest_until_s = loop.time() + self._rest_s
        self._hold(BROKEN, f"{BROKEN}: an error of qctl's own, see the log; goes on in {self._rest_s:g} s")
        loop.call_at(self._rest_until_s, self._release, BROKEN)

    async def _publish_all(self, settled: Settled, waiting: list[Outgoing], enough: frozenset[Published]) -> Published:
        """Publish what waits, and take out of it what met a fate that is good enough; the first fate that was not."""
        while waiting:
            some = waiting[:MAX_AT_ONCE]
            fates = await asyncio.gather(*(self._publish(settled, outgoing) for outgoing in some))
            waiting[: len(some)] = [one for one, fate in zip(some, fates, strict=True) if fate not in enough]
            for fate in fates:
                if fate not in enough:
                    return fate
        return Published.CONFIRMED

    async def _publish(self, settled: Settled, outgoing: Outgoing) -> Published:
        """Publish once and wait for its fate; LOST also when nothing was sent."""
        publisher, gone = self._publisher(), settled.delivery.subscription.channel.closed
        if publisher is None or publisher.channel.connection.blocked:
            return Published.LOST
        attempt = asyncio.ensure_future(publisher.publish(outgoing))
        either: list[asyncio.Future[Any]] = [attempt, gone]
        await asyncio.wait(either, timeout=SLOW_CONFIRM_S, return_when=asyncio.FIRST_COMPLETED)
        if not attempt.done() and not gone.done():
            self._trouble(settled, outgoing, f"no confirm within {SLOW_CONFIRM_S:g} s")
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if attempt.done():
            try:
                return attempt.result()
            except ValueError as error:  # no other try will change it: good enough for an answer, all else is held
                log.error("cannot publish to %s: %s", outgoing.routing_key, error)
                return Published.REFUSED
        attempt.cancel()
        return Published.LOST

    def _why_not(self) -> str:
        """Why nothing can be published at present, or ""."""
        publisher = self._publisher()
        if publisher is None:
            return "no connection to publish on"
        return "the broker blocks publishes (memory or disk alarm)" if publisher.channel.connection.blocked else ""

    def _trouble(self, settled: Settled, outgoing: Outgoing, why: str) -> None:
        self._in_trouble.add(settled)
        self._hold(NO_PUBLISHES, f"{NO_PUBLISHES}: {outgoing.exchange or 'reply'} {outgoing.routing_key}: {why}")

    async def _declare(self, settled: Settled, exchange: str = "") -> str:
        """Make what somebody may have deleted, or never made; what is missing or refused, in words, or "".

        exchange: whose publishes failed; whether this user may write there at all is tried where it hurts nobody.
        """
        publisher = self._publisher()
        if publisher is None or publisher.channel.connection.blocked:
            return ""
        try:
            followups = settled.outcome.followups
            await topology.ensure(publisher.channel.connection, (*self._declarations, *followups.declarations))
            self._declared |= {one.routing_key for one in followups.messages}
            if exchange:
                await topology.check_write(publisher.channel.connection, exchange)
        except ChannelLost as error:
            log.warning("cannot declare what a task has to go through: %s", error)
        except QctlError as error:
            if error.message != self._said_missing:
                self._said_missing = error.message
                log.warning("%s: %s. %s", self._work_queue, error.message, error.hint)
            return error.message
        self._said_missing = ""
        return ""

    def renew(self, delivery: Delivery) -> None:
        """Put the same task into its queue as a new message, with nothing counted against it; returns at once."""
        task = asyncio.get_running_loop().create_task(self._renew(delivery))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _renew(self, delivery: Delivery) -> None:
        subscription, renewed = delivery.subscription, False
        try:
            renewed = await self._publish_anew(delivery)
        except TimeoutError:
            log.debug("no confirm within %g s, giving the task back as it is", RENEW_CONFIRM_S)
        except ValueError as error:
            log.warning("cannot publish a task again, giving it back as it is: %s", error)
        # As above: it must not be lost in here.
        except Exception:
            log.critical("cannot publish a task again, giving it back as it is", exc_info=True)
        if renewed:
            subscription.ack([delivery.tag])
        else:
            subscription.give_back([delivery.tag])  # rather counted once more than kept here

    async def _publish_anew(self, delivery: Delivery) -> bool:
        """Whether the broker has it as a new message now. Raises TimeoutError, ValueError."""
        publisher, properties = self._publisher(), delivery.properties
        if publisher is None or publisher.channel.connection.blocked or not delivery.subscription.is_open:
            return False  # the broker has back what was lost meanwhile; a copy of it would run as well
        again = republish(
            properties,
            changes={},
            message_id=str(uuid.uuid4()),
            first_seen=utc(delivery.received_s),
            persistent=properties.delivery_mode == PERSISTENT,
        )
        outgoing = Outgoing(topology.TASKS, delivery.subscription.queue, delivery.body, again)
        fate = await asyncio.wait_for(publisher.publish(outgoing), RENEW_CONFIRM_S)
        return fate is Published.CONFIRMED

    def _outgoing(self, settled: Settled) -> tuple[list[Outgoing], frozenset[Published]]:
        """What to publish, and the fates that are good enough.

        An answer that nobody waits for, or has no room for, is no reason to run the task again.
        """
        if settled.answer is not None and settled.outcome.ending is Ending.ACK:
            return [answer_of(settled)], frozenset({Published.CONFIRMED, Published.UNROUTABLE, Published.REFUSED})
        if settled.outcome.ending is Ending.ACK:
            return list(settled.outcome.followups.messages), frozenset({Published.CONFIRMED})
        return [self._successor(settled)], frozenset({Published.CONFIRMED})

    def _successor(self, settled: Settled) -> Outgoing:
        """The retry or the dead letter of a delivery."""
        outcome, delivery = settled.outcome, settled.delivery
        is_dead = outcome.ending is Ending.DEAD
        if is_dead:
            marks = {DIED_AT: utc(time.time()), DIED_ON: self._host}
        else:
            marks = {DELAY: format_duration(outcome.delay_s)}
        properties = republish(
            delivery.properties,
            changes={**outcome.headers, **marks},
            message_id=str(uuid.uuid4()),
            first_seen=utc(delivery.received_s),
            persistent=self._persistent or is_dead,
        )
        # A directed task comes back to its own host's queue, but dies where its consumer's dead letters lie.
        exchange, key = (topology.DEAD, self._work_queue) if is_dead else (topology.RETRY, delivery.subscription.queue)
        return Outgoing(exchange, key, delivery.body, properties)


def was_returned(delivery: Delivery) -> bool:
    """True when the broker has counted a return of this message already."""
    headers: Mapping[str, Any] = delivery.properties.headers or {}
    count = headers.get(DELIVERY_COUNT, 0)
    return isinstance(count, int) and count > 0


def answer_of(settled: Settled) -> Outgoing:
    """The answer of an `http` handler to the task's `reply_to`, with the upstream's status in `qctl-status`."""
    answer, asked = settled.answer, settled.delivery.properties
    assert answer is not None
    properties = answer_to(asked, message_id=str(uuid.uuid4()), content_type=answer.content_type, status=answer.status)
    return Outgoing("", asked.reply_to, answer.body, properties)
