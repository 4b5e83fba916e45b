"""Asking each host's supervisor who it is and how its processes are; who does not exist the broker returns at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Self

from qctl.broker.message import Outgoing, Properties
from qctl.broker.publisher import Published, Publisher
from qctl.broker.session import Connection
from qctl.control.host_answer import HostAnswer, host_queue, parse_answer
from qctl.ops.found import Silence

#: A supervisor answers within milliseconds; one that is stopped, or whose machine is gone, never does.
ANSWER_S = 1.0
#: How often it is looked whether the broker blocks what is published.
_LOOK_S = 0.05
#: The broker's pseudo-queue for answers, good for the channel that asks.
_REPLY_TO = "amq.rabbitmq.reply-to"

OnAnswer = Callable[[str, HostAnswer | Silence], None]


class Asker:
    """Asks over one channel, as often as one likes, one round after the other."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._moved = asyncio.Event()
        self._awaited: set[str] = set()
        self._arrived: set[str] = set()
        self._on_answer: OnAnswer = lambda _host, _answer: None

    @classmethod
    async def open(cls, connection: Connection) -> Self:
        """Raises ChannelLost."""
        publisher = await Publisher.open(connection)
        asker = cls(publisher)
        consumed = {"queue": _REPLY_TO, "on_message_callback": asker._deliver, "auto_ack": True}
        await publisher.channel.call("basic_consume", **consumed)
        return asker

    async def ask(self, hosts: Iterable[str], on_answer: OnAnswer) -> None:
        """Ask these hosts; `on_answer` is told of each what came of it, within ANSWER_S, at most once.

        Of none is told whom the question may not have reached: while the broker is blocked, or does not confirm. Raises
        ChannelLost.
        """
        self._awaited, self._on_answer = set(hosts), on_answer
        self._arrived.clear()
        connection = self._publisher.channel.connection
        deadline_s = time.monotonic() + ANSWER_S
        for host in sorted(self._awaited):
            if not self._publisher.room:
                await self._move(deadline_s)
            if connection.blocked or not self._publisher.room:
                break
            properties = Properties(reply_to=_REPLY_TO, message_id=host)
            self._publisher.send(Outgoing("", host_queue(host), b"", properties), self._fate_of(host))
        while self._awaited and not connection.blocked and time.monotonic() < deadline_s:
            if self._publisher.channel.closed.done():
                raise self._publisher.channel.closed.result()
            await self._move(deadline_s)
        if not connection.blocked:
            for host in self._awaited & self._arrived:
                on_answer(host, Silence.SILENT)

    def _deliver(self, _channel: object, _method: object, _properties: object, body: bytes) -> None:
        answer = parse_answer(body)
        if answer is not None and answer.host in self._awaited:
            self._awaited.discard(answer.host)
            self._on_answer(answer.host, answer)
        self._moved.set()

    def _fate_of(self, host: str) -> Callable[[Published], None]:
        def settle(fate: Published) -> None:
            if fate is Published.UNROUTABLE and host in self._awaited:
                self._awaited.discard(host)
                self._on_answer(host, Silence.ABSENT)
            elif fate is Published.CONFIRMED:
                self._arrived.add(host)
            self._moved.set()

        return settle

    async def _move(self, deadline_s: float) -> None:
        """Wait until something has come, but look soon whether the broker blocks."""
        self._moved.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._moved.wait(), max(0.0, min(_LOOK_S, deadline_s - time.monotonic())))
