"""A TCP proxy that breaks as networks do: reset, half-closed, deaf, slow, lossy, narrow, cut in the middle.

Each way (UP is towards the server, DOWN is back to the client) is a road with a gate, a delay and a width of its own;
what is set holds for the connections there are and for those that come.
"""

from __future__ import annotations

import asyncio
import enum
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

#: Bytes that one way of one connection may have in the proxy: beyond, the sender has to wait, as on a real road.
MAX_ON_THE_WAY_BYTES = 256 << 10
CHUNK_BYTES = 4 << 10
#: What a lost packet costs: the sender sends it again after this long.
RETRANSMIT_S = 0.2
_RESET = struct.pack("ii", 1, 0)
T = TypeVar("T")


class Way(enum.Enum):
    """The two ways of a connection."""

    UP = "up"
    DOWN = "down"


@dataclass(slots=True)
class Road:
    """How one way is now. `bytes_per_s` 0: as wide as it goes. `loss`: the share of chunks that come late."""

    delay_s: float = 0.0
    bytes_per_s: int = 0
    loss: float = 0.0
    cut_after_bytes: int | None = None
    open: asyncio.Event = field(default_factory=asyncio.Event)


class Proxy:
    """A context manager. It has its port from the start and listens from `listen` on; `Proxy.to(PORT)` does at once."""

    def __init__(self, port: int, *, host: str = "127.0.0.1", listen_on: str = "127.0.0.1") -> None:
        """host, port: where it leads to."""
        self._target = (host, port)
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind((listen_on, 0))
        self.host = listen_on
        self.port: int = self._reserved.getsockname()[1]
        self._roads = {way: Road() for way in Way}
        self._links: set[_Link] = set()
        self._random = random.Random(7)
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        for road in self._roads.values():
            road.open.set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()

    @classmethod
    def to(cls, port: int, *, listen_on: str = "127.0.0.1") -> Proxy:
        """A proxy that listens already."""
        proxy = cls(port, listen_on=listen_on)
        proxy.listen()
        return proxy

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._reserved.close()

    # What can be done to it

    def listen(self) -> None:
        """From now on there is somebody at the port."""
        self._run(self._listen())

    def hold(self, *ways: Way) -> None:
        """A black hole: nothing comes through these ways, and nobody is told. New connections open into it."""
        self._set(lambda road: road.open.clear(), ways)

    def release(self, *ways: Way) -> None:
        """It comes through again, what was held first."""
        self._set(lambda road: road.open.set(), ways)

    def delay(self, seconds: float, *ways: Way) -> None:
        """Everything takes this much longer on each of these ways."""
        self._set(lambda road: setattr(road, "delay_s", seconds), ways)

    def narrow(self, bytes_per_s: int, *ways: Way) -> None:
        """Each of these ways carries at most this much, all connections for themselves; 0: as much as it can."""
        self._set(lambda road: setattr(road, "bytes_per_s", bytes_per_s), ways)

    def lose(self, share: float, *ways: Way) -> None:
        """This share of what is sent comes late by a retransmission, and all behind it too: TCP's view of loss."""
        self._set(lambda road: setattr(road, "loss", share), ways)

    def cut_after(self, count_bytes: int | None, way: Way) -> None:
        """Each connection is reset once so many bytes more came through this way; None: not any more."""
        self._set(lambda road: setattr(road, "cut_after_bytes", count_bytes), (way,))

    def reset(self) -> int:
        """Reset every connection, both sides; how many there were."""
        return self._run(self._each(_Link.reset))

    def half_close(self, way: Way) -> int:
        """End one way of every connection, as a peer that only shuts down its sending side; how many there were."""
        return self._run(self._each(lambda link: link.end(way)))

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        return len(self._links)

    # How it does it, on its own thread

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def _set(self, change: Callable[[Road], object], ways: tuple[Way, ...]) -> None:
        async def apply() -> None:
            for way in ways or tuple(Way):
                change(self._roads[way])

        self._run(apply())

    async def _each(self, act: Callable[[_Link], object]) -> int:
        links = tuple(self._links)
        for link in links:
            act(link)
        return len(links)

    async def _listen(self) -> None:
        self._reserved.setblocking(False)
        self._server = await asyncio.start_server(self._serve, sock=self._reserved)

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
        for link in tuple(self._links):
            link.reset()
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            _abort(writer)
            return
        link = _Link(writer, far_writer)
        self._links.add(link)
        try:
            await asyncio.gather(
                self._carry(reader, far_writer, Way.UP, link),
                self._carry(far_reader, writer, Way.DOWN, link),
            )
        except asyncio.CancelledError:
            link.reset()
        finally:
            self._links.discard(link)
            for one in (writer, far_writer):
                one.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way, link: _Link) -> None:
        """One way of one connection, until its end."""
        loop, road = asyncio.get_running_loop(), self._roads[way]
        belt: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(MAX_ON_THE_WAY_BYTES // CHUNK_BYTES)

        async def take_in() -> None:
            data = b"..."
            while data:
                try:
                    data = await reader.read(CHUNK_BYTES)
                except OSError:
                    link.reset()
                    data = b""
                await belt.put((loop.time() + road.delay_s, data))

        taking = loop.create_task(take_in())
        try:
            while True:
                due_s, data = await belt.get()
                await asyncio.sleep(max(0.0, due_s - loop.time()))
                await road.open.wait()
                if road.loss and self._random.random() < road.loss:
                    await asyncio.sleep(RETRANSMIT_S)
                if road.bytes_per_s:
                    await asyncio.sleep(len(data) / road.bytes_per_s)
                if not data:
                    link.end(way)
                    break
                if way in link.ended:
                    continue  # nobody can say anything this way any more
                if road.cut_after_bytes is not None:
                    link.carried_bytes += len(data)
                    if link.carried_bytes >= road.cut_after_bytes:
                        writer.write(data[: road.cut_after_bytes - link.carried_bytes or None])
                        await writer.drain()
                        link.reset()
                        return
                writer.write(data)
                await writer.drain()
        except OSError:
            link.reset()
        finally:
            taking.cancel()


class _Link:
    """Both sides of one connection."""

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self.near, self.far = near, far
        self.carried_bytes = 0
        self.ended: set[Way] = set()

    def reset(self) -> None:
        _abort(self.near)
        _abort(self.far)

    def end(self, way: Way) -> None:
        self.ended.add(way)
        with suppress(OSError, RuntimeError):
            (self.far if way is Way.UP else self.near).write_eof()


def _abort(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
