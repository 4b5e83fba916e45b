"""pika's asynchronous core with the changes qctl needs; the one place that overrides what pika keeps to itself.

What is changed: deliveries between cancel and cancel-ok are handed over, frames are read so that no message can cost
the connection, writes are joined, and it is known when the broker was last heard.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any

import pika.channel
import pika.exceptions
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.adapters.utils.connection_workflow import AMQPConnectionWorkflow, AMQPConnectorAMQPHandshakeError

from qctl.broker.frames import read_frame

#: What one turn of the loop writes goes out in pieces of at most about this size.
WRITE_BYTES = 64 << 10
#: What one turn of the loop reads, at one go. pika reads 4 KiB at a time, 100 KiB a turn; at each of the 25 reads other
#: threads may take the interpreter for milliseconds, and whatever else the loop has to do waits.
READ_BYTES = 32 << 10


#: How a broker says no to a user, its password, or its access to the virtual host.
_REFUSALS = (
    pika.exceptions.AuthenticationError,
    pika.exceptions.ProbableAuthenticationError,
    pika.exceptions.ProbableAccessDeniedError,
)
_REFUSED_CODES = (403, 530)


def now_s() -> float:
    """Seconds that only grow, and go on while the machine sleeps where the system has such a clock."""
    boot_clock: int | None = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot_clock is None else time.clock_gettime(boot_clock)


class CoreWorkflow(AMQPConnectionWorkflow):  # type: ignore[misc]
    """pika's way through the addresses of a name, which ends where a login is refused: all are the same broker."""

    def _on_connector_done(self, conn_or_exc: Any) -> None:
        if isinstance(conn_or_exc, AMQPConnectorAMQPHandshakeError):
            why = conn_or_exc.exception
            if isinstance(why, _REFUSALS) or getattr(why, "reply_code", 0) in _REFUSED_CODES:
                self._until_first_amqp_attempt = True
        super()._on_connector_done(conn_or_exc)


class CoreChannel(pika.channel.Channel):  # type: ignore[misc]
    """pika's channel, which hands over what arrives between cancel and cancel-ok instead of rejecting it.

    A reject counts as a failed delivery and takes messages of a queue with a delivery limit to their death.
    """

    def _on_deliver(self, method_frame: Any, header_frame: Any, body: bytes) -> None:
        consumer = self._consumers.get(method_frame.method.consumer_tag)
        if consumer is not None:
            consumer(self, method_frame.method, header_frame.properties, body)


class CoreConnection(AsyncioConnection):  # type: ignore[misc]
    """pika's connection, which notes when it last heard anything, heartbeats included; reads and writes larger pieces.

    pika makes a system call of every frame, three of every publish, and one of every 4 KiB it reads.
    heard_at_s: of `now_s`. patience_s: what comes after a silence of that length is not taken in and does not end it;
    on_late is called instead. A process that was stopped finds old heartbeats in its socket, and the broker has given
    up on it meanwhile.
    """

    heard_at_s: float = 0.0
    patience_s: float = math.inf
    on_late: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, *arguments: Any, **more: Any) -> None:
        self._unwritten: list[bytes] = []
        self._unwritten_bytes = 0
        super().__init__(*arguments, **more)

    def _proto_connection_made(self, transport: Any) -> None:
        transport._MAX_RECV_BYTES = transport._MAX_CONSUME_BYTES = READ_BYTES  # noqa: SLF001
        super()._proto_connection_made(transport)

    def _adapter_emit_data(self, data: bytes) -> None:
        if not self._unwritten:
            asyncio.get_running_loop().call_soon(self._write)
        self._unwritten.append(data)
        self._unwritten_bytes += len(data)
        if self._unwritten_bytes >= WRITE_BYTES:
            self._write()

    def _write(self) -> None:
        pieces, self._unwritten, self._unwritten_bytes = self._unwritten, [], 0
        if pieces and self._transport is not None:
            super()._adapter_emit_data(b"".join(pieces))

    def _create_channel(self, channel_number: int, on_open_callback: Any) -> CoreChannel:
        return CoreChannel(self, channel_number, on_open_callback)

    def _read_frame(self) -> tuple[int, Any]:
        return read_frame(self._frame_buffer)

    def _on_data_available(self, data_in: bytes) -> None:
        heard_at_s = now_s()
        if heard_at_s - self.heard_at_s >= self.patience_s:
            self.on_late()
            return
        self.heard_at_s = heard_at_s
        super()._on_data_available(data_in)
