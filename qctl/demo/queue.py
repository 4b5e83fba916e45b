"""What the broker says of the scenario's queue: how many tasks wait and how many consumers are subscribed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import TracebackType

from qctl.broker.connect import Login, connect
from qctl.broker.local import NodeInfo
from qctl.broker.session import Channel, ChannelLost, Connection
from qctl.errors import QctlError
from qctl.inventory.model import Endpoint


@dataclass(frozen=True, slots=True)
class QueueReading:
    """One look at a queue: tasks that wait in it, and the consumers that are subscribed to it."""

    ready: int
    consumers: int


class QueueProbe:
    """Passive looks at one queue over one connection. Its loop runs only during a look, which serves heartbeats too."""

    def __init__(self, node: NodeInfo, queue: str) -> None:
        endpoint = Endpoint(host="127.0.0.1", port=node.amqp_port, tls=False, vhost="/")
        self._login = Login((endpoint,), node.username, node.password)
        self._queue = queue
        self._runner = asyncio.Runner()
        self._connection: Connection | None = None
        self._channel: Channel | None = None

    def __enter__(self) -> QueueProbe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is not None:
            self._runner.run(self._connection.close())
        self._runner.close()

    def read(self) -> QueueReading | None:
        """One look; None while the queue does not exist or the broker does not answer."""
        try:
            return self._runner.run(self._read())
        except (ChannelLost, QctlError):
            return None

    async def _read(self) -> QueueReading:
        if self._connection is None or not self._connection.is_open:
            self._connection = await connect(self._login, name="qctl demo")
        if self._channel is None or not self._channel.is_open:
            self._channel = await self._connection.channel()
        reply = await self._channel.call("queue_declare", queue=self._queue, passive=True)
        return QueueReading(ready=reply.method.message_count, consumers=reply.method.consumer_count)
