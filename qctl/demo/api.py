"""The rate-limited API: `python -m qctl.demo.api --config JSON`, one port per server, a process of its own.

    {"log": PATH, "latency_ms": 25,
     "servers": [{"host": "web-1", "port": 0, "limit_units": 200, "window_ms": 60000}, ...]}

Port 0 takes a free one. When all are bound it writes one line to stdout, `{"v": 1, "ports": {"web-1": 40123}}`, and
serves until SIGTERM, SIGINT or the end of its stdin, so it never outlives whoever started it.

Each call is stamped with this process's monotonic clock when its last byte has arrived, ruled on at once, and appended
to the log before it is answered: `{"at_ns", "host", "port", "method", "path", "task", "status"}`. Answers are 200, or
429 with Retry-After past the limit, after the latency. A refused call does not count. `x-rate-limit-reset` is the
second in which the oldest counted call leaves the window, that is when there is more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, cast

from qctl.demo.limit import SlidingLimit
from qctl.demo.request import MAX_BODY_BYTES, MAX_HEAD_BYTES, BadRequestError, Request, take

#: More connections to one port than this are closed at once.
MAX_CONNECTIONS = 2048
#: Longer than any hold of the scenario, so that a client's idle connection is not closed just as it is used again.
IDLE_S = 600.0
SWEEP_S = 30.0
_REASONS = {200: "OK", 400: "Bad Request", 411: "Length Required", 413: "Content Too Large", 429: "Too Many Requests",
            431: "Request Header Fields Too Large"}  # fmt: skip
_BUFFER_BYTES = MAX_HEAD_BYTES + MAX_BODY_BYTES


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """One server of the API: the host it serves, its port (0: a free one), and its limit in a sliding window."""

    host: str
    port: int
    limit_units: int
    window_ms: int


@dataclass(frozen=True, slots=True)
class ApiConfig:
    """What the process is told on its command line; `latency_ms` passes before each answer."""

    log: str
    latency_ms: int
    servers: tuple[ServerConfig, ...]

    @classmethod
    def from_json(cls, text: str) -> ApiConfig:
        """Parse the argument of `--config`. Raises ValueError, KeyError or TypeError when it is not of that form."""
        raw = json.loads(text)
        return cls(str(raw["log"]), int(raw["latency_ms"]), tuple(ServerConfig(**server) for server in raw["servers"]))


class Server:
    """One port: its limit, its connections, and a line in the log for each call."""

    def __init__(self, config: ServerConfig, *, log_fd: int, latency_s: float) -> None:
        self.host = config.host
        self.port = config.port
        self.latency_s = latency_s
        self.connections: set[Connection] = set()
        self._limit = SlidingLimit(limit_units=config.limit_units, window_ns=config.window_ms * 1_000_000)
        self._log_fd = log_fd

    def rule(self, request: Request) -> bytes:
        """Rule on a call that has arrived now, log it, and return the whole answer."""
        now_ns = time.monotonic_ns()
        ruling = self._limit.call(now_ns)
        status = 200 if ruling.granted else 429
        line = {"at_ns": now_ns, "host": self.host, "port": self.port, "method": request.method, "path": request.path,
                "task": request.task, "status": status}  # fmt: skip
        os.write(self._log_fd, json.dumps(line, separators=(",", ":")).encode() + b"\n")
        reset_in_s = -(-ruling.reset_in_ns // 1_000_000_000)
        headers = {
            "x-rate-limit-limit": self._limit.limit_units,
            "x-rate-limit-remaining": ruling.remaining_units,
            "x-rate-limit-reset": int(-(-(time.time_ns() + ruling.reset_in_ns) // 1_000_000_000)),
        }
        if ruling.granted:
            body: dict[str, Any] = {"host": self.host, "path": request.path, "task": request.task}
        else:
            headers["Retry-After"] = max(1, reset_in_s)
            body = {"error": "rate limit exceeded"}
        return answer(status, body, headers, keep_alive=request.keep_alive, head_only=request.method == "HEAD")


def answer(
    status: int, body: Mapping[str, Any], headers: Mapping[str, int], *, keep_alive: bool, head_only: bool = False
) -> bytes:
    """The bytes of one answer with a JSON body."""
    content = json.dumps(body, separators=(",", ":")).encode()
    extra = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nDate: {formatdate(usegmt=True)}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: {'keep-alive' if keep_alive else 'close'}\r\n{extra}\r\n"
    )
    return head.encode("latin-1") + (b"" if head_only else content)


class Connection(asyncio.Protocol):
    """One client: requests are answered in order, one at a time, each after the latency."""

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop
        self._buffer = bytearray()
        self._answering = False
        self._transport: asyncio.Transport | None = None
        self.quiet_since_s = loop.time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if len(self._server.connections) >= MAX_CONNECTIONS:
            self.abort()
            return
        self._server.connections.add(self)

    def connection_lost(self, _: Exception | None) -> None:
        self._transport = None
        self._server.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        self.quiet_since_s = self._loop.time()
        self._buffer += data
        if not self._answering:
            self._next()
        if self._transport is not None and len(self._buffer) > _BUFFER_BYTES:
            self._transport.pause_reading()

    def abort(self) -> None:
        """Close at once, whatever is pending."""
        if self._transport is not None:
            self._transport.abort()

    def _next(self) -> None:
        try:
            request = take(self._buffer)
        except BadRequestError as problem:
            self._buffer.clear()
            self._answer(answer(problem.status, {"error": problem.reason}, {}, keep_alive=False), keep_alive=False)
            return
        if request is None:
            return
        self._answering = True
        reply = self._server.rule(request)
        self._loop.call_later(self._server.latency_s, self._answer, reply, request.keep_alive)

    def _answer(self, reply: bytes, keep_alive: bool) -> None:
        self._answering = False
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self.quiet_since_s = self._loop.time()
        transport.write(reply)
        if not keep_alive:
            transport.close()
            return
        transport.resume_reading()
        if self._buffer:
            self._next()


class _EndOfInput(asyncio.Protocol):
    def __init__(self, end: Callable[[], None]) -> None:
        self._end = end

    def connection_lost(self, _: Exception | None) -> None:
        self._end()


async def serve(config: ApiConfig) -> int:
    """Bind all ports, say which on stdout, serve until told to end; returns the exit status."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    failures: list[str] = []

    def failed(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # A log with a missing line would acquit whoever made the call: rather no judge than a wrong one.
        failures.append(f"{context.get('message')}: {context.get('exception')!r}")
        ended.set()

    loop.set_exception_handler(failed)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    log_fd = os.open(config.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    servers = [Server(one, log_fd=log_fd, latency_s=config.latency_ms / 1000) for one in config.servers]
    listeners = []
    for server in servers:
        listener = await loop.create_server(_factory(server, loop), "127.0.0.1", server.port, backlog=MAX_CONNECTIONS)
        server.port = listener.sockets[0].getsockname()[1]
        listeners.append(listener)
    await loop.connect_read_pipe(lambda: _EndOfInput(ended.set), sys.stdin)
    ready = {"v": 1, "ports": {server.host: server.port for server in servers}}
    os.write(1, json.dumps(ready).encode() + b"\n")
    sweeping = loop.create_task(_sweep(servers))
    await ended.wait()
    sweeping.cancel()
    for listener in listeners:
        listener.close()
    for server in servers:
        for connection in tuple(server.connections):
            connection.abort()
    os.close(log_fd)
    for failure in failures:
        os.write(2, f"{failure}\n".encode(errors="backslashreplace"))
    return 1 if failures else 0


def _factory(server: Server, loop: asyncio.AbstractEventLoop) -> Callable[[], Connection]:
    return lambda: Connection(server, loop)


async def _sweep(servers: list[Server]) -> None:
    while True:
        await asyncio.sleep(SWEEP_S)
        oldest_s = asyncio.get_running_loop().time() - IDLE_S
        for server in servers:
            for connection in tuple(server.connections):
                if connection.quiet_since_s < oldest_s:
                    connection.abort()


def main() -> int:
    """The process; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m qctl.demo.api", description="A rate-limited API with a log.")
    parser.add_argument("--config", required=True, help="the JSON described at the top of this module")
    arguments = parser.parse_args()
    try:
        config = ApiConfig.from_json(arguments.config)
    except (ValueError, KeyError, TypeError) as problem:
        parser.error(f"--config is not of the form described at the top of this module: {problem}")
    return asyncio.run(serve(config))


if __name__ == "__main__":
    sys.exit(main())
